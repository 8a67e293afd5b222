"""One image in, one tensor out: files, Pillow images, arrays and tensors become (3, H, W) RGB.

8-bit images stay ``uint8`` (a quarter of the memory); 16-bit and float images become ``float32`` in [0, 1].
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import DataError
from .decode import check_range, decode, pixels
from .layout import channels_first

IMAGE_EXTENSIONS: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def read_image(path: str | os.PathLike[str], contents: bytes | None = None) -> Tensor:
    """Read an image file as RGB.

    PNG, JPEG, TIFF, BMP, WebP and what else Pillow reads; grey, palette, 1-bit and CMYK become RGB, alpha is
    dropped, EXIF rotation is applied, and of an animation or a multi-page file the first frame counts.
    16-bit grey keeps its 16 bits (``value / 65535``), and so does 16-bit RGB in PNG as long as torchvision
    has a PNG decoder (deprecated since 0.29); of 16-bit RGB in TIFF Pillow delivers the upper 8 bits only,
    and such a file gives ``uint8``. Float files must lie in [0, 1].
    Pillow's limit against decompression bombs holds (``2 * PIL.Image.MAX_IMAGE_PIXELS``, 179 megapixels).

    Args:
        path: the file.
        contents: what is in the file, if somebody has read it; ``path`` is then only its name.

    Returns:
        (3, H, W): uint8 for 8-bit files, float32 in [0, 1] for 16-bit and float files.

    Raises:
        UnreadableImageError: (a ``DataError``) no such file, damaged, not an image, too large, not finite.
    """
    return _to_rgb(decode(Path(path), contents))


def read_mask(path: str | os.PathLike[str], contents: bytes | None = None) -> Tensor:
    """Read a ground-truth mask.

    A pixel is defective where its grey value lies above half of the range (127 for 8 bits). Where no pixel of
    a lossless file does, the values are taken for labels, as in {0, 1} masks, and all but 0 are defective.

    Args:
        path: the file; any format of :func:`read_image`.
        contents: as there.

    Returns:
        (H, W) bool, true on defects.

    Raises:
        UnreadableImageError: as :func:`read_image`.
    """
    image = decode(Path(path), contents)
    # The brightest channel, not luma: saturated colours (label palettes) must count as bright.
    grey = image[..., : 3 if image.shape[2] > 2 else 1].max(axis=2)
    half = 0.5 if grey.dtype.kind == "f" else np.iinfo(grey.dtype).max // 2
    mask = grey > half
    if not mask.any() and Path(path).suffix.lower() not in (".jpg", ".jpeg"):  # JPEG's black is noisy
        mask = grey > 0
    return torch.from_numpy(mask)


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask (H, W) bool at another size (h, w): the share of defective area in each pixel, above one half."""
    if mask.shape == tuple(size):
        return mask
    share = interpolate(mask[None, None].float(), tuple(size), mode="bilinear", antialias=True)
    return share[0, 0] > 0.5


def to_float(image: Tensor) -> Tensor:
    """An image or a batch of any shape, uint8, uint16 or float in [0, 1], as float32 in [0, 1]."""
    if image.dtype == torch.uint8:
        return image.to(torch.float32).div_(255.0)
    if image.dtype == torch.uint16:
        return image.to(torch.float32).div_(65535.0)
    return image.to(torch.float32)


def as_images(obj: Any) -> list[Tensor]:
    """Whatever holds images as a list of (3, H, W) tensors.

    ============================  =========================================================================
    ``obj``                       read as
    ============================  =========================================================================
    path, ``Sample``              the image file, or all images in the folder (sorted, recursive)
    Pillow image                  as :func:`read_image` (the pixels as Pillow has decoded them)
    NumPy array                   (H, W), (H, W, C), (C, H, W), or a batch (N, ...) of the latter two
    tensor, any device            the same
    list, tuple or iterable       of paths, or of the others; the order is kept
    ============================  =========================================================================

    C is 1 (grey), 3 (RGB; OpenCV's BGR has to be reversed first) or 4 (RGBA, alpha is dropped). Where both ends could
    be channels, an array's last counts, as Pillow and OpenCV have it, and a tensor's first, as torchvision has it.
    Dtypes are uint8, uint16 and floats in [0, 1]. Results may share memory with arrays and tensors.

    Returns:
        list of (3, H, W): uint8 where uint8 came, else float32 in [0, 1]; tensors stay on their device.

    Raises:
        DataError: nothing in it, or wrong shape, dtype, range, non-finite values; says what came.
    """
    if _is_path(obj):
        return _read_all([obj])
    if not isinstance(obj, Iterable) or _is_picture(obj):
        return _single(obj, "image")
    if isinstance(obj, dict):
        raise DataError("images came as a dict; wanted a path, a Pillow image, an array, a tensor or a list")
    items = list(obj)
    if not items:
        raise DataError("no images: the list is empty")
    paths = sum(_is_path(item) for item in items)
    if paths == len(items):
        return _read_all(items)
    if paths:
        raise DataError(
            f"{paths} paths are mixed with {len(items) - paths} images in memory; wanted one kind"
        )
    return [image for i, item in enumerate(items) for image in _single(item, f"image {i}")]


# --------------------------------------------------------------------------------------------- helpers


def _to_rgb(array: np.ndarray) -> Tensor:
    """(H, W, C) uint8, uint16 or float32, C in 1..4 (2 and 4: with alpha) -> contiguous (3, H, W)."""
    image = torch.from_numpy(array).permute(2, 0, 1)
    image = image[:3] if image.shape[0] > 2 else image[:1].expand(3, -1, -1)
    return (image if image.dtype == torch.uint8 else to_float(image)).contiguous()


def _read_all(paths: list[Any]) -> list[Tensor]:
    from .folders import list_images

    return [read_image(path) for path in list_images(paths)]


# ------------------------------------------------------------------------------------------ in memory


def _is_path(obj: Any) -> bool:
    from .folders import Sample

    return isinstance(obj, (str, os.PathLike, Sample))


def _is_picture(obj: Any) -> bool:
    from PIL.Image import Image

    return isinstance(obj, (np.ndarray, Tensor, Image))


def _single(obj: Any, name: str) -> list[Tensor]:
    """One picture or batch; ``name`` is what errors call it."""
    if isinstance(obj, (np.ndarray, Tensor)):
        return _unbound(channels_first(obj, name), name)
    if _is_picture(obj):
        try:
            return [_to_rgb(pixels(obj))]
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        except Exception as error:  # Pillow decodes lazily: a damaged file shows only now
            raise DataError(f"{name}: damaged: {error}") from error
    raise DataError(
        f"{name} is of type {type(obj).__name__}; wanted a path, a Pillow image, a NumPy array or a tensor"
    )


def _unbound(images: Tensor, name: str) -> list[Tensor]:
    """(B, C, H, W) of an allowed dtype -> list of (3, H, W)."""
    if images.dtype != torch.uint8:
        is_float = images.dtype.is_floating_point
        images = to_float(images)
        if is_float:  # one pass and one wait for the device, however many images
            low, high = (float(x) for x in torch.stack(torch.aminmax(images)))
            check_range(low, high, name)
            if low < 0 or high > 1:
                images = images.clamp(0, 1)
    images = images[:, :3] if images.shape[1] > 1 else images.expand(-1, 3, -1, -1).contiguous()
    return list(images.unbind(0))
