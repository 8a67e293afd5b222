"""Residual blocks of bfloat16 features in one pass: the way on matrix units (AMX); by vectors, too, if asked to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .convolution import has_bf16

_CACHED = 2**20  # bytes of filters: half of a core's L2 cache; the features' rows are in the rest


def cache_holds(filters: Sequence[Tensor], groups: int) -> bool:
    """Whether a core keeps the filters of several convolutions, as :func:`.pack_filters` gives them, for all rows.

    If not, :func:`convolve_blocks` and its like are slower than the convolutions one by one.
    """
    return sum(each.nbytes for each in filters) <= _CACHED * groups


def convolve_blocks(input: Tensor, filters: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Residual blocks row by row, the features between their convolutions in the cache.

    Equivalent to, for every two of the 3 x 3 convolutions::

        x = relu(F.conv2d(relu(F.conv2d(x, weight, bias, 1, 1, 1, groups)), weight2, bias2, 1, 1, 1, groups) + x)

    bit for bit as :func:`.convolve_` does it: every convolution's result is rounded.

    Args:
        input: (B, C, H, W) bfloat16; C a multiple of 32 in each group.
        filters: (N, ...), two for each block: the weights (C, C / groups, 3, 3), of :func:`.pack_filters`.
        bias: (N, C) float32.
        groups: of channels.

    Returns:
        (B, C, H, W) bfloat16, channels_last.

    Raises:
        RuntimeError: an argument does not fit.
    """
    run = torch.ops.stadfast.convolve_blocks if has_bf16() else reference.convolve_blocks
    return run(input, filters, bias, groups)  # type: ignore[no-any-return]


def convolve_pool_blocks(
    input: Tensor, filters: Tensor, bias: Tensor, kernel: Sequence[int], stride: int, padding: Sequence[int],
    pooling: Sequence[int], block_filters: Tensor, block_bias: Tensor, groups: int,
) -> Tensor:  # fmt: skip
    """:func:`convolve_blocks` of :func:`.convolve_pool`, bit for bit, without the features between.

    Args:
        input: (B, I, H, W) bfloat16.
        filters: the first convolution's weight, of :func:`.pack_filters`.
        bias: (O) float32.
        kernel: rows and columns of the window.
        stride: of rows and columns.
        padding: rows and columns of zeros on both sides.
        pooling: side of its window, stride, and padding of rows and of columns, at most half of the side.
        block_filters: (N, ...), as ``filters`` of :func:`convolve_blocks`.
        block_bias: (N, O) float32.
        groups: of the blocks' channels; a multiple of 32 in each.

    Returns:
        (B, O, H', W') bfloat16, channels_last.

    Raises:
        RuntimeError: an argument does not fit.
    """
    run = torch.ops.stadfast.convolve_pool_blocks if has_bf16() else reference.convolve_pool_blocks
    blocks = (block_filters, block_bias, groups)
    return run(input, filters, bias, kernel, stride, padding, pooling, *blocks)  # type: ignore[no-any-return]


def convolve_stage(
    input: Tensor, filters: Tensor, bias: Tensor, shortcut_filters: Tensor, shortcut_bias: Tensor,
    block_filters: Tensor, block_bias: Tensor, stride: int, groups: int,
) -> Tensor:  # fmt: skip
    """A residual stage that begins with a stride, row by row as :func:`convolve_blocks` does it.

    Equivalent to::

        inner = relu(F.conv2d(input, weight, bias, stride, 1, 1, groups))
        shortcut = F.conv2d(input, shortcut_weight, shortcut_bias, stride, 0, 1, groups)
        x = relu(F.conv2d(inner, block_weight, block_bias, 1, 1, 1, groups) + shortcut)

    and :func:`convolve_blocks` of that, bit for bit.

    Args:
        input: (B, I, H, W) bfloat16.
        filters: the first convolution's weight (O, I / groups, 3, 3), of :func:`.pack_filters`.
        bias: (O) float32.
        shortcut_filters: the weight (O, I / groups, 1, 1), likewise.
        shortcut_bias: (O) float32.
        block_filters: (N, ...), the weights (O, O / groups, 3, 3), likewise: one, and two for each further block.
        block_bias: (N, O) float32.
        stride: of the first convolution and the shortcut.
        groups: of channels; multiples of 32 in each.

    Returns:
        (B, O, H', W') bfloat16, channels_last.

    Raises:
        RuntimeError: an argument does not fit.
    """
    run = torch.ops.stadfast.convolve_stage if has_bf16() else reference.convolve_stage
    shortcut = (shortcut_filters, shortcut_bias)
    return run(input, filters, bias, *shortcut, block_filters, block_bias, stride, groups)  # type: ignore[no-any-return]


