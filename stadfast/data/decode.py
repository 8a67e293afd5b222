"""Image files and Pillow images as arrays: formats, depths, rotation, and what can be wrong with them."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# Interpolation and float16 rounding leave values a hair outside [0, 1]; these are clamped, more is an error.
_RANGE_SLACK = 1e-3
_EXIF_ORIENTATION = 0x0112
_EXIF_TURNS: dict[int, tuple[int, bool]] = {  # orientation -> (quarter turns counter-clockwise, then mirror)
    2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False),
}  # fmt: skip


class UnreadableImageError(DataError):
    """A file that is no usable image; ``path`` and ``reason`` tell which and why."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # by its own arguments, so that it crosses process borders
        return type(self), (self.path, self.reason)


def decode(path: Path, contents: bytes | None = None) -> np.ndarray:
    """File -> (H, W, C) uint8, uint16 or float32 with C in 1..4; failures become UnreadableImageError.

    Where ``contents`` is given, the file is not opened: ``path`` only says what errors call it.
    """
    from PIL import Image

    with _readable(path), path.open("rb") if contents is None else io.BytesIO(contents) as file:
        head = file.read(26)
        if not head:
            raise UnreadableImageError(path, "the file is empty (0 bytes)")
        file.seek(0)
        with Image.open(file) as image:
            deep_colour = image.format == "PNG" and head[24] == 16 and head[25] != 0
            array = _decode_png16(path, contents) if deep_colour and min(image.size) > 0 else None
            return pixels(image) if array is None else array


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) of the upright image in a file, from its header.

    Raises:
        UnreadableImageError: no such file, or not an image.
    """
    from PIL import Image

    with _readable(Path(path)), Image.open(path) as image:
        if image.format == "TIFF":
            image.load()  # which turns it
        turned = _EXIF_TURNS.get(_orientation(image), (0, False))[0] % 2
        return image.size if turned else (image.height, image.width)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file becomes an UnreadableImageError that says it in words."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except (UnreadableImageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(path, "no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(path, "not an image, or of a format that Pillow does not know") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(path, f"too large (limit: PIL.Image.MAX_IMAGE_PIXELS): {error}") from error
    except OSError as error:
        raise UnreadableImageError(path, error.strerror or f"damaged: {error}") from error
    except DataError as error:
        raise UnreadableImageError(path, str(error)) from error
    except Exception as error:  # decoders meet damaged files with SyntaxError, struct.error, IndexError ...
        raise UnreadableImageError(path, f"damaged: {error}") from error


def _decode_png16(path: Path, contents: bytes | None) -> np.ndarray | None:
    """16-bit colour and grey + alpha, of which Pillow drops 8 bits; None if torchvision has no decoder."""
    try:
        from torchvision.io import ImageReadMode, decode_image  # deprecated in torchvision 0.29
    except ImportError:
        warnings.warn(f"{path}: only the upper 8 of its 16 bits are read", stacklevel=4)
        return None
    data = torch.frombuffer(bytearray(path.read_bytes() if contents is None else contents), dtype=torch.uint8)
    image = decode_image(data, mode=ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    return image.permute(1, 2, 0).numpy()


def pixels(image: Image) -> np.ndarray:
    """Pillow image -> (H, W, C) array, upright, first frame, C in {1, 3}."""
    if min(image.size) == 0:
        raise DataError(f"the image has no pixels (width {image.size[0]}, height {image.size[1]})")
    image.load()
    if image.mode == "F":
        array = np.array(image, dtype=np.float32)
        check_range(float(array.min()), float(array.max()), "the image")
        array = array.clip(0, 1)
    elif image.mode == "I":  # 32-bit integers: how older Pillows hold 16-bit files
        array = np.array(image)
        if array.min() < 0 or array.max() > 65535:
            raise DataError(f"32-bit integers from {array.min()} to {array.max()}; wanted 16-bit values")
        array = array.astype(np.uint16)
    elif image.mode.startswith("I;16"):
        array = np.array(image)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    else:
        array = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    if array.ndim == 2:
        array = array[:, :, None]
    return _upright(array, _orientation(image))


def _orientation(image: Image) -> int:
    # After load(): Pillow turns TIFFs itself and then removes the tag.
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block does not make the pixels unusable
        return 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    turns, mirror = _EXIF_TURNS.get(orientation, (0, False))
    array = np.rot90(array, turns)
    return np.ascontiguousarray(array[:, ::-1] if mirror else array)


def check_range(low: float, high: float, name: str) -> None:
    """Refuse float images that are not finite or not in [0, 1]; ``name`` is what the error calls them."""
    if not np.isfinite([low, high]).all():
        raise DataError(f"{name} has values that are not finite (NaN or infinity); wanted floats in [0, 1]")
    if low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK:
        return
    advice = ""
    if low >= 0 and high <= 255:
        advice = ": divide by 255, or pass uint8"
    elif -6 < low < 0 and high < 6:
        advice = ": pass images before normalisation with mean and standard deviation"
    raise DataError(f"{name} has values from {low:.6g} to {high:.6g}; wanted floats in [0, 1]{advice}")
