"""What a streaming metric remembers between updates: how many scores have each key, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import ops
from ..errors import UsageError
from ._inputs import common_dtype, next_below, state_groups
from .counts import Counts
from .states import find_anomalous

_CHUNK = 1 << 20  # pixels, about, whose anomalous scores an update between edges holds at a time
_BINNED = ("total", "anomalous", "overlap")


class NotFiniteError(Exception):
    """A score is NaN or infinite: whoever knows where the scores came from says which."""


class Streaming:
    """Counts scores by their 16-bit keys (``ops.key_histogram``), or between given edges: constant memory.

    The keys of float32 and bfloat16 agree, and share a table. float16 has bins of its own, in which it is exact;
    where maps of both kinds were added, they are moved into the others'.

    Args:
        edges: (E,) float32, rising: count between these instead of by key. See ``refined_edges``.
    """

    def __init__(self, edges: NDArray[np.float32] | None = None) -> None:
        self.edges = edges
        self.tables: dict[str, dict[str, NDArray[Any]]] = {}

    def empty_table(self, half: bool = False) -> dict[str, NDArray[Any]]:
        """What one group holds: all scores and anomalous ones by bin, the regions' shares, and two totals.

        With ``half`` also the bins of float16, which are absent until a map of that type comes.
        """
        names = ("", "half_") if half else ("",)
        return {
            **{f"{name}total": np.zeros(self.bins, np.int64) for name in names},
            **{f"{name}anomalous": np.zeros(self.bins, np.int64) for name in names},
            **{f"{name}overlap": np.zeros(self.bins, np.float64) for name in names},
            "regions": np.zeros(1, np.int64),
            "wide": np.zeros(1, np.int64),  # tensors whose bins hold several values: not of a half type
        }

    @property
    def bins(self) -> int:
        return ops.BINS if self.edges is None else len(self.edges) + 1

    def add(
        self, scores: Sequence[Tensor], truths: Sequence[Tensor | None], group: str, regions: bool
    ) -> None:
        """Count scores.

        Raises:
            NotFiniteError: a score is NaN or infinite; nothing has been added.
        """
        scores = [self._countable(s) for s in common_dtype(scores)]
        total = self._histogram(scores)
        anomalous, overlap, count = self._anomalous(scores, truths, regions)
        half = bool(scores) and scores[0].dtype == torch.float16
        table = {**self.empty_table(half), **self.tables.get(group, {})}
        self.tables[group] = table
        prefix = "half_" if half else ""
        table[f"{prefix}total"] += total
        table[f"{prefix}anomalous"] += anomalous
        table[f"{prefix}overlap"] += overlap
        table["regions"] += count
        table["wide"] += sum(s.dtype not in (torch.bfloat16, torch.float16) for s in scores)

    def counts(self, limit: float = 1.0) -> dict[str, Counts]:
        """By group, in the same slots: the bins that any group has counted in. ``limit`` makes no difference."""
        lowest, tables = self.binned()
        used = np.flatnonzero(sum(table["total"] for table in tables.values()))
        dtype = torch.float32
        if self.edges is None and not any(table["wide"][0] for table in tables.values()):
            dtype = torch.float16 if lowest is _lowest_of_bins(torch.float16) else torch.bfloat16
            lowest = _lowest_of_bins(dtype)  # below zero, bfloat16's values are the highest of float32's bins
        thresholds = next_below(lowest[used], {dtype})[::-1]
        return {
            group: Counts(
                thresholds,
                (table["total"] - table["anomalous"])[used][::-1],
                table["anomalous"][used][::-1],
                table["overlap"][used][::-1],
                int(table["regions"][0]),
                tied=not table["wide"][0],
            )
            for group, table in tables.items()
        }

    def binned(self) -> tuple[NDArray[np.float32], dict[str, dict[str, NDArray[Any]]]]:
        """The lowest score of each bin, and the groups' tables in these bins."""
        if self.edges is not None:
            return np.r_[np.float32(-np.inf), self.edges], self.tables
        if not any("half_total" in table for table in self.tables.values()):
            return _lowest_of_bins(torch.float32), self.tables
        if not any(table["total"].any() for table in self.tables.values()):
            halves = {
                group: {n: table[f"half_{n}"] for n in _BINNED} if "half_total" in table else table
                for group, table in self.tables.items()
            }
            return _lowest_of_bins(torch.float16), {g: {**self.tables[g], **t} for g, t in halves.items()}
        return _lowest_of_bins(torch.float32), {g: _without_half(t) for g, t in self.tables.items()}

    @property
    def state(self) -> dict[str, Any]:
        """Arrays, which add up by summing: (bins,) int64 and float64, and (1,) int64."""
        return {f"{group}/{n}": array for group, table in self.tables.items() for n, array in table.items()}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        tables: dict[str, dict[str, NDArray[Any]]] = {}
        known = self.empty_table(half=True)
        for group, held in state_groups(state, tuple(known)).items():
            table = tables[group] = self.empty_table(half=any(name.startswith("half_") for name in held))
            for name, value in held.items():
                shape = np.shape(value)
                if known[name].shape != shape:
                    raise UsageError(
                        f"state '{group}/{name}' of shape {shape} is not one of {self.bins} bins"
                    )
                table[name] = np.array(value)
        self.tables = tables

    def _countable(self, scores: Tensor) -> Tensor:
        """In a type that the ops count."""
        if scores.dtype == torch.float64:
            largest = torch.finfo(torch.float32).max
            return scores.clamp(-largest, largest).to(torch.float32)
        return scores if self.edges is None or scores.dtype == torch.bfloat16 else scores.to(torch.float32)

    def _histogram(self, scores: list[Tensor]) -> NDArray[np.int64]:
        if not scores:
            return np.zeros(self.bins, np.int64)
        if self.edges is None:
            counted = ops.key_histogram(scores).cpu().numpy()
            first, last = _finite_bins(scores[0].dtype)
            if counted[:first].any() or counted[last:].any():
                raise NotFiniteError
            return counted
        between = ops.rank_counts(scores, torch.from_numpy(self.edges).to(scores[0].device)).cpu().numpy()
        if between[-1]:
            raise NotFiniteError
        between[2:-1:2] += between[1:-1:2]  # a score on an edge belongs to the bin above it
        return between[:-1:2]

    def _anomalous(
        self, scores: Sequence[Tensor], truths: Sequence[Tensor | None], regions: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
        """Anomalous scores by bin, their regions' shares, and the number of regions."""
        pairs = [(s, t) for s, t in zip(scores, truths, strict=True) if t is not None]
        anomalous, overlap, count = np.zeros(self.bins, np.int64), np.zeros(self.bins), 0
        if not pairs:
            return anomalous, overlap, count
        if not regions:
            return self._histogram([s[t] for s, t in pairs]), overlap, count
        if self.edges is None:
            pixels, shares, counts = ops.region_histogram(*zip(*pairs, strict=True))
            return pixels.cpu().numpy(), shares.cpu().numpy(), int(counts.sum())
        for some, truth in _chunks(*zip(*pairs, strict=True)):
            found = find_anomalous(some, truth, True)
            bins = np.searchsorted(self.edges, found.scores, side="right")
            anomalous += np.bincount(bins, minlength=self.bins)
            overlap += np.bincount(bins, weights=found.share, minlength=self.bins)
            count += found.regions
        return anomalous, overlap, count


def _chunks(
    scores: Sequence[Tensor], truths: Sequence[Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    begin, held = 0, 0
    for i, image in enumerate(scores):
        held += image.numel()
        if held >= _CHUNK or i + 1 == len(scores):
            yield list(scores[begin : i + 1]), list(truths[begin : i + 1])
            begin, held = i + 1, 0


@cache
def _lowest_of_bins(dtype: torch.dtype) -> NDArray[np.float32]:
    return ops.bin_edges(dtype).float().numpy()


@cache
def _finite_bins(dtype: torch.dtype) -> tuple[int, int]:
    """The first finite bin, and the one past the last."""
    finite = ops.bin_edges(dtype).isfinite().nonzero()
    return int(finite[0]), int(finite[-1]) + 1


def _without_half(table: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The table with float16's bins moved into those that float32 and bfloat16 share."""
    if "half_total" not in table:
        return table
    first, last = _finite_bins(torch.float16)
    bins = ops.bin_keys(ops.bin_edges(torch.float16)[first:last].float()).numpy()
    moved = {}
    for name in _BINNED:
        half = table[f"half_{name}"][first:last]
        moved[name] = table[name].copy()
        np.add.at(moved[name], bins, half)
    return {**table, **moved, "wide": table["wide"] + table["half_total"].any()}
