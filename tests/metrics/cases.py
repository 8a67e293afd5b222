"""Maps and masks of every awkward kind."""

from __future__ import annotations

import numpy as np

KINDS = [
    "random",
    "heavy tail",
    "ties",
    "no bad image but one",
    "single pixels",
    "borders",
    "whole image",
    "diagonal",
]


def draw(seed: int, kind: str, n: int = 6, size: tuple[int, int] = (40, 33)) -> tuple[np.ndarray, np.ndarray]:
    """Maps (n,H,W) float32 (uint8 for "ties") and masks (n,H,W) bool."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, *size), bool)
    maps = rng.normal(size=masks.shape).astype(np.float32)
    if kind == "no bad image but one":
        masks[0, 3:9, 4:20] = True
    elif kind == "single pixels":
        masks[:, 1::9, ::7] = True
    elif kind == "borders":
        masks[0, :, 0] = masks[1, 0, :] = masks[2, -1, 5:] = masks[3, 10:, -1] = True
        masks[4, 0, 0] = masks[4, -1, -1] = masks[5, 0, -1] = masks[5, -1, 0] = True
    elif kind == "whole image":
        masks[2] = True
    elif kind == "diagonal":
        for image in masks[::2]:
            np.fill_diagonal(image, True)
    else:
        masks[2:] = rng.random((n - 2, *size)) > 0.7
    maps += 1.2 * masks
    if kind == "heavy tail":
        maps = np.exp(6.0 * maps)
    if kind == "ties":
        maps = np.clip(20 * maps + 128, 0, 255).astype(np.uint8)
    return maps, masks
