"""An inspector's connection to its source: stalls are told, and what is lost is opened again."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import SourceError
from .feed import POLL_S
from .reporter import Reporter
from .sources.base import Block, Notice, Source


class Connection:
    """Waits for a source's lines while no :class:`Feed` reads it.

    Args:
        source: open.
        reporter: is told of stalls and losses.
        stopping: whether the inspection is to end; asked at least ten times a second.
        stall_after, retry_after: see :class:`Inspector`.
    """

    def __init__(
        self, source: Source, reporter: Reporter, stopping: Callable[[], bool], stall_after: float,
        retry_after: float,
    ) -> None:  # fmt: skip
        self._source, self._reporter, self._stopping = source, reporter, stopping
        self._stall_after, self._retry_after = stall_after, retry_after

    def first_block(self) -> Block | None:
        """Wait for lines; None at the source's end, or if the inspection is to end."""
        idle_since = time.monotonic()
        while not self._stopping():
            try:
                block = self._source.read(POLL_S)
            except Exception as error:
                if not self.reopen(error):
                    return None
                idle_since = time.monotonic()
                continue
            if block is None:
                return None
            for notice in block.notices:
                self._reporter.notice(notice)
            if len(block.rows):
                self.watch(0.0)
                return None if self._stopping() else block._replace(notices=())
            self.watch(time.monotonic() - idle_since)
            self._reporter.report()
        return None

    def watch(self, idle: float) -> None:
        """Tell when lines stop coming, and when they come again; ``idle``: seconds since the last one."""
        reporter = self._reporter
        if reporter.state == "stalled" and idle < self._stall_after:
            reporter.state = "running"
            reporter.notice(Notice("resumed", "lines come again", reporter.line))
        elif reporter.state in ("waiting", "running") and idle >= self._stall_after:
            reporter.state = "stalled"
            message = f"no line from {self._source.name} for {self._stall_after:g} s"
            reporter.notice(Notice("stall", message, reporter.line, fault=True))

    def reopen(self, error: Exception) -> bool:
        """After a source's error: whether it is there again."""
        reporter = self._reporter
        if not isinstance(error, SourceError):
            error = SourceError(f"{self._source.name} failed: {type(error).__name__}: {error}")
        reporter.state = "lost"
        reporter.notice(Notice("lost", str(error), reporter.line, fault=True))
        began = time.monotonic()
        while not self._stopping():
            self._source.close()
            due = time.monotonic() + self._retry_after
            while not self._stopping() and (left := due - time.monotonic()) > 0:
                reporter.report()
                time.sleep(min(left, POLL_S))
            try:
                if not self._stopping():
                    self._source.open()
            except SourceError:
                continue
            if not self._stopping():
                reporter.state = "waiting"
                words = f"{self._source.name} is back after {time.monotonic() - began:.1f} s"
                reporter.notice(Notice("reopened", words, reporter.line))
                return True
        return False
