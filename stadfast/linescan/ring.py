"""The acquisition ring: a camera's thread pushes lines, the inspector takes views of them without copying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from ..errors import RingClosedError, RingError, RingTimeoutError, UsageError
from . import _extension
from .arguments import check_positive, check_whole

POLICIES = ("block", "drop_oldest", "drop_newest")  # in the order of csrc/linescan/ring.h
_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))


class Gap(NamedTuple):
    """Lines that were pushed and lost: numbers ``first_line`` to ``first_line + lines - 1``."""

    first_line: int
    lines: int


@dataclass(frozen=True)
class RingCounts:
    """Lines so far; at any moment ``pushed == taken + lost + unread``.

    Attributes:
        pushed: lines that the camera delivered.
        taken: lines given out in views.
        lost: lines that the overrun policy gave up.
        unread: lines waiting (the queue's depth).
        lent: those of ``taken`` that views still hold.
    """

    pushed: int
    taken: int
    lost: int
    unread: int
    lent: int


class RowView:
    """Lines of the ring, in the ring's own memory.

    The lines stay as they are until the last array that shares their memory is gone (slices and
    ``torch.from_numpy`` included), and only then is their room used again; writing into them is allowed.
    ``with`` or ``release`` gives up this object's own hold.

    Attributes:
        rows: (n, width, channels) uint8 or uint16. The step between lines is the line rounded up to 64 bytes,
            so that the array is C-contiguous wherever a line is a multiple of 64 bytes.
        lines: (n,) int64, the number of each line since the start, lost lines counted.
        timestamps: (n,) int64, nanoseconds as pushed.
        encoder: (n,) int64, counts as pushed.
    """

    def __init__(
        self, rows: np.ndarray, lines: np.ndarray, timestamps: np.ndarray, encoder: np.ndarray
    ) -> None:
        self.rows = rows
        self.lines = lines
        self.timestamps = timestamps
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self.rows)

    def release(self) -> None:
        """Let go of the arrays; the lines' room is free once nobody else holds them."""
        del self.rows, self.lines, self.timestamps, self.encoder

    def __enter__(self) -> RowView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "rows"):
            self.release()


