"""Pictures inside the page: shrunk to a panel's size and written as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.images import to_float

_PANEL_PX = 320  # of a panel's longer side


def shrink(image: Tensor) -> np.ndarray:
    """The image as uint8 (H, W, 3) in its own shape, its longer side at most the panel's."""
    pixels = to_float(image)[None]
    factor = _PANEL_PX / max(pixels.shape[-2:])
    if factor < 1:
        size = [max(1, round(side * factor)) for side in pixels.shape[-2:]]
        pixels = interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
    return (pixels[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def _encode(format: str, **options: Any) -> Callable[[np.ndarray], str]:
    def encode(picture: np.ndarray) -> str:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format, **options)
        return data_uri(buffer.getvalue(), f"image/{format.lower()}")

    return encode


png = _encode("PNG", optimize=True)
jpeg = _encode("JPEG", quality=88, subsampling=0)


def data_uri(data: bytes, kind: str) -> str:
    """The bytes themselves as an address, so that the page needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
