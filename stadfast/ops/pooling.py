"""Max pooling of channels_last features: PyTorch's own takes as long on a CPU as the convolution before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError
from . import _library, reference

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def max_pool2d(
    input: Tensor, kernel: int, stride: int, padding: int | Sequence[int] = 0, *, above: Tensor | None = None
) -> Tensor:
    """``F.max_pool2d(torch.cat([above, input], 2), kernel, stride, padding)``, bit for bit but for a NaN's bits.

    Halves are compared as integers of the same order, down the columns first and then along the rows. Without
    gradients; elsewhere than on a CPU PyTorch's own runs.

    Args:
        input: (B, C, H, W) float32, float16 or bfloat16; channels_last, or it is copied.
        kernel: side of the square window.
        stride: step of the window.
        padding: rows and columns (or one number for both) of minus infinity on every side, at most half of
            ``kernel``.
        above: (B, C, A, W), the rows before the input's: where a strip comes in blocks, what the last one left.

    Returns:
        (B, C, (A + H + 2 padding - kernel) // stride + 1, ...), channels_last on a CPU.

    Raises:
        UsageError: an argument does not fit; the message names it, what came and what was wanted.
    """
    sides = [padding, padding] if isinstance(padding, int) else [int(side) for side in padding]
    if not torch.jit.is_tracing():
        _check(input, kernel, stride, sides, above)
    if input.device.type != "cpu" or not _library.has_kernel("cpu"):
        return reference.max_pool2d(input, above, kernel, stride, sides)
    return torch.ops.stadfast.max_pool2d(input, above, kernel, stride, sides)


def _check(input: Tensor, kernel: int, stride: int, padding: list[int], above: Tensor | None) -> None:
    if input.dim() != 4 or 0 in input.shape[1:]:
        raise UsageError(f"input: expected a shape (B, C, H, W) without zeros, got {tuple(input.shape)}")
    if input.dtype not in _DTYPES:
        raise UsageError(f"input: expected float32, float16 or bfloat16, got {input.dtype}")
    if input.requires_grad and torch.is_grad_enabled():
        raise UsageError("input: requires a gradient; F.max_pool2d gives one")
    for name, value in (("kernel", kernel), ("stride", stride)):
        if value < 1:
            raise UsageError(f"{name}: expected a number from 1 on, got {value}")
    if len(padding) != 2 or not all(0 <= side <= kernel // 2 for side in padding):
        raise UsageError(f"padding: expected 0 to half of the kernel ({kernel // 2}), got {padding}")
    if above is not None and _without_rows(above) != _without_rows(input):
        raise UsageError(
            f"above: expected the input's batch, channels, width, dtype and device ({_without_rows(input)}), "
            f"got {_without_rows(above)}"
        )
    rows = input.shape[2] + (0 if above is None else above.shape[2])
    if min(rows + 2 * padding[0], input.shape[3] + 2 * padding[1]) < kernel:
        raise UsageError(
            f"kernel: expected at most the padded input's sides, got {kernel} for {tuple(input.shape)}"
        )


def _without_rows(x: Tensor) -> tuple[object, ...]:
    return (*x.shape[:2], *x.shape[3:], x.dtype, x.device)
