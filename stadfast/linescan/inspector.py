"""From lines to defect events: source, ring, streamer, tracker, and sinks that are told what was found.

``sources`` is where lines come from, ``feed`` and ``connection`` bring them here; ``observer`` says what sinks hear,
``reporter`` tells it to them and counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import RingTimeoutError, UsageError
from .arguments import check_positive
from .connection import Connection
from .feed import POLL_S, Feed, format_of
from .flat_field import FlatField
from .observer import Event, Run, Sink, Status
from .reporter import Reporter
from .ring import POLICIES, RowRing
from .sources.base import Block, Notice, Source
from .strip import Streamer, Strip, streamer_factory
from .tracker import DefectTracker, checked_margin, checked_pitch

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
      If they do not fit ``flat_field`` or ``margin``, they are left out, with a notice.
    * A strip that is too short for the model: left out, with a notice; ``"stop"`` ends here.
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
        overrun: ``"block"``, ``"drop_oldest"`` or ``"drop_newest"``, see :class:`RowRing`; None: ``"drop_oldest"`` if
            the source is live (a camera), as the lines would be lost uncounted in its driver; else ``"block"``.
        capacity: lines of the ring.
        on_fault: ``"recover"`` or ``"stop"``.
        stall_after: seconds.
        retry_after: seconds.
        status_every: seconds between two calls of ``Sink.status``.
        history: lines kept for thumbnails.

    Raises:
        UsageError: an argument out of range, or one that does not fit the model.
        StadfastError: the detector is not fitted.
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
        overrun: str | None = None,
        capacity: int = 4096,
        on_fault: str = "recover",
        stall_after: float = 5.0,
        retry_after: float = 1.0,
        status_every: float = 1.0,
        history: int = 4096,
    ) -> None:
        rows_per_push = check_positive("rows_per_push", rows_per_push)
        capacity, history = check_positive("capacity", capacity), check_positive("history", history)
        downscale = check_positive("downscale", downscale)
        overlap = None if overlap is None else check_positive("overlap", overlap)
        if overrun is None:
            overrun = "drop_oldest" if source.live else "block"
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
            "low": self.threshold if low is None else float(low), "high": self.threshold, "min_area": min_area,
            "merge_distance": merge_distance, "max_length": max_length, "margin": checked_margin(margin),
        }  # fmt: skip
        least = sum(self._tracking["margin"]) + 1
        DefectTracker(least, **self._tracking, pixel_pitch=pixel_pitch)  # its errors, before anything begins
        self._pitch = checked_pitch(pixel_pitch)
        self._source, self._rows_per_push = source, rows_per_push
        self._overrun, self._capacity, self._history = overrun, capacity, history
        numbers = {name: int(self._tracking[name]) for name in ("min_area", "merge_distance", "max_length")}
        self._settings = {
            **self._tracking, **numbers, "rows_per_push": rows_per_push, "overlap": overlap, "precision": precision,
            "downscale": downscale, "overrun": overrun, "capacity": capacity, "on_fault": on_fault,
        }  # fmt: skip
        self._reporter = Reporter(sinks, capacity, status_every, stop_at_fault=on_fault == "stop")
        self._connection = Connection(source, self._reporter, self._is_stopping, stall_after, retry_after)
        self._notices: SimpleQueue[Notice] = SimpleQueue()
        self._stopping = self._began = False
        self._streamers: dict[int, Streamer] = {}

    @property
    def status(self) -> Status:
        """The last status that the sinks were told."""
        return self._reporter.status

    def run(self) -> Status:
        """Inspect until the source ends, or :meth:`stop` is called; once.

        Returns:
            The last status.

        Raises:
            UsageError: it has run before.
            SourceError: the source cannot be opened at the beginning; or it failed, with ``on_fault="stop"``.
            SinkError: a sink cannot begin; or it failed, with ``on_fault="stop"``.
            Exception: of the streamer or the tracker, as it came, once every open event has closed.
        """
        if self._began:
            raise UsageError("an Inspector runs once: make another one, whose counts begin at zero")
        self._began = True
        self._reporter.begin()
        self._next_id = 0
        try:
            self._source.open()
            self._reporter.open(Run(self._source.name, self.threshold, self._pitch, self._settings))
            self._reporter.notice(Notice("start", f"inspecting {self._source.name}"))
            block = self._connection.first_block()
            while block is not None:
                block = self._inspect(block)
            self._reporter.end()
        finally:
            self._source.close()
            self._reporter.close()
        if self._reporter.fault is not None:
            raise self._reporter.fault
        return self.status

    def stop(self) -> None:
        """No more lines: what has come is inspected, all events close. From any thread, or a signal handler."""
        self._stopping = True

    def _is_stopping(self) -> bool:
        return self._stopping or self._reporter.fault is not None

    # ---------------------------------------------------------------- a strip

    def _inspect(self, first: Block) -> Block | None:
        """One strip; the lines that begin the next one, or None."""
        width, channels, dtype = format_of(first)
        try:
            strip = self._new_strip(width, counted=first.encoder is not None)
        except Exception as error:
            if isinstance(error, UsageError) and self._reporter.strips:
                return self._leave_out(first, error)
            self._fail(None, error)  # the very first lines do not fit: nobody would want to go on
            raise
        ring = RowRing(width, self._capacity, channels, dtype, self._overrun)
        self._reporter.begin_strip(ring, strip)
        feed = Feed(self._source, first, ring, self._notices)
        feed.start()
        try:
            self._take_all(feed, ring, strip)
            self._finish(strip)
            self._reporter.gaps(ring)
        except Exception as error:
            self._fail(strip, error)
            raise
        finally:
            feed.stop()
            feed.join(_JOIN_S)
        self._tell_notices()
        self._reporter.end_strip()
        self._next_id = strip.next_id
        if feed.error is not None:
            return self._connection.first_block() if self._connection.reopen(feed.error) else None
        if feed.next is not None and not self._is_stopping():
            message = f"lines change from {_words(first)} to {_words(feed.next)}"
            self._reporter.notice(Notice("format", message, self._reporter.line, fault=True))
        return None if self._is_stopping() else feed.next

    def _leave_out(self, first: Block, error: UsageError) -> Block | None:
        """What comes after lines that do not fit."""
        message = f"lines of {_words(first)} are left out: {error}"
        self._reporter.notice(Notice("format", message, self._reporter.line, fault=True))
        block: Block | None = first
        while block is not None and format_of(block) == format_of(first):
            block = self._connection.first_block()
        return block

    def _finish(self, strip: Strip) -> None:
        """The strip's last rows."""
        try:
            self._work(strip, strip.finish)
        except UsageError as error:  # a strip too short for a border
            self._streamers = {}
            message = f"the end of a strip is left out: {error}"
            self._reporter.notice(Notice("format", message, self._reporter.line, fault=True))
            self._work(strip, strip.close)

    def _new_strip(self, width: int, *, counted: bool) -> Strip:
        if width not in self._streamers:
            self._streamers = {width: self._make_streamer(width)}  # one at a time: they are large
        tracker = DefectTracker(width, **self._tracking, pixel_pitch=self._pitch)
        return Strip(
            self._streamers[width], tracker, self._reporter.strips, self._reporter.line, self._next_id,
            self._pitch, self._history, counted=counted,
        )  # fmt: skip

    def _take_all(self, feed: Feed, ring: RowRing, strip: Strip) -> None:
        """Every line that comes, until the ring is closed and empty."""
        while True:
            if self._is_stopping():
                feed.end()
            try:
                view = ring.take(self._rows_per_push, POLL_S)
            except RingTimeoutError:
                self._connection.watch(feed.idle())
            else:
                self._connection.watch(0.0)
                if view is None:
                    return
                self._reporter.gaps(ring)
                self._reporter.took(len(view))
                self._work(strip, strip.push, view)
            self._tell_notices()
            self._reporter.report()

    def _work(self, strip: Strip, step: Callable[..., list[Event]], *arguments: Any) -> None:
        """Compute, and tell what came out."""
        began = time.perf_counter()
        before = strip.rows
        events = step(*arguments)
        if self._reporter.wants_rows:
            self._reporter.rows(strip.pieces(before))
        self._reporter.events(events)
        self._reporter.worked(time.perf_counter() - began)

    def _fail(self, strip: Strip | None, error: Exception) -> None:
        """An error of our own: what is known of the open events goes out before it does."""
        reporter = self._reporter
        message = f"the inspection failed: {type(error).__name__}: {error}"
        reporter.notice(Notice("error", message, reporter.line, fault=True))
        reporter.state = "failed"
        try:
            if strip is not None:
                self._work(strip, strip.close)
        except Exception as another:  # the tracker's own state may be what is broken
            words = f"open events are lost: {type(another).__name__}: {another}"
            reporter.notice(Notice("error", words, reporter.line, fault=True))
        reporter.report(final=True)

    def _tell_notices(self) -> None:
        """What the camera's thread has to say."""
        while True:
            try:
                self._reporter.notice(self._notices.get_nowait())
            except Empty:
                return


def _words(block: Block) -> str:
    width, channels, dtype = format_of(block)
    return f"{width} pixels ({'rgb' if channels == 3 else 'grey'}, {dtype})"
