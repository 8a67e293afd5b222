"""What callers hold as batches (B, 3, h, w), without a copy where there is none to make."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError


def batches(images: Any, limit: int) -> Iterator[Tensor]:
    """Batches of at most ``limit`` images of one size, uint8 or float in [0, 1], in the order of the images.

    Args:
        images: tensors or arrays as :func:`~stadfast.data.layout.channels_first` takes them; or whatever else
            :func:`stadfast.data.as_images` reads (paths, Pillow images, lists).
        limit: the largest batch.
    """
    if isinstance(images, (np.ndarray, Tensor)):
        yield from _rgb(images).split(limit)
        return
    items = list(images) if isinstance(images, (list, tuple)) else [images]
    if not items:
        raise DataError("no images: the list is empty")
    if all(isinstance(item, (np.ndarray, Tensor)) for item in items):
        found = [_rgb(item) for item in items]
        yield from _grouped((image for batch in found for image in batch), limit)
    else:
        yield from _grouped(_read(items), limit)


def _rgb(images: np.ndarray | Tensor) -> Tensor:
    """An image or a batch as (B, 3, H, W): a view where that can be one."""
    from ..data.layout import channels_first

    batch = channels_first(images)
    return batch[:, :3] if batch.shape[1] > 1 else batch.expand(-1, 3, -1, -1)


def to_unit(images: Tensor) -> Tensor:
    """float32 in [0, 1], in the memory order that came.

    Raises:
        DataError: floats that are not in [0, 1], or not finite.
    """
    if images.dtype == torch.uint8:
        return images.float().div_(255.0)
    if images.dtype == torch.uint16:
        return images.float().div_(65535.0)
    low, high = (float(x) for x in torch.aminmax(images))
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise DataError(f"images have values from {low:.6g} to {high:.6g}; wanted floats in [0, 1], or uint8")
    return images.float().clamp(0, 1)


def _read(items: list[Any]) -> Iterator[Tensor]:
    from ..data import as_images, list_images

    if all(isinstance(item, (str, os.PathLike)) for item in items):
        for path in list_images(items):  # one after the other, in constant memory
            yield as_images(path)[0]
    else:
        yield from as_images(items)


def _grouped(images: Iterator[Tensor], limit: int) -> Iterator[Tensor]:
    """Neighbours of one size, type and device as batches."""
    group: list[Tensor] = []
    for image in images:
        key = (image.shape, image.dtype, image.device)
        if group and (len(group) == limit or key != (group[0].shape, group[0].dtype, group[0].device)):
            yield torch.stack(group)
            group = []
        group.append(image)
    if group:
        yield torch.stack(group)
