"""Lines from image files: in order, or as they appear in a folder."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...errors import DataError, SourceError, UsageError
from ..arguments import check_positive
from .base import NOTHING, Block, Notice, Source, natural_order

_POLL_S = 0.1


class ImageFiles(Source):
    """The rows of image files, one file below the other, in the natural order of their names.

    A file that cannot be read is left out, with a notice.

    Args:
        paths: an image file, a folder (with its sub-folders), or a list of these.
        repeat: begin again after the last one, without end.
        block: lines handed out at once.

    Raises:
        DataError: no such path, or no image in it.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        repeat: bool = False,
        block: int = 64,
    ) -> None:
        from ...data import list_images

        self._block, self._repeat = check_positive("block", block), repeat
        if isinstance(paths, (str, os.PathLike)):
            self._paths, self.name = natural_order(list_images(paths)), str(paths)
        else:
            self._paths = list_images(list(paths))
            self.name = f"{len(self._paths)} files"
        self._left = deque(self._paths)
        self._rows: np.ndarray | None = None

    def open(self) -> None:
        self._left, self._rows = deque(self._paths), None

    def read(self, timeout: float) -> Block | None:
        if self._rows is None:
            if not self._left:
                return None
            path = self._left.popleft()
            try:
                self._rows = read_lines(path)
            except DataError as error:
                return Block(NOTHING.rows, notices=(unreadable(error),))
            if self._repeat:  # what cannot be read is not tried again
                self._left.append(path)
        rows, rest = self._rows[: self._block], self._rows[self._block :]
        self._rows = rest if len(rest) else None
        return Block(rows)


class WatchedFolder(Source):
    """The rows of image files as they appear in a folder (not below it). It has no end.

    The folder is listed ten times a second. A file counts once its size, above 0, has not changed for ``settle``
    seconds; files that are ready together come in the natural order of their names. A file that is replaced by
    another of the same name counts again.

    Args:
        folder: where to look.
        existing: also the files that are there at the beginning.
        settle: seconds.
        block: lines handed out at once.

    Raises:
        UsageError: an argument out of range.
    """

    def __init__(
        self, folder: str | os.PathLike[str], existing: bool = True, settle: float = 0.5, block: int = 64
    ) -> None:
        if not settle >= 0:
            raise UsageError(f"settle: expected seconds from 0, got {settle!r}")
        self._block = check_positive("block", block)
        self._folder, self._existing, self._settle = Path(folder), existing, settle
        self.name = str(folder)
        self._sizes: dict[Path, tuple[tuple[int, int, int], float]] = {}  # identity and since when
        self._done: dict[Path, tuple[int, int, int]] = {}
        self._ready: deque[Path] = deque()
        self._rows: np.ndarray | None = None
        self._begun = False

    def open(self) -> None:
        """List the folder.

        Raises:
            SourceError: there is none.
        """
        files = self._list()
        if not self._begun and not self._existing:
            self._done = dict(files)
        self._begun = True

    def read(self, timeout: float) -> Block | None:
        deadline = time.monotonic() + timeout
        while self._rows is None:
            if not self._ready:
                self._look()
            if self._ready:
                path = self._ready.popleft()
                try:
                    self._rows = read_lines(path)
                except DataError as error:
                    return Block(NOTHING.rows, notices=(unreadable(error),))
            elif (left := deadline - time.monotonic()) > 0:
                time.sleep(min(_POLL_S, left))
            else:
                return NOTHING
        rows, rest = self._rows[: self._block], self._rows[self._block :]
        self._rows = rest if len(rest) else None
        return Block(rows)

    def _look(self) -> None:
        now, files = time.monotonic(), dict(self._list())
        self._done = {path: identity for path, identity in self._done.items() if path in files}
        self._sizes = {path: seen for path, seen in self._sizes.items() if path in files}
        for path, identity in files.items():
            if self._done.get(path) == identity or identity[1] == 0:
                continue
            if self._sizes.get(path, (None, 0.0))[0] != identity:
                self._sizes[path] = identity, now
            if now - self._sizes[path][1] >= self._settle:
                self._done[path] = identity
                self._ready.append(path)
        self._ready = deque(natural_order(self._ready))

    def _list(self) -> Iterable[tuple[Path, tuple[int, int, int]]]:
        from ...data import IMAGE_EXTENSIONS

        found = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or not entry.name.lower().endswith(IMAGE_EXTENSIONS):
                        continue
                    try:
                        status = entry.stat()
                    except OSError:  # gone since it was listed
                        continue
                    found.append((Path(entry.path), (status.st_ino, status.st_size, status.st_mtime_ns)))
        except OSError as error:
            raise SourceError(f"cannot watch {self._folder}: {error.strerror or error}") from error
        return found


def read_lines(path: Path) -> np.ndarray:
    """An image file as lines: (n, width, 1 or 3) uint8, or uint16 if it holds more than 8 bits.

    Raises:
        UnreadableImageError: it is no image.
    """
    from ...data.decode import decode

    image = decode(path)
    image = image[:, :, :3] if image.shape[2] > 2 else image[:, :, :1]
    if image.dtype.kind == "f":
        image = np.rint(image * 65535).astype(np.uint16)
    return np.ascontiguousarray(image)


def unreadable(error: DataError) -> Notice:
    return Notice("unreadable", f"left out: {error}", fault=True)
