"""Raw lines from standard input, a FIFO or a file: pixels, one line after another, nothing between."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

import numpy as np

from ...errors import SourceError, UsageError
from ..arguments import check_positive
from .base import NOTHING, Block, Notice, Source

FORMATS = {"mono8": 8, "mono12p": 12, "mono16": 16, "rgb8": 24}  # bits of a pixel
_READ_BYTES = 1 << 20


class RawLines(Source):
    """Lines of a fixed width and pixel format, as GenICam's Pixel Format Naming Convention names them.

    * ``mono8``: a byte; ``rgb8``: three bytes, red first.
    * ``mono12p``: two pixels in three bytes, lowest bits first; an even width.
    * ``mono16``: two bytes, little-endian, white is 65535.

    Bytes at the end that make no whole line are left out, with a notice.

    Args:
        path: a FIFO (its end is when the last writer closes it) or a file; ``"-"``: standard input.
        width: pixels of a line.
        format: see above.

    Raises:
        UsageError: an unknown format, a width that it cannot have, or a folder.
    """

    def __init__(self, path: str | os.PathLike[str], width: int, format: str = "mono8") -> None:
        width = check_positive("width", width)
        if format not in FORMATS:
            raise UsageError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
        if format == "mono12p" and width % 2:
            raise UsageError(
                f"width: expected an even number for mono12p (two pixels in three bytes), got {width}"
            )
        if path != "-" and Path(path).is_dir():  # it can be opened, and opened again, but never be read
            raise UsageError(f"path: expected a FIFO or a file of raw lines, got the folder {path}")
        self.name = "standard input" if path == "-" else str(path)
        self._path = None if path == "-" else Path(path)
        self._width, self._format = width, format
        self._line_bytes = width * FORMATS[format] // 8
        self._file: int | None = None
        self._rest = b""

    def open(self) -> None:
        self.close()
        if self._path is None and sys.stdin is None:  # as after <&-; its number may be another file's by now
            raise SourceError("cannot read standard input: it is closed")
        try:  # not to wait for a FIFO's writer here, where no signal and no time-out ends it
            self._file = (
                sys.stdin.fileno() if self._path is None else os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
            )
            os.fstat(self._file)
        except (OSError, ValueError) as error:
            raise SourceError(
                f"cannot read {self.name}: {getattr(error, 'strerror', None) or error}"
            ) from error

    def read(self, timeout: float) -> Block | None:
        assert self._file is not None, "read before open"
        try:
            if not select.select([self._file], [], [], timeout)[0]:
                return NOTHING
            data = os.read(self._file, max(_READ_BYTES, self._line_bytes))
        except BlockingIOError:
            return NOTHING
        except (OSError, ValueError) as error:
            raise SourceError(
                f"cannot read {self.name}: {getattr(error, 'strerror', None) or error}"
            ) from error
        if not data:
            return self._end()
        data = self._rest + data
        whole = len(data) // self._line_bytes * self._line_bytes
        self._rest = data[whole:]
        return Block(unpack(data[:whole], self._width, self._format)) if whole else NOTHING

    def _end(self) -> Block | None:
        if not self._rest:
            return None
        message = (
            f"{self.name} ends with {len(self._rest)} of a line's {self._line_bytes} bytes "
            f"({self._width} pixels of {self._format}); left out"
        )
        self._rest = b""
        return Block(NOTHING.rows, notices=(Notice("truncated", message, fault=True),))

    def close(self) -> None:
        if self._file is not None and self._path is not None:
            os.close(self._file)
        self._file, self._rest = None, b""


def unpack(data: bytes, width: int, format: str) -> np.ndarray:
    """Bytes of whole lines -> (n, width, 1 or 3) uint8, or uint16 with 65535 as white."""
    if format == "rgb8":
        return np.frombuffer(data, np.uint8).reshape(-1, width, 3)
    if format == "mono8":
        return np.frombuffer(data, np.uint8).reshape(-1, width, 1)
    if format == "mono16":
        return np.frombuffer(data, "<u2").astype(np.uint16, copy=False).reshape(-1, width, 1)
    first, middle, last = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.uint16).T
    pairs = np.stack([first | (middle & 15) << 8, middle >> 4 | last << 4], axis=1)
    return (pairs << 4 | pairs >> 8).reshape(-1, width, 1)  # 4095 becomes 65535
