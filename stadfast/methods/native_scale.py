"""Native scale: images of any size, none of them resized; training on crops, maps at the images' own resolution."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import ImageLoader
from ..errors import DataError
from .graph import Prediction
from .sources import Images

logger = logging.getLogger("stadfast")


def native_predictions(
    detector: Any, images: Images, broken: list[tuple[Path, str]] | None
) -> Iterator[tuple[list[Path | int], Prediction]]:
    """``(path or index, Prediction)`` of each image, as a batch of its own, by a detector whose score is a maximum.

    The maps are those of :class:`stadfast.linescan.NativeMaps`. That room is built on this one; so it is looked up by
    name when somebody asks for it, and not imported from here.

    Args:
        detector: fitted.
        images: of any sizes.
        broken: see :func:`read_native`.
    """
    graph, maps_of = detector.graph_, import_module("stadfast.linescan").NativeMaps(detector)
    threshold, pixel_threshold = graph.threshold.cpu(), graph.pixel_threshold.cpu()
    for source, image in read_native(images, broken):
        maps = maps_of(image)
        scores = maps.flatten(1).amax(dim=1)
        yield [source], Prediction(scores, scores > threshold, maps, maps > pixel_threshold)


def read_native(
    images: Images, broken: list[tuple[Path, str]] | None = None
) -> Iterator[tuple[Path | int, Tensor]]:
    """``(path or index, (3, H, W))`` of each image as it is, uint8 or float32.

    Unreadable files raise, or are appended to ``broken`` and left out if that is given.
    """
    if not images or isinstance(images[0], Tensor):
        yield from enumerate(images)  # type: ignore[misc]
        return
    loader = ImageLoader(images, skip_broken=broken is not None, workers=1, prefetch=1)  # type: ignore[arg-type]
    yield from loader
    if broken is not None:
        broken += loader.broken


def cropped_parts(
    train: Images, held_out: Images, size: tuple[int, int], seed: int, broken: list[tuple[Path, str]] | None
) -> tuple[Images, Images]:
    """:func:`native_crops` of the training and of the held-out images.

    Raises:
        DataError: an image is smaller than a crop, or no training image can be read.
    """
    crops = native_crops(train, size, seed, broken), native_crops(held_out, size, seed + 1, broken)
    if not crops[0]:
        raise DataError("none of the training images can be read")
    return crops


def native_crops(
    images: Images, size: tuple[int, int], seed: int, broken: list[tuple[Path, str]] | None = None
) -> list[Tensor]:
    """Crops of images at their own scale, at random places: of each image as many as have its area together.

    Args:
        images: of at least ``size``.
        size: (h, w) of the crops.
        seed: of the places.
        broken: see :func:`read_native`.

    Returns:
        (3, h, w) each, in memory, of the images' dtype.

    Raises:
        DataError: an image is smaller than a crop.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    crops: list[Tensor] = []
    for source, image in read_native(images, broken):
        rows, columns = image.shape[1:]
        if rows < height or columns < width:
            raise DataError(
                f"{source if isinstance(source, Path) else f'image {source}'} is {rows} x {columns}; at native scale "
                f"wanted at least image_size ({height} x {width})"
            )
        for _ in range(max(1, round(rows * columns / (height * width)))):
            top = int(torch.randint(rows - height + 1, (), generator=generator))
            left = int(torch.randint(columns - width + 1, (), generator=generator))
            crops.append(image[:, top : top + height, left : left + width].clone())
    logger.info("%d crops of %d x %d pixels at native scale", len(crops), height, width)
    return crops
