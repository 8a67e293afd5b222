"""One picture that shows what a detector sees: for each defect type an image, and its heat map below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._files import atomic_write
from ..data import read_image
from .heatmap import overlay, rgb
from .records import Record

_GAP = 8


def write_overview(path: Path, records: Sequence[Record], threshold: float) -> None:
    """Write a PNG with a column for each defect type: the median image of its scores, above its heat map.

    In the heat map the white contour is the region above the threshold, the green one the ground truth.

    Args:
        path: of the PNG; written atomically.
        records: scored test images; all pictures should be of one size.
        threshold: the detector's.
    """
    from PIL import Image

    by_type: dict[str, list[Record]] = {}
    for record in records:
        if record.label:
            by_type.setdefault(record.defect or "defect", []).append(record)
    chosen = [sorted(group, key=lambda r: r.score)[len(group) // 2] for _, group in sorted(by_type.items())]
    columns = []
    for record in chosen:
        image = rgb(read_image(record.image))
        marked = overlay(image, record.map, threshold, record.mask)
        gap = np.full((_GAP, image.shape[1], 3), 255, np.uint8)
        columns.append(np.vstack([image, gap, marked]))
    gap = np.full((columns[0].shape[0], _GAP, 3), 255, np.uint8)
    picture = np.hstack([part for column in columns for part in (column, gap)][:-1])
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", optimize=True)
