"""Counting scores: against sorted edges, exactly, or by their 16-bit keys, in constant memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError
from . import _library, reference_metrics
from .reference_metrics import BINS, bin_keys

__all__ = ["BINS", "bin_edges", "bin_keys", "key_histogram", "rank_counts"]

_HALF_TYPES = (torch.float16, torch.bfloat16)


def rank_counts(scores: Sequence[Tensor], edges: Tensor) -> Tensor:
    """How many scores lie on each of n edges and between them: ranking without sorting the scores.

    Equivalent, for finite scores, to::

        slot = torch.searchsorted(edges, scores) + torch.searchsorted(edges, scores, right=True)
        torch.bincount(slot, minlength=2 * n + 2)

    Args:
        scores: tensors of any shapes, of one floating-point dtype, on the device of ``edges``.
        edges: (n,) rising, distinct and finite; float32, or float64 for float64 scores.

    Returns:
        (2n + 2,) int64: slot 2j + 1 counts the scores equal to edge j, 2j those between edges j - 1 and j,
        the last one the NaN and infinite scores.

    Raises:
        UsageError: dtypes or devices do not match.
    """
    scores = _check_scores(scores)
    wanted = torch.float64 if scores and scores[0].dtype == torch.float64 else torch.float32
    if edges.dim() != 1 or (scores and (edges.dtype != wanted or edges.device != scores[0].device)):
        raise UsageError(
            f"edges: expected (n,) {wanted} on the scores' device, got {tuple(edges.shape)} {edges.dtype} on "
            f"{edges.device}"
        )
    if _library.has_kernel(edges.device.type):
        return torch.ops.stadfast.rank_counts(scores, edges)
    return reference_metrics.rank_counts(scores, edges)


def key_histogram(scores: Sequence[Tensor]) -> Tensor:
    """How many scores have each 16-bit key: (65536,) int64, in the order of the scores.

    The key is the float's bits, reordered to rise with the value: all 16 of a half type, so that each bin
    holds one value; of float32 the upper 16, so that a bin is 2^-8 to 2^-7 of its value wide anywhere.
    The bins of ``bin_edges`` that are not finite count the NaN and infinite scores.

    Args:
        scores: at least one tensor, of any shapes; float32, float16 or bfloat16, of one dtype on one device.

    Raises:
        UsageError: no scores, another dtype, or dtypes and devices that differ.
    """
    scores = _check_scores(scores)
    if not scores or scores[0].dtype not in (torch.float32, *_HALF_TYPES):
        raise UsageError(
            f"scores: expected float32, float16 or bfloat16, got {scores[0].dtype if scores else 'nothing'}"
        )
    if _library.has_kernel(scores[0].device.type):
        return torch.ops.stadfast.key_histogram(scores)
    return reference_metrics.key_histogram(scores)


def bin_edges(dtype: torch.dtype) -> Tensor:
    """The smallest value of each bin of ``key_histogram``: (65536,) of ``dtype`` on the CPU."""
    keys = torch.arange(BINS, dtype=torch.int32)
    bits = torch.where(keys >= 0x8000, keys - 0x8000, 0xFFFF - keys)
    if dtype == torch.float32:
        lower_half = torch.where(keys < 0x8000, 0xFFFF, 0).to(
            torch.int32
        )  # below zero the largest is the smallest
        return ((bits << 16) | lower_half).view(torch.float32)
    return bits.to(torch.int16).view(dtype)


def _check_scores(scores: Sequence[Tensor]) -> list[Tensor]:
    scores = list(scores)
    for i, tensor in enumerate(scores):
        if not tensor.is_floating_point():
            raise UsageError(f"scores[{i}]: expected a floating-point dtype, got {tensor.dtype}")
        if tensor.dtype != scores[0].dtype or tensor.device != scores[0].device:
            raise UsageError(
                f"scores[{i}]: expected {scores[0].dtype} on {scores[0].device} as scores[0], "
                f"got {tensor.dtype} on {tensor.device}"
            )
    return scores
