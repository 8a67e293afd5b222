"""What an exact metric remembers between updates: every score.

Scores are held in named groups (of images), so that one pass gives a data set's figures and each part's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from ..errors import UsageError
from ._inputs import common_dtype, next_below, state_groups
from .counts import Counts


class Anomalous(NamedTuple):
    """The anomalous scores: few, so that they may be kept and sorted.

    scores: (M,) float32 or float64; share: (M,) float64, one over the area of the score's region (0 without
    regions); regions: their number.
    """

    scores: NDArray[Any]
    share: NDArray[np.float64]
    regions: int


def find_anomalous(scores: Sequence[Tensor], truths: Sequence[Tensor | None], regions: bool) -> Anomalous:
    """The scores where the truth is set; with ``regions``, the truths are masks (H,W)."""
    pairs = [(s, t) for s, t in zip(scores, truths, strict=True) if t is not None]
    if not pairs:
        return Anomalous(np.empty(0, np.float32), np.empty(0), 0)
    if not regions:
        chosen = torch.cat([s[t].flatten() for s, t in pairs])
        return Anomalous(_numpy(chosen), np.zeros(len(chosen)), 0)
    chosen, numbers, areas, _ = ops.region_pixels([s for s, _ in pairs], [t for _, t in pairs])
    share = (1.0 / areas.cpu().numpy())[numbers.cpu().numpy()]
    return Anomalous(_numpy(chosen), share, len(areas))


class Exact:
    """Keeps every score; ``counts`` ranks all against the anomalous ones, and sorts only the latter."""

    def __init__(self, copy: bool = True) -> None:
        self.copy = copy  # the caller may write to the arrays again
        self.scores: dict[str, list[Tensor]] = {}
        self.anomalous: dict[str, list[Anomalous]] = {}

    def add(
        self, scores: Sequence[Tensor], truths: Sequence[Tensor | None], group: str, regions: bool
    ) -> None:
        scores = common_dtype(scores)
        self.anomalous.setdefault(group, []).append(find_anomalous(scores, truths, regions))
        self.scores.setdefault(group, []).extend(s.clone() if self.copy else s for s in scores)

    def counts(self, limit: float = 1.0) -> dict[str, Counts]:
        """By group, in the same slots: above the highest anomalous score, on it, between it and the next.

        Where only false positive rates up to ``limit`` matter, all scores below share the last slots: ranking
        them would take most of the time.
        """
        groups = list(self.scores)
        found = [Anomalous(*map(_join, zip(*self.anomalous[g], strict=True))) for g in groups]
        dtypes = {s.dtype for g in groups for s in self.scores[g]}
        dtype = np.float64 if torch.float64 in dtypes else np.float32
        values = np.concatenate([np.empty(0, dtype), *(f.scores for f in found)]).astype(dtype, copy=False)
        floor = self._floor(values, limit)
        if floor is not None:
            values = np.maximum(values, floor)
        order = np.argsort(values)
        ranked = values[order] + dtype(0)  # -0 is 0
        first = np.ones(len(ranked), bool)
        first[1:] = ranked[1:] != ranked[:-1]
        edges, index = ranked[first], np.empty(len(ranked), np.int64)
        index[order] = np.cumsum(first) - 1
        thresholds = _thresholds_between(edges, next_below(edges, dtypes))
        floored = floor is not None and len(edges) > 0 and edges[0] == floor
        if floored:
            thresholds[-2] = -np.inf
        parts = np.split(index, np.cumsum([len(f.scores) for f in found])[:-1]) if found else []
        return {
            g: _ranked(self.scores[g], edges, thresholds, f, edge, floored)
            for g, f, edge in zip(groups, found, parts, strict=True)
        }

    def _floor(self, anomalous: NDArray[Any], limit: float) -> np.float32 | None:
        """A score below all that decide the curve up to ``limit``, found from histograms; or None."""
        scores = [s for some in self.scores.values() for s in some]
        if (
            limit >= 1.0
            or len({(s.dtype, s.device) for s in scores}) != 1
            or scores[0].dtype == torch.float64
        ):
            return None
        normal = ops.key_histogram(scores).cpu()
        normal -= ops.key_histogram([torch.from_numpy(anomalous).to(scores[0].dtype)])
        above = np.cumsum(normal.numpy()[::-1])
        if not above[-1]:
            return None
        last = ops.BINS - 1 - int(np.searchsorted(above / above[-1], limit))
        lowest = ops.bin_edges(scores[0].dtype)[last].float().numpy()
        with np.errstate(over="ignore"):
            floor = np.nextafter(lowest, np.float32(-np.inf))
        return floor if np.isfinite(floor) else None

    @property
    def state(self) -> dict[str, Any]:
        """Lists, which add up by concatenation."""
        return {
            f"{group}/{name}": list(table[group])
            for name, table in (("scores", self.scores), ("anomalous", self.anomalous))
            for group in table
        }

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        groups = state_groups(state, ("scores", "anomalous"))
        for group, held in groups.items():
            for name, kind in (("scores", Tensor), ("anomalous", tuple)):
                values = held.get(name)
                if not isinstance(values, (list, tuple)) or not all(isinstance(v, kind) for v in values):
                    raise UsageError(
                        f"state '{group}/{name}' must be a list of {kind.__name__}s, got {type(values).__name__}"
                    )
        self.scores = {group: list(held["scores"]) for group, held in groups.items()}
        self.anomalous = {group: [Anomalous(*a) for a in held["anomalous"]] for group, held in groups.items()}


def _ranked(
    scores: Sequence[Tensor],
    edges: NDArray[Any],
    thresholds: NDArray[np.float64],
    found: Anomalous,
    edge: NDArray[np.int64],
    floored: bool,
) -> Counts:
    """One group's counts; ``edge`` is the index of each anomalous score among the edges.

    With ``floored``, all anomalous scores below the lowest edge were moved there; the normal ones are now.
    """
    total = np.zeros(2 * len(edges) + 1, np.int64)
    for kind in dict.fromkeys((s.dtype, s.device) for s in scores):
        some = [s for s in scores if (s.dtype, s.device) == kind]
        if edges.dtype == np.float64:
            some = [s.to(torch.float64) for s in some]
        total += ops.rank_counts(some, torch.from_numpy(edges).to(kind[1])).cpu().numpy()[:-1]
    if floored:
        total[1] += total[0]
        total[0] = 0
    anomalous, overlap = np.zeros_like(total), np.zeros(len(total))
    anomalous[1::2] = np.bincount(edge, minlength=len(edges))
    overlap[1::2] = np.bincount(edge, weights=found.share, minlength=len(edges))
    normal = total - anomalous
    return Counts(thresholds, normal[::-1], anomalous[::-1], overlap[::-1], found.regions)


def _numpy(values: Tensor) -> NDArray[Any]:
    wide = values if values.dtype == torch.float64 else values.float()
    return wide.cpu().numpy()


def _join(parts: Sequence[Any]) -> Any:
    return sum(parts) if isinstance(parts[0], int) else np.concatenate(parts)


def _thresholds_between(edges: NDArray[Any], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """For slots of falling score, the t for which ``score > t`` selects the slot and all above it.

    Between two edges that is the lower edge; at an edge, what is next below it.
    """
    pairs = np.stack([edges[::-1], below[::-1]], axis=1).reshape(-1).astype(np.float64)
    return np.append(pairs, -np.inf)
