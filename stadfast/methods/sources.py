"""What users hand to ``fit`` and ``predict``, as paths or as tensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Dataset, ImageLoader, Sample, as_images, list_images, open_dataset, to_float
from ..errors import DataError
from .graph import Preprocess

Images = list[Path] | list[Tensor]
_HEAD = 65536  # bytes of each file that enter the fingerprint


def training_images(data: Any) -> Images:
    """The good images of a data set, or all images of anything else.

    Raises:
        DataError: the data set has none to train on.
    """
    if not (isinstance(data, Dataset) or _is_folder(data)):
        return images_of(data)
    found = open_dataset(data)
    if not found.train:
        raise DataError(f"{found.root / 'train' / 'good'} does not exist; wanted a folder of good images")
    return [sample.image for sample in found.train]


def calibration_images(data: Any) -> Images:
    """What :func:`images_of` gives, which has to be good.

    Raises:
        DataError: a sample that is defective, or a folder that holds such beside good ones.
    """
    for item in data if isinstance(data, (list, tuple)) else [data]:
        if isinstance(item, Sample) and item.label:
            raise DataError(f"{item.image} is defective ({item.defect}); calibrate on good images only")
        if _is_folder(item) and any(sample.label for sample in open_dataset(item).test):
            raise DataError(
                f"{item} is a data set with defective images; calibrate on good ones that were not trained on, such as "
                f"{Path(item) / 'test' / 'good'}"
            )
    return images_of(data)


def _is_folder(data: Any) -> bool:
    return isinstance(data, (str, os.PathLike)) and Path(data).is_dir()


def images_of(data: Any) -> Images:
    """Paths where paths (or folders, or samples) came, so that they are read lazily; else tensors."""
    items = data if isinstance(data, (list, tuple)) else [data]
    if items and all(isinstance(item, (str, os.PathLike, Sample)) for item in items):
        return list_images(data)
    return as_images(data)


def split(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """(training, held-out), the latter drawn with the seed; at least one image stays for training.

    Raises:
        DataError: too few images.
    """
    n_held_out = round(fraction * len(images))
    if n_held_out >= len(images):
        raise DataError(f"{len(images)} images are too few to hold out {fraction:.0%} of them")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = set(order[:n_held_out])
    parts: tuple[list[Any], list[Any]] = ([], [])
    for i, image in enumerate(images):
        parts[i in held_out].append(image)
    return parts


def without(images: Images, broken: Sequence[tuple[Path, str]]) -> Images:
    """The images that are not among the ``(path, reason)`` of ``broken``."""
    left_out = {path for path, _ in broken}
    return [image for image in images if not (isinstance(image, Path) and image in left_out)]  # type: ignore[return-value]


def read_resized(
    images: Images,
    preprocess: Preprocess,
    device: torch.device,
    *,
    broken: list[tuple[Path, str]] | None = None,
) -> Iterator[tuple[Path | int, Tensor]]:
    """``(path or index, (3, H, W) float in [0, 1] at the network's size)`` of each image.

    Unreadable files raise, or are appended to ``broken`` and left out if that is given.
    """

    def resize(image: Tensor) -> Tensor:
        return preprocess.resize(to_float(image.to(device))[None])[0]

    if isinstance(images[0], Tensor):
        yield from ((i, resize(image)) for i, image in enumerate(images))  # type: ignore[arg-type]
        return
    loader = ImageLoader(images, resize, skip_broken=broken is not None)  # type: ignore[arg-type]
    yield from loader
    if broken is not None:
        broken += loader.broken


def fingerprint(images: Sequence[Path] | Sequence[Tensor]) -> str:
    """16 hexadecimal digits that change with the images: names, sizes and first 64 KB of files, or all pixels."""
    digest = hashlib.sha256()
    for image in images:
        if isinstance(image, Tensor):
            digest.update(repr((tuple(image.shape), image.dtype)).encode())
            digest.update(image.cpu().contiguous().numpy().tobytes())
            continue
        digest.update(f"{image.name}:{image.stat().st_size}".encode())
        with image.open("rb") as file:
            digest.update(file.read(_HEAD))
    return digest.hexdigest()[:16]
