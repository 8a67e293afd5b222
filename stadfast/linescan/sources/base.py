"""What a source is: somebody who delivers the lines of a web in blocks.

    source.open()                                   # SourceError: not there
    while (block := source.read(timeout)) is not None:
        block.rows                                  # (n, width, channels), n = 0 if nothing came in time
    source.close()

``read`` may be called from another thread than ``open`` and ``close``, never from two at once.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import UsageError
from ..arguments import check_positive


@dataclass(frozen=True)
class Notice:
    """Something that happened to the stream, for the log.

    Attributes:
        kind: one word: ``start``, ``gap``, ``stall``, ``resumed``, ``lost``, ``reopened``, ``format``, ``truncated``,
            ``unreadable``, ``sink``, ``page``, ``error``, ``end``.
        message: the same in words.
        line: number of the line where it happened, if it has a place.
        details: figures, as JSON has them; the ``lines`` of a ``gap`` count as lost.
        fault: whether an inspector that is to stop at faults stops here.
    """

    kind: str
    message: str
    line: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    fault: bool = False


class Block(NamedTuple):
    """Lines that came together.

    Attributes:
        rows: (n, width, channels), n >= 0, channels 1 or 3 (RGB), uint8, or uint16 with 65535 as white.
        timestamps: (n,) int64 nanoseconds of ``time.monotonic_ns``, when each line was taken; None: now.
        encoder: (n,) int64 counts of the web's encoder; None: none.
        notices: what happened before these lines.
    """

    rows: np.ndarray
    timestamps: np.ndarray | None = None
    encoder: np.ndarray | None = None
    notices: tuple[Notice, ...] = ()


NOTHING = Block(np.empty((0, 0, 0), np.uint8))  # in time, no line came


class Source(ABC):
    """A source of lines; see the module.

    Attributes:
        name: what messages call it.
        live: whether lines go on coming while nobody reads, so that a reader who is late loses them where nobody
            counts, as in a camera's driver. An inspector never lets such a source wait, unless it is told to.
    """

    name: str
    live: bool = False

    def open(self) -> None:  # noqa: B027 (nothing to do for many)
        """Begin, or begin again after an error.

        Raises:
            SourceError: it is not there.
        """

    @abstractmethod
    def read(self, timeout: float) -> Block | None:
        """The next lines, or a block without any if none came within ``timeout`` seconds; None at the end.

        Raises:
            SourceError: the source is gone; ``close`` and ``open`` may bring it back.
        """

    def close(self) -> None:  # noqa: B027
        """Let go of everything; also after an error, and more than once."""


class ArraySource(Source):
    """Lines in memory, over and over: a simulator's material, and what tests and benchmarks need.

    Args:
        rows: (n, width, channels) or (n, width), uint8 or uint16.
        block: lines handed out at once.
        repeat: rounds; None: no end.
    """

    def __init__(self, rows: np.ndarray, block: int = 64, repeat: int | None = 1) -> None:
        if (
            not isinstance(rows, np.ndarray)
            or rows.dtype not in (np.uint8, np.uint16)
            or rows.ndim not in (2, 3)
        ):
            raise UsageError("rows: expected a uint8 or uint16 array (n, width) or (n, width, channels)")
        self._rows = rows if rows.ndim == 3 else rows[:, :, None]
        if 0 in self._rows.shape or self._rows.shape[2] not in (1, 3):
            raise UsageError(f"rows: expected lines with 1 or 3 channels, got {rows.shape}")
        self._block = check_positive("block", block)
        self._repeat = None if repeat is None else check_positive("repeat", repeat)
        self._next = self._round = 0
        self.name = "lines in memory"

    def open(self) -> None:
        self._next = self._round = 0

    def read(self, timeout: float) -> Block | None:
        if self._next == len(self._rows):
            self._next, self._round = 0, self._round + 1
        if self._repeat is not None and self._round >= self._repeat:
            return None
        rows = self._rows[self._next : self._next + self._block]
        self._next += len(rows)
        return Block(rows)


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sorted as people number things: ``line_9.png`` before ``line_10.png``."""

    def key(path: Path) -> tuple[list[Any], str]:
        parts = re.split(r"(\d+)", str(path))  # text, digits, text, ...
        return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(path)

    return sorted(paths, key=key)
