"""Exact ranking metrics of raw scores: no sigmoid, no rescaling, no clipping, no bins."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import counts as _counts
from ._inputs import check_limit, paired_images, paired_scores
from .counts import Counts
from .states import Exact


class UndefinedMetricWarning(UserWarning):
    """A metric is NaN; the message says why."""


class F1Score(NamedTuple):
    """The largest F1, and the highest threshold that gives it: ``score > threshold`` is anomalous."""

    value: float
    threshold: float


class ROCCurve(NamedTuple):
    """(S,) float64 each, by falling threshold; point i is that of ``score > thresholds[i]``."""

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    thresholds: NDArray[np.float64]


class PROCurve(NamedTuple):
    """(S,) float64 each, by falling threshold; point i is that of ``score > thresholds[i]``."""

    fpr: NDArray[np.float64]
    pro: NDArray[np.float64]
    thresholds: NDArray[np.float64]


def auroc(scores: Any, labels: Any) -> float:
    """Area under the ROC curve: P(anomalous score > normal score) + P(equal) / 2.

    Equals ``sklearn.metrics.roc_auc_score(labels, scores)``.

    Args:
        scores: any shape, any real dtype; higher is more anomalous.
        labels: the same shape; bool, {0, 1}, or uint8 {0, 255}.

    Returns:
        In [0, 1]; NaN, with an ``UndefinedMetricWarning``, if one of the two kinds is missing.

    Raises:
        UsageError: the shapes differ.
        DataError: a score is NaN or infinite, or the labels are not binary.
    """
    counts = _score_counts(scores, labels)
    return _warned("auroc", counts.undefined, _counts.auroc(counts))


def average_precision(scores: Any, labels: Any) -> float:
    """Average precision, sum_i (R_i - R_{i-1}) P_i over the distinct scores, not interpolated.

    Equals ``sklearn.metrics.average_precision_score(labels, scores)``. Arguments and errors as ``auroc``;
    NaN only without anomalous scores.
    """
    counts = _score_counts(scores, labels)
    return _warned("average_precision", _no_anomalous(counts), _counts.average_precision(counts))


def f1_max(scores: Any, labels: Any) -> F1Score:
    """The largest F1 = 2TP / (2TP + FP + FN) over all thresholds, and the highest threshold that gives it.

    The threshold is the largest number below a score that its type has, so that ``scores > threshold`` gives
    the value, in that type and in wider ones.
    Arguments and errors as ``auroc``; both are NaN without anomalous scores.
    """
    counts = _score_counts(scores, labels)
    value, threshold = _counts.f1_max(counts)
    return F1Score(_warned("f1_max", _no_anomalous(counts), value), threshold)


def roc_curve(scores: Any, labels: Any) -> ROCCurve:
    """The ROC curve from (0, 0) to (1, 1), without the points inside straight horizontal lines.

    Arguments and errors as ``auroc``; a rate is NaN where there is nothing to take it of.
    """
    counts = _score_counts(scores, labels)
    _warned("roc_curve", counts.undefined, 0.0)
    return ROCCurve(*_counts.roc_points(counts))


def aupro(maps: Any, masks: Any, limit: float = 0.3) -> float:
    """Area under the per-region overlap curve up to a false positive rate of ``limit``, divided by it.

    PRO(t) is the mean, over the 8-connected regions of all masks, of the share of the region's pixels with
    score > t; FPR(t) is that share of all normal pixels of all images. One point per distinct score, straight
    lines between them, interpolated at the limit (Bergmann et al., MVTec AD, IJCV 2021, section 5.2).

    Args:
        maps: anomaly maps (N,1,H,W), (N,H,W), one (H,W), or a list of (H,W) of any sizes; raw.
        masks: the same shapes; bool, {0, 1}, or uint8 {0, 255}. In a list, None stands for a good image.
        limit: in (0, 1].

    Returns:
        In [0, 1]; NaN, with an ``UndefinedMetricWarning``, if there are no regions or no normal pixels.

    Raises:
        UsageError: numbers or sizes of maps and masks differ, or the limit is outside (0, 1].
        DataError: a score is NaN or infinite, or a mask is not binary.
    """
    check_limit(limit)
    counts = _region_counts(maps, masks, limit)
    return _warned("aupro", counts.undefined, _counts.aupro(counts, limit))


def pro_curve(maps: Any, masks: Any) -> PROCurve:
    """The per-region overlap curve from (0, 0) to (1, 1), without the points inside horizontal lines.

    Arguments and errors as ``aupro``.
    """
    counts = _region_counts(maps, masks)
    _warned("pro_curve", counts.undefined, 0.0)
    return PROCurve(*_counts.pro_points(counts))


def _score_counts(scores: Any, labels: Any) -> Counts:
    held = Exact(copy=False)
    held.add(*paired_scores(scores, labels), "", False)
    return held.counts()[""]


def _region_counts(maps: Any, masks: Any, limit: float = 1.0) -> Counts:
    held = Exact(copy=False)
    held.add(*paired_images(maps, masks), "", True)
    return held.counts(limit)[""]


def _no_anomalous(counts: Counts) -> str | None:
    return None if counts.anomalous.sum() else "there are no anomalous scores"


def _warned(metric: str, reason: str | None, value: float) -> float:
    if reason:
        warnings.warn(f"{metric} is undefined: {reason}", UndefinedMetricWarning, stacklevel=3)
    return value
