"""What the page says in words and figures: the run, its status, the last defects and notices."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from dataclasses import asdict
from typing import Any, NamedTuple

from ..observer import Event, Notice, Run, Status
from ..pictures import COLOURS, thumbnail_png

_DEFECTS = 100
_NOTICES = 50
_LONGEST = 500  # characters of a name or message


class _Entry(NamedTuple):
    serial: int
    at: float  # seconds of time.monotonic
    record: dict[str, Any]
    event: Event | None = None


class Board:
    """The latest state, bounded, and what of it is new since somebody last asked.

    Every change has a serial number. A message holds what changed since the one that its reader has, and ages in
    seconds rather than times of day: the reader's clock may be wrong.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._serial = self._run_serial = 0
        self._closed = False
        self._rows_at: float | None = None
        self._status: _Entry | None = None
        self._begin(Run("", 1.0, None))

    # ---------------------------------------------------------------- the inspector's thread

    def begin(self, run: Run) -> None:
        with self._changed:
            self._begin(run)
            self._touch()
            self._run_serial = self._serial

    def rows(self) -> None:
        self._rows_at = time.monotonic()

    def event(self, event: Event) -> None:
        defect = event.defect
        record = event.record()
        record["over"] = defect.peak / max(self._run.threshold, 1e-30)
        with self._changed:
            serial = self._touch()
            record["thumbnail"] = (
                f"thumbnail/{defect.id}?v={self._name}.{serial}" if event.thumbnail is not None else None
            )
            for number in (defect.id, *defect.absorbed):
                self._defects.pop(number, None)
            self._defects[defect.id] = _Entry(serial, time.monotonic(), record, event)
            if len(self._defects) > _DEFECTS:
                del self._defects[next(iter(self._defects))]

    def notice(self, notice: Notice) -> None:
        record = {"kind": notice.kind, "message": notice.message[:_LONGEST], "line": notice.line,
                  "fault": notice.fault or notice.kind == "gap"}  # fmt: skip
        with self._changed:
            self._notices.append(_Entry(self._touch(), time.monotonic(), record))

    def status(self, status: Status) -> None:
        with self._changed:
            self._status = _Entry(self._touch(), time.monotonic(), asdict(status))

    def close(self) -> None:
        """Nothing more comes: the last message says so."""
        with self._changed:
            self._closed = True
            self._touch()

    # ---------------------------------------------------------------- those who look

    def message(self, since: int, timeout: float = 0.0) -> dict[str, Any]:
        """What has changed since serial ``since``, once something has, or after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._serial != since or self._closed, timeout)
            now, since = time.monotonic(), since if since >= self._run_serial else 0
            message: dict[str, Any] = {
                "serial": self._serial, "closed": self._closed, "rows_age": _age(self._rows_at, now),
                "status": self._status and {**self._status.record, "age": _age(self._status.at, now)},
                "defects": [
                    {**entry.record, "age": _age(entry.at, now)}
                    for entry in self._defects.values() if entry.serial > since
                ],
                "notices": [
                    {**entry.record, "age": _age(entry.at, now)} for entry in self._notices if entry.serial > since
                ],
            }  # fmt: skip
            if since == 0:
                message["run"] = {
                    "source": self._run.source[:_LONGEST], "threshold": self._run.threshold, "colours": COLOURS,
                    "pixel_pitch": self._run.pixel_pitch, "defects_kept": _DEFECTS, "notices_kept": _NOTICES,
                }  # fmt: skip
        return message

    def thumbnail(self, number: int) -> bytes | None:
        """A defect's picture as PNG; None if it has none, or is forgotten."""
        with self._changed:
            entry = self._defects.get(number)
            threshold = self._run.threshold
        event = entry.event if entry else None
        if event is None or event.thumbnail is None or event.thumbnail_map is None:
            return None
        return thumbnail_png(event.thumbnail, event.thumbnail_map, threshold)

    # ---------------------------------------------------------------- details

    def _begin(self, run: Run) -> None:
        self._run, self._name = run, secrets.token_hex(4)  # browsers keep thumbnails: each run has its own
        self._closed, self._rows_at, self._status = False, None, None
        self._defects: dict[int, _Entry] = {}
        self._notices: deque[_Entry] = deque(maxlen=_NOTICES)

    def _touch(self) -> int:
        self._serial += 1
        self._changed.notify_all()
        return self._serial


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else round(now - at, 2)
