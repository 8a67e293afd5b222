"""Lines from a frame grabber's own SDK: a source of one's own. ``python line_source.py web.safetensors``"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from stadfast.data import Defect, Material
from stadfast.errors import SourceError
from stadfast.linescan import Callback, Event, Inspector, Sink, Status
from stadfast.linescan.sources import NOTHING, Block, Source

Frame = tuple[np.ndarray, np.ndarray, np.ndarray]


def grab(frames: int = 20, height: int = 32, width: int = 96) -> Iterator[Frame | None]:
    """Stands for the SDK: lines, and when and at which count of the encoder each was taken; None: a time-out."""
    web = Material("woven", width, defects=[Defect("hole", row=300, column=width // 2, size=12.0)])
    for first in range(0, frames * height, height):
        yield None
        time.sleep(height / 20_000)
        ages = np.arange(height)[::-1] * 50_000  # nanoseconds: 20,000 lines a second
        yield web.rows(first, height)[0], time.monotonic_ns() - ages, 4 * np.arange(first, first + height)


class FrameGrabber(Source):
    """What an inspector needs to know: how to begin, the next lines, and how to let go."""

    name = "frame grabber 0"
    live = True  # the web goes on while nobody reads: lines that are too many are lost, and counted

    def open(self) -> None:
        self._frames = grab()

    def read(self, timeout: float) -> Block | None:
        try:
            frame = next(self._frames)  # an SDK waits here, for ``timeout`` seconds at most
        except StopIteration:
            return None  # the end of the web
        except OSError as error:
            raise SourceError(f"{self.name}: {error}") from error  # the inspector opens it again
        return NOTHING if frame is None else Block(*frame)


def inspect(model: Any, *sinks: Sink, **options: Any) -> Status:
    return Inspector(model, FrameGrabber(), sinks, **options).run()


def show(event: Event) -> None:
    print(f"lines {event.defect.rows}, columns {event.defect.columns}, encoder {event.encoder}")


if __name__ == "__main__":
    print(inspect(sys.argv[1], Callback(show)))
