"""What a metric remembers between updates: every score, or how many have each key, in constant memory.

Both hold scores in named groups (of images), so that one pass gives a data set's figures and each part's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from ..errors import UsageError
from ._inputs import common_dtype
from .counts import Counts

_CHUNK = 1 << 20  # pixels, about, whose anomalous scores a streaming update holds at a time


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

    def counts(self) -> dict[str, Counts]:
        """By group, in the same slots: above the highest anomalous score, on it, between it and the next."""
        groups = list(self.scores)
        found = [Anomalous(*map(_join, zip(*self.anomalous[g], strict=True))) for g in groups]
        dtype = (
            np.float64 if torch.float64 in {s.dtype for g in groups for s in self.scores[g]} else np.float32
        )
        values = np.concatenate([np.empty(0, dtype), *(f.scores for f in found)]).astype(dtype, copy=False)
        order = np.argsort(values)
        ranked = values[order] + dtype(0)  # -0 is 0
        first = np.ones(len(ranked), bool)
        first[1:] = ranked[1:] != ranked[:-1]
        edges, index = ranked[first], np.empty(len(ranked), np.int64)
        index[order] = np.cumsum(first) - 1
        thresholds = _thresholds_between(edges)
        parts = np.split(index, np.cumsum([len(f.scores) for f in found])[:-1]) if found else []
        return {
            g: _ranked(self.scores[g], edges, thresholds, f, edge)
            for g, f, edge in zip(groups, found, parts, strict=True)
        }

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
        self.scores, self.anomalous = {}, {}
        for key, value in state.items():
            group, name = key.rsplit("/", 1)
            getattr(self, name)[group] = list(value)


class Streaming:
    """Counts scores by their 16-bit keys (``ops.key_histogram``), or between given edges: constant memory.

    Args:
        edges: (E,) float32, rising: count between these instead of by key. See ``refined_edges``.
    """

    def __init__(self, edges: NDArray[np.float32] | None = None) -> None:
        self.edges = edges
        self.tables: dict[str, dict[str, NDArray[Any]]] = {}

    def empty_table(self) -> dict[str, NDArray[Any]]:
        """What one group holds: all scores and anomalous ones by bin, the regions' shares, and two totals."""
        return {
            "total": np.zeros(self.bins, np.int64),
            "anomalous": np.zeros(self.bins, np.int64),
            "overlap": np.zeros(self.bins, np.float64),
            "regions": np.zeros(1, np.int64),
            "wide": np.zeros(1, np.int64),  # tensors that were not bfloat16, whose bins hold several values
        }

    @property
    def bins(self) -> int:
        return ops.BINS if self.edges is None else len(self.edges) + 1

    def add(
        self, scores: Sequence[Tensor], truths: Sequence[Tensor | None], group: str, regions: bool
    ) -> None:
        if group not in self.tables:
            self.tables[group] = self.empty_table()
        table = self.tables[group]
        if not scores:
            return
        scores = [s if s.dtype == torch.bfloat16 else s.to(torch.float32) for s in common_dtype(scores)]
        table["total"] += self._histogram(scores)
        table["wide"] += sum(s.dtype != torch.bfloat16 for s in scores)
        for some, truth in _chunks(scores, truths):
            found = find_anomalous(some, truth, regions)
            bins = self._bins(found.scores)
            table["anomalous"] += np.bincount(bins, minlength=self.bins)
            table["overlap"] += np.bincount(bins, weights=found.share, minlength=self.bins)
            table["regions"] += found.regions

    def counts(self) -> dict[str, Counts]:
        """By group, in the same slots: the bins that any group has counted in."""
        used = self.used_bins()
        thresholds = self._thresholds(used)[::-1]
        return {
            group: Counts(
                thresholds,
                (table["total"] - table["anomalous"])[used][::-1],
                table["anomalous"][used][::-1],
                table["overlap"][used][::-1],
                int(table["regions"][0]),
                tied=not table["wide"][0],  # a bin of bfloat16 holds one value
            )
            for group, table in self.tables.items()
        }

    def used_bins(self) -> NDArray[np.int64]:
        """The bins that any group has counted in, rising."""
        return np.flatnonzero(sum(table["total"] for table in self.tables.values()))

    @property
    def state(self) -> dict[str, Any]:
        """Arrays, which add up by summing: (bins,) int64 and float64, and (1,) int64."""
        return {f"{group}/{n}": array for group, table in self.tables.items() for n, array in table.items()}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self.tables = {}
        for key, value in state.items():
            group, name = key.rsplit("/", 1)
            table, array = self.tables.setdefault(group, self.empty_table()), np.array(value)
            if name not in table or table[name].shape != array.shape:
                raise UsageError(f"state {key!r} of shape {array.shape} is not one of {self.bins} bins")
            table[name] = array

    def _histogram(self, scores: list[Tensor]) -> NDArray[np.int64]:
        if self.edges is None:
            return ops.key_histogram(scores).cpu().numpy()
        between = ops.rank_counts(scores, torch.from_numpy(self.edges).to(scores[0].device)).cpu().numpy()
        between[2:-1:2] += between[1:-1:2]  # a score on an edge belongs to the bin above it
        return between[:-1:2]

    def _bins(self, scores: NDArray[Any]) -> NDArray[np.int64]:
        if self.edges is None:
            return ops.bin_keys(torch.from_numpy(scores)).numpy()
        return np.searchsorted(self.edges, scores, side="right")

    def _thresholds(self, bins: NDArray[np.int64]) -> NDArray[np.float64]:
        """The largest float below each bin."""
        lowest = _lowest_of_bins() if self.edges is None else np.r_[-np.inf, self.edges]
        return np.nextafter(lowest[bins], -np.inf, dtype=np.float32).astype(np.float64)


