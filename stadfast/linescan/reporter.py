"""What an inspector tells its sinks, and the counters behind its status."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from ..errors import SinkError, SourceError
from .observer import Event, Fanout, Run, Sink, Status
from .ring import RowRing
from .sources.base import Notice
from .strip import Piece, Strip


class Reporter:
    """Tells the sinks what is found and what happens, counts both, and says from time to time how it goes.

    Args:
        sinks: see :class:`Inspector`.
        capacity: of the ring.
        status_every: seconds between two calls of ``Sink.status``.
        stop_at_fault: a fault is to end the inspection: it stays in ``fault``.

    Attributes:
        state, strips: see :class:`Status`.
        status: the last one.
        fault: the first fault, as the error that ends the inspection.
    """

    def __init__(
        self, sinks: Sequence[Sink], capacity: int, status_every: float, stop_at_fault: bool
    ) -> None:
        self._sinks = Fanout(sinks, self.notice)
        self._capacity, self._status_every, self._stop_at_fault = capacity, status_every, stop_at_fault
        self.fault: Exception | None = None
        self.begin()

    def begin(self) -> None:
        """All counters are 0."""
        self._started = self._interval = time.monotonic()
        self.state, self.strips = "waiting", 0
        self._lines = self._interval_lines = self._closed = self._lost = self._gaps = self._faults = 0
        self._growing: set[int] = set()
        self._busy = self._all_busy = 0.0
        self._delay_rows = self._first_line = 0
        self._ring: RowRing | None = None
        self._strip: Strip | None = None
        self.status = self._status(final=False)

    def open(self, run: Run) -> None:
        self._sinks.open(run)

    def close(self) -> None:
        self._sinks.close()

    # ---------------------------------------------------------------- strips

    def begin_strip(self, ring: RowRing, strip: Strip) -> None:
        """These two are inspected from now on."""
        self._ring, self._strip, self._delay_rows = ring, strip, strip.delay_rows
        self.strips += 1
        self.state = "running"

    def end_strip(self) -> None:
        """All lines of the strip are inspected, and its events have closed."""
        self._first_line = self.line
        self._ring = self._strip = None
        self._growing.clear()
        self.state = "waiting"

    @property
    def line(self) -> int:
        """Number of the line that comes next."""
        return self._first_line + (self._ring.counts().pushed if self._ring is not None else 0)

    # ---------------------------------------------------------------- what the sinks hear

    @property
    def wants_rows(self) -> bool:
        return self._sinks.wants_rows

    def rows(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self._sinks.tell("rows", piece.image, piece.map, piece.first_line)

    def events(self, events: Iterable[Event]) -> None:
        for event in events:
            self._closed += not event.defect.growing
            self._growing -= {event.defect.id, *event.defect.absorbed}
            self._growing |= {event.defect.id} if event.defect.growing else set()
            self._sinks.tell("event", event)

    def notice(self, notice: Notice) -> None:
        self._faults += notice.fault
        if notice.kind == "gap":  # the ring's, or one that the source tells of
            self._gaps += 1
            self._lost += notice.details.get("lines", 0)
        if notice.fault and self._stop_at_fault and self.fault is None:
            self.fault = (SinkError if notice.kind == "sink" else SourceError)(notice.message)
        self._sinks.tell("notice", notice)

    def gaps(self, ring: RowRing) -> None:
        """The lines that the ring has lost since it was last asked."""
        for gap in ring.pop_gaps():
            line = self._first_line + gap.first_line
            message = (
                f"{gap.lines} lines lost from line {line} on ({ring.overrun}: the inspector is too slow)"
            )
            self.notice(Notice("gap", message, line, {"lines": gap.lines}))

    def end(self) -> None:
        """The source has ended, or the inspector was stopped."""
        self.state = "ended"
        counts = {"lines": self._lines, "defects": self._closed, "lost": self._lost}
        words = f"{self._lines} lines inspected: {self._closed} defects, {self._lost} lines lost"
        self.notice(Notice("end", words, self.line, counts))
        self.report(final=True)

    # ---------------------------------------------------------------- status

    def took(self, lines: int) -> None:
        """So many lines have left the ring, to be inspected."""
        self._lines += lines

    def worked(self, seconds: float) -> None:
        """So long it took to inspect lines, and to tell what was found."""
        self._busy += seconds

    def report(self, *, final: bool = False) -> None:
        """Tell the status if it is time."""
        if final or time.monotonic() - self._interval >= self._status_every:
            self.status = self._status(final)
            self._interval, self._interval_lines = time.monotonic(), self._lines
            self._all_busy, self._busy = self._all_busy + self._busy, 0.0
            self._sinks.tell("status", self.status)

    def _status(self, final: bool) -> Status:
        """Rates since the last status; of the whole run in the final one."""
        now = time.monotonic()
        seconds = max(now - (self._started if final else self._interval), 1e-9)
        lines = self._lines - (0 if final else self._interval_lines)
        busy = self._busy + (self._all_busy if final else 0.0)
        newest = self._strip.newest if self._strip is not None else 0
        return Status(
            self.state, now - self._started, self._lines,
            line_rate=lines / seconds,
            budget=min(busy / seconds, 1.0),
            delay_rows=self._delay_rows,
            delay=(time.monotonic_ns() - newest) / 1e9 if newest else 0.0,
            queue=self._ring.counts().unread if self._ring is not None else 0,
            capacity=self._capacity,
            defects=self._closed, growing=len(self._growing), lost=self._lost, gaps=self._gaps,
            strips=self.strips, faults=self._faults,
        )  # fmt: skip
