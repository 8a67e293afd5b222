"""What the metrics take: NumPy arrays, torch tensors on any device, or lists of maps; checked in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, UsageError


def as_tensor(value: Any, name: str) -> Tensor:
    """``value`` as a tensor that shares memory with it where that is possible."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch has no read-only or reversed views
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name} must be numbers in an array or a tensor, got {type(value).__name__}"
        ) from error


def as_scores(value: Any, name: str = "scores") -> Tensor:
    """Scores as float32, or as float64 where float32 could not tell two of them apart. The shape is kept.

    Raises:
        UsageError: not numeric.
        DataError: NaN or infinite.
    """
    scores = as_tensor(value, name)
    if scores.is_complex():
        raise UsageError(f"{name} must be real numbers, got {scores.dtype}")
    if scores.dtype in (torch.int32, torch.int64, torch.uint32, torch.uint64):
        scores = scores.to(torch.float64)
    elif scores.dtype not in (torch.float32, torch.float64):
        scores = scores.to(torch.float32)  # exact for bool, 8- and 16-bit integers, half and bfloat16
    if not torch.isfinite(scores).all():
        bad = int((~torch.isfinite(scores)).sum())
        raise DataError(f"{name} must be finite, got {bad} NaN or infinite of {scores.numel()} values")
    return scores


def as_binary(value: Any, name: str, binarise: float | None = None) -> Tensor:
    """Labels or a mask as bool: {0, 1} or {0, 255} as they are, anything else only by ``value > binarise``.

    Raises:
        DataError: other values than these, and no ``binarise`` to say what they mean.
    """
    mask = as_tensor(value, name)
    if mask.dtype == torch.bool:
        return mask
    if binarise is not None:
        return mask > binarise
    binary = mask != 0
    if mask.dtype == torch.uint8 and bool(((mask == 255) | ~binary).all()):
        return binary
    if not bool(((mask == 1) | ~binary).all()):
        raise DataError(
            f"{name} must be binary ({{0, 1}}, {{0, 255}} as uint8, or bool), got {mask.dtype} from "
            f"{mask.min().item():g} to {mask.max().item():g}; binarise first, for instance mask > 0.5"
        )
    return binary


def as_labels(value: Any, name: str = "labels") -> Tensor:
    """Labels, one per score, as bool; see ``as_binary``."""
    return as_binary(value, name)


def split_images(value: Any, name: str) -> list[Any]:
    """(N,1,H,W), (N,H,W), one (H,W), or a sequence of (H,W) or (1,H,W) -> N images, (H,W) each, or None."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [
            None if image is None else _plane(as_tensor(image, name), name, i)
            for i, image in enumerate(value)
        ]
    images = as_tensor(value, name)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim == 2:
        images = images[None]
    if images.ndim != 3:
        raise UsageError(
            f"{name} must be (N,1,H,W), (N,H,W), (H,W) or a list of (H,W), got shape {tuple(images.shape)}"
        )
    return list(images)


def _plane(image: Tensor, name: str, index: int) -> Tensor:
    if image.ndim == 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 2:
        raise UsageError(f"{name}[{index}] must be (H,W) or (1,H,W), got shape {tuple(image.shape)}")
    return image


def paired_images(
    maps: Any, masks: Any, binarise: float | None = None
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Maps as float (H,W) and, one for each, their masks as bool (H,W); None stands for a good image.

    Raises:
        UsageError: different numbers of maps and masks, or a map and its mask differ in size.
        DataError: a score that is NaN or infinite, or a mask that is not binary.
    """
    scores = [as_scores(image, f"maps[{i}]") for i, image in enumerate(split_images(maps, "maps"))]
    truths: list[Tensor | None] = []
    raw = split_images(masks, "masks")
    if len(raw) != len(scores):
        raise UsageError(f"maps and masks must be as many, got {len(scores)} maps and {len(raw)} masks")
    for i, (image, mask) in enumerate(zip(scores, raw, strict=True)):
        if mask is not None:
            if mask.shape != image.shape:
                raise UsageError(
                    f"masks[{i}] must be {tuple(image.shape)} like maps[{i}], got {tuple(mask.shape)}"
                )
            mask = as_binary(mask, f"masks[{i}]", binarise).to(image.device)
        truths.append(mask)
    return scores, truths
