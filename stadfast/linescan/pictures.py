"""Pictures in the operator's page's colours."""

from __future__ import annotations

import io

import numpy as np

# Inferno (Smith and van der Walt, 2015) at 13 points: legible to colour-blind eyes, and in grey.
COLOURS = (
    "#000004", "#110a30", "#320a5e", "#57106e", "#781c6d", "#9a2865", "#bc3754",
    "#d84c3e", "#ed6925", "#f98c0a", "#fcb418", "#f4df53", "#fcffa4",
)  # fmt: skip
_LEVELS = np.linspace(0, 255, 13)
_ANCHORS = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS])
PALETTE = np.stack([np.interp(np.arange(256), _LEVELS, _ANCHORS[:, i]) for i in range(3)], 1).astype(np.uint8)
# Laid over an image, what is well below the threshold (level 127) leaves it as it is.
OPACITY = (np.clip((np.arange(256) - 64) / 80, 0, 1) * 160).astype(np.uint8)


def levels(map: np.ndarray, threshold: float) -> np.ndarray:
    """Scores -> uint8 of the same shape: log scale, threshold / 10 is 0, the threshold 127, ten times it 255."""
    decades = np.log10(np.maximum(map, 1e-30, dtype=np.float32) / np.float32(max(threshold, 1e-30)))
    return (np.clip((decades + 1) / 2, 0, 1) * 255).astype(np.uint8)


def eight_bits(image: np.ndarray) -> np.ndarray:
    """(h, w, 1 or 3) uint8 or uint16 -> uint8 (h, w) or (h, w, 3), as Pillow has it."""
    image = (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image
    return image[:, :, 0] if image.shape[2] == 1 else image


def jpeg(image: np.ndarray) -> bytes:
    """uint8 (h, w) or (h, w, 3) as JPEG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=80)
    return file.getvalue()


def heat_png(positions: np.ndarray) -> bytes:
    """uint8 (h, w) of :func:`levels` as PNG in the palette's colours, transparent where they are low."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(positions))
    picture.putpalette(PALETTE.tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1, transparency=OPACITY.tobytes())
    return file.getvalue()


def thumbnail_png(image: np.ndarray, map: np.ndarray, threshold: float) -> bytes:
    """(h, w, 1 or 3) and (h, w) -> PNG (h, 2 w + 2): the image, and its map on the right."""
    from PIL import Image

    left = np.broadcast_to(image, (*image.shape[:2], 3))
    right = PALETTE[levels(map, threshold)]
    gap = np.full((len(left), 2, 3), 255, np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([left, gap, right], axis=1)).save(file, "PNG", compress_level=1)
    return file.getvalue()
