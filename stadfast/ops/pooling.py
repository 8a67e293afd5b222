"""Max pooling of channels_last features: PyTorch's own takes as long on a CPU as the convolution before it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError
from . import _library, reference

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def max_pool2d(input: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """``F.max_pool2d(input, kernel, stride, padding)``, bit for bit but for the bits of a NaN.

    Halves are compared as integers of the same order, down the columns first and then along the rows. Without
    gradients; elsewhere than on a CPU PyTorch's own runs.

    Args:
        input: (B, C, H, W) float32, float16 or bfloat16; channels_last, or it is copied.
        kernel: side of the square window.
        stride: step of the window.
        padding: rows and columns of minus infinity on every side, at most half of ``kernel``.

    Returns:
        (B, C, (H + 2 padding - kernel) // stride + 1, ...), channels_last on a CPU.

    Raises:
        UsageError: an argument does not fit; the message names it, what came and what was wanted.
    """
    if not torch.jit.is_tracing():
        _check(input, kernel, stride, padding)
    if input.device.type != "cpu" or not _library.has_kernel("cpu"):
        return reference.max_pool2d(input, kernel, stride, padding)
    return torch.ops.stadfast.max_pool2d(input, kernel, stride, padding)


def _check(input: Tensor, kernel: int, stride: int, padding: int) -> None:
    if input.dim() != 4 or 0 in input.shape[1:]:
        raise UsageError(f"input: expected a shape (B, C, H, W) without zeros, got {tuple(input.shape)}")
    if input.dtype not in _DTYPES:
        raise UsageError(f"input: expected float32, float16 or bfloat16, got {input.dtype}")
    if input.requires_grad and torch.is_grad_enabled():
        raise UsageError("input: requires a gradient; F.max_pool2d gives one")
    for name, value in (("kernel", kernel), ("stride", stride)):
        if value < 1:
            raise UsageError(f"{name}: expected a number from 1 on, got {value}")
    if not 0 <= padding <= kernel // 2:
        raise UsageError(f"padding: expected 0 to half of the kernel ({kernel // 2}), got {padding}")
    if min(input.shape[2:]) + 2 * padding < kernel:
        raise UsageError(
            f"kernel: expected at most the padded input's sides, got {kernel} for {tuple(input.shape)}"
        )
