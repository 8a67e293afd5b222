"""The last rows of a strip, for whoever wants to see what was there."""

from __future__ import annotations

from collections import deque

import numpy as np


class RowHistory:
    """Rows by number, of which the oldest are forgotten.

    Args:
        limit: rows kept at most (and up to one block more).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks: deque[np.ndarray] = deque()
        self._ends: deque[int] = deque()
        self.end = 0

    @property
    def first(self) -> int:
        """The oldest row there is; ``end`` if there is none."""
        return self._ends[0] - len(self._blocks[0]) if self._blocks else self.end

    def append(self, rows: np.ndarray) -> None:
        """Rows ``end`` to ``end + len(rows)``; they are kept as they are, not copied."""
        if len(rows) == 0:
            return
        self.end += len(rows)
        self._blocks.append(rows)
        self._ends.append(self.end)
        self.forget(self.end - self._limit)

    def forget(self, before: int) -> None:
        """Drop blocks that lie before this row as a whole."""
        while self._blocks and self._ends[0] <= before:
            self._blocks.popleft()
            self._ends.popleft()

    def cut(self, first: int, end: int, columns: slice | None = None, step: int = 1) -> np.ndarray:
        """A copy of every ``step``-th of the rows ``first`` to ``end`` (all of which must be there)."""
        parts = []
        for block, block_end in zip(self._blocks, self._ends, strict=True):
            start = block_end - len(block)
            if block_end <= first or start >= end:
                continue
            at = max(first, start)
            at += -(at - first) % step
            rows = block[at - start : end - start : step]
            parts.append(rows if columns is None else rows[:, columns])
        return np.concatenate(parts) if parts else np.empty((0,))
