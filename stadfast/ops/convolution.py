"""Convolutions of bfloat16 features on the matrix units (AMX) of recent Intel processors."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _library

_BLOCK = 32  # channels that tiles take at once


def has_tiles() -> bool:
    """Whether this processor has them, and our kernels know how to use them."""
    return _library.has_kernel("cpu") and _found()


@functools.cache
def _found() -> bool:
    return bool(torch.ops.stadfast.has_tiles())


def tiles_take(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    """Whether :func:`convolve_` can do a convolution: bfloat16, channels in multiples of 32, equal strides."""
    filters, channels = weight.shape[0] // groups, weight.shape[1]
    whole = filters % _BLOCK == 0 and channels % _BLOCK == 0
    plain = len(set(stride)) == 1 and set(dilation) == {1}
    return weight.dtype == torch.bfloat16 and whole and plain and weight.device.type == "cpu" and has_tiles()


def pack_filters(weight: Tensor) -> Tensor:
    """A convolution's weight (O, I, kh, kw), laid out for tiles.

    In the order of the blocks of 32 filters, the window's rows, 32 of the values in such a row at a time, the block's
    two halves, pairs of values, the half's filters.
    """
    count, channels, rows, columns = weight.shape
    values = weight.permute(0, 2, 3, 1).reshape(count, rows, columns * channels)
    blocks = values.view(count // _BLOCK, 2, 16, rows, -1, 16, 2)
    return blocks.permute(0, 3, 4, 1, 5, 2, 6).contiguous().flatten()


def convolve_(
    output: Tensor,
    input: Tensor,
    filters: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    kernel: Sequence[int],
    stride: int,
    padding: Sequence[int],
    groups: int,
    rectify: bool,
) -> Tensor:
    """``output = relu(F.conv2d(input, weight, bias, stride, padding, 1, groups) + residual)``, and ``output``.

    Sums are float32, and rounded once. Without gradients and without a fallback: ask :func:`tiles_take` before.

    Args:
        output: (B, O, H', W') bfloat16, channels_last: what is in it is overwritten.
        input: (B, I, H, W), likewise; a view of some rows, columns or channels is read in place.
        filters: the weight, of :func:`pack_filters`.
        bias: (O) float32.
        residual: as ``output``, which it may be itself; or None.
        kernel: rows and columns of the window.
        stride: of rows and columns.
        padding: rows and columns of zeros on both sides.
        groups: of channels.
        rectify: whether there is a relu.
    """
    torch.ops.stadfast.convolve_(
        output, input, filters, bias, residual, kernel, stride, padding, groups, rectify
    )
    return output
