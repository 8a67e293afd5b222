"""Smoothing of anomaly maps: Gaussian blur and grey opening."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TRUNCATE = 4.0  # of SciPy: the kernel ends at so many standard deviations


class GaussianBlur(nn.Module):
    """Gaussian blur of maps of one size, equal to ``scipy.ndimage.gaussian_filter(map, sigma)``.

    A separable filter is a product with one matrix from each side, and the matrices take care of the border, which
    is mirrored with its last pixel repeated.

    Args:
        size: (H, W) of the maps.
        sigma: standard deviation in pixels, above 0.

    Shape: (..., H, W) -> (..., H, W).
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], sigma: float) -> None:
        super().__init__()
        self.register_buffer("rows", _blur_matrix(size[0], sigma), persistent=False)
        self.register_buffer("columns", _blur_matrix(size[1], sigma).T.contiguous(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        return self.rows @ maps @ self.columns


def _blur_matrix(n: int, sigma: float) -> Tensor:
    """(n, n) float32: row i holds the weights of the pixels that make up pixel i."""
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma).double() ** 2)
    sources = (torch.arange(n)[:, None] + offsets) % (2 * n)  # mirrored, the pattern repeats every 2n pixels
    sources = torch.minimum(sources, 2 * n - 1 - sources)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix.scatter_add_(1, sources, (kernel / kernel.sum()).expand(n, -1))
    return matrix.float()


def opening(maps: Tensor) -> Tensor:
    """Grey opening with the 3 x 3 cross: bright spots that hold no such cross are levelled.

    Flat grey opening commutes with thresholding, so that one opening of the map equals the opening of its binary
    masks at every threshold. Beyond the border nothing is there, as in OpenCV.

    Args:
        maps: (B, 1, H, W) float.
    """
    return _dilate(-_dilate(-maps))


def _dilate(maps: Tensor) -> Tensor:
    """Maximum over the 3 x 3 cross."""
    vertical = F.max_pool2d(maps, (3, 1), stride=1, padding=(1, 0))
    return torch.maximum(vertical, F.max_pool2d(maps, (1, 3), stride=1, padding=(0, 1)))
