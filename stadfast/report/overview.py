"""One picture that shows what a detector sees: for each defect type an image, and its heat map below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._files import atomic_write
from ..data import read_image
from ..errors import UsageError
from .heatmap import overlay, rgb
from .records import Record

_GAP = 8


def write_overview(path: Path, records: Sequence[Record], threshold: float) -> None:
    """Write a PNG with a column for each defect type: the median image of its scores, above its heat map.

    In the heat map the white contour is the region above the threshold, the green one the ground truth.

    Args:
        path: of the PNG; written atomically.
        records: scored test images, with defective ones; below a picture that is less high than another it is white.
        threshold: the detector's.

    Raises:
        UsageError: no record is of a defective image, or the threshold is not positive.
    """
    from PIL import Image

    by_type: dict[str, list[Record]] = {}
    for record in records:
        if record.label:
            by_type.setdefault(record.defect or "defect", []).append(record)
    if not by_type:
        raise UsageError(
            f"records must hold at least one defective image, for a column; got {len(records)} good ones"
        )
    chosen = [sorted(group, key=lambda r: r.score)[len(group) // 2] for _, group in sorted(by_type.items())]
    images = [rgb(read_image(record.image)) for record in chosen]
    height = max(image.shape[0] for image in images)
    columns = []
    for image, record in zip(images, chosen, strict=True):
        marked = overlay(image, record.map, threshold, record.mask)
        gap = np.full((_GAP, image.shape[1], 3), 255, np.uint8)
        columns.append(np.vstack([_padded(image, height), gap, _padded(marked, height)]))
    gap = np.full((columns[0].shape[0], _GAP, 3), 255, np.uint8)
    picture = np.hstack([part for column in columns for part in (column, gap)][:-1])
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", optimize=True)


def _padded(picture: np.ndarray, height: int) -> np.ndarray:
    return np.pad(picture, ((0, height - picture.shape[0]), (0, 0), (0, 0)), constant_values=255)
