"""What callers hold as batches (B, 3, h, w), without a copy where there is none to make."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

logger = logging.getLogger("stadfast")


def batches(
    images: Any, limit: int, *, skip_broken: bool = False
) -> Iterator[tuple[list[Path | int], Tensor]]:
    """``(paths or indices, batch)``: at most ``limit`` images of one size, uint8 or floats, in the order of the images.

    Args:
        images: tensors or arrays as :func:`~stadfast.data.layout.channels_first` takes them; or whatever else
            :func:`stadfast.data.as_images` reads (paths, Pillow images, lists).
        limit: the largest batch.
        skip_broken: leave out unreadable files; after the last batch the log names them.
    """
    if isinstance(images, (np.ndarray, Tensor)):
        whole = _rgb(images)
        numbers: list[Path | int] = list(range(len(whole)))
        for first in range(0, len(whole), limit):
            yield numbers[first : first + limit], whole[first : first + limit]
    elif (
        isinstance(images, (list, tuple))
        and images
        and all(isinstance(i, (np.ndarray, Tensor)) for i in images)
    ):
        found = [_rgb(item) for item in images]
        yield from _grouped(enumerate(image for batch in found for image in batch), limit)
    else:
        yield from _grouped(_read(images, skip_broken), limit)


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


def _read(images: Any, skip_broken: bool) -> Iterator[tuple[Path | int, Tensor]]:
    from ..data import ImageLoader
    from ..methods.sources import images_of

    found = images_of(images)
    if isinstance(found[0], Tensor):
        yield from enumerate(found)  # type: ignore[misc]
        return
    loader = ImageLoader(found, skip_broken=skip_broken, workers=0)  # type: ignore[arg-type]
    yield from loader  # one after the other, in constant memory
    for path, reason in loader.broken:
        logger.warning("left out %s: %s", path, reason)


def _grouped(
    images: Iterable[tuple[Path | int, Tensor]], limit: int
) -> Iterator[tuple[list[Path | int], Tensor]]:
    """Neighbours of one size, type and device as batches."""

    def kind(image: Tensor) -> tuple[Any, ...]:
        return image.shape, image.dtype, image.device

    sources: list[Path | int] = []
    group: list[Tensor] = []
    for source, image in images:
        if group and (len(group) == limit or kind(image) != kind(group[0])):
            yield sources, torch.stack(group)
            sources, group = [], []
        sources.append(source)
        group.append(image)
    if group:
        yield sources, torch.stack(group)
