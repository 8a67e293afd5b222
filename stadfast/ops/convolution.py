"""Convolutions with what follows them: of bfloat16 where the processor multiplies it (AMX, AVX512-BF16), and by
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


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 (AMX or AVX512-BF16), and our kernels know how."""
    return _library.has_kernel("cpu") and _has("bf16")


def has_amx() -> bool:
    """Whether it does so on matrix units (AMX), and may: ``STADFAST_AMX=0`` in the environment forbids it."""
    return _library.has_kernel("cpu") and _has("amx")


@functools.cache
def _has(feature: str) -> bool:
    return bool(getattr(torch.ops.stadfast, f"has_{feature}")())


def convolve_takes(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    """Whether :func:`convolve_` is the way to do a convolution with this weight (O, I / groups, kh, kw).

    What :func:`winograd_takes`, and of bfloat16, with AMX or AVX512-BF16: output channels in multiples of 32, and so
    are those in, or there is one group in which the values under a row of the window fill half of what is taken at
    once; one stride, no dilation; no huge window.
    """
    arguments = (weight, stride, dilation, groups)
    return winograd_takes(*arguments) or _bf16_takes(*arguments)


def winograd_takes(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    """Whether Winograd's algorithm is the way to do it.

    A window of 3 x 3, no stride, no dilation, a group's channels in and out in multiples of 16: of float32 with AVX2,
    of bfloat16 with AVX512-BF16, but not with AMX, where plain sums are faster.
    """
    filters, channels, *window = weight.shape
    plain = {*stride, *dilation} == {1} and window == [3, 3] and weight.device.type == "cpu"
    if not plain or channels % _PANEL or filters % (groups * _PANEL) or not _library.has_kernel("cpu"):
        return False
    if weight.dtype == torch.bfloat16:
        return has_bf16() and not has_amx()
    return weight.dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _bf16_takes(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    filters, channels, columns = weight.shape[0] // groups, weight.shape[1], weight.shape[3]
    row = channels * columns
    filled = channels % _BLOCK == 0 or (groups == 1 and 2 * row >= row + -row % _BLOCK)
    plain = len(set(stride)) == 1 and set(dilation) == {1} and weight.shape[2] + stride[0] <= _ROWS
    narrow = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    return narrow and plain and filled and filters % _BLOCK == 0 and has_bf16()


def pack_filters(weight: Tensor, *, winograd: bool = False) -> Tensor:
    """A convolution's weight (O, I, kh, kw) as :func:`convolve_` reads it.

    Args:
        weight: without ``winograd``: bfloat16, O a multiple of 32.
        winograd: for Winograd's algorithm: float32 or bfloat16 (O, I, 3, 3), both multiples of 16.

    Returns:
        in one dimension, in the order of blocks of 32 filters, the window's rows, 32 of the values in such a row at a
        time (the last padded with zeros), the block's two halves, pairs of values, the half's filters; for Winograd's
        algorithm ``G w G'`` (Lavin and Gray, 2016, section 4.1): 4 x 4 places; in the second dimension panels of 16
        filters, channels (of bfloat16 pairs of channels), the panel's filters (and the pair's two).
    """
    count, channels, rows, columns = weight.shape
    if winograd:
        transform = weight.new_tensor(reference.WINOGRAD, dtype=torch.float64)
        tiles = (transform @ weight.double() @ transform.mT).to(weight.dtype)
        together = 1 if weight.dtype == torch.float32 else 2
        panels = tiles.view(count // _PANEL, _PANEL, channels // together, together, 16)
        return panels.permute(4, 0, 2, 1, 3).reshape(16, -1).contiguous()
    values = weight.permute(0, 2, 3, 1).reshape(count, rows, columns * channels)
    values = F.pad(values, (0, -columns * channels % _BLOCK))
    blocks = values.view(count // _BLOCK, 2, 16, rows, -1, 16, 2)
    return blocks.permute(0, 3, 4, 1, 5, 2, 6).contiguous().flatten()


def is_winograd(filters: Tensor) -> bool:
    """Whether filters of :func:`pack_filters` are for Winograd's algorithm, and so for :func:`convolve_` only."""
    return filters.dim() == 2


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

    Sums are float32, of bfloat16 rounded once. Winograd's F(2 x 2, 3 x 3) rounds float32 about as much as plain sums;
    of bfloat16 also what it multiplies, which less than doubles the error of a result; what is not finite may
    spread to the pixel beside. Without gradients. Where the kernels are not, PyTorch's own operators run: slowly, as
    they need the weight as it was; ask :func:`convolve_takes` before.

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
    if is_winograd(filters):
        if (*kernel, stride) != (3, 3, 1):
            raise RuntimeError("convolve_: for Winograd's algorithm expected a window of 3 x 3 and no stride")
        ours = _library.has_kernel("cpu") and (filters.dtype == torch.float32 or has_bf16())
        module = torch.ops.stadfast if ours else reference
        module.winograd_(output, input, filters, bias, residual, padding, groups, rectify)
    else:
        module = torch.ops.stadfast if has_bf16() else reference
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
    run = torch.ops.stadfast.convolve_pool if has_bf16() else reference.convolve_pool
    return run(input, filters, bias, kernel, stride, padding, pooling)  # type: ignore[no-any-return]
