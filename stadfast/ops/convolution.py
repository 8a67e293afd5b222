"""Convolutions with what follows them: of bfloat16 on the matrix units (AMX) of recent Intel processors, of float32 by
Winograd's algorithm, with fewer multiplications."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _library, reference

_BLOCK = 32  # channels, or values under a row of the window, that are taken at once
_ROWS = 32  # of the window and one stride, at most
_PANEL = 16  # filters that lie side by side for Winograd's convolution


def has_amx() -> bool:
    """Whether this processor has matrix units, and our kernels know how to use them."""
    return _library.has_kernel("cpu") and _found()


@functools.cache
def _found() -> bool:
    return bool(torch.ops.stadfast.has_amx())


def convolve_takes(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    """Whether :func:`convolve_` is the way to do a convolution with this weight (O, I / groups, kh, kw).

    bfloat16, on AMX: output channels in multiples of 32, and so are those in, or there is one group in which the values
    under a row of the window fill half of what is taken at once; one stride, no dilation; no huge window.
    float32, with AVX2: a window of 3 x 3, no stride, no dilation, a group's channels in and out in multiples of 16.
    """
    if weight.dtype == torch.float32:
        return _winograd_takes(weight, stride, dilation, groups)
    return _amx_takes(weight, stride, dilation, groups)


def _winograd_takes(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    filters, channels, *window = weight.shape
    plain = {*stride, *dilation} == {1} and window == [3, 3]
    fast = weight.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return (
        plain
        and channels % _PANEL == 0
        and filters % (groups * _PANEL) == 0
        and fast
        and _library.has_kernel("cpu")
    )


def _amx_takes(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    filters, channels, columns = weight.shape[0] // groups, weight.shape[1], weight.shape[3]
    row = channels * columns
    filled = channels % _BLOCK == 0 or (groups == 1 and 2 * row >= row + -row % _BLOCK)
    plain = len(set(stride)) == 1 and set(dilation) == {1} and weight.shape[2] + stride[0] <= _ROWS
    narrow = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    return narrow and plain and filled and filters % _BLOCK == 0 and has_amx()


def pack_filters(weight: Tensor) -> Tensor:
    """A convolution's weight (O, I, kh, kw) as :func:`convolve_` reads it.

    bfloat16, O a multiple of 32: in the order of blocks of 32 filters, the window's rows, 32 of the values in such a
    row at a time (the last padded with zeros), the block's two halves, pairs of values, the half's filters.
    float32 (O, I, 3, 3), both multiples of 16: ``G w G'`` (Lavin and Gray, 2016, section 4.1), in the order of its 4 x
    4 places, panels of 16 filters, channels, the panel's filters.
    """
    count, channels, rows, columns = weight.shape
    if weight.dtype == torch.float32:
        transform = weight.new_tensor(reference.WINOGRAD, dtype=torch.float64)
        tiles = (transform @ weight.double() @ transform.mT).float()
        return tiles.view(count // _PANEL, _PANEL, channels, 16).permute(3, 0, 2, 1).contiguous().flatten()
    values = weight.permute(0, 2, 3, 1).reshape(count, rows, columns * channels)
    values = F.pad(values, (0, -columns * channels % _BLOCK))
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

    bfloat16: sums are float32, and rounded once. float32: Winograd's F(2 x 2, 3 x 3), which rounds about as
    much as plain sums; what is not finite may spread to the pixel beside. Without gradients. Where the kernels are not,
    PyTorch's own operators run: slowly, as they need the weight as it was; ask :func:`convolve_takes` before.

    Args:
        output: (B, O, H', W') bfloat16 or float32, channels_last; what is in it is overwritten.
        input: (B, I, H, W) of the same type; channels_last, also a view of some of its rows or channels, or it is
            copied.
        filters: the weight, of :func:`pack_filters`.
        bias: (O) float32.
        residual: as ``output``, which it may be itself; or None.
        kernel: rows and columns of the window.
        stride: of rows and columns.
        padding: rows and columns of zeros on both sides.
        groups: of channels.
        rectify: whether there is a relu.

    Raises:
        RuntimeError: an argument does not fit.
    """
    if filters.dtype == torch.float32:
        if (*kernel, stride) != (3, 3, 1):
            raise RuntimeError("convolve_: of float32 expected a window of 3 x 3 and no stride")
        module = torch.ops.stadfast if _library.has_kernel("cpu") else reference
        module.winograd_(output, input, filters, bias, residual, padding, groups, rectify)
    else:
        module = torch.ops.stadfast if has_amx() else reference
        module.convolve_(output, input, filters, bias, residual, kernel, stride, padding, groups, rectify)
    return output


def convolve_pool(
    input: Tensor, filters: Tensor, bias: Tensor, kernel: Sequence[int], stride: int, padding: Sequence[int],
    pooling: Sequence[int],
) -> Tensor:  # fmt: skip
    """``F.max_pool2d(relu(F.conv2d(input, weight, bias, stride, padding)), ...)``, without the features between.

    Args:
        input: (B, I, H, W) bfloat16.
        filters: the weight, of :func:`pack_filters`.
        bias: (O) float32.
        kernel: rows and columns of the window.
        stride: of rows and columns.
        padding: rows and columns of zeros on both sides.
        pooling: side of its window, stride, and padding of rows and of columns, at most half of the side.

    Returns:
        (B, O, H', W') bfloat16, channels_last.
    """
    run = torch.ops.stadfast.convolve_pool if has_amx() else reference.convolve_pool
    return run(input, filters, bias, kernel, stride, padding, pooling)  # type: ignore[no-any-return]
