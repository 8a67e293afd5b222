"""The moving strip: the newest lines and their map, drawn down to the page's width."""

from __future__ import annotations

import json
import threading
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from ..pictures import eight_bits, heat_png, jpeg, levels

_COLUMNS = 960  # of the drawn strip, at most
_ROWS = 960
_BREAK_ROWS = 10  # the band where the strip is interrupted
_WAITING_BYTES = 64 << 20  # of lines that nobody has drawn yet


class Frame(NamedTuple):
    """A picture of the strip.

    Attributes:
        number: of the last rows in it.
        body: four bytes, the length of what follows (big endian): a JSON object; an image as JPEG; its map as PNG. The
            object has ``image`` and ``map`` (bytes of each), ``rows`` and ``columns`` (of the pictures), ``most_rows``
            (that there can be), ``scale`` (lines and columns of the strip in a pixel), ``segments`` ([row, rows, first
            line, end line], ...) and ``breaks`` ([row, rows, words], ...); rows count from the top, the newest is the
            last, and what has left the picture has negative ones.
    """

    number: int
    body: bytes


class Waterfall:
    """Takes lines from the inspector's thread, cheaply, and draws them in another one's, if somebody looks.

    What waits to be drawn is bounded: if more comes, or nobody looks, the oldest lines are left out, and the picture
    says so. An image is averaged over ``scale`` x ``scale`` pixels, a map's maximum is taken, so that no defect is too
    small to be seen.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[tuple[np.ndarray, np.ndarray, int] | str] = deque()
        self._bytes = self._lines = self._skipped = 0
        self._number = self._drawn_number = 0  # calls of add: all, and those in the newest frame
        self._wanted = self._ended = False
        self._frame: Frame | None = None
        self._threshold = 1.0
        self._clear()

    # ---------------------------------------------------------------- the inspector's thread

    def begin(self, threshold: float) -> None:
        """Another run: its strip begins."""
        with self._changed:
            self._waiting.clear()
            self._bytes = self._lines = self._skipped = 0
            self._threshold, self._ended = threshold, False
        self.interrupt("a run begins")

    def add(self, image: np.ndarray, map: np.ndarray, first_line: int) -> None:
        """Lines as :meth:`Sink.rows` has them; they are kept, not copied."""
        with self._changed:
            self._waiting.append((image, map, first_line))
            self._bytes += image.nbytes + map.nbytes
            self._lines += len(image)
            most = _ROWS * _scale(image.shape[1]) + len(image)
            while (self._bytes > _WAITING_BYTES or self._lines > most) and len(self._waiting) > 1:
                oldest = self._waiting.popleft()
                if not isinstance(oldest, str):
                    self._bytes -= oldest[0].nbytes + oldest[1].nbytes
                    self._lines -= len(oldest[0])
                    self._skipped += len(oldest[0])
            self._number += 1
            if self._wanted:
                self._changed.notify_all()

    def interrupt(self, words: str) -> None:
        """The next lines do not belong to those before them."""
        with self._changed:
            if len(self._waiting) < 1000 and (not self._waiting or self._waiting[-1] != words):
                self._waiting.append(words)

    # ---------------------------------------------------------------- those who look

    def newest(self, after: int, timeout: float) -> Frame | None:
        """The newest frame, once there is one later than number ``after``; None if there is none in time."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or self._later(after), timeout)
            return self._frame if self._later(after) else None

    def end(self) -> None:
        """Nobody waits any longer."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _later(self, number: int) -> bool:
        return self._frame is not None and self._frame.number > number

    # ---------------------------------------------------------------- the painter's thread

    def paint(self, timeout: float) -> bool:
        """Make a frame if somebody waits for one and lines have come, within ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted and self._drawn_number < self._number, timeout)
            if not self._wanted or self._drawn_number >= self._number:
                return False
            waiting, self._waiting = self._waiting, deque()
            skipped, self._skipped, self._bytes, self._lines = self._skipped, 0, 0, 0
            number, threshold, self._wanted = self._number, self._threshold, False
        for item in waiting:
            if isinstance(item, str):
                self._break(item)
            else:
                self._draw(*item, skipped, threshold)
                skipped = 0
        self._drawn_number = number
        frame = Frame(number, self._picture())
        with self._changed:
            self._frame = frame
            self._changed.notify_all()
        return True

    def _clear(self, width: int = 0, channels: int = 0) -> None:
        """An empty strip of lines of this format."""
        self._format, self._scale = (width, channels), _scale(width)
        columns = -(-width // self._scale)
        self._image = np.empty((0, columns, 3) if channels == 3 else (0, columns), np.uint8)
        self._heat = np.empty((0, columns), np.uint8)
        self._rest: tuple[np.ndarray, np.ndarray] | None = None  # lines that do not fill a row yet
        self._end = 0  # rows drawn so far; the last of them are in the picture
        self._segments: deque[list[int]] = deque()
        self._breaks: deque[tuple[int, str]] = deque()
        self._fresh = True  # whether the next lines begin a segment

    def _draw(self, image: np.ndarray, map: np.ndarray, first: int, skipped: int, threshold: float) -> None:
        if (image.shape[1], image.shape[2]) != self._format:
            self._clear(image.shape[1], image.shape[2])
        if self._segments:
            missing = first - self._segments[-1][3]
            lost = missing - skipped
            words = [f"{skipped:,} lines not drawn"] * (skipped > 0) + [f"{lost:,} lines lost"] * (lost > 0)
            if words or (missing and not self._fresh):
                self._break(", ".join(words) or "another strip")
        if self._fresh:
            self._segments.append([self._end, 0, first, first])
            self._fresh = False
        self._segments[-1][3] += len(image)
        image = eight_bits(image)
        if self._rest is not None:
            image, map = np.concatenate([self._rest[0], image]), np.concatenate([self._rest[1], map])
        whole = len(image) - len(image) % self._scale
        self._rest = (image[whole:], map[whole:]) if whole < len(image) else None
        if whole:
            self._append(image[:whole], map[:whole], threshold)

    def _append(self, image: np.ndarray, map: np.ndarray, threshold: float) -> None:
        from PIL import Image

        if self._scale > 1:
            image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).reduce(self._scale))
            map = _largest(map, self._scale)
        self._segments[-1][1] += len(image)
        self._scroll(image, levels(map, threshold))

    def _break(self, words: str) -> None:
        if not self._segments:
            return
        self._fresh = True
        if self._rest is not None:  # a last row of fewer lines
            image, map = self._rest
            self._rest = None
            missing = self._scale - len(image)
            repeat = [(0, missing)] + [(0, 0)] * (image.ndim - 1)
            self._append(np.pad(image, repeat, "edge"), np.pad(map, repeat[:2], "edge"), self._threshold)
        if (
            self._breaks and self._breaks[-1][0] + _BREAK_ROWS == self._end
        ):  # two breaks without a row between
            self._breaks[-1] = (self._breaks[-1][0], f"{self._breaks[-1][1]}; {words}"[:200])
            return
        self._breaks.append((self._end, words))
        self._scroll(*(np.zeros((_BREAK_ROWS, *of.shape[1:]), np.uint8) for of in (self._image, self._heat)))

    def _scroll(self, image: np.ndarray, heat: np.ndarray) -> None:
        self._end += len(image)
        self._image = np.concatenate([self._image, image])[-_ROWS:]
        self._heat = np.concatenate([self._heat, heat])[-_ROWS:]
        first = self._end - len(self._image)
        while self._breaks and self._breaks[0][0] + _BREAK_ROWS <= first:
            self._breaks.popleft()
        while len(self._segments) > 1 and self._segments[0][0] + self._segments[0][1] <= first:
            self._segments.popleft()

    def _picture(self) -> bytes:
        image, map = (jpeg(self._image), heat_png(self._heat)) if len(self._image) else (b"", b"")
        top = self._end - len(self._image)
        head: dict[str, Any] = {
            "image": len(image), "map": len(map), "scale": self._scale, "rows": len(self._image), "most_rows": _ROWS,
            "columns": self._heat.shape[1],
            "segments": [[row - top, *rest] for row, *rest in self._segments],
            "breaks": [[row - top, _BREAK_ROWS, words] for row, words in self._breaks],
        }  # fmt: skip
        words = json.dumps(head).encode()
        return len(words).to_bytes(4, "big") + words + image + map


def _scale(width: int) -> int:
    """Pixels of a line that become one."""
    return max(-(-width // _COLUMNS), 1)


def _largest(map: np.ndarray, scale: int) -> np.ndarray:
    """(h, w) -> (h / scale, w / scale, rounded up): the maxima of squares."""
    rows = map.reshape(-1, scale, map.shape[1]).max(1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % scale)), "edge")
    return rows.reshape(len(rows), -1, scale).max(2)
