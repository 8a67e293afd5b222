"""A camera's bytes as a network's input, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError
from . import _library, reference


def normalize_images(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Bytes to numbers, normalisation, layout and rounding in one pass over the images.

    Equivalent to (to the last bit or two, as one multiplication and one addition stand for both divisions)::

        unit = images.float() / 255 if images.dtype == torch.uint8 else images
        ((unit - mean) / std).to(dtype).contiguous(memory_format=torch.channels_last)

    Without gradients; elsewhere than on a CPU these lines run.

    Args:
        images: (B, 3, H, W) uint8, or float32 in [0, 1]; read in place where the channels of a pixel, or
            the pixels of a row, are neighbours.
        mean: of the three channels, for images in [0, 1].
        std: likewise.
        dtype: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        (B, 3, H, W) of ``dtype``, channels_last.

    Raises:
        UsageError: an argument does not fit; the message names it, what came and what was wanted.
    """
    if not torch.jit.is_tracing():
        _check(images, mean, std, dtype)
    compiled = images.device.type == "cpu" and _library.has_kernel("cpu")
    run = torch.ops.stadfast.normalize_images if compiled else reference.normalize_images
    return run(images, list(mean), list(std), dtype == torch.bfloat16)


def _check(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> None:
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise UsageError(f"images: expected a shape (B, 3, H, W) without zeros, got {tuple(images.shape)}")
    if images.dtype not in (torch.uint8, torch.float32):
        raise UsageError(f"images: expected uint8 or float32, got {images.dtype}")
    if images.requires_grad and torch.is_grad_enabled():
        raise UsageError("images: requires a gradient, which this operator does not give")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise UsageError(f"{name}: expected 3 numbers, got {len(values)}")
    if not all(value > 0 for value in std):
        raise UsageError(f"std: expected positive numbers, got {list(std)}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise UsageError(f"dtype: expected torch.float32 or torch.bfloat16, got {dtype}")
