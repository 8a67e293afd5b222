"""Every metric here is a function of how many pixels of each kind lie above each score: the counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Counts:
    """Pixels (or images) counted into slots of falling score; a slot holds ties, or nothing but normal ones.

    Attributes:
        thresholds: (S,) float64; ``score > thresholds[i]`` selects slots 0 to i.
        normal: (S,) int64, how many normal ones each slot holds.
        anomalous: (S,) int64, how many anomalous ones.
        overlap: (S,) float64, sum over regions of the share of the region that the slot holds.
        regions: how many regions there are.
    """

    thresholds: NDArray[np.float64]
    normal: NDArray[np.int64]
    anomalous: NDArray[np.int64]
    overlap: NDArray[np.float64]
    regions: int = 0

    @property
    def undefined(self) -> str | None:
        """Why no curve can be drawn, or None."""
        if not self.normal.sum():
            return "there are no normal scores"
        if not self.anomalous.sum():
            return "there are no anomalous scores"
        return None


def auroc(counts: Counts) -> float:
    """Probability that an anomalous score is above a normal one, ties counted half (Mann-Whitney)."""
    if counts.undefined:
        return float("nan")
    below = 0.5 * counts.anomalous + (np.cumsum(counts.anomalous) - counts.anomalous)
    return float(np.dot(counts.normal, below / counts.anomalous.sum()) / counts.normal.sum())


def average_precision(counts: Counts) -> float:
    """Sum of precision times the step in recall, one step per distinct score."""
    if not counts.anomalous.sum():
        return float("nan")
    hit = counts.anomalous > 0
    true_positive = np.cumsum(counts.anomalous)[hit]
    selected = true_positive + np.cumsum(counts.normal)[hit]
    return float(np.dot(true_positive / selected, counts.anomalous[hit]) / counts.anomalous.sum())


def f1_max(counts: Counts) -> tuple[float, float]:
    """The largest F1 of ``score > threshold`` and the highest threshold that gives it."""
    if not counts.anomalous.sum():
        return float("nan"), float("nan")
    true_positive = np.cumsum(counts.anomalous)
    selected = true_positive + np.cumsum(counts.normal)
    score = 2.0 * true_positive / (selected + true_positive[-1])
    best = int(np.argmax(score))
    return float(score[best]), float(counts.thresholds[best])


def roc_points(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(S+1,) false positive rate, true positive rate and threshold, from (0, 0, inf) to (1, 1)."""
    return (_rate(counts.normal), _rate(counts.anomalous), np.concatenate([[np.inf], counts.thresholds]))


def pro_points(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(S+1,) false positive rate, per-region overlap and threshold, from (0, 0, inf) to (1, 1)."""
    overlap = np.concatenate([[0.0], np.cumsum(counts.overlap)])
    if counts.regions:
        overlap = np.minimum(overlap / overlap[-1], 1.0)  # the last is the number of regions, but for rounding
    return (_rate(counts.normal), overlap, np.concatenate([[np.inf], counts.thresholds]))


def aupro(counts: Counts, limit: float) -> float:
    """Area under per-region overlap against false positive rate up to ``limit``, divided by ``limit``."""
    if counts.undefined or not counts.regions:
        return float("nan")
    rate, overlap, _ = pro_points(counts)
    end = int(np.searchsorted(rate, limit, side="right"))  # points 0..end-1 lie within the limit
    area = float(np.dot(np.diff(rate[:end]), 0.5 * (overlap[1:end] + overlap[: end - 1])))
    if end < len(rate):
        step = (limit - rate[end - 1]) / (rate[end] - rate[end - 1])
        last = overlap[end - 1] + step * (overlap[end] - overlap[end - 1])
        area += float((limit - rate[end - 1]) * 0.5 * (overlap[end - 1] + last))
    return area / limit


def _rate(counted: NDArray[np.int64]) -> NDArray[np.float64]:
    total = counted.sum()
    return np.concatenate([[0.0], np.cumsum(counted) / total if total else np.full(len(counted), np.nan)])
