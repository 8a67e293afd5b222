"""What an inspector tells those who listen: rows, events, notices and its status.

An observer is a :class:`Sink`; it overrides what it wants to hear::

    class Page(Sink):
        def open(self, run): ...                       # once, before the first line; run: Run
        def rows(self, image, map, first_line): ...    # image (n, W, C) uint8/uint16 and map (n, W) float32 of the
                                                       # same n lines, delay_rows after they came
        def event(self, event): ...                    # event: Event, a defect that has closed (or goes on growing)
        def notice(self, notice): ...                  # notice: Notice, something that happened to the stream
        def status(self, status): ...                  # status: Status, about once a second, and at the end
        def close(self): ...                           # once, after everything

    Inspector(detector, source, sinks=[Page()]).run()

All calls come from the thread that runs the inspector, one at a time, in the order in which things happened; the sinks
are called in the order in which they were given. A call takes the inspector's time: return within a millisecond or
so, and leave what is slow to a thread of your own. What is handed over is yours: nobody changes it later.
An exception out of a sink becomes a notice; the other sinks and the inspection go on (``on_fault="recover"``), or the
inspection ends (``on_fault="stop"``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import SinkError
from .sources.base import Notice
from .tracker import DefectEvent


@dataclass(frozen=True)
class Run:
    """What is inspected, and how.

    Attributes:
        source: its name.
        threshold: of the map (``high`` of the :class:`DefectTracker`).
        pixel_pitch: mm of a pixel (along, across), or None.
        settings: the inspector's other arguments, as JSON has them.
        started: seconds since the epoch.
    """

    source: str
    threshold: float
    pixel_pitch: tuple[float, float] | None
    settings: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        """Such as ``20261123T111500Z``: in files that several runs write to, ids begin at 0 with each."""
        return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.started))


@dataclass(frozen=True)
class Event:
    """A defect of the web.

    Attributes:
        defect: its place, size and scores. Rows are line numbers since the inspector's start, lost lines counted; ids
            are those of the whole run.
        strip: the strip it lies on, 0, 1, ...: another begins where the lines change their width, or the source comes
            back.
        first_time, last_time: when its first and last line were taken, seconds since the epoch. (Lines that are older
            than the inspector's history count as the oldest in it.)
        delay: seconds from ``last_time`` to this report.
        encoder: counts at the first and the last line; None: the source has no encoder.
        at_gap: lines were lost so near to it that the map there may be the gap's.
        cut_off: its strip ended in it (the source's end or failure, lines of another format, an error of the
            inspector's): it may have gone on.
        thumbnail: (h, w, 1 or 3) uint8 of ``thumbnail_lines`` x ``thumbnail_columns``, every ``thumbnail_step``-th
            pixel; None if its lines have left the history.
        thumbnail_map: (h, w) float32, the map there.
    """

    defect: DefectEvent
    strip: int
    first_time: float
    last_time: float
    delay: float
    encoder: tuple[int, int] | None
    at_gap: bool
    cut_off: bool = False
    thumbnail: np.ndarray | None = field(default=None, repr=False)
    thumbnail_map: np.ndarray | None = field(default=None, repr=False)
    thumbnail_lines: tuple[int, int] | None = None
    thumbnail_columns: tuple[int, int] | None = None
    thumbnail_step: int = 1

    def record(self) -> dict[str, Any]:
        """The event as JSON has it, without the pictures; docs/linescan.md lists the keys."""
        found = asdict(self.defect)
        found["lines"], found["lines_mm"] = found.pop("rows"), found.pop("rows_mm")
        found |= {
            "strip": self.strip, "at_gap": self.at_gap, "cut_off": self.cut_off, "encoder": self.encoder,
            "first_time": timestamp(self.first_time), "last_time": timestamp(self.last_time),
            "delay_s": round(self.delay, 6),
        }  # fmt: skip
        return {"type": "defect", **found}


@dataclass(frozen=True)
class Status:
    """How the inspection goes.

    Attributes:
        state: ``waiting`` (for the first line), ``running``, ``stalled``, ``lost`` (the source), ``ended``, ``failed``
            (an error of the inspector's own).
        seconds: since the start.
        lines: inspected so far.
        line_rate: lines inspected a second, since the last status (at the end: in all).
        budget: share of that time in which the inspector was at work; at 1 it can do no more.
        delay_rows: lines between a line and its map, at most (:attr:`RowStreamer.delay_rows`).
        delay: seconds between the newest map row's line and now.
        queue: lines waiting in the ring.
        capacity: lines that the ring holds.
        defects: events that have closed.
        growing: events that go on, as last reported.
        lost: lines lost.
        gaps: places where lines were lost.
        strips: strips begun.
        faults: notices of faults.
    """

    state: str
    seconds: float
    lines: int
    line_rate: float
    budget: float
    delay_rows: int
    delay: float
    queue: int
    capacity: int
    defects: int
    growing: int
    lost: int
    gaps: int
    strips: int
    faults: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


class Sink:
    """Base of all observers: hears everything, does nothing."""

    def open(self, run: Run) -> None:
        """Before the first line.

        Raises:
            SinkError: it cannot begin; the inspector does not, either.
        """

    def rows(self, image: np.ndarray, map: np.ndarray, first_line: int) -> None:
        """Lines ``first_line`` to ``first_line + n`` and their map; no lost line is among them."""

    def event(self, event: Event) -> None:
        """A defect has closed, or is reported as growing (``event.defect.growing``)."""

    def notice(self, notice: Notice) -> None:
        """Something happened to the stream."""

    def status(self, status: Status) -> None:
        """About once a second, whether lines come or not, and at the end."""

    def close(self) -> None:
        """After everything, also if the inspection failed."""


class Callback(Sink):
    """Calls a function with each event."""

    def __init__(self, function: Callable[[Event], object]) -> None:
        self._function = function

    def event(self, event: Event) -> None:
        self._function(event)


class Fanout:
    """Several sinks as one. What a sink raises does not reach the others.

    Args:
        sinks: in the order in which they are told.
        failed: called with each failure's notice, unless the notice itself cannot be told.

    Attributes:
        wants_rows: whether any of them overrides ``rows``.
    """

    def __init__(self, sinks: Sequence[Sink], failed: Callable[[Notice], None]) -> None:
        self._sinks, self._failed = list(sinks), failed
        self._opened: list[Sink] = []
        self.wants_rows = any(type(sink).rows is not Sink.rows for sink in sinks)

    def open(self, run: Run) -> None:
        for sink in self._sinks:
            sink.open(run)
            self._opened.append(sink)

    def tell(self, what: str, *arguments: Any) -> None:
        """Call the method ``what`` of every sink."""
        failures = [self._call(sink, what, *arguments) for sink in self._opened]
        for failure in failures if what != "notice" else ():  # a failing log cannot tell of itself
            if failure is not None:
                self._failed(failure)

    def close(self) -> None:
        """The first, which must lose nothing, is the last: it hears what the others failed at."""
        while self._opened:
            failure = self._call(self._opened.pop(), "close")
            if failure is not None:
                self._failed(failure)

    @staticmethod
    def _call(sink: Sink, what: str, *arguments: Any) -> Notice | None:
        """The notice of what it raised."""
        try:
            getattr(sink, what)(*arguments)
        except Exception as error:
            reason = str(error) if isinstance(error, SinkError) else f"{type(error).__name__}: {error}"
            return Notice("sink", f"{type(sink).__name__}.{what} failed: {reason}", fault=True)
        return None


def timestamp(seconds: float) -> str:
    """Seconds since the epoch in ISO 8601, UTC, microseconds."""
    whole, rest = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{rest:06d}Z"
