"""Metrics of a segmentation, at one threshold or at few false positives, image by image."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UsageError
from ._inputs import above, any_set, check_number, paired_images, shown
from .functional import UndefinedMetricWarning


class AUPIMO(NamedTuple):
    """Per-image overlap at low false positive rates.

    Attributes:
        mean: over the anomalous images.
        per_image: (N,) float64; NaN for normal images.
    """

    mean: float
    per_image: NDArray[np.float64]


def seg_f1(maps: Any, masks: Any, threshold: float) -> float:
    """F1 of the pixels of all images together at a threshold that was fixed without the test labels.

    2TP / (2TP + FP + FN) of ``map > threshold``: SegF1 of MVTec AD 2 (Heckler-Kram et al., 2025).

    Args:
        maps: anomaly maps (N,1,H,W), (N,H,W), one (H,W), or a list of (H,W); raw.
        masks: the same shapes; bool, {0, 1}, or uint8 {0, 255}. In a list, None stands for a good image.
        threshold: a pixel above it is anomalous.

    Returns:
        In [0, 1]; NaN, with an ``UndefinedMetricWarning``, if no pixel is anomalous, truly or by threshold.

    Raises:
        UsageError: numbers or sizes of maps and masks differ, or the threshold is not a number.
        DataError: a score is NaN or infinite, or a mask is not binary.
    """
    threshold = check_number(threshold, "threshold")
    hit = marked = true = 0
    for image, mask in zip(*paired_images(maps, masks), strict=True):
        found = above(image, threshold)
        marked += int(found.sum())
        if mask is not None:
            hit += int((found & mask).sum())
            true += int(mask.sum())
    if marked + true == 0:
        warnings.warn("seg_f1 is undefined: no pixel is anomalous", UndefinedMetricWarning, stacklevel=2)
        return float("nan")
    return 2.0 * hit / (marked + true)


def aupimo(maps: Any, masks: Any, limits: tuple[float, float] = (1e-5, 1e-4)) -> AUPIMO:
    """Area under the per-image overlap curve: each anomalous image's recall at few false positives.

    Thresholds are set by the normal images alone: F(t) is the mean over them of the share of pixels > t. An
    image's value is the mean of its recall over log F between the limits (Bertoldo et al., AUPIMO, BMVC
    2024), here at every distinct score of the normal images rather than at a grid of thresholds, and linear
    in log F in between.

    Args:
        maps: anomaly maps (N,1,H,W), (N,H,W) or a list of (H,W); raw.
        masks: the same shapes; an image is normal if its mask is empty, or None in a list.
        limits: the false positive rates to integrate between.

    Returns:
        The mean over the anomalous images, and each image's value. All NaN, with an
        ``UndefinedMetricWarning``, if there are no normal or no anomalous images, or if the normal images
        have too few pixels, or too many equal scores, for rates as low as the limits.

    Raises:
        UsageError: numbers or sizes of maps and masks differ, or not 0 < low < high <= 1.
        DataError: a score is NaN or infinite, or a mask is not binary.
    """
    try:
        low, high = limits
    except (TypeError, ValueError):
        raise UsageError(f"limits must be two numbers (low, high), got {shown(limits)}") from None
    low, high = check_number(low, "limits[0]"), check_number(high, "limits[1]")
    if not 0.0 < low < high <= 1.0:
        raise UsageError(f"limits must be 0 < low < high <= 1, got {limits}")
    images, truths = paired_images(maps, masks)
    marked = [mask if mask is not None and any_set(mask) else None for mask in truths]
    normal = [image for image, mask in zip(images, marked, strict=True) if mask is None]
    values = np.full(len(images), np.nan)
    rate, thresholds = _shared_rate(normal, high)
    reason = None
    if len(normal) == len(images):
        reason = "there are no anomalous images"
    elif not normal:
        reason = "there are no normal images"
    elif not (rate <= low).any():
        reason = f"the normal images' lowest false positive rate, {rate.min():.2g}, is above {low:g}"
    if reason:
        warnings.warn(f"aupimo is undefined: {reason}", UndefinedMetricWarning, stacklevel=2)
        return AUPIMO(float("nan"), values)
    for i, (image, mask) in enumerate(zip(images, marked, strict=True)):
        if mask is not None:
            inside = np.sort(image[mask].double().cpu().numpy())
            recall = 1.0 - np.searchsorted(inside, thresholds, side="right") / len(inside)
            values[i] = _log_mean(rate, recall, low, high)
    return AUPIMO(float(np.nanmean(values)), values)


def _shared_rate(normal: list[Tensor], high: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F and its thresholds, by falling threshold, from F > 0 to the first point at or beyond ``high``.

    Only the highest scores matter: of each image, the share ``high`` of all images' together would need.
    """
    if not normal:
        return np.empty(0), np.empty(0)
    top, weight = [], []
    for image in normal:
        flat = image.flatten()
        count = min(flat.numel(), int(np.ceil(high * len(normal) * flat.numel())) + 1)
        top.append(torch.topk(flat, count).values.double().cpu().numpy())
        weight.append(np.full(count, 1.0 / (flat.numel() * len(normal))))
    scores, share = np.concatenate(top), np.concatenate(weight)
    order = np.argsort(-scores, kind="stable")
    scores, rate = scores[order], np.cumsum(share[order])
    last = np.append(scores[1:] != scores[:-1], True)  # of each run of ties: F counts them all
    scores, rate = scores[last], rate[last]
    end = min(int(np.searchsorted(rate, high)) + 1, len(rate))
    # Equal scores beyond an image's highest few belong to the last point, too.
    rate[end - 1] = np.mean([(image >= scores[end - 1]).double().mean().item() for image in normal])
    # score >= s is the same as score > the next lower float: thresholds just below each score
    return rate[:end], np.nextafter(scores[:end], -np.inf)


def _log_mean(rate: NDArray[np.float64], recall: NDArray[np.float64], low: float, high: float) -> float:
    x = np.log(rate)
    ends = np.log([low, high])
    inner = (x > ends[0]) & (x < ends[1])
    grid = np.concatenate([ends[:1], x[inner], ends[1:]])
    y = np.interp(grid, x, recall)
    return float(np.dot(np.diff(grid), 0.5 * (y[1:] + y[:-1])) / (ends[1] - ends[0]))
