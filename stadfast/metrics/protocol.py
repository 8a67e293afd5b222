"""The choices that change published figures, in one place, to be recorded beside the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from ._inputs import above, as_binary, check_limit, check_number, shown


@dataclass(frozen=True)
class Protocol:
    """How maps and masks are prepared, and which images count; by default as MVTec's evaluation tool does.

    Attributes:
        limits: false positive rates that AUPRO is integrated to.
        mask_threshold: a mask's pixel is anomalous if its value is above this. None: masks have to be binary, and
            after resizing the threshold is one half. Bool masks are 0 and 1, and follow it only when they are
            resized and it lies in [0, 1): one for grey values leaves them at one half.
        resize: None; ``"maps"`` to their masks' sizes; ``"masks"`` to their maps'; (H, W) for both. Bilinear,
            not aligned to the corners.
        smoothing: standard deviation in pixels of a Gaussian that blurs the maps, after resizing; 0 for none.
        images: ``"all"``, or ``"anomalous"``: pixel figures leave the good images out.
    """

    limits: tuple[float, ...] = (0.3, 0.05)
    mask_threshold: float | None = None
    resize: str | tuple[int, int] | None = None
    smoothing: float = 0.0
    images: str = "all"

    def __post_init__(self) -> None:
        for limit in self.limits:
            check_limit(limit)
        if self.mask_threshold is not None:
            check_number(self.mask_threshold, "mask_threshold")
        known = isinstance(self.resize, str) and self.resize in ("maps", "masks")
        if self.resize is not None and not known and not _is_size(self.resize):
            raise UsageError(f"resize must be None, 'maps', 'masks' or (H, W), got {shown(self.resize)}")
        if not 0 <= check_number(self.smoothing, "smoothing") < math.inf:
            raise UsageError(f"smoothing must be at least 0 and finite, got {self.smoothing}")
        if not isinstance(self.images, str) or self.images not in ("all", "anomalous"):
            raise UsageError(f"images must be 'all' or 'anomalous', got {shown(self.images)}")

    @classmethod
    def of(cls, limits: Any, options: Mapping[str, Any]) -> Protocol:
        """From what a user gave.

        Raises:
            UsageError: the limits are not a sequence, or an option is unknown or impossible.
        """
        try:
            limits = tuple(limits)
        except TypeError:
            raise UsageError(f"limits must be a sequence of numbers, got {shown(limits)}") from None
        names = [field.name for field in fields(cls) if field.name != "limits"]
        for option in options:
            if option not in names:
                raise UsageError(f"unknown option {option!r}: expected one of {', '.join(names)}")
        return cls(limits, **options)

    def mask(self, mask: Tensor, name: str) -> Tensor:
        """(..., H, W) bool; grey values stay as they are where they are still to be resized."""
        if self.resize in (None, "maps") or mask.dtype == torch.bool:
            return as_binary(mask, name, self.mask_threshold)
        return mask if self.mask_threshold is not None else as_binary(mask, name)

    def apply(self, image: Tensor, mask: Tensor | None, index: int) -> tuple[Tensor, Tensor | None]:
        """The map (H, W) and its mask (H, W) bool as they are to be compared."""
        if self.resize == "maps":
            if mask is None:
                raise UsageError(f"masks[{index}] is None: resize='maps' needs its size; give resize=(H, W)")
            image = _resized(image, mask.shape)
        elif self.resize is not None:
            size = image.shape if self.resize == "masks" else self.resize
            image = _resized(image, size)
            if mask is not None:
                mask = above(_resized(mask, size), self._threshold_of(mask))
        if self.smoothing > 0:
            from scipy.ndimage import gaussian_filter

            blurred = gaussian_filter(_wide(image).cpu().numpy(), self.smoothing)
            image = torch.from_numpy(np.ascontiguousarray(blurred)).to(image.device)
        return image, mask

    def _threshold_of(self, resized: Tensor) -> float:
        threshold = 0.5 if self.mask_threshold is None else self.mask_threshold
        return 0.5 if resized.dtype == torch.bool and not 0 <= threshold < 1 else threshold

    def record(self) -> dict[str, Any]:
        """For the output: everything that json can write."""
        return {
            "connectivity": 8,
            "limits": [float(limit) for limit in self.limits],
            "mask_threshold": self.mask_threshold,
            "resize": list(self.resize) if isinstance(self.resize, tuple) else self.resize,
            "smoothing": float(self.smoothing),
            "images": self.images,
        }


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)


def _resized(image: Tensor, size: Any) -> Tensor:
    if tuple(image.shape) == tuple(size):
        return image
    return F.interpolate(_wide(image)[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0]


def _wide(image: Tensor) -> Tensor:
    return image if image.dtype == torch.float64 else image.float()
