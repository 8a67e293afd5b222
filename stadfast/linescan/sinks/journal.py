"""Events in files, one line each, so that a crash loses none that has closed."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from pathlib import Path
from typing import Any

from ...errors import SinkError, UsageError
from ..observer import Event, Notice, Run, Sink, Status, timestamp

FSYNC = ("event", "second", "never")
_COLUMNS = (
    "run", "id", "growing", "strip", "first_line", "end_line", "first_column", "end_column", "first_mm", "end_mm",
    "left_mm", "right_mm", "area", "area_mm2", "peak", "mean", "peak_line", "peak_column", "first_time", "last_time",
    "delay_s", "first_encoder", "last_encoder", "at_gap", "cut_off",
)  # fmt: skip


class _AppendedFile:
    """Whole lines at the end of a file, each by one ``write``, given to the system before the call returns.

    What the system has survives the program's death, ``kill -9`` included. That it survives the machine's, ``fsync``
    sees to: after each line, at most once a second (the last second's lines are at stake), or never.
    """

    def __init__(self, path: str | os.PathLike[str], fsync: str) -> None:
        if fsync not in FSYNC:
            raise UsageError(f"fsync: expected one of {', '.join(FSYNC)}, got {fsync!r}")
        self._path, self._fsync = Path(path), fsync
        self._file: int | None = None
        self._torn = False  # whether a crash of the machine or a full disk has cut the file's last line short
        self._synced = 0.0

    def open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            size = os.fstat(self._file).st_size
            self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        except OSError as error:
            self.close()
            raise self._error(error) from error

    def begins_with(self, text: str) -> bool:
        """Whether something is in it, and this at its beginning.

        Raises:
            SinkError: something else is.
        """
        assert self._file is not None
        if os.fstat(self._file).st_size == 0:  # nothing, or a pipe or a device, of which nothing can be read
            return False
        wanted = text.encode()
        found = os.pread(self._file, len(wanted), 0)
        if found != wanted:
            self.close()
            raise SinkError(
                f"{self._path} begins with other columns; wanted a new file, or one of this version"
            )
        return True

    def append(self, line: str) -> None:
        assert self._file is not None, "append before open"
        data = memoryview(("\n" * self._torn + line + "\n").encode())
        try:
            while data:  # one write, unless the disk is nearly full
                data = data[os.write(self._file, data) :]
                self._torn = bool(data)
            if self._fsync == "event" or (self._fsync == "second" and time.monotonic() - self._synced >= 1):
                self._sync()
        except OSError as error:
            raise self._error(error) from error

    def tick(self) -> None:
        """Called about once a second."""
        if self._fsync == "second" and self._file is not None:
            self._sync()

    def _sync(self) -> None:
        assert self._file is not None
        try:
            os.fsync(self._file)
        except OSError as error:
            if error.errno not in (22, 95):  # EINVAL, EOPNOTSUPP: a pipe or a device has nothing to sync
                raise
        self._synced = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            try:
                if self._fsync != "never":
                    self._sync()
            finally:
                os.close(self._file)
                self._file = None

    def _error(self, error: OSError) -> SinkError:
        return SinkError(f"cannot write {self._path}: {error.strerror or error}")


class JsonLines(Sink):
    """Appends each event, and each notice, as one JSON object to a file.

    Args:
        path: created if need be; an earlier run's lines stay.
        fsync: when the disk is waited for: ``"event"`` (each line), ``"second"`` or ``"never"``.
    """

    def __init__(self, path: str | os.PathLike[str], fsync: str = "event") -> None:
        self._file = _AppendedFile(path, fsync)

    def open(self, run: Run) -> None:
        self._file.open()
        self._append({"type": "run", "time": timestamp(run.started), "name": run.name, "source": run.source,
                      "threshold": run.threshold, "pixel_pitch": run.pixel_pitch,
                      "settings": run.settings})  # fmt: skip

    def event(self, event: Event) -> None:
        self._append(event.record())

    def notice(self, notice: Notice) -> None:
        self._append({"type": "notice", "time": timestamp(time.time()), "kind": notice.kind, "message": notice.message,
                      "line": notice.line, "fault": notice.fault, **notice.details})  # fmt: skip

    def status(self, status: Status) -> None:
        self._file.tick()

    def close(self) -> None:
        self._file.close()

    def _append(self, record: dict[str, Any]) -> None:
        self._file.append(json.dumps(record))


class CsvTable(Sink):
    """Appends each event as one row to a table; the first row of a new file names the columns, the first of which
    tells the runs apart.

    Args:
        path, fsync: see :class:`JsonLines`.
    """

    def __init__(self, path: str | os.PathLike[str], fsync: str = "event") -> None:
        self._file = _AppendedFile(path, fsync)
        self._run = ""

    def open(self, run: Run) -> None:
        self._run = run.name
        self._file.open()
        head = ",".join(_COLUMNS)
        if not self._file.begins_with(f"{head}\n"):
            self._file.append(head)

    def event(self, event: Event) -> None:
        defect, record = event.defect, event.record()
        along, across = defect.rows_mm or (None, None), defect.columns_mm or (None, None)
        values = (
            self._run, defect.id, int(defect.growing), event.strip, *defect.rows, *defect.columns, *along, *across,
            defect.area, defect.area_mm2, defect.peak, defect.mean, *defect.peak_position, record["first_time"],
            record["last_time"], record["delay_s"], *(event.encoder or (None, None)), int(event.at_gap),
            int(event.cut_off),
        )  # fmt: skip
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(values)
        self._file.append(line.getvalue())

    def status(self, status: Status) -> None:
        self._file.tick()

    def close(self) -> None:
        self._file.close()
