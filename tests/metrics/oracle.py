"""The definitions written out, slowly, in float64: what the metrics are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def regions_of(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """8-connected regions of a mask by flood fill, numbered from 1 by their first pixel in raster order."""
    labels = np.zeros(mask.shape, np.int64)
    count = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        count += 1
        labels[start] = count
        stack = [start]
        while stack:
            y, x = stack.pop()
            for v in range(max(y - 1, 0), min(y + 2, mask.shape[0])):
                for u in range(max(x - 1, 0), min(x + 2, mask.shape[1])):
                    if mask[v, u] and not labels[v, u]:
                        labels[v, u] = count
                        stack.append((v, u))
    return labels


def pro_points(
    maps: Sequence[NDArray[np.float64]], masks: Sequence[NDArray[np.bool_]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every point of the per-region overlap curve, one per distinct score, by sorting all pixels."""
    normal, share, count = [], [], 0
    for mask in masks:
        labels = regions_of(mask)
        area = np.bincount(labels.ravel())
        normal.append((labels == 0).ravel())
        share.append(np.where(labels > 0, 1.0 / area[labels], 0.0).ravel())
        count += len(area) - 1
    scores = np.concatenate([np.asarray(m, np.float64).ravel() for m in maps])
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of each run of ties
    false_positive = np.cumsum(np.concatenate(normal)[order])[last]
    overlap = np.cumsum(np.concatenate(share)[order])[last] / count
    return np.append(0.0, false_positive / false_positive[-1]), np.append(0.0, np.minimum(overlap, 1.0))


def aupro(
    maps: Sequence[NDArray[np.float64]], masks: Sequence[NDArray[np.bool_]], limit: float = 0.3
) -> float:
    """Trapezoids up to the limit, the last one cut by linear interpolation, divided by the limit."""
    rate, overlap = pro_points(maps, masks)
    area = 0.0
    for x0, x1, y0, y1 in zip(rate[:-1], rate[1:], overlap[:-1], overlap[1:], strict=True):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < limit:
            area += (limit - x0) * (2 * y0 + (limit - x0) / (x1 - x0) * (y1 - y0)) / 2
    return area / limit
