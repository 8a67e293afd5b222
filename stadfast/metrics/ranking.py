"""Counting without sorting the normal pixels: each is ranked against the scores of the anomalous ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .counts import Counts


def rank_counts(scores: Sequence[Tensor], anomalous: Sequence[Tensor | None]) -> Counts:
    """Count scores, given which of each are anomalous (None: none of them is)."""
    positive = [s[a] for s, a in zip(scores, anomalous, strict=True) if a is not None]
    return _count(scores, positive, [None] * len(positive))


def region_counts(maps: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Counts:
    """Count pixels, and regions' shares, given the maps (H,W) and masks (H,W) bool or None."""
    positive, regions = [], []
    for image, mask in zip(maps, masks, strict=True):
        if mask is not None and bool(mask.any()):
            labels = label_regions(mask)
            positive.append(image[mask])
            regions.append(labels[mask] - 1)
    return _count(maps, positive, regions)


def label_regions(mask: Tensor) -> Tensor:
    """8-connected regions of a mask (H,W) bool: 0 outside, 1.. inside, int64 on the mask's device."""
    from scipy.ndimage import label

    labels, _ = label(mask.cpu().numpy(), structure=np.ones((3, 3)))
    return torch.from_numpy(labels.astype(np.int64)).to(mask.device)


def _count(scores: Sequence[Tensor], positive: Sequence[Tensor], regions: Sequence[Tensor | None]) -> Counts:
    """Slots of falling score: above the highest anomalous score, equal to it, between it and the next, ..."""
    dtype = torch.float64 if any(s.dtype == torch.float64 for s in scores) else torch.float32
    if positive:
        edges = torch.unique(torch.cat([p.to(dtype) for p in positive]))
    else:
        edges = torch.empty(0, dtype=dtype, device=scores[0].device if scores else None)
    slots = 2 * len(edges) + 1
    total = np.zeros(slots, np.int64)
    anomalous = np.zeros(slots, np.int64)
    overlap = np.zeros(slots, np.float64)
    for image in scores:
        total += torch.bincount(_slots(image.to(dtype), edges), minlength=slots).cpu().numpy()
    count = 0
    for values, region in zip(positive, regions, strict=True):
        slot = _slots(values.to(dtype), edges)
        anomalous += torch.bincount(slot, minlength=slots).cpu().numpy()
        if region is not None:
            area = torch.bincount(region)
            share = 1.0 / area.to(torch.float64)[region]
            overlap += torch.bincount(slot, weights=share, minlength=slots).cpu().numpy()
            count += len(area)
    return Counts(_thresholds(edges), (total - anomalous)[::-1], anomalous[::-1], overlap[::-1], count)


def _slots(scores: Tensor, edges: Tensor) -> Tensor:
    """2j+1 for a score equal to edge j, 2j for one between edges j-1 and j."""
    flat = scores.reshape(-1).contiguous()
    return torch.searchsorted(edges, flat) + torch.searchsorted(edges, flat, right=True)


def _thresholds(edges: Tensor) -> np.ndarray:
    """For slots of falling score, the t for which ``score > t`` selects the slot and all above it.

    Between two edges that is the lower edge; at an edge, the largest float below it.
    """
    falling = edges.flip(0).cpu()
    below = torch.nextafter(falling, torch.full_like(falling, -torch.inf))
    pairs = torch.stack([falling, below], 1).reshape(-1).to(torch.float64).numpy()
    return np.concatenate([pairs, [-np.inf]])