def stream_blocks_(
    output: Tensor, input: Tensor, carried: Tensor, filters: Tensor, bias: Tensor, groups: int
) -> Tensor:
    """:func:`convolve_blocks` of the next rows of an endless image, and ``output``.

    Every convolution waits for the row below, so that ``output`` begins as many rows above ``input`` as there are
    convolutions. A thread takes a group.

    Args:
        output: (1, C, H, W) bfloat16, channels_last; what is in it is overwritten.
        input: (1, C, H, W) bfloat16; C a multiple of 32 in each group.
        carried: (N, C, 2, W) bfloat16, channels_last: the two rows above the new ones of every convolution's input;
            afterwards the last two.
        filters: (N, ...), as of :func:`convolve_blocks`.
        bias: (N, C) float32.
        groups: of channels.

    Raises:
        RuntimeError: an argument does not fit.
    """
    run = torch.ops.stadfast.stream_blocks_ if has_bf16() else reference.stream_blocks_
    run(output, input, carried, filters, bias, groups)
    return output


def stream_pool_blocks_(
    output: Tensor, input: Tensor, filters: Tensor, bias: Tensor, kernel: Sequence[int], stride: int,
    padding: Sequence[int], pooling: Sequence[int], carried: Tensor, block_filters: Tensor, block_bias: Tensor,
    groups: int,
) -> Tensor:  # fmt: skip
    """:func:`stream_blocks_` of :func:`.convolve_pool`, bit for bit, without the features between; and ``output``.

    Args:
        output: (1, O, H', W') bfloat16, channels_last; what is in it is overwritten.
        input: (1, I, H, W) bfloat16.
        filters: the first convolution's weight, of :func:`.pack_filters`.
        bias: (O) float32.
        kernel: rows and columns of the window.
        stride: of rows and columns.
        padding: rows and columns of zeros on both sides.
        pooling: side of its window, stride, and padding of rows and of columns, at most half of the side.
        carried: (N, O, 2, W') bfloat16, channels_last, as of :func:`stream_blocks_`.
        block_filters: (N, ...), as of :func:`convolve_blocks`.
        block_bias: (N, O) float32.
        groups: of the blocks' channels.

    Raises:
        RuntimeError: an argument does not fit.
    """
    run = torch.ops.stadfast.stream_pool_blocks_ if has_bf16() else reference.stream_pool_blocks_
    stem = (input, filters, bias, kernel, stride, padding, pooling)
    run(output, *stem, carried, block_filters, block_bias, groups)
    return output


def stream_stage_(
    output: Tensor, input: Tensor, filters: Tensor, bias: Tensor, shortcut: Tensor, shortcut_input: Tensor,
    shortcut_filters: Tensor, shortcut_bias: Tensor, stride: int, carried: Tensor, block_filters: Tensor,
    block_bias: Tensor, groups: int,
) -> Tensor:  # fmt: skip
    """:func:`convolve_stage` of the next rows of an endless image, as :func:`stream_blocks_`; and ``output``.

    What lies above the new rows of both inputs and of ``shortcut`` is in these themselves.

    Args:
        output: (1, O, H', W') bfloat16, channels_last; what is in it is overwritten.
        input: (1, I, (H' - 1) * stride + 3, W) bfloat16, the rows under the first convolution's windows.
        filters: the first convolution's weight (O, I / groups, 3, 3), of :func:`.pack_filters`.
        bias: (O) float32.
        shortcut: (1, O, n + H', W') bfloat16, channels_last: the first H' rows are added to the second convolution's
            result, the last H' are computed before; n >= 0.
        shortcut_input: (1, I, (H' - 1) * stride + 1, W) bfloat16, the rows that they are computed from.
        shortcut_filters: the weight (O, I / groups, 1, 1), likewise.
        shortcut_bias: (O) float32.
        stride: of rows and columns; beside both ends of ``input``'s rows is a zero.
        carried: (N, O, 2, W') bfloat16, channels_last, as of :func:`stream_blocks_`.
        block_filters: (N, ...), the weights (O, O / groups, 3, 3), likewise: one, and two for each further block.
        block_bias: (N, O) float32.
        groups: of channels; multiples of 32 in each.

    Raises:
        RuntimeError: an argument does not fit.
    """
    run = torch.ops.stadfast.stream_stage_ if has_bf16() else reference.stream_stage_
    beside = (shortcut, shortcut_input, shortcut_filters, shortcut_bias)
    run(output, input, filters, bias, *beside, stride, carried, block_filters, block_bias, groups)
    return output
