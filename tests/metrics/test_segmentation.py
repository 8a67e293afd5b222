"""SegF1 and AUPIMO against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stadfast import metrics
from stadfast.errors import UsageError
from stadfast.metrics import UndefinedMetricWarning

from .cases import draw


def aupimo_oracle(maps: np.ndarray, masks: np.ndarray, low: float, high: float) -> np.ndarray:
    """At every distinct score of the normal images, on a fine grid of log rates."""
    good = maps[~masks.any((1, 2))]
    thresholds = np.unique(good)[::-1]
    rate = np.array([np.mean([(image >= t).mean() for image in good]) for t in thresholds])
    grid = np.linspace(np.log(low), np.log(high), 20001)
    values = []
    for image, mask in zip(maps, masks, strict=True):
        if mask.any():
            recall = np.array([(image[mask] >= t).mean() for t in thresholds])
            y = np.interp(grid, np.log(rate), recall)
            values.append(np.mean(0.5 * (y[1:] + y[:-1])))
        else:
            values.append(np.nan)
    return np.array(values)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("limits", [(1e-3, 1e-2), (0.02, 0.3), (0.005, 1.0)])
def test_aupimo_is_the_definition(ties: bool, limits: tuple[float, float]) -> None:
    maps, masks = draw(0, "random", size=(23, 29))
    maps = maps + masks
    if ties:
        maps, limits = np.round(4 * maps), (max(limits[0], 0.005), limits[1])
    result = metrics.aupimo(maps, masks, limits)
    np.testing.assert_allclose(result.per_image, aupimo_oracle(maps, masks, *limits), atol=2e-5)
    assert result.mean == pytest.approx(np.nanmean(result.per_image))
    assert np.isnan(result.per_image[:2]).all()


def test_aupimo_weighs_normal_images_of_any_size_alike() -> None:
    maps, masks = draw(1, "random")
    doubled = [*np.repeat(np.repeat(maps[:2], 2, 1), 2, 2), *maps[2:]]
    truths = [None, None, *masks[2:]]
    wanted = metrics.aupimo(maps, masks, (0.01, 0.1)).per_image
    np.testing.assert_allclose(metrics.aupimo(doubled, truths, (0.01, 0.1)).per_image, wanted, atol=1e-12)


def test_aupimo_needs_enough_normal_pixels() -> None:
    maps, masks = draw(2, "random")
    with pytest.warns(UndefinedMetricWarning, match="lowest false positive rate, 0.00038, is above 1e-05"):
        assert np.isnan(metrics.aupimo(maps, masks).mean)
    with pytest.warns(UndefinedMetricWarning, match="no anomalous images"):
        metrics.aupimo(maps[:2], masks[:2])
    with pytest.warns(UndefinedMetricWarning, match="no normal images"):
        metrics.aupimo(maps[2:], masks[2:])
    with pytest.raises(UsageError, match="limits must be 0 < low < high <= 1"):
        metrics.aupimo(maps, masks, (0.1, 0.01))


def test_seg_f1_is_sklearns() -> None:
    from sklearn.metrics import f1_score

    maps, masks = draw(3, "random")
    truths = [mask if mask.any() else None for mask in masks]
    for threshold in (-1.0, 0.7, 2.0):
        wanted = f1_score(masks.ravel(), maps.ravel() > threshold)
        assert metrics.seg_f1(maps, truths, threshold) == pytest.approx(wanted, abs=1e-14)
    best = metrics.f1_max(maps, masks)
    assert metrics.seg_f1(maps, masks, best.threshold) == pytest.approx(best.value, abs=1e-14)
    with pytest.warns(UndefinedMetricWarning, match="no pixel is anomalous"):
        assert np.isnan(metrics.seg_f1(maps[:2], masks[:2], 1e9))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
def test_seg_f1_does_not_round_the_threshold(dtype: torch.dtype) -> None:
    maps = torch.tensor([[200, 201, 202, 203]]).to(dtype)
    masks = np.array([[0, 0, 1, 1]])
    for threshold in (201.0, 201.5, 202 - 1e-9):
        wanted = metrics.seg_f1(maps.double(), masks, threshold)
        assert metrics.seg_f1(maps, masks, threshold) == wanted


@pytest.mark.parametrize("threshold", [None, "0.5", float("nan"), np.zeros(2)])
def test_seg_f1_needs_a_number(threshold) -> None:
    with pytest.raises(UsageError, match="threshold must be a number, got"):
        metrics.seg_f1(*draw(7, "random"), threshold)


@pytest.mark.parametrize("limits", [0.1, (0.1,), (0.1, 0.2, 0.3), None, (None, 0.1), ("a", "b")])
def test_aupimo_needs_two_limits(limits) -> None:
    with pytest.raises(UsageError, match=r"limits.* must be (two numbers|a number)"):
        metrics.aupimo(*draw(7, "random"), limits)
