"""One strip: lines without a change of format, through streamer and tracker, to events with line numbers."""

from __future__ import annotations

import bisect
import itertools
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .history import RowHistory
from .observer import Event
from .ring import RowView
from .tracker import DefectEvent, DefectTracker

_MARGIN = 16  # pixels around a defect in its thumbnail
_THUMBNAIL = 256  # pixels of its longer side, at most
_WIDTH = 256  # of a streamer that is made before a line has come


class Streamer(Protocol):
    """Lines to maps: :class:`RowStreamer`, :class:`TiledStreamer`, or anything of their kind."""

    @property
    def delay_rows(self) -> int: ...
    def push(self, rows: Tensor) -> Tensor: ...
    def finish(self) -> Tensor: ...


def streamer_factory(
    model: Any, threshold: float | None, overlap: int | None, options: dict[str, Any]
) -> tuple[Callable[[int], Streamer], float]:
    """What makes the streamer of a width, and the threshold; see :class:`Inspector`.

    Args:
        model: a detector, a bundle's or an archive's path, or a function.
        threshold: None: the detector's, or the archive's.
        overlap: of tiles; None: no tiles.
        options: of the streamer.

    Raises:
        UsageError: no threshold, or one that is not finite; an option that does not fit the model.
        StadfastError: the detector is not fitted.
    """
    if not isinstance(model, (str, os.PathLike)) and not hasattr(model, "graph_") and callable(model):
        if threshold is None:
            raise UsageError("threshold: expected one, as there is no detector to have it from")
        return model, float(threshold)
    from ..methods import load
    from ..runtime.archive import read_metadata
    from .native import graph_of, is_archive
    from .streamer import RowStreamer
    from .tiles import TiledStreamer

    if is_archive(model):
        if overlap is not None:
            raise UsageError(f"overlap: tiles need a detector or its bundle, got the archive {model}")
        detector = model
        threshold = read_metadata(model)["pixel_threshold"] if threshold is None else threshold
    else:
        detector = load(model, device="cpu") if isinstance(model, (str, os.PathLike)) else model
        graph_of(detector)  # its error, if it is not fitted
        threshold = detector.pixel_threshold_ if threshold is None else threshold
    if not math.isfinite(threshold):
        raise UsageError(f"threshold: expected a finite number, got {threshold!r}")
    flat_field = options["flat_field"]
    width = _WIDTH if flat_field is None else flat_field.gain.shape[-1]
    # Made before the first line comes: nothing waits for it then, and an option that does not fit is known at once.
    if overlap is not None:
        TiledStreamer(detector, width, overlap=overlap, **options)
        return lambda width: TiledStreamer(detector, width, overlap=overlap, **options), float(threshold)
    streamer = RowStreamer(detector, width, **options)

    def of_width(width: int) -> Streamer:
        streamer.set_width(width, flat_field)
        return streamer

    return of_width, float(threshold)


class Piece(NamedTuple):
    """Map rows that are new, and the lines they belong to."""

    image: np.ndarray
    map: np.ndarray
    first_line: int


