"""Connected regions of masks: their labels, and the scores inside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError
from . import _library, reference_metrics
from .reference_metrics import BINS


def label_regions(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Label the 8-connected regions of each mask, by union-find: exact for regions of any length and shape.

    Equivalent, per image, to ``scipy.ndimage.label(mask, structure=np.ones((3, 3)))``.

    Args:
        masks: (B, H, W) bool.

    Returns:
        labels: (B, H, W) int32; 0 outside, 1, 2, ... by the raster order of the regions' first pixels.
        counts: (B,) int64, the number of regions of each image.

    Raises:
        UsageError: not three dimensions, not bool, or an image of more than 2^31 - 2 pixels.
    """
    if masks.dim() != 3 or masks.dtype != torch.bool:
        raise UsageError(f"masks: expected (B, H, W) bool, got {tuple(masks.shape)} {masks.dtype}")
    if masks.shape[1] * masks.shape[2] >= 2**31 - 1:
        raise UsageError(f"masks: expected fewer than 2^31 - 1 pixels an image, got {tuple(masks.shape[1:])}")
    if _library.has_kernel(masks.device.type):
        return torch.ops.stadfast.label_regions(masks)
    return reference_metrics.label_regions(masks)


def region_pixels(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Everything that a metric of regions needs to know about them, a few numbers per anomalous pixel.

    Args:
        maps: N maps (H_i, W_i) of one floating-point dtype on one device.
        masks: N masks (H_i, W_i) bool on that device.

    Returns:
        scores: (M,) of the maps' dtype, of the M pixels inside regions, by image and in raster order.
        regions: (M,) int32, the region of each, numbered from 0 through all images as by ``label_regions``.
        areas: (K,) int64, the pixels of each region.
        counts: (N,) int64, the regions of each image.

    Raises:
        UsageError: no maps, or maps and masks do not match.
    """
    maps, masks = _check_maps(maps, masks)
    if maps[0].device.type == "cpu" and _library.has_kernel("cpu"):
        return torch.ops.stadfast.region_pixels(maps, masks)
    return gather_region_pixels(maps, masks)


def region_histogram(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What ``region_pixels`` tells, by the 16-bit keys of ``key_histogram``: in constant memory.

    Args:
        maps: N maps (H_i, W_i), float32, float16 or bfloat16, of one dtype on one device.
        masks: N masks (H_i, W_i) bool on that device.

    Returns:
        pixels: (65536,) int64, how many pixels inside regions have each key.
        overlap: (65536,) float64, the sum over these pixels of one over their region's area.
        counts: (N,) int64, the regions of each image.

    Raises:
        UsageError: no maps, another dtype, or maps and masks do not match.
    """
    maps, masks = _check_maps(maps, masks)
    if maps[0].dtype == torch.float64:
        raise UsageError("maps: expected float32, float16 or bfloat16, got torch.float64")
    if maps[0].device.type == "cpu" and _library.has_kernel("cpu"):
        return torch.ops.stadfast.region_histogram(maps, masks)
    return gather_region_histogram(maps, masks)


def _check_maps(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    maps, masks = list(maps), list(masks)
    if not maps or len(maps) != len(masks):
        raise UsageError(f"masks: expected one per map and at least one, got {len(maps)} and {len(masks)}")
    for i, (image, mask) in enumerate(zip(maps, masks, strict=True)):
        if (
            mask.dim() != 2
            or mask.dtype != torch.bool
            or mask.shape != image.shape
            or mask.device != image.device
        ):
            raise UsageError(
                f"masks[{i}]: expected bool {tuple(image.shape)} on {image.device} like maps[{i}], "
                f"got {mask.dtype} {tuple(mask.shape)} on {mask.device}"
            )
        if image.dtype != maps[0].dtype or image.device != maps[0].device or not image.is_floating_point():
            raise UsageError(
                f"maps[{i}]: expected a floating-point dtype and device like maps[0], got {image.dtype}"
            )
    return maps, masks


def gather_region_pixels(maps: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``region_pixels`` by label images: the reference, and the way on a GPU."""
    if all(mask.shape == masks[0].shape for mask in masks):
        batches = [(torch.stack(maps), torch.stack(masks))]
    else:
        batches = [(image[None], mask[None]) for image, mask in zip(maps, masks, strict=True)]
    scores, regions, counts, found = [], [], [], 0
    for images, inside in batches:
        labels, count = label_regions(inside)
        before = count.cumsum(0) - count + found - 1
        scores.append(images[inside])
        regions.append((labels + before[:, None, None])[inside].to(torch.int32))
        counts.append(count)
        found += int(count.sum())
    numbers = torch.cat(regions)
    return torch.cat(scores), numbers, torch.bincount(numbers, minlength=found), torch.cat(counts)


def gather_region_histogram(maps: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """``region_histogram`` by ``region_pixels``: the reference, and the way on a GPU.

    The shares are summed on the CPU: a GPU adds floats in an order of its own.
    """
    scores, regions, areas, counts = region_pixels(maps, masks)
    keys = reference_metrics.bin_keys(scores)
    share = (1.0 / areas.double())[regions.long()]
    overlap = torch.bincount(keys.cpu(), weights=share.cpu(), minlength=BINS).to(keys.device)
    return torch.bincount(keys, minlength=BINS), overlap, counts