def _ranked(
    scores: Sequence[Tensor],
    edges: NDArray[Any],
    thresholds: NDArray[np.float64],
    found: Anomalous,
    edge: NDArray[np.int64],
) -> Counts:
    """One group's counts; ``edge`` is the index of each anomalous score among the edges."""
    total = np.zeros(2 * len(edges) + 1, np.int64)
    for kind in dict.fromkeys((s.dtype, s.device) for s in scores):
        some = [s for s in scores if (s.dtype, s.device) == kind]
        if edges.dtype == np.float64:
            some = [s.to(torch.float64) for s in some]
        total += ops.rank_counts(some, torch.from_numpy(edges).to(kind[1])).cpu().numpy()[:-1]
    anomalous, overlap = np.zeros_like(total), np.zeros(len(total))
    anomalous[1::2] = np.bincount(edge, minlength=len(edges))
    overlap[1::2] = np.bincount(edge, weights=found.share, minlength=len(edges))
    normal = total - anomalous
    return Counts(thresholds, normal[::-1], anomalous[::-1], overlap[::-1], found.regions)


def _chunks(
    scores: Sequence[Tensor], truths: Sequence[Tensor | None]
) -> Iterator[tuple[list[Tensor], list[Tensor | None]]]:
    begin, held = 0, 0
    for i, image in enumerate(scores):
        held += image.numel()
        if held >= _CHUNK or i + 1 == len(scores):
            yield list(scores[begin : i + 1]), list(truths[begin : i + 1])
            begin, held = i + 1, 0


@cache
def _lowest_of_bins() -> NDArray[np.float32]:
    return ops.bin_edges(torch.float32).numpy()


def _numpy(values: Tensor) -> NDArray[Any]:
    wide = values if values.dtype == torch.float64 else values.float()
    return wide.cpu().numpy()


def _join(parts: Sequence[Any]) -> Any:
    return sum(parts) if isinstance(parts[0], int) else np.concatenate(parts)


def _thresholds_between(edges: NDArray[Any]) -> NDArray[np.float64]:
    """For slots of falling score, the t for which ``score > t`` selects the slot and all above it.

    Between two edges that is the lower edge; at an edge, the largest float below it.
    """
    falling = edges[::-1]
    below = np.nextafter(falling, edges.dtype.type(-np.inf))
    pairs = np.stack([falling, below], axis=1).reshape(-1).astype(np.float64)
    return np.append(pairs, -np.inf)
