"""The exact metrics against scikit-learn and against the definitions written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stadfast import metrics
from stadfast.errors import DataError, UsageError
from stadfast.metrics import UndefinedMetricWarning

from . import oracle
from .cases import KINDS, draw


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_is_the_definition(kind: str, limit: float) -> None:
    maps, masks = draw(0, kind)
    assert metrics.aupro(maps=maps, masks=masks, limit=limit) == pytest.approx(
        oracle.aupro(maps, masks, limit), abs=1e-10
    )


def test_aupro_of_ten_thousand_regions() -> None:
    rng = np.random.default_rng(1)
    masks = np.zeros((4, 100, 100), bool)
    masks[:, ::2, ::2] = True
    maps = rng.normal(size=masks.shape) + masks
    assert metrics.evaluate(maps, masks)["n"]["regions"] == 10_000
    assert metrics.aupro(maps, masks) == pytest.approx(oracle.aupro(maps, masks), abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_ranking_metrics_are_scikit_learns(kind: str) -> None:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    maps, masks = draw(1, kind)
    scores, labels = maps.ravel().astype(np.float64), masks.ravel()
    assert metrics.auroc(maps, masks) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = average_precision_score(labels, scores)
    assert metrics.average_precision(maps, masks) == pytest.approx(expected, abs=1e-12)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
    best = metrics.f1_max(maps, masks)
    assert best.value == pytest.approx(f1, abs=1e-12)
    chosen = maps > best.threshold
    assert 2 * (chosen & masks).sum() / (chosen.sum() + masks.sum()) == pytest.approx(best.value, abs=1e-12)


SMALL = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7)
VALUES = st.sampled_from([-3.4e38, -2.0, -1e-30, -0.0, 0.0, 1e-45, 1.0, 1.0000001, 2.0, 3.4e38])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_small_inputs_with_ties_and_extremes(data: st.DataObject) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    shape = data.draw(SMALL)
    masks = data.draw(hnp.arrays(bool, shape))
    maps = data.draw(hnp.arrays(np.float32, shape, elements=VALUES.map(np.float32)))
    masks.flat[0] = True
    if masks.all():
        return
    labels, scores = masks.ravel(), maps.ravel().astype(np.float64)
    assert metrics.auroc(maps, masks) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = average_precision_score(labels, scores)
    assert metrics.average_precision(maps, masks) == pytest.approx(expected, abs=1e-12)
    assert metrics.aupro(maps, masks, 0.3) == pytest.approx(oracle.aupro(maps, masks, 0.3), abs=1e-10)


def test_curves_pass_through_the_oracles_points() -> None:
    from sklearn.metrics import roc_curve

    maps, masks = draw(2, "ties")
    pro, roc = metrics.pro_curve(maps=maps, masks=masks), metrics.roc_curve(scores=maps, labels=masks)
    rate, overlap = oracle.pro_points(maps, masks)
    rising = np.append(True, np.diff(overlap) > 0)  # the others lie within horizontal lines
    assert points(rate[rising], overlap[rising]) <= points(pro.fpr, pro.pro)
    fpr, tpr, _ = roc_curve(masks.ravel(), maps.ravel().astype(float))
    rising = np.append(True, np.diff(tpr) > 0)
    assert points(fpr[rising], tpr[rising]) <= points(roc.fpr, roc.tpr)
    i = len(roc.thresholds) // 2
    chosen = maps > roc.thresholds[i]
    assert (chosen & masks).sum() / masks.sum() == pytest.approx(roc.tpr[i])
    assert (chosen & ~masks).sum() / (~masks).sum() == pytest.approx(roc.fpr[i])
    assert pro.fpr[0] == pro.pro[0] == 0.0
    assert pro.fpr[-1] == pro.pro[-1] == 1.0


def points(x: np.ndarray, y: np.ndarray) -> set[tuple[float, float]]:
    return {(round(float(u), 12), round(float(v), 12)) for u, v in zip(x, y, strict=True)}


@pytest.mark.parametrize("rescale", [lambda x: 1e-20 * x, lambda x: x - 1e4, np.exp])
def test_only_the_order_of_the_scores_counts(rescale) -> None:
    maps, masks = draw(3, "random")
    maps = maps.astype(np.float64)
    assert metrics.aupro(rescale(maps), masks) == metrics.aupro(maps, masks)
    assert metrics.auroc(rescale(maps), masks) == metrics.auroc(maps, masks)


def test_one_result_for_every_form_of_the_input() -> None:
    maps, masks = draw(4, "random")
    expected = metrics.aupro(maps, masks)
    forms = [
        (torch.from_numpy(maps), torch.from_numpy(masks)),
        (maps[:, None], masks[:, None].astype(np.uint8)),
        (list(maps), [m.astype(np.uint8) * 255 for m in masks]),
        (list(maps[:, None]), [m if m.any() else None for m in masks]),
        (maps[::-1], masks[::-1].astype(np.float32)),
        (np.asfortranarray(maps), masks),
        (torch.from_numpy(maps).requires_grad_(), torch.from_numpy(masks).int()),
    ]
    for scores, truth in forms:
        assert metrics.aupro(scores, truth) == pytest.approx(expected, abs=1e-14)
    half = torch.from_numpy(maps).half()
    assert metrics.aupro(half, masks) == pytest.approx(metrics.aupro(half.double(), masks), abs=1e-14)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same(kind: str) -> None:
    maps, masks = draw(9, kind)
    on_gpu = torch.from_numpy(maps).cuda(), torch.from_numpy(masks).cuda()
    for exact in (True, False):
        result = metrics.evaluate(*on_gpu, exact=exact)
        assert result == metrics.evaluate(maps, masks, exact=exact)
    assert metrics.aupro(on_gpu[0], masks) == metrics.aupro(maps, masks)


def test_regions_of_real_masks(shared: Path) -> None:
    from PIL import Image

    files = sorted((shared / "data/mvtec_bottle/ground_truth").rglob("*.png"))[::9]
    masks = np.stack([np.array(Image.open(file).convert("L")) > 127 for file in files])
    maps = np.random.default_rng(0).random(masks.shape, dtype=np.float32) + 0.3 * masks
    assert metrics.aupro(maps, masks) == pytest.approx(oracle.aupro(maps, masks), abs=1e-10)


def test_maps_of_several_sizes() -> None:
    a, b = draw(5, "random"), draw(6, "random", size=(17, 64))
    maps, masks = [*a[0], *b[0]], [*a[1], *b[1]]
    assert metrics.aupro(maps, masks) == pytest.approx(oracle.aupro(maps, masks), abs=1e-10)


def test_undefined_metrics_are_nan_and_say_why() -> None:
    maps = np.arange(12.0).reshape(1, 3, 4)
    nothing, everything = np.zeros((1, 3, 4), bool), np.ones((1, 3, 4), bool)
    with pytest.warns(UndefinedMetricWarning, match="aupro is undefined: there are no anomalous"):
        assert np.isnan(metrics.aupro(maps, nothing))
    with pytest.warns(UndefinedMetricWarning, match="there are no normal"):
        assert np.isnan(metrics.aupro(maps, everything))
    with pytest.warns(UndefinedMetricWarning, match="there are no normal"):
        assert np.isnan(metrics.auroc(maps, everything))
    with pytest.warns(UndefinedMetricWarning, match="average_precision"):
        assert np.isnan(metrics.average_precision(maps, nothing))
    with pytest.warns(UndefinedMetricWarning, match="f1_max"):
        assert np.isnan(metrics.f1_max(maps, nothing).threshold)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    maps, masks = draw(7, "random")
    maps[1, 2, 3] = bad
    with pytest.raises(
        DataError, match=r"maps must be finite, got 1 NaN or infinite of 7920 .* at \[1, 2, 3\]"
    ):
        metrics.aupro(maps, masks)
    with pytest.raises(DataError, match=r"maps\[1\] must be finite, got 1 NaN or infinite of 1320"):
        metrics.aupro(list(maps), masks)
    with pytest.raises(DataError, match="scores must be finite"):
        metrics.auroc(maps, masks)


def test_wrong_arguments_are_named() -> None:
    maps, masks = draw(8, "random")
    with pytest.raises(UsageError, match=r"masks\[0\] must be \(40, 33\) like maps\[0\], got \(40, 32\)"):
        metrics.aupro(maps, masks[:, :, 1:])
    with pytest.raises(UsageError, match="got 6 maps and 5 masks"):
        metrics.aupro(maps, masks[1:])
    with pytest.raises(UsageError, match=r"one shape, got \(6, 40, 33\) and \(5, 40, 33\)"):
        metrics.auroc(maps, masks[1:])
    with pytest.raises(DataError, match=r"masks must be binary .* binarise first"):
        metrics.aupro(maps, masks * 0.7)
    with pytest.raises(DataError, match="labels must be binary"):
        metrics.auroc(maps, masks * 3)
    with pytest.raises(UsageError, match=r"limit must be in \(0, 1\], got 0"):
        metrics.aupro(maps, masks, 0)
    for limit in (None, "0.3", np.array([0.1, 0.3]), torch.ones(2), np.nan):
        with pytest.raises(UsageError, match="limit must be a number, got"):
            metrics.aupro(maps, masks, limit)
    with pytest.raises(UsageError, match=r"maps\[0\] must be numbers .* got NoneType"):
        metrics.aupro([None, *maps[1:]], masks)
    with pytest.raises(DataError, match=r"maps\[1\] must have pixels, got shape \(0, 33\)"):
        metrics.evaluate([maps[0], maps[1, :0]], [None, None])
    with pytest.raises(DataError, match=r"masks must have pixels"):
        metrics.evaluate(maps, masks[:, :0], resize="maps")
    with pytest.raises(UsageError, match=r"maps must be .* got shape \(6, 40, 33, 1, 1\)"):
        metrics.aupro(maps[..., None, None], masks)
    with pytest.raises(UsageError, match="scores must be numbers"):
        metrics.auroc([object()], [1])
