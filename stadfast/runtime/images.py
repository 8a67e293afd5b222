"""What callers hold as batches (B, 3, h, w), without a copy where there is none to make."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

_CHANNELS = (1, 3, 4)
_DTYPES = ("uint8", "uint16", "float16", "float32", "float64")  # of arrays, in either byte order


def batches(images: Any, limit: int) -> Iterator[Tensor]:
    """Batches of at most ``limit`` images of one size, uint8 or float in [0, 1], in the order of the images.

    Args:
        images: tensors or arrays, (H, W), (H, W, C), (C, H, W) or with a batch before; or whatever
            :func:`stadfast.data.as_images` reads (paths, Pillow images, lists).
        limit: the largest batch.
    """
    if isinstance(images, (np.ndarray, Tensor)):
        yield from _channels_first(images).split(limit)
        return
    items = list(images) if isinstance(images, (list, tuple)) else [images]
    if not items:
        raise DataError("no images: the list is empty")
    if all(isinstance(item, (np.ndarray, Tensor)) for item in items):
        found = [_channels_first(item) for item in items]
        yield from _grouped((image for batch in found for image in batch), limit)
    else:
        yield from _grouped(_read(items), limit)


def _channels_first(images: np.ndarray | Tensor) -> Tensor:
    """(H, W), (H, W, C), (C, H, W) or a batch of these as (B, 3, H, W): a view where that can be one.

    Where both ends could be channels, an array's last counts, as Pillow and OpenCV have it, and a tensor's first.

    Raises:
        DataError: another shape or dtype, or nothing in it.
    """
    shape = tuple(images.shape)
    is_array = isinstance(images, np.ndarray)
    if isinstance(images, np.ndarray):
        images = _tensor(images)
    if images.dtype not in (torch.uint8, torch.uint16) and not images.is_floating_point():
        dtype = str(images.dtype).removeprefix("torch.")
        raise DataError(f"images have dtype {dtype}; wanted uint8, uint16 or floats in [0, 1]")
    if images.dim() == 2:
        images = images[None]
    if images.dim() == 3:
        images = images[None]
    if images.dim() != 4 or images.numel() == 0:
        raise DataError(f"images have shape {shape}; wanted (H, W), (H, W, C), (C, H, W) or a batch of these")
    first, last = (images.shape[axis] in _CHANNELS for axis in (1, 3))
    if len(shape) == 2:
        first, last = True, False
    if not (first or last):
        raise DataError(f"images have shape {shape}; wanted 1, 3 or 4 channels, first or last")
    if last and (is_array or not first):
        images = images.permute(0, 3, 1, 2)
    return images[:, :3] if images.shape[1] > 1 else images.expand(-1, 3, -1, -1)


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


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.name not in _DTYPES:
        raise DataError(f"images have dtype {array.dtype}; wanted uint8, uint16 or floats in [0, 1]")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.copy()  # torch has neither negative strides nor read-only memory
    return torch.from_numpy(array)


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
