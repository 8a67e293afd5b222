"""Progress with the time left: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")

_LOG_INTERVAL_S = 10.0


class Progress(Protocol):
    """One running job: ``advance`` after each step, with a short note such as the current loss."""

    def advance(self, steps: int = 1, note: str = "") -> None: ...


class _Silent:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


class _Lines:
    """For pipes and log files: the first line after the interval, then one an interval."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self._description, self._total = description, total
        self._done = self._first = done
        self._start = self._last = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._last < _LOG_INTERVAL_S:
            return
        self._last = now
        left = (now - self._start) / (self._done - self._first) * (self._total - self._done)
        percent = 100 * self._done // max(self._total, 1)
        print(
            f"{self._description}: {percent} %, {left:.0f} s left {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )


class _Bar:
    def __init__(self, bar, task) -> None:  # type: ignore[no-untyped-def]
        self._bar, self._task = bar, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._bar.update(self._task, advance=steps, note=note)


@contextmanager
def progress(description: str, total: int, *, done: int = 0, show: bool = True) -> Iterator[Progress]:
    """A running job of ``total`` steps, ``done`` of which an earlier run has finished.

    Writes to standard error only, so that piped results stay clean; nothing if ``show`` is false.
    """
    if not show:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(description, total, done)
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with RichProgress(*columns, console=Console(stderr=True)) as bar:
            yield _Bar(bar, bar.add_task(description, total=total, completed=done, note=""))


def track(
    items: Iterable[T], description: str, total: int | None = None, *, show: bool = True
) -> Iterator[T]:
    """Iterate over ``items`` and show the progress; ``total`` defaults to ``len(items)``."""
    if total is None:
        total = len(items)  # type: ignore[arg-type]
    with progress(description, total, show=show) as job:
        for item in items:
            yield item
            job.advance()