class RowRing:
    """A ring of lines between one thread that pushes and one that takes, neither of which waits or copies with the GIL.

    A camera's SDK can push from its own C or C++ callback: see ``handle`` and ``csrc/linescan/row_ring.h``.

    Args:
        width: pixels of a line.
        capacity: lines that the ring holds, those in views included.
        channels: values of a pixel, beside each other (1: monochrome, 3: RGB).
        dtype: ``"uint8"`` or ``"uint16"``.
        overrun: what happens to lines that find the ring full. ``"block"``: the camera's thread waits.
            ``"drop_oldest"``: the oldest unread lines give way (the newest are lost only while views hold the
            whole ring). ``"drop_newest"``: the new lines are lost.

    Raises:
        UsageError: an argument out of range.
        RingError: no memory for it. (All of it is allocated here; twice its size in address space.)
        ExtensionError: the compiled part is not available.

    A line that finds its slot in a view passes over it, so that a view may be held for long; views never span
    such a seam. The passed-over slots are used again after the next round.
    """

    def __init__(
        self, width: int, capacity: int, channels: int = 1, dtype: Any = "uint8", overrun: str = "block"
    ) -> None:
        self.width, self.capacity = check_positive("width", width), check_positive("capacity", capacity)
        self.channels = check_positive("channels", channels)
        try:
            self.dtype = np.dtype(dtype)
        except TypeError:
            self.dtype = np.dtype(object)
        if self.dtype not in _DTYPES:
            raise UsageError(f"dtype: expected uint8 or uint16, got {dtype!r}")
        if overrun not in POLICIES:
            raise UsageError(f"overrun: expected one of {', '.join(POLICIES)}, got {overrun!r}")
        self.overrun = overrun
        extension = _extension.load()
        line_bytes = self.width * self.channels * self.dtype.itemsize
        try:
            self._ring = extension.Ring(line_bytes, self.capacity, POLICIES.index(overrun))
        except ValueError as error:
            raise UsageError(f"width, channels and capacity: {error}") from error
        except (RuntimeError, OSError, MemoryError, OverflowError, TypeError) as error:
            size = line_bytes * self.capacity / 2**20
            raise RingError(
                f"capacity: cannot allocate {size:.0f} MiB for {capacity} lines: {error}"
            ) from error

    @property
    def handle(self) -> int:
        """The ``stadfast_ring*`` of row_ring.h, valid while this object lives."""
        return int(self._ring.handle)

    @staticmethod
    def library() -> Path:
        """The shared library that holds the functions of row_ring.h."""
        return _extension.library()

    # -- the camera's side

    def push(
        self,
        lines: np.ndarray,
        timestamps: np.ndarray | Sequence[int] | None = None,
        encoder: np.ndarray | Sequence[int] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Copy lines into the ring; one thread pushes.

        Args:
            lines: (n, width, channels) of the ring's dtype, or (n, width) for one channel; each line dense.
            timestamps: (n,) integers, nanoseconds; none: the monotonic clock now, for all of them.
            encoder: (n,) integers; none: the lines' numbers.
            timeout: seconds that ``overrun="block"`` waits for room, in all; none: as long as it takes.

        Returns:
            The number of lines stored. The others of the n are lost and counted, with their numbers.

        Raises:
            UsageError: wrong shape, dtype or lengths.
            RingClosedError: the stream has ended.
            RingError: another thread is pushing.
        """
        lines = self._checked_lines(lines)
        stored = self._ring.push(
            lines,
            _checked_numbers("timestamps", timestamps, len(lines)),
            _checked_numbers("encoder", encoder, len(lines)),
            _nanoseconds(timeout),
        )
        if stored == -1:
            raise RingClosedError("push: the ring is closed")
        if stored < 0:
            raise RingError("push: another thread is pushing; a ring has one producer")
        return int(stored)

    def close(self) -> None:
        """End the stream, from any thread: nothing more can be pushed; unread lines can still be taken."""
        self._ring.close()

    @property
    def closed(self) -> bool:
        return bool(self._ring.closed)

    # -- the inspector's side

    def take(self, rows: int, timeout: float | None = None) -> RowView | None:
        """The oldest ``rows`` unread lines, without a copy; one thread takes.

        Args:
            rows: lines wanted, at most the capacity.
            timeout: seconds to wait for them; none: as long as it takes.

        Returns:
            A view of ``rows`` lines; of fewer at the end of the stream, before a seam (see the class), or where
            views hold so much of the ring that no more can come. None once the stream has ended and all is taken.

        Raises:
            UsageError: ``rows`` out of range.
            RingTimeoutError: the time is up; the lines that did come stay in the ring.
            RingError: views hold the whole ring, so that nothing can come; or another thread is taking.
        """
        rows = check_whole("rows", rows, 1, self.capacity)
        taken = self._ring.take(rows, _nanoseconds(timeout), self.width, self.channels, self.dtype)
        if isinstance(taken, tuple):
            return RowView(*taken)
        if taken == "end":
            return None
        if taken == "timeout":
            raise RingTimeoutError(
                f"take: no {rows} lines within {timeout:g} s ({self.counts().unread} came)"
            )
        if taken == "all_lent":
            raise RingError(f"take: views hold all {self.capacity} lines of the ring; release some of them")
        raise RingError("take: another thread is taking; a ring has one consumer")

    def pop_gaps(self) -> list[Gap]:
        """The gaps before and between the lines taken so far, each told once (the newest 65,536 of them).

        Lines lost at the very end are told after ``take`` has returned None; then the counts of all gaps sum up
        to ``counts().lost``.
        """
        return [Gap(*gap) for gap in self._ring.pop_gaps()]

    def counts(self) -> RingCounts:
        """What has become of the lines so far, at one moment."""
        return RingCounts(**self._ring.counts())

    def _checked_lines(self, lines: np.ndarray) -> np.ndarray:
        wanted = f"(n, {self.width}, {self.channels})" + (
            f" or (n, {self.width})" if self.channels == 1 else ""
        )
        if not isinstance(lines, np.ndarray) or lines.dtype != self.dtype:
            came = lines.dtype if isinstance(lines, np.ndarray) else type(lines).__name__
            raise UsageError(f"lines: expected a {self.dtype} array {wanted}, got {came}")
        if lines.ndim == 2 and self.channels == 1:
            lines = lines[:, :, None]
        if lines.shape[1:] != (self.width, self.channels):
            raise UsageError(f"lines: expected {wanted}, got {lines.shape}")
        if (len(lines) and not lines[0].flags.c_contiguous) or (
            len(lines) > 1 and lines.strides[0] < lines[0].nbytes
        ):
            raise UsageError(f"lines: expected dense lines one after another, got strides {lines.strides}")
        return lines


def _checked_numbers(name: str, values: np.ndarray | Sequence[int] | None, count: int) -> np.ndarray | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise UsageError(f"{name}: expected {count} integers, got {array.dtype} {array.shape}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _nanoseconds(timeout: float | None) -> int:
    if timeout is None:
        return -1
    if not timeout >= 0:
        raise UsageError(f"timeout: expected seconds from 0, or None, got {timeout!r}")
    return int(min(timeout, 1e9) * 1e9)
