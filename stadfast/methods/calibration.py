"""Thresholds from the scores of good images alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import UsageError
from .arguments import is_number

DEFAULT_QUANTILE = 0.995


def threshold_of(
    scores: Tensor, quantile: float | None = None, target_fpr: float | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The threshold for scores of good images, and the rule behind it.

    Args:
        scores: (N,) float, of good images that the detector has not been trained on.
        quantile: of ``scores``, 0 to 1; :data:`DEFAULT_QUANTILE` if nothing is given.
        target_fpr: instead, the share of good images that may be called anomalous. The threshold is the
            ``ceil((N + 1)(1 - target_fpr))``-th smallest score, which keeps the promise for new images from the same
            process (split conformal prediction), given at least ``1 / target_fpr - 1`` images.

    Returns:
        The threshold, a float32 scalar, and ``{"quantile": q}`` or ``{"target_fpr": f}``.

    Raises:
        UsageError: both are given, out of range, or too few images for ``target_fpr``.
    """
    if target_fpr is None:
        quantile = DEFAULT_QUANTILE if quantile is None else quantile
        if not (is_number(quantile) and 0 <= quantile <= 1):
            raise UsageError(f"quantile: expected a number from 0 to 1, got {quantile!r}")
        return torch.quantile(scores.double(), quantile).float(), {"quantile": float(quantile)}
    if quantile is not None:
        raise UsageError("quantile and target_fpr exclude each other")
    if not (is_number(target_fpr) and 0 < target_fpr < 1):
        raise UsageError(f"target_fpr: expected a number between 0 and 1, got {target_fpr!r}")
    rank = max(1, _ceil((len(scores) + 1) * (1 - target_fpr)))
    if rank > len(scores):
        needed = _ceil(1 / target_fpr) - 1
        raise UsageError(f"target_fpr {target_fpr} needs at least {needed} good images, got {len(scores)}")
    return scores.sort().values[rank - 1], {"target_fpr": float(target_fpr)}


def _ceil(number: float) -> int:
    """Without what floats add: 10 (1 - 0.7) is 3, not 3.0000000000000004."""
    return math.ceil(round(number, 9))
