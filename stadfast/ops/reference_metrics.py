"""The metrics' ops in plain PyTorch: the oracle of the tests and the fallback without a compiler.

The signatures are the compiled ops' (csrc/schema.cpp).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 65536


def label_regions(masks: Tensor) -> tuple[Tensor, Tensor]:
    batch, height, width = masks.shape
    if masks.numel() == 0:
        return masks.to(torch.int32), masks.new_zeros(batch, dtype=torch.int64)
    outside = masks.numel()
    index = torch.arange(outside, device=masks.device)
    inside = masks.flatten()
    parent = torch.where(inside, index, outside)
    while True:
        # The smallest label of a pixel and its neighbours; float64 holds every index.
        grid = -parent.view(batch, 1, height, width).double()
        nearest = -F.max_pool2d(grid, 3, stride=1, padding=1).long().flatten()
        hooked = torch.where(inside, nearest, outside)
        hooked = hooked.scatter_reduce(0, parent[inside], hooked[inside], "amin")
        hooked[inside] = hooked[hooked[inside]]
        if torch.equal(hooked, parent):
            break
        parent = hooked
    first = (parent == index).view(batch, -1)  # a region's label is its first pixel
    number = first.cumsum(1).flatten()
    labels = torch.where(inside, number[torch.where(inside, parent, 0)], 0)
    return labels.view(masks.shape).to(torch.int32), first.sum(1)


def rank_counts(scores: list[Tensor], edges: Tensor) -> Tensor:
    slots = 2 * len(edges) + 2
    counts = torch.zeros(slots, dtype=torch.int64, device=edges.device)
    for tensor in scores:
        flat = tensor.reshape(-1).to(edges.dtype)
        slot = torch.searchsorted(edges, flat) + torch.searchsorted(edges, flat, right=True)
        slot = torch.where(torch.isfinite(flat), slot, slots - 1)
        counts += torch.bincount(slot, minlength=slots)
    return counts


def key_histogram(scores: list[Tensor]) -> Tensor:
    counts = torch.zeros(BINS, dtype=torch.int64, device=scores[0].device)
    for tensor in scores:
        counts += torch.bincount(bin_keys(tensor), minlength=BINS)
    return counts


def bin_keys(scores: Tensor) -> Tensor:
    """The 16-bit key of each score, flat, int64: of the same order as the scores, both zeros alike."""
    flat = scores.reshape(-1)
    flat = torch.where(flat == 0, torch.zeros_like(flat), flat)
    if flat.dtype == torch.float32:
        bits = (flat.contiguous().view(torch.int32) >> 16) & 0xFFFF
    else:
        bits = flat.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
    return torch.where(bits >= 0x8000, 0xFFFF - bits, bits + 0x8000).long()
