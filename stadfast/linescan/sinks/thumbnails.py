"""A picture of each defect."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..._files import atomic_write
from ...errors import SinkError, StadfastError
from ..observer import Event, Run, Sink


class Thumbnails(Sink):
    """Writes a picture of each closed event: the image on the left, its map on the right.

    It is called after the run (:attr:`Run.name`) and the event's id, such as ``20261123T111500Z-000042.png``.
    The map is grey on a logarithmic scale from a tenth of the threshold (black) to ten times it (white).

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
        from PIL import Image

        if event.defect.growing or event.thumbnail is None or event.thumbnail_map is None:
            return
        try:
            with atomic_write(self._folder / f"{self._run}-{event.defect.id:06d}.png") as path:
                Image.fromarray(picture(event.thumbnail, event.thumbnail_map, self._threshold)).save(
                    path, "PNG"
                )
        except StadfastError as error:
            raise SinkError(str(error)) from error


def picture(image: np.ndarray, map: np.ndarray, threshold: float) -> np.ndarray:
    """(h, w, 1 or 3) uint8 and (h, w) scores -> (h, 2 w + 2, 3) uint8, side by side."""
    decades = np.log10(np.maximum(map, 1e-30) / max(threshold, 1e-30))
    grey = (np.clip((decades + 1) / 2, 0, 1) * 255).astype(np.uint8)
    left = np.broadcast_to(image, (*image.shape[:2], 3))
    right = np.broadcast_to(grey[:, :, None], (*grey.shape, 3))
    return np.concatenate([left, np.full((len(left), 2, 3), 255, np.uint8), right], axis=1)
