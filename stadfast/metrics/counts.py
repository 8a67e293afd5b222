"""Every metric here is a function of how many pixels of each kind lie above each score: the counts.

Where a slot holds different scores, as a bin of a histogram does, the order within it is unknown: each metric
then has a bound beside it, on how far any order could move it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Pixels (or images) counted into slots of falling score.

    Attributes:
        thresholds: (S,) float64; ``score > thresholds[i]`` selects slots 0 to i.
        normal: (S,) int64, how many normal ones each slot holds.
        anomalous: (S,) int64, how many anomalous ones.
        overlap: (S,) float64, sum over regions of the share of the region that the slot holds.
        regions: how many regions there are.
        tied: each slot holds equal scores, or nothing but normal ones: no order is unknown.
    """

    thresholds: Floats
    normal: Integers
    anomalous: Integers
    overlap: Floats
    regions: int = 0
    tied: bool = True

    def __add__(self, other: Counts) -> Counts:
        """Of the same slots."""
        return Counts(
            self.thresholds,
            self.normal + other.normal,
            self.anomalous + other.anomalous,
            self.overlap + other.overlap,
            self.regions + other.regions,
            self.tied and other.tied,
        )

    @property
    def undefined(self) -> str | None:
        """Why no curve can be drawn, or None."""
        if not self.normal.any():
            return "there are no normal scores"
        if not self.anomalous.any():
            return "there are no anomalous scores"
        return None


NOTHING = Counts(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def auroc(counts: Counts) -> float:
    """Probability that an anomalous score is above a normal one, ties counted half (Mann-Whitney)."""
    if counts.undefined:
        return float("nan")
    below = 0.5 * counts.anomalous + _before(counts.anomalous)
    return float(np.dot(counts.normal, below / counts.anomalous.sum()) / counts.normal.sum())


def auroc_bound(counts: Counts) -> float:
    """Half of the pairs that share a slot."""
    if counts.undefined or counts.tied:
        return 0.0
    pairs = np.dot(counts.normal / counts.normal.sum(), counts.anomalous / counts.anomalous.sum())
    return float(0.5 * pairs)


def average_precision(counts: Counts) -> float:
    """Sum of precision times the step in recall, one step per slot."""
    if not counts.anomalous.any():
        return float("nan")
    hit = counts.anomalous > 0
    true_positive = np.cumsum(counts.anomalous)[hit]
    selected = true_positive + np.cumsum(counts.normal)[hit]
    return float(np.dot(true_positive / selected, counts.anomalous[hit]) / counts.anomalous.sum())


def average_precision_bound(counts: Counts) -> float:
    """All of a slot's anomalous scores above its normal ones, or all below.

    With f normal ones selected, the k-th anomalous one adds k / (k + f): from k = a + 1 to a + p these sum to
    p - f sum 1 / (k + f) >= p - f log((a + p + f) / (a + f)), and each is at most (a + p) / (a + p + f).
    """
    if counts.tied or not counts.anomalous.any():
        return 0.0
    hit = counts.anomalous > 0
    p = counts.anomalous[hit].astype(np.float64)
    a, before = _before(counts.anomalous)[hit], _before(counts.normal)[hit]
    f = before + counts.normal[hit]
    low = p - f * np.log1p(p / np.maximum(a + f, 1))
    high = p * (a + p) / (a + p + before)
    value = p * (a + p) / (a + p + f)
    return float(max((high - value).sum(), (value - low).sum()) / p.sum())


def f1_max(counts: Counts) -> tuple[float, float]:
    """The largest F1 of ``score > threshold`` and the highest threshold that gives it."""
    if not counts.anomalous.any():
        return float("nan"), float("nan")
    true_positive = np.cumsum(counts.anomalous)
    selected = true_positive + np.cumsum(counts.normal)
    score = 2.0 * true_positive / (selected + true_positive[-1])
    best = int(np.argmax(score))
    return float(score[best]), float(counts.thresholds[best])


def f1_max_bound(counts: Counts) -> float:
    """How much a threshold within a slot could add: all of its anomalous scores above its normal ones."""
    if counts.tied or not counts.anomalous.any():
        return 0.0
    true_positive = np.cumsum(counts.anomalous)
    best_case = 2.0 * true_positive / (true_positive + _before(counts.normal) + true_positive[-1])
    return float(best_case.max() - f1_max(counts)[0])


def roc_points(counts: Counts) -> tuple[Floats, Floats, Floats]:
    """(S+1,) false positive rate, true positive rate and threshold, from (0, 0, inf) to (1, 1)."""
    return _rate(counts.normal), _rate(counts.anomalous), np.concatenate([[np.inf], counts.thresholds])


def pro_points(counts: Counts) -> tuple[Floats, Floats, Floats]:
    """(S+1,) false positive rate, per-region overlap and threshold, from (0, 0, inf) to (1, 1)."""
    overlap = np.concatenate([[0.0], np.cumsum(counts.overlap)])
    if counts.regions:
        overlap = np.minimum(
            overlap / overlap[-1], 1.0
        )  # the last is the number of regions, but for rounding
    return _rate(counts.normal), overlap, np.concatenate([[np.inf], counts.thresholds])


def aupro(counts: Counts, limit: float) -> float:
    """Area under per-region overlap against false positive rate up to ``limit``, divided by ``limit``."""
    if counts.undefined or not counts.regions:
        return float("nan")
    width, low, high, share = _strips(counts, limit)
    return float(np.dot(width, low + 0.5 * share * (high - low)) / limit)


def aupro_bound(counts: Counts, limit: float) -> float:
    """Between its corners the curve only rises: half of each slot's rectangle, and more of the one cut."""
    if counts.undefined or not counts.regions or counts.tied:
        return 0.0
    return float(aupro_bounds(counts, limit).sum())


def aupro_bounds(counts: Counts, limit: float) -> Floats:
    """The bound's parts, slot by slot, up to the limit."""
    width, low, high, share = _strips(counts, limit)
    return width * (1.0 - 0.5 * share) * (high - low) / limit


def _strips(counts: Counts, limit: float) -> tuple[Floats, Floats, Floats, Floats]:
    """The area up to the limit in strips: width, overlap at either side, share of the slot within."""
    rate, overlap, _ = pro_points(counts)
    end = int(np.searchsorted(rate, limit, side="left")) + 1  # the first point at or beyond the limit
    start, stop = rate[: end - 1], rate[1:end]
    width = np.minimum(stop, limit) - start
    share = np.ones_like(width)
    if len(width) and stop[-1] > limit:
        share[-1] = width[-1] / (stop[-1] - start[-1])
    return width, overlap[: end - 1], overlap[1:end], share


def _before(counted: Integers) -> Integers:
    return np.cumsum(counted) - counted


def _rate(counted: Integers) -> Floats:
    total = counted.sum()
    return np.concatenate([[0.0], np.cumsum(counted) / total if total else np.full(len(counted), np.nan)])
