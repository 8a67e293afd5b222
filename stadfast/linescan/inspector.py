"""From lines to defect events: source, ring, streamer, tracker, and sinks that are told what was found.

``observer`` says what sinks hear, ``sources`` where lines come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import RingTimeoutError, SinkError, SourceError, UsageError
from .feed import POLL_S, Feed, format_of
from .flat_field import FlatField
from .observer import Event, Fanout, Run, Sink, Status
from .ring import POLICIES, RowRing
from .sources.base import Block, Notice, Source, check_positive
from .strip import Streamer, Strip, streamer_factory
from .tracker import DefectTracker, checked_margin

FAULT_POLICIES = ("recover", "stop")
_JOIN_S = 5.0


class Inspector:
    """Inspects the lines of a source and tells sinks of every defect.

    A thread of its own pushes the source's lines into a :class:`RowRing`; the thread that calls :meth:`run` takes them
    from there, computes their map and tracks defects. What may go wrong, and what happens:

    * More lines come than can be inspected: ``overrun`` says which are lost, or that the source waits. Each gap is a
      notice with its place and length. The lines around it are closed up, and events near it are marked ``at_gap``.
    * No line for ``stall_after`` seconds: a notice. ``"recover"`` waits on; ``"stop"`` ends the inspection.
    * The source fails: the strip ends, its events close. ``"recover"`` tries every ``retry_after`` seconds to open it
      again; then a new strip begins.
    * Lines of another width, depth or number of channels: the strip ends and a new one begins; ``"stop"`` ends here.
    * A file or a rest of bytes that is no line: left out, with a notice; ``"stop"`` ends here.
    * A sink fails: a notice, and on without it for this once; ``"stop"`` ends here.

    However it ends, also by :meth:`stop`, the lines in the ring are inspected, and all events close. After an error of
    the inspector's own (of a streamer or a tracker) the events that are open close as they are, a notice tells of it,
    and :meth:`run` raises the error.

    Args:
        model: a fitted detector, the path of a bundle or an archive, or a function that makes a streamer for a width
            (``threshold`` is needed then).
        source: of the lines. The inspector opens and closes it.
        sinks: in the order in which they are told; the one that must lose nothing first.
        threshold: of a defect's peak; None: the ``pixel_threshold_`` of the detector or archive.
        low: of its pixels (hysteresis), at most ``threshold``; None: ``threshold``.
        min_area, merge_distance, max_length, margin, pixel_pitch: see :class:`DefectTracker`.
        rows_per_push: lines taken at once; see :class:`RowStreamer`.
        overlap: None: exact row streaming; else tiles with this overlap (:class:`TiledStreamer`), for methods that need
            it.
        device, precision, downscale, flat_field: see :class:`RowStreamer`.
        overrun: ``"block"``, ``"drop_oldest"`` or ``"drop_newest"``, see :class:`RowRing`.
        capacity: lines of the ring.
        on_fault: ``"recover"`` or ``"stop"``.
        stall_after: seconds.
        retry_after: seconds.
        status_every: seconds between two calls of ``Sink.status``.
        history: lines kept for thumbnails.

    Raises:
        UsageError: an argument out of range.
    """

    def __init__(
        self,
        model: Any,
        source: Source,
        sinks: Sequence[Sink] = (),
        *,
        threshold: float | None = None,
        low: float | None = None,
        min_area: int = 1,
        merge_distance: int = 0,
        max_length: int = 10_000,
        margin: int | tuple[int, int] = 0,
        pixel_pitch: float | tuple[float, float] | None = None,
        rows_per_push: int = 64,
        overlap: int | None = None,
        device: Any = None,
        precision: str = "fp32",
        downscale: int = 1,
        flat_field: FlatField | None = None,
        overrun: str = "block",
        capacity: int = 4096,
        on_fault: str = "recover",
        stall_after: float = 5.0,
        retry_after: float = 1.0,
        status_every: float = 1.0,
        history: int = 4096,
    ) -> None:
        for name, whole in (("rows_per_push", rows_per_push), ("capacity", capacity), ("history", history)):
            check_positive(name, whole)
        times = {"stall_after": stall_after, "retry_after": retry_after, "status_every": status_every}
        for name, seconds in times.items():
            if not seconds > 0:
                raise UsageError(f"{name}: expected seconds above 0, got {seconds!r}")
        for name, value, wanted in (("overrun", overrun, POLICIES), ("on_fault", on_fault, FAULT_POLICIES)):
            if value not in wanted:
                raise UsageError(f"{name}: expected one of {', '.join(wanted)}, got {value!r}")
        if capacity < rows_per_push:
            raise UsageError(
                f"capacity: expected rows_per_push ({rows_per_push}) lines or more, got {capacity}"
            )
        streaming = {"rows_per_push": rows_per_push, "device": device, "precision": precision,
                     "downscale": downscale, "flat_field": flat_field}  # fmt: skip
        self._make_streamer, self.threshold = streamer_factory(model, threshold, overlap, streaming)
        self._tracking: dict[str, Any] = {
            "low": self.threshold if low is None else low, "high": self.threshold, "min_area": min_area,
            "merge_distance": merge_distance, "max_length": max_length, "margin": checked_margin(margin),
        }  # fmt: skip
        least = sum(self._tracking["margin"]) + 1
        DefectTracker(least, **self._tracking, pixel_pitch=pixel_pitch)  # its errors, before anything begins
        single = isinstance(pixel_pitch, int | float)
        self._pitch: Any = (float(pixel_pitch),) * 2 if single else pixel_pitch  # type: ignore[arg-type]
        self._source, self._rows_per_push = source, rows_per_push
        self._overrun, self._capacity = overrun, capacity
        self._stop_at_fault, self._history = on_fault == "stop", history
        self._stall_after, self._retry_after, self._status_every = stall_after, retry_after, status_every
        self._settings = {
            **self._tracking, "rows_per_push": rows_per_push, "overlap": overlap, "precision": precision,
            "downscale": downscale, "overrun": overrun, "capacity": capacity, "on_fault": on_fault,
        }  # fmt: skip
        self._sinks = Fanout(sinks, self._notice)
        self._notices: SimpleQueue[Notice] = SimpleQueue()
        self._stopping = False
        self._fault: str | None = None
        self._streamers: dict[int, Streamer] = {}
        self._begin()

    # ---------------------------------------------------------------- the run

    def run(self) -> Status:
        """Inspect until the source ends, or :meth:`stop` is called.

        Returns:
            The last status.

        Raises:
            SourceError: the source cannot be opened at the beginning; or it failed, with ``on_fault="stop"``.
            SinkError: a sink cannot begin; or it failed, with ``on_fault="stop"``.
            Exception: of the streamer or the tracker, as it came, once every open event has closed.
        """
        self._begin()
        try:
            self._source.open()
            self._sinks.open(Run(self._source.name, self.threshold, self._pitch, self._settings))
            self._notice(Notice("start", f"inspecting {self._source.name}"))
            block = self._first_block()
            while block is not None:
                block = self._inspect(block)
            self._state = "ended"
            counts = {"lines": self._lines, "defects": self._closed, "lost": self._lost}
            words = f"{self._lines} lines inspected: {self._closed} defects, {self._lost} lines lost"
            self._notice(Notice("end", words, self._next_line, counts))
            self._report(final=True)
        finally:
            self._source.close()
            self._sinks.close()
        if self._fault is not None:
            raise (SinkError if self._fault_of_sink else SourceError)(self._fault)
        return self.status

    def stop(self) -> None:
        """No more lines: what has come is inspected, all events close. From any thread, or a signal handler."""
        self._stopping = True

    def _begin(self) -> None:
        self._started = self._interval = time.monotonic()
        self._state, self._strips, self._next_line, self._next_id = "waiting", 0, 0, 0
        self._lines = self._interval_lines = self._closed = self._lost = self._gaps = self._faults = 0
        self._growing: set[int] = set()
        self._busy = self._all_busy = 0.0
        self._ring: RowRing | None = None
        self._strip: Strip | None = None
        self._delay_rows = 0
        self._fault_of_sink = False
        self.status = self._status(final=False)

    def _first_block(self) -> Block | None:
        """Wait for lines; None at the source's end, or if the inspector is to stop."""
        idle_since = time.monotonic()
        while not self._stopping:
            try:
                block = self._source.read(POLL_S)
            except Exception as error:
                if not self._reopen(error):
                    return None
                idle_since = time.monotonic()
                continue
            if block is None:
                return None
            for notice in block.notices:
                self._notice(notice)
            if len(block.rows):
                self._watch(0.0)
                return None if self._stopping else block._replace(notices=())
            self._watch(time.monotonic() - idle_since)
            self._report()
        return None

    def _inspect(self, first: Block) -> Block | None:
        """One strip; the lines that begin the next one, or None."""
        width, channels, dtype = format_of(first)
        ring = RowRing(width, self._capacity, channels, dtype, self._overrun)
        strip = self._new_strip(width)
        self._ring, self._strip, self._state = ring, strip, "running"
        feed = Feed(self._source, first, ring, self._notices)
        feed.start()
        try:
            self._take_all(feed, ring, strip)
            self._work(strip.finish)
            self._tell_gaps(ring)
        except Exception as error:
            self._fail(strip, error)
            raise
        finally:
            feed.stop()
            feed.join(_JOIN_S)
        self._next_line += ring.counts().pushed
        self._next_id = strip.next_id
        self._growing.clear()
        self._tell_notices()
        self._ring = self._strip = None
        self._state = "waiting"
        if feed.error is not None:
            return self._first_block() if self._reopen(feed.error) else None
        if feed.next is not None and not self._stopping:
            message = f"lines change from {_words(first)} to {_words(feed.next)}"
            self._notice(Notice("format", message, self._next_line, fault=True))
        return None if self._stopping else feed.next

    def _take_all(self, feed: Feed, ring: RowRing, strip: Strip) -> None:
        """Every line that comes, until the ring is closed and empty."""
        while True:
            if self._stopping:
                feed.stop()
            try:
                view = ring.take(self._rows_per_push, POLL_S)
            except RingTimeoutError:
                self._watch(feed.idle())
            else:
                self._watch(0.0)
                if view is None:
                    return
                self._tell_gaps(ring)
                self._lines += len(view)
                self._work(strip.push, view)
            self._tell_notices()
            self._report()

    def _work(self, step: Callable[..., list[Event]], *arguments: Any) -> None:
        """Compute, and tell what came out."""
        began = time.perf_counter()
        strip = self._strip
        assert strip is not None
        before = strip.rows
        events = step(*arguments)
        if self._sinks.wants_rows:
            for piece in strip.pieces(before):
                self._sinks.tell("rows", piece.image, piece.map, piece.first_line)
        for event in events:
            self._closed += not event.defect.growing
            self._growing -= {event.defect.id, *event.defect.absorbed}
            self._growing |= {event.defect.id} if event.defect.growing else set()
            self._sinks.tell("event", event)
        self._busy += time.perf_counter() - began

    def _new_strip(self, width: int) -> Strip:
        if width not in self._streamers:
            self._streamers = {width: self._make_streamer(width)}  # one at a time: they are large
        streamer = self._streamers[width]
        tracker = DefectTracker(width, **self._tracking, pixel_pitch=self._pitch)
        self._delay_rows = streamer.delay_rows
        self._strips += 1
        return Strip(
            streamer, tracker, self._strips - 1, self._next_line, self._next_id, self._pitch, self._history
        )

    # ---------------------------------------------------------------- faults

    def _notice(self, notice: Notice) -> None:
        self._faults += notice.fault
        if notice.fault and self._stop_at_fault and self._fault is None:
            self._fault, self._fault_of_sink = notice.message, notice.kind == "sink"
            self._stopping = True
        self._sinks.tell("notice", notice)

    def _fail(self, strip: Strip, error: Exception) -> None:
        """An error of our own: what is known of the open events goes out before it does."""
        message = f"the inspection failed: {type(error).__name__}: {error}"
        self._notice(Notice("error", message, self._next_line + self._pushed(), fault=True))
        self._state = "failed"
        try:
            self._work(strip.close)
        except Exception as another:  # the tracker's own state may be what is broken
            words = f"open events are lost: {type(another).__name__}: {another}"
            self._notice(Notice("error", words, self._next_line, fault=True))
        self._report(final=True)

    def _tell_notices(self) -> None:
        """What the camera's thread has to say."""
        while True:
            try:
                self._notice(self._notices.get_nowait())
            except Empty:
                return

    def _tell_gaps(self, ring: RowRing) -> None:
        for gap in ring.pop_gaps():
            self._gaps += 1
            self._lost += gap.lines
            line = self._next_line + gap.first_line
            message = (
                f"{gap.lines} lines lost from line {line} on ({self._overrun}: the inspector is too slow)"
            )
            self._notice(Notice("gap", message, line, {"lines": gap.lines}))

    def _watch(self, idle: float) -> None:
        """Tell when lines stop coming, and when they come again."""
        if self._state == "stalled" and idle < self._stall_after:
            self._state = "running"
            self._notice(Notice("resumed", "lines come again", self._next_line + self._pushed()))
        elif self._state in ("waiting", "running") and idle >= self._stall_after:
            self._state = "stalled"
            message = f"no line from {self._source.name} for {self._stall_after:g} s"
            self._notice(Notice("stall", message, self._next_line + self._pushed(), fault=True))

    def _reopen(self, error: Exception) -> bool:
        """After a source's error: whether it is there again."""
        if not isinstance(error, SourceError):
            error = SourceError(f"{self._source.name} failed: {type(error).__name__}: {error}")
        self._state = "lost"
        self._notice(Notice("lost", str(error), self._next_line, fault=True))
        began = time.monotonic()
        while not self._stopping:
            self._source.close()
            due = time.monotonic() + self._retry_after
            while not self._stopping and (left := due - time.monotonic()) > 0:
                self._report()
                time.sleep(min(left, POLL_S))
            try:
                if not self._stopping:
                    self._source.open()
            except SourceError:
                continue
            if not self._stopping:
                self._state = "waiting"
                seconds = time.monotonic() - began
                self._notice(
                    Notice("reopened", f"{self._source.name} is back after {seconds:.1f} s", self._next_line)
                )

                return True
        return False

    # ---------------------------------------------------------------- status

    def _report(self, *, final: bool = False) -> None:
        if final or time.monotonic() - self._interval >= self._status_every:
            self.status = self._status(final)
            self._interval, self._interval_lines = time.monotonic(), self._lines
            self._all_busy, self._busy = self._all_busy + self._busy, 0.0
            self._sinks.tell("status", self.status)

    def _status(self, final: bool) -> Status:
        now = time.monotonic()
        since = self._started if final else self._interval
        busy = self._busy + (self._all_busy if final else 0.0)
        seconds = max(now - since, 1e-9)
        newest = self._strip.newest if self._strip is not None else 0
        counts = self._ring.counts() if self._ring is not None else None
        return Status(
            self._state, now - self._started, self._lines,
            line_rate=(self._lines - (0 if final else self._interval_lines)) / seconds,
            budget=min(busy / seconds, 1.0),
            delay_rows=self._delay_rows,
            delay=(time.monotonic_ns() - newest) / 1e9 if newest else 0.0,
            queue=counts.unread if counts else 0,
            capacity=self._capacity,
            defects=self._closed, growing=len(self._growing), lost=self._lost, gaps=self._gaps,
            strips=self._strips, faults=self._faults,
        )  # fmt: skip

    def _pushed(self) -> int:
        return self._ring.counts().pushed if self._ring is not None else 0


def _words(block: Block) -> str:
    width, channels, dtype = format_of(block)
    return f"{width} pixels ({'rgb' if channels == 3 else 'grey'}, {dtype})"
