"""A picture of each defect."""

from __future__ import annotations

import os
from pathlib import Path

from ..._files import atomic_write
from ...errors import SinkError, StadfastError
from ..observer import Event, Run, Sink
from ..pictures import thumbnail_png


class Thumbnails(Sink):
    """Writes a picture of each closed event: the image on the left, its map on the right.

    It is called after the run (:attr:`Run.name`) and the event's id, such as ``20261123T111500Z-000042.png``.
    The map has the operator's page's colours, on a logarithmic scale from a tenth of the threshold to ten times it.

    Args:
        folder: is made if need be; an earlier run's pictures stay.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._threshold, self._run = 1.0, ""

    def open(self, run: Run) -> None:
        self._threshold = run.threshold
        self._run = run.name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"cannot write to {self._folder}: {error.strerror or error}") from error

    def event(self, event: Event) -> None:
        if event.defect.growing or event.thumbnail is None or event.thumbnail_map is None:
            return
        try:
            with atomic_write(self._folder / f"{self._run}-{event.defect.id:06d}.png") as path:
                path.write_bytes(thumbnail_png(event.thumbnail, event.thumbnail_map, self._threshold))
        except StadfastError as error:
            raise SinkError(str(error)) from error
