"""What the ops are tried on: devices, dtypes, memory layouts, shapes of pyramids, ways to combine levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

# (C_l, H_l, W_l) of each level
PYRAMIDS: dict[str, list[tuple[int, int, int]]] = {
    "resnet18, small": [(64, 16, 16), (128, 8, 8), (256, 4, 4)],
    "one level": [(32, 7, 9)],
    "odd sizes": [(3, 13, 5), (7, 6, 11), (17, 3, 2)],
    "one channel": [(1, 9, 8), (1, 4, 4)],
    "one pixel": [(5, 1, 1), (64, 1, 1)],
    "one row, one column": [(8, 1, 37), (24, 41, 1)],
    "many channels": [(1024, 3, 5), (2048, 2, 3)],
    "more pixels than a tile": [(8, 40, 41), (300, 17, 19)],
    "32 levels": [(4, 3, 3)] * 32,
}


def _planar(x: Tensor) -> Tensor:
    return x.contiguous()


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _padded(x: Tensor, format: torch.memory_format) -> Tensor:
    """A view into a larger tensor full of NaN: one element, or row, or image too far is seen."""
    b, c, h, w = x.shape
    big = torch.full((b + 2, c + 3, h, w), torch.nan, dtype=x.dtype, device=x.device)
    big = big.contiguous(memory_format=format)
    big[1:-1, 1:-2] = x
    return big[1:-1, 1:-2]


def _cropped(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    big = torch.full((b, c, h + 2, w + 3), torch.nan, dtype=x.dtype, device=x.device)
    big[:, :, 1:-1, 1:-2] = x
    return big[:, :, 1:-1, 1:-2]


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def _every_second_image(x: Tensor) -> Tensor:
    return _channels_last(x.repeat_interleave(2, dim=0))[::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "planar": _planar,
    "channels_last": _channels_last,
    "planar, channel slice": lambda x: _padded(x, torch.contiguous_format),
    "channels_last, channel slice": lambda x: _padded(x, torch.channels_last),
    "cropped": _cropped,
    "transposed": _transposed,
    "every second image": _every_second_image,
}


def pyramid(
    shapes: list[tuple[int, int, int]],
    *,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    layout: str = "planar",
    device: str = "cpu",
    seed: int = 0,
) -> list[Tensor]:
    """Random features with the value range of a ReLU network's, and negative ones among them."""
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(batch, *shape, generator=generator, dtype=torch.float64) + 0.3 for shape in shapes]
    return [LAYOUTS[layout](level.to(device=device, dtype=dtype)) for level in levels]


# name -> (levels, keywords of anomaly_map and upsample_combine)
COMBINATIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "product": (3, {}),
    "product, weights": (3, {"weights": [0.5, 2.0, 3.0]}),
    "sum": (3, {"combine": "sum"}),
    "sum, weights": (3, {"combine": "sum", "weights": [1.0, -0.5, 0.25]}),
    "mean": (3, {"combine": "mean"}),
    "mean, weights": (3, {"combine": "mean", "weights": [1.0, 2.0, 5.0]}),
    "two groups": (4, {"groups": [0, 0, 1, 1]}),
    "groups out of order": (5, {"groups": [2, 0, 1, 0, 2], "weights": [1.0, 2.0, 3.0, 4.0, 5.0]}),
    "first group of one, second of two": (3, {"groups": [1, 0, 1]}),
    "one group of all": (3, {"groups": [0, 0, 0], "combine": "product"}),
    "mean of groups": (4, {"groups": [1, 0, 1, 0], "weights": [1.0, 2.0, 3.0, 4.0], "combine": "mean"}),
    "one level": (1, {"combine": "mean", "weights": [0.1]}),
}

# (grid, size): the combination at the size of the result, below it, above it, and with odd ratios
GRIDS: list[tuple[tuple[int, int] | None, tuple[int, int]]] = [
    (None, (16, 16)),
    (None, (37, 23)),
    (None, (1, 1)),
    (None, (5, 3)),
    ((8, 8), (32, 32)),
    ((64, 48), (16, 17)),
    ((7, 5), (33, 64)),
    ((1, 1), (4, 6)),
    ((16, 16), (16, 31)),
]


def skip_without_kernel(device: str) -> None:
    """The reference compared with itself shows nothing."""
    from stadfast import ops

    if device not in ops.backend().libraries:
        pytest.skip(f"no compiled kernels for {device}: {ops.backend().reason}")
