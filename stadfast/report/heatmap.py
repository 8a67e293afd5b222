"""Anomaly maps as pictures.

Colours mean the same on every image of a model: the scale is logarithmic with the decision threshold at
its middle. Stretching each map to its own range, as is often done, paints a hot spot on every good image; a
linear scale shows nothing below the threshold, because products of distances span many decades.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from ..errors import UsageError

DECADES = 1.0  # the scale runs from threshold / 10 to threshold * 10
MASK_COLOUR = (0, 230, 118)
PREDICTION_COLOUR = (255, 255, 255)
_SLACK = 1e-3  # above 1, of whoever has rounded or resized


def scale_position(values: Any, threshold: float, decades: float = DECADES) -> np.ndarray:
    """Where ``values`` lie on the model's scale: 0.5 + log10(values / threshold) / (2 decades), in [0, 1].

    Args:
        values: array or tensor of any shape; zero and less count as the lower end.
        threshold: the detector's decision threshold, > 0.
        decades: powers of ten that the scale covers on each side of the threshold.

    Returns:
        float64 array of the same shape; 0.5 is the threshold.
    """
    check_threshold(threshold)
    if not decades > 0:
        raise UsageError(f"decades must be positive, got {decades}")
    ratio = np.asarray(torch.as_tensor(values).detach().cpu().double()) / threshold
    ratio = np.nan_to_num(ratio, nan=0.0, posinf=np.inf)
    return np.clip(0.5 + np.log10(np.maximum(ratio, 10.0 ** (-2 * decades))) / (2 * decades), 0.0, 1.0)


def check_threshold(threshold: float, name: str = "threshold") -> None:
    """Raise a UsageError unless the threshold has a logarithm."""
    if not (math.isfinite(threshold) and threshold > 0):
        raise UsageError(f"{name} must be a positive number, as the scale is logarithmic; got {threshold}")


def heatmap(map: Any, threshold: float, *, decades: float = DECADES) -> np.ndarray:
    """Colours of an anomaly map (H, W): uint8 (H, W, 3), RGB, on the scale of :func:`scale_position`."""
    return _colours()[_levels(_plane(map, "map"), threshold, decades)]


def overlay(
    image: Any,
    map: Any,
    threshold: float,
    mask: Any = None,
    *,
    decades: float = DECADES,
    outline: bool = True,
) -> np.ndarray:
    """The heat map laid over its image.

    The image is shown in grey so that colour always means anomaly, and shines through where the map is low.

    Args:
        image: (3, H, W) tensor or (H, W, 3) array; uint8, uint16, or floating point in [0, 1].
        map: (h, w) anomaly map of the whole image; brought to (H, W) bilinearly.
        threshold: the detector's decision threshold.
        mask: (h, w) ground truth, drawn as a green contour.
        decades: see :func:`scale_position`.
        outline: draw the region above the threshold as a white contour.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        UsageError: an image or a map of another shape, an image of other values, a threshold that is not positive.
    """
    picture = rgb(image)
    height, width = picture.shape[:2]
    values = _plane(map, "map").float()
    values = interpolate(values[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
    grey = (picture @ np.array([0.299, 0.587, 0.114]))[..., None]
    position = scale_position(values, threshold, decades)[..., None]
    opacity = 0.25 + 0.5 * np.clip(2 * position - 0.4, 0.0, 1.0)  # rises through the threshold
    colours = _colours()[_levels(values, threshold, decades)]
    blended = np.rint((1 - opacity) * grey + opacity * colours).astype(np.uint8)
    if outline:
        draw_contour(blended, values > threshold, PREDICTION_COLOUR)
    if mask is not None:
        draw_contour(blended, mask, MASK_COLOUR)
    return blended


def draw_contour(picture: np.ndarray, mask: Any, colour: tuple[int, int, int]) -> None:
    """Draw the outline of ``mask`` (h, w) into the uint8 (H, W, 3) ``picture``, just outside the region."""
    height, width = picture.shape[:2]
    region = (_plane(mask, "mask") > 0).float()[None, None]
    if region.shape[-2:] != (height, width):
        region = interpolate(region, (height, width), mode="nearest-exact")
    radius = max(1, round(max(height, width) / 320))
    grown = max_pool2d(region, (2 * radius + 1, 1), stride=1, padding=(radius, 0))  # a square, side by side
    grown = max_pool2d(grown, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    picture[((grown - region) > 0)[0, 0].numpy()] = colour


def colour_bar(width: int = 256, height: int = 1) -> np.ndarray:
    """The scale itself, low to high: uint8 (height, width, 3)."""
    steps = np.rint(np.linspace(0, 255, width)).astype(np.uint8)
    return np.broadcast_to(_colours()[steps], (height, width, 3))


def rgb(image: Any) -> np.ndarray:
    """An image as uint8 (H, W, 3): from a (3, H, W) tensor or (H, W, 3) array, uint8, uint16 or float in [0, 1]."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(f"image must be (3, H, W) as a tensor or (H, W, 3) as an array, got {image.shape}")
    if image.dtype == np.uint16:
        image = image / 65535
    if image.dtype != np.uint8:
        if image.dtype.kind not in "fb" or image.max(initial=0) > 1 + _SLACK:
            raise UsageError(
                f"image must be uint8, uint16 or floating point in [0, 1], got {image.dtype} up to {image.max():g}"
            )
        image = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    return image


def _plane(values: Any, name: str) -> Tensor:
    """``values`` as a CPU tensor (H, W); leading dimensions of size 1 are dropped."""
    plane = torch.as_tensor(values).detach().cpu()
    while plane.ndim > 2 and plane.shape[0] == 1:
        plane = plane[0]
    if plane.ndim != 2:
        raise UsageError(f"{name} must be (H, W), got {tuple(plane.shape)}")
    return plane


def _levels(values: Tensor, threshold: float, decades: float) -> np.ndarray:
    return np.rint(255 * scale_position(values, threshold, decades)).astype(np.uint8)


@lru_cache(maxsize=1)
def _colours() -> np.ndarray:
    """The 256 colours, uint8 (256, 3): inferno, whose lightness rises evenly, in grey print too."""
    from matplotlib import colormaps

    return np.rint(255 * colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)
