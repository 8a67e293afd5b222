"""Lines at a given rate, without a camera: generated material, or anything else that is replayed."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UsageError
from ..arguments import check_positive, check_whole
from .base import NOTHING, Block, Source

if TYPE_CHECKING:
    from ...data import Defect


class GeneratedWeb(Source):
    """Lines of the generated material (:class:`stadfast.data.Material`), as fast as it can be generated.

    Args:
        material: ``"woven"`` or ``"brushed"``.
        width: pixels of a line.
        lines: how many; None: no end.
        first: row of the material to begin with.
        seed: of the material.
        defects: at chosen rows of the material.
        defect_rate: of further, random ones, in 1000 lines.
        block: lines generated at once.
    """

    def __init__(
        self, material: str = "woven", width: int = 256, lines: int | None = None, *, first: int = 0, seed: int = 0,
        defects: Sequence[Defect] = (), defect_rate: float = 0.0, block: int = 64,
    ) -> None:  # fmt: skip
        from ...data import Material

        first = check_whole("first", first, 0)
        self._end = math.inf if lines is None else first + check_positive("lines", lines)
        self._block = check_positive("block", block)
        self._web = Material(material, width, seed, defects=defects, defect_rate=defect_rate)
        self._first = self._next = first
        self.name = f"generated {material} web"

    def open(self) -> None:
        self._next = self._first

    def read(self, timeout: float) -> Block | None:
        count = int(min(self._block, self._end - self._next))
        if count == 0:
            return None
        rows, _ = self._web.rows(self._next, count)
        self._next += count
        return Block(rows)


class Paced(Source):
    """Another source's lines at a line rate, each with the moment at which a camera would have taken it.

    Where the other source had no line in time, the rate begins anew with the next one: no line is dated before it was
    there. Else lines that are late come as soon as they are there, so that the mean rate holds.

    Args:
        source: of the lines; rather one that is faster than ``line_rate``.
        line_rate: lines a second.
        block: lines handed out at once, as a frame grabber does.

    Raises:
        UsageError: an argument out of range.
    """

    def __init__(self, source: Source, line_rate: float, block: int = 16) -> None:
        if not (math.isfinite(line_rate) and line_rate > 0):
            raise UsageError(f"line_rate: expected lines a second above 0, got {line_rate!r}")
        self._source, self._rate, self._block = source, line_rate, check_positive("block", block)
        self.name = f"{source.name} at {line_rate:g} lines/s"
        self._start: int | None = None
        self._delivered = 0
        self._waiting: deque[Block] = deque()

    def open(self) -> None:
        self._source.open()
        self._start = None
        self._waiting.clear()

    def read(self, timeout: float) -> Block | None:
        if not self._waiting:
            block = self._source.read(timeout)
            if block is None or not len(block.rows):
                self._start = None
                return block
            self._waiting.extend(self._parts(block))
        if self._start is None:
            self._start, self._delivered = time.monotonic_ns(), 0
        block = self._waiting[0]
        count = len(block.rows)
        due = self._start + round((self._delivered + count) / self._rate * 1e9)
        left = (due - time.monotonic_ns()) / 1e9
        if left > timeout:
            time.sleep(timeout)
            return NOTHING
        if left > 0:
            time.sleep(left)
        self._waiting.popleft()
        self._delivered += count
        taken = np.arange(self._delivered - count + 1, self._delivered + 1) / self._rate * 1e9
        return block._replace(timestamps=self._start + taken.astype(np.int64))

    def _parts(self, block: Block) -> list[Block]:
        cuts = range(0, len(block.rows), self._block)
        encoder = block.encoder
        return [
            Block(
                block.rows[i : i + self._block],
                encoder=None if encoder is None else encoder[i : i + self._block],
                notices=block.notices if i == 0 else (),
            )
            for i in cuts
        ]

    def close(self) -> None:
        self._source.close()
