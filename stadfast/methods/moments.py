"""Mean and deviation of what comes in batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import DataError

SMALLEST = 1e-12


def moments(batches: Iterable[Tensor], dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and deviation over ``dims`` and all batches, float64, on their device.

    A deviation is at least :data:`SMALLEST`, so that one can divide by it.

    Raises:
        DataError: no batch.
    """
    count, sums, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        wide = batch.double()
        total = wide.sum(dims)
        sums, squares = sums.to(total) + total, squares.to(total) + wide.square().sum(dims)
        count += wide.numel() // total.numel()
    if count == 0:
        raise DataError(
            "batches: expected at least one batch of good images, got none (a generator is read once)"
        )
    mean = sums / count
    return mean, (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(SMALLEST)
