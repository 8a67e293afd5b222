"""``stadfast stream``: a web's defects, as they pass."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import typer

from .. import load
from ..errors import DataError
from ..linescan import Event, FlatField, Inspector, Notice, Sink, Status
from ..linescan.native import deepest_stride, is_archive
from ..linescan.sources import Source
from ..methods.hardware import choose_device
from ._guard import printable, say

_LOG_INTERVAL_S = 10.0
_ROWS = 64  # computed at once


def stream(
    model: Path,
    source: Source,
    sinks: Sequence[Sink],
    *,
    device: str,
    threads: int | None,
    flat_field: Path | None,
    rows_per_push: int | None,
    downscale: int,
    **options: Any,
) -> None:
    """Inspect a source until it ends or the program is told to stop; print each event."""
    where = choose_device(device)
    detector: Any = model if is_archive(model) else load(model, device=str(where))
    listing = Listing()
    inspector = Inspector(
        detector, source, [*sinks, listing, LiveLine()], device=str(where),
        flat_field=None if flat_field is None else learn_flat_field(flat_field), downscale=downscale,
        rows_per_push=rows_per_push or default_rows(detector, downscale), **options,
    )  # fmt: skip
    listing.stop = inspector.stop
    with computing(threads), stopping(inspector.stop) as received:
        inspector.run()
    if listing.broken:
        raise BrokenPipeError
    if received:
        say(f"{signal.Signals(received[0]).name}: stopped; every event is closed")
        raise typer.Exit(128 + received[0])


def default_rows(detector: Any, downscale: int) -> int:
    """64, or the next multiple of a streamer's unit (an archive's divides 64)."""
    unit = deepest_stride(detector.graph_.network) * downscale if hasattr(detector, "graph_") else 1
    return _ROWS + -_ROWS % unit


@contextmanager
def computing(threads: int | None = None) -> Iterator[None]:
    """With so many threads of torch's; None: its own number, less one if the camera's thread would find no core.

    Torch's threads wait for each other: where one has no core, all are slow.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or max(1, min(before, len(os.sched_getaffinity(0)) - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[list[int]]:
    """SIGINT and SIGTERM call ``stop``, the second one ends the program at once. Yields the signals that came."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def learn_flat_field(path: Path) -> FlatField:
    """The columns' correction from pictures of good material, all of the web's width."""
    from ..data import list_images, read_image

    widths = set()

    def images() -> Iterator[torch.Tensor]:
        """One by one: there may be more than the memory holds."""
        for file in list_images(path):
            image = read_image(file)
            widths.add(image.shape[2])
            if len(widths) > 1:
                raise DataError(f"--flat-field: expected images of one width in {path}, got {sorted(widths)}")
            yield image[None]

    return FlatField.learn(images())


class Listing(Sink):
    """Prints events on standard output: number, lines, columns, area, peak, delay, separated by tabs."""

    def __init__(self) -> None:
        self.broken = False
        self.stop = lambda: None

    def event(self, event: Event) -> None:
        defect = event.defect
        (top, bottom), (left, right) = defect.rows, defect.columns
        marks = " growing" * defect.growing + " at a gap" * event.at_gap + " cut off" * event.cut_off
        try:
            print(
                f"{defect.id}\t{top}-{bottom - 1}\t{left}-{right - 1}\t{defect.area} px\t{defect.peak:.6g}\t"
                f"{event.delay:.2f} s{marks}", flush=True,
            )  # fmt: skip
        except BrokenPipeError:  # the reader, such as head, has seen enough
            self.broken = True
            self.stop()


class LiveLine(Sink):
    """The inspection's state on standard error: one line that is rewritten; a line now and then for a log file."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()

    def notice(self, notice: Notice) -> None:
        self._clear()
        say(("warning: " if notice.fault or notice.kind == "gap" else "") + printable(notice.message))

    def event(self, event: Event) -> None:
        self._clear()  # what standard output shows follows

    def status(self, status: Status) -> None:
        if self._terminal:
            # One that fills the line would leave it behind. (shutil asks standard output, which may be a file.)
            room = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
            print(f"\r{describe(status)[:room]}\x1b[K", end="", file=sys.stderr, flush=True)
        elif status.state == "ended" or time.monotonic() - self._last >= _LOG_INTERVAL_S:
            self._last = time.monotonic()
            say(describe(status))

    def close(self) -> None:
        if self._terminal:
            print(file=sys.stderr)

    def _clear(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def describe(status: Status) -> str:
    """A status in one line of text; what matters most comes first, as a narrow terminal shows no more."""
    return (
        f"{status.state}: {status.line_rate:.0f} lines/s, {status.lost} lost, {status.defects} defects, "
        f"{100 * status.budget:.0f} % busy, delay {status.delay:.2f} s, queue {status.queue}/{status.capacity}"
    )
