"""Webs, streamers and sinks for the inspector's tests: no network, so that every map is known."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from stadfast.linescan import Event, Inspector, Notice, Run, Sink, Status
from stadfast.linescan.sources import NOTHING, ArraySource, Block, Source

THRESHOLD = 0.5
SPOTS = [(10, 20, 3, 9), (130, 131, 0, 1), (300, 380, 20, 32)]  # first row, end, first column, end


class Brightness:
    """A streamer whose map is the lines' brightness, ``delay_rows`` later."""

    def __init__(self, width: int, delay: int = 40) -> None:
        self.width, self.delay_rows = width, delay
        self._rows = torch.empty(1, 1, 0, width)

    def push(self, rows: Tensor) -> Tensor:
        values = rows.float() / 255 if rows.dtype == torch.uint8 else rows
        self._rows = torch.cat([self._rows, values.mean(1, keepdim=True)], dim=2)
        done = max(0, self._rows.shape[2] - self.delay_rows)
        out, self._rows = self._rows[:, :, :done], self._rows[:, :, done:]
        return out.clone()

    def finish(self) -> Tensor:
        out, self._rows = self._rows, torch.empty(1, 1, 0, self.width)
        return out


def web(rows: int, width: int, spots: list[tuple[int, int, int, int]], channels: int = 1) -> np.ndarray:
    """(rows, width, channels) uint8, dark, with bright spots (first row, end, first column, end)."""
    lines = np.zeros((rows, width, channels), np.uint8)
    lines[:, :, :] = (np.arange(rows) % 97)[:, None, None]
    for top, bottom, left, right in spots:
        lines[top:bottom, left:right] = 255
    return lines


class Script(Source):
    """Plays a list: arrays (or blocks) are delivered, numbers are so many reads without a line, errors are raised."""

    name = "script"

    def __init__(self, *steps: object) -> None:
        self._steps, self.opened, self.closed = list(steps), 0, 0

    def open(self) -> None:
        self.opened += 1

    def read(self, timeout: float) -> Block | None:
        if not self._steps:
            return None
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        if isinstance(step, int):
            if step > 1:
                self._steps.insert(0, step - 1)
            return NOTHING
        return step if isinstance(step, Block) else Block(step)  # type: ignore[arg-type]

    def close(self) -> None:
        self.closed += 1


class Flood(Script):
    """More lines than can be inspected: none is taken before all have been pushed, so that what is lost is known."""

    def __init__(self, lines: np.ndarray, block: int = 20) -> None:
        super().__init__(*(lines[i : i + block] for i in range(0, len(lines), block)), NOTHING)
        self.all_pushed = threading.Event()

    def read(self, timeout: float) -> Block | None:
        block = super().read(timeout)
        if not self._steps:
            self.all_pushed.set()
        return block

    def streamer(self, width: int) -> Brightness:
        waiting = Brightness(width, 8)
        push = waiting.push

        def late(rows: Tensor) -> Tensor:
            assert self.all_pushed.wait(60)
            return push(rows)

        waiting.push = late  # type: ignore[method-assign]
        return waiting


class Breaks(Brightness):
    """A streamer that fails, with rows of its map still inside, or gives a map that the tracker refuses."""

    def __init__(self, width: int, after: int, refused: bool = False) -> None:
        super().__init__(width, 8)
        self._after, self._refused = after, refused

    def push(self, rows: Tensor) -> Tensor:
        maps = super().push(rows)
        self._after -= rows.shape[2]
        if self._after <= 0 and not self._refused:
            raise RuntimeError("out of memory")
        return maps if self._after > 0 else maps * float("nan")


class Recorder(Sink):
    """Remembers everything."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.pieces: list[tuple[np.ndarray, np.ndarray, int]] = []
        self.events: list[Event] = []
        self.notices: list[Notice] = []
        self.statuses: list[Status] = []
        self.calls: list[str] = []

    def open(self, run: Run) -> None:
        self.runs.append(run)
        self.calls.append("open")

    def rows(self, image: np.ndarray, map: np.ndarray, first_line: int) -> None:
        self.pieces.append((image, map, first_line))
        self.calls.append("rows")

    def event(self, event: Event) -> None:
        self.events.append(event)
        self.calls.append("event")

    def notice(self, notice: Notice) -> None:
        self.notices.append(notice)
        self.calls.append("notice")

    def status(self, status: Status) -> None:
        self.statuses.append(status)
        self.calls.append("status")

    def close(self) -> None:
        self.calls.append("close")

    @property
    def kinds(self) -> list[str]:
        return [notice.kind for notice in self.notices]

    @property
    def boxes(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        return sorted((e.defect.rows, e.defect.columns) for e in self.events if not e.defect.growing)


def inspect(source: Source, *sinks: Sink, **options: object) -> tuple[Inspector, Recorder]:
    """The inspector after its run, and what it told."""
    recorder = Recorder()
    chosen = {"retry_after": 0.01} | options
    inspector = Inspector(Brightness, source, [recorder, *sinks], threshold=THRESHOLD, **chosen)  # type: ignore[arg-type]
    inspector.run()
    return inspector, recorder


def inspect_spots(*sinks: Sink) -> Recorder:
    """What was told of a web with SPOTS."""
    return inspect(ArraySource(web(400, 32, SPOTS)), *sinks, pixel_pitch=0.5)[1]
