"""A second look: finer bins where a streaming AUPRO's bound comes from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .counts import aupro_bounds
from .streaming import Streaming

_REFINED = 256  # bins that are cut
_CUTS = 256  # pieces of each: 2^-16 of its value wide, four times float32's own step


def refined_edges(held: Streaming, limit: float) -> NDArray[np.float32]:
    """Edges for ``Streaming`` that cut the bins which add most to the bound, and keep the rest.

    Raises:
        UsageError: ``held`` counts between such edges already, or has seen nothing that could be refined.
    """
    if held.edges is not None:
        raise UsageError("the metric is refined already; an exact one has a bound of 0")
    counts = held.counts().get("")
    if counts is None or counts.undefined or not counts.regions:
        raise UsageError("nothing to refine: the metric has seen no regions or no normal pixels")
    if counts.tied:
        raise UsageError("nothing to refine: each bin holds one value, and the bound is 0 already")
    keys = np.flatnonzero(held.binned()[1][""]["total"])[::-1].astype(np.uint32)
    share = aupro_bounds(counts, limit)
    worst = np.argsort(-share, kind="stable")[:_REFINED]
    worst = worst[share[worst] > 0]
    step = np.uint32(65536 // _CUTS)
    cuts = (keys[worst, None] << 16) + step * np.arange(_CUTS, dtype=np.uint32)
    edges = _floats(np.unique(np.concatenate([keys << 16, (keys + 1) << 16, cuts.ravel()])))
    return edges[np.isfinite(edges)]


def _floats(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The floats of 32-bit keys (csrc/order_key.h)."""
    bits = np.where(keys >= 0x80000000, keys & np.uint32(0x7FFFFFFF), ~keys)
    return bits.astype(np.uint32).view(np.float32)