class Strip:
    """Takes the ring's views in order and says what was found.

    Lost lines are closed up: the network sees the lines on both sides as neighbours, so that the work does not grow
    just where there is too much of it; their numbers go on counting, so that places stay right.

    Args:
        streamer: at the beginning of a strip.
        tracker: new.
        number: the strip's own, for its events.
        first_line: number of its first line.
        first_id: of its first event.
        pitch: mm of a pixel (along, across), or None.
        history: lines kept for thumbnails; enough for the delay is kept anyhow.
        counted: whether the source has an encoder; else the ring's counts are of its lines.
    """

    def __init__(
        self, streamer: Streamer, tracker: DefectTracker, number: int, first_line: int, first_id: int,
        pitch: tuple[float, float] | None, history: int, *, counted: bool = True,
    ) -> None:  # fmt: skip
        self._streamer, self._tracker, self._number = streamer, tracker, number
        self._first_line, self._first_id, self._pitch, self._counted = first_line, first_id, pitch, counted
        kept = history + 2 * streamer.delay_rows
        self._images, self._times, self._encoder = RowHistory(kept), RowHistory(kept), RowHistory(kept)
        self._maps = RowHistory(kept)
        # From the strip's row _starts[i] on, lines are numbered from _numbers[i] on.
        self._starts, self._numbers = [0], [first_line]
        self.delay_rows = streamer.delay_rows
        self._clock = time.time_ns() - time.monotonic_ns()
        self.next_id = first_id
        self.newest = 0  # ns, when the line of the newest map row was taken

    def push(self, view: RowView) -> list[Event]:
        """The next lines of the ring; the view is released."""
        row, lines = self._images.end, view.lines
        jumps = np.flatnonzero(np.diff(lines) != 1) + 1
        for jump in [0, *jumps.tolist()]:
            number = self._first_line + int(lines[jump])
            if number != self.line_of(row + jump):
                self._starts.append(row + jump)
                self._numbers.append(number)
        image = np.array(view.rows)
        self._times.append(view.timestamps.copy())
        self._encoder.append(view.encoder.copy())
        self._images.append(image)
        view.release()  # before the work begins: the ring has its room back
        return self._track(self._streamer.push(as_tensor(image)))

    def finish(self) -> list[Event]:
        """The strip ends: what was still inside comes out."""
        return self._track(self._streamer.finish()) + self.close()

    def close(self) -> list[Event]:
        """No more map rows: every event that is open closes; one that reaches the last row is cut off."""
        last = self._tracker.rows
        return [self._event(found, cut_off=found.rows[1] == last) for found in self._tracker.finish()]

    def pieces(self, since: int) -> list[Piece]:
        """The map rows from the strip's row ``since`` on, cut where lines are missing."""
        cuts = [since, *(start for start in self._starts if since < start < self._maps.end), self._maps.end]
        return [
            Piece(self._images.cut(a, b), self._maps.cut(a, b), self.line_of(a))
            for a, b in itertools.pairwise(cuts)
            if a < b
        ]

    @property
    def rows(self) -> int:
        """Map rows so far."""
        return self._maps.end

    def line_of(self, row: int) -> int:
        """The line's number of a row of the strip."""
        at = bisect.bisect_right(self._starts, row) - 1
        return self._numbers[max(at, 0)] + row - self._starts[max(at, 0)]

    # ---------------------------------------------------------------- details

    def _track(self, maps: Tensor) -> list[Event]:
        if maps.shape[2] == 0:
            return []
        before = self._maps.end
        scores = maps[0, 0].cpu().numpy()
        self._maps.append(scores)
        self.newest = int(self._times.cut(self._maps.end - 1, self._maps.end)[0])
        events = [self._event(event) for event in self._tracker.push(scores)]
        # Beginnings of lines that no event can still ask for; one that covers the oldest open row stays.
        oldest = min(self._tracker.first_open_row, before) - self.delay_rows
        known = bisect.bisect_right(self._starts, oldest) - 1
        if known > 0:
            del self._starts[:known], self._numbers[:known]
        return events

    def _event(self, found: DefectEvent, *, cut_off: bool = False) -> Event:
        first, end = found.rows
        lines = (self.line_of(first), self.line_of(end - 1) + 1)
        along = self._pitch[0] if self._pitch else None
        defect = replace(
            found,
            id=self._first_id + found.id,
            rows=lines,
            rows_mm=None if along is None else (lines[0] * along, lines[1] * along),
            peak_position=(self.line_of(found.peak_position[0]), found.peak_position[1]),
            absorbed=tuple(self._first_id + number for number in found.absorbed),
        )
        self.next_id = max(self.next_id, defect.id + 1)
        times = self._at(self._times, first, end - 1)
        near = (first - self.delay_rows, end + self.delay_rows)
        return Event(
            defect, self._number,
            first_time=(times[0] + self._clock) / 1e9,
            last_time=(times[1] + self._clock) / 1e9,
            delay=(time.monotonic_ns() - times[1]) / 1e9,
            encoder=self._at(self._encoder, first, end - 1) if self._counted else None,
            at_gap=any(near[0] < start < near[1] for start in self._starts if start),
            cut_off=cut_off,
            **self._thumbnail(found),
        )  # fmt: skip

    @staticmethod
    def _at(history: RowHistory, first: int, last: int) -> tuple[int, int]:
        """The numbers at two rows, or at the oldest that is kept."""
        first, last = max(first, history.first), max(last, history.first)
        return int(history.cut(first, first + 1)[0]), int(history.cut(last, last + 1)[0])

    def _thumbnail(self, found: DefectEvent) -> dict[str, Any]:
        first = max(found.rows[0] - _MARGIN, self._images.first, self._maps.first)
        end = min(found.rows[1] + _MARGIN, self._maps.end)
        if first >= min(found.rows[1], end):
            return {}
        left, right = max(found.columns[0] - _MARGIN, 0), found.columns[1] + _MARGIN
        step = -(-max(end - first, right - left) // _THUMBNAIL)
        columns = slice(left, right, step)
        image = self._images.cut(first, end, columns, step)
        return {
            "thumbnail": (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image,
            "thumbnail_map": self._maps.cut(first, end, columns, step),
            "thumbnail_lines": (self.line_of(first), self.line_of(end - 1) + 1),
            "thumbnail_columns": (left, left + (image.shape[1] - 1) * step + 1),
            "thumbnail_step": step,
        }


def as_tensor(rows: np.ndarray) -> Tensor:
    """(n, W, 1 or 3) uint8 or uint16 -> (1, 3, n, W), uint8 or float32 in [0, 1]."""
    if rows.dtype == np.uint16:
        rows = rows.astype(np.float32) / np.float32(65535)
    return torch.from_numpy(rows).permute(2, 0, 1)[None].expand(-1, 3, -1, -1)
