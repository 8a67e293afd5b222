"""Metrics in batches: exact or streaming within the bound they return, mergeable, restorable."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stadfast import metrics
from stadfast.errors import DataError, UsageError

from .cases import KINDS, draw

RANKING = [metrics.AUROC, metrics.AveragePrecision, metrics.F1Max]
FUNCTIONS = {
    metrics.AUROC: metrics.auroc,
    metrics.AveragePrecision: metrics.average_precision,
    metrics.F1Max: lambda scores, labels: metrics.f1_max(scores, labels).value,
    metrics.AUPRO: metrics.aupro,
}
ROUNDING = 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", FUNCTIONS)
def test_batches_give_what_the_function_gives(cls: type, kind: str) -> None:
    maps, masks = draw(0, kind)
    metric = cls()
    for i in range(0, len(maps), 2):
        metric.update(maps[i : i + 2], masks[i : i + 2])
    result = metric.compute()
    assert result.value == pytest.approx(FUNCTIONS[cls](maps, masks), abs=1e-14)
    assert result.bound == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", FUNCTIONS)
def test_streaming_is_within_its_bound(cls: type, kind: str) -> None:
    maps, masks = draw(1, kind)
    metric = cls(exact=False)
    for i in range(0, len(maps), 2):
        metric.update(maps[i : i + 2], masks[i : i + 2])
    value, bound = metric.compute()[:2]
    exact = FUNCTIONS[cls](maps, masks)
    assert abs(value - exact) <= bound + ROUNDING
    assert bound == 0.0 if kind == "ties" else bound < 0.03  # 8-bit scores have bins of their own


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_streaming_bounds_hold_for_any_scores(data: st.DataObject) -> None:
    """Scores that crowd few bins, where the bounds are wide and easily missed."""
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5))
    steps = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 40)))
    maps = (np.float32(1.0) + steps * np.float32(0.0007)) * data.draw(st.sampled_from([1, -1, 1e-30]))
    masks = data.draw(hnp.arrays(bool, shape))
    masks.flat[0], limit = True, data.draw(st.sampled_from([0.05, 0.3, 0.5, 1.0]))
    if masks.all():
        return
    maps = maps.astype(np.float32)
    for cls in RANKING:
        value, bound = cls(exact=False).update(maps, masks).compute()[:2]
        assert abs(value - FUNCTIONS[cls](maps, masks)) <= bound + ROUNDING
    value, bound = metrics.AUPRO(limit, exact=False).update(maps, masks).compute()
    assert abs(value - metrics.aupro(maps, masks, limit)) <= bound + ROUNDING


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int32, bool])
@pytest.mark.parametrize("exact", [True, False])
def test_every_dtype(dtype: type, exact: bool) -> None:
    maps, masks = draw(2, "random")
    maps = (60 * (maps - maps.min())).clip(0, 255).astype(dtype)
    value, bound = metrics.AUPRO(exact=exact).update(maps, masks).compute()
    assert abs(value - metrics.aupro(maps.astype(np.float64), masks)) <= bound + ROUNDING
    if exact or dtype in (np.uint8, bool):
        assert bound == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", FUNCTIONS)
def test_streaming_half_types_is_exact(cls: type, dtype: torch.dtype) -> None:
    maps, masks = draw(11, "heavy tail")
    half, truth = torch.from_numpy(maps).clamp(max=6e4).to(dtype), torch.from_numpy(masks)
    metric = cls(exact=False).update(half[:3], truth[:3]).update(half[3:], truth[3:])
    value, bound = metric.compute()[:2]
    assert value == pytest.approx(FUNCTIONS[cls](half, truth), abs=1e-14)
    assert bound == 0.0
    restored = cls(exact=False).merge(metric)
    assert restored.compute() == pytest.approx(metric.compute(), abs=1e-14)
    with pytest.raises(DataError, match="must be finite, got 1 NaN or infinite"):
        metric.update(
            half[:1].where(torch.arange(33) + 33 * torch.arange(40)[:, None] != 40, torch.inf), truth[:1]
        )
    assert metric.compute() == restored.compute()  # nothing of what was refused was counted


@pytest.mark.parametrize("cls", FUNCTIONS)
def test_streaming_maps_of_several_types_is_within_its_bound(cls: type) -> None:
    maps, masks = draw(12, "random")
    dtypes = [torch.float16, torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float16]
    mixed = [torch.from_numpy(m).to(dtype) for m, dtype in zip(maps, dtypes, strict=True)]
    metric, held = cls(exact=False), []
    for image, mask in zip(mixed, masks, strict=True):
        metric.update(image, mask)
        held.append(image.double())
    value, bound = metric.compute()[:2]
    assert abs(value - FUNCTIONS[cls](torch.stack(held), masks)) <= bound + ROUNDING
    assert 0 < bound < 0.03
    parts = [cls(exact=False).update(image, mask) for image, mask in zip(mixed, masks, strict=True)]
    assert cls(exact=False).merge(*parts).compute() == pytest.approx(metric.compute(), abs=1e-14)
    with_bf16_only = cls(exact=False).update(mixed[0], masks[0]).update(mixed[2], masks[2])
    assert with_bf16_only.merge(parts[4]).compute().bound > 0.0  # their bins hold several values now


def test_scores_beyond_float32_are_counted_in_its_last_bin() -> None:
    scores, labels = np.array([-1e300, 0.0, 1.0, 1e300]), np.array([0, 0, 1, 1])
    assert metrics.AUROC(exact=False).update(scores, labels).compute() == (1.0, 0.0)


def test_the_streaming_threshold_gives_the_value() -> None:
    maps, masks = draw(3, "random")
    result = metrics.F1Max(exact=False).update(maps, masks).compute()
    chosen = maps > result.threshold
    assert 2 * (chosen & masks).sum() / (chosen.sum() + masks.sum()) == pytest.approx(result.value, abs=1e-12)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [-300.0, -0.5, 0.0, 300.0])
def test_the_threshold_gives_the_value_in_the_scores_type_and_wider(
    dtype: torch.dtype, exact: bool, shift: float
) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = torch.from_numpy(rng.random(12) > 0.5)
        steps = torch.from_numpy(rng.integers(-6, 6, 12)) + 3 * labels
        one = torch.tensor(shift or 1.0, dtype=dtype).abs()
        ulp = torch.nextafter(one, torch.tensor(torch.inf, dtype=dtype)) - one
        if not exact and torch.finfo(dtype).bits > 16:
            ulp = 0.1 * one  # apart, as bins are
        scores = (shift + steps * ulp.double()).to(dtype)
        best = metrics.F1Max(exact=exact).update(scores, labels).compute()
        for wider in (scores, scores.float() if dtype != torch.float64 else scores, scores.double()):
            chosen = wider > best.threshold
            f1 = 2.0 * int((chosen & labels).sum()) / max(int(chosen.sum() + labels.sum()), 1)
            assert f1 == pytest.approx(best.value, abs=1e-12)


def test_the_threshold_of_counted_bfloat16_after_an_empty_float16() -> None:
    scores = torch.tensor([-3e38, -2.0, -1.0, 0.0, 1e30]).bfloat16()
    labels = torch.tensor([0, 0, 1, 1, 1])
    metric = metrics.F1Max(exact=False).update(scores[:0].half(), labels[:0]).update(scores, labels)
    assert (scores > metric.compute().threshold).tolist() == labels.bool().tolist()


@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_a_second_pass_narrows_the_bound(limit: float) -> None:
    rng = np.random.default_rng(4)
    masks = np.zeros((8, 100, 100), bool)
    masks[4:, 20:40, 30:60] = True
    maps = (rng.gamma(3.0, size=masks.shape) + masks).astype(np.float32)
    first = metrics.AUPRO(limit, exact=False).update(maps, masks)
    second = first.refined().update(maps[:3], masks[:3]).update(maps[3:], masks[3:])
    exact = metrics.aupro(maps, masks, limit)
    assert abs(second.compute().value - exact) <= second.compute().bound + ROUNDING
    assert second.compute().bound < first.compute().bound / 20
    with pytest.raises(UsageError, match="refined already"):
        second.refined()
    with pytest.raises(UsageError, match="bound is 0"):
        metrics.AUPRO().refined()
    with pytest.raises(UsageError, match="nothing to refine"):
        metrics.AUPRO(exact=False).refined()


def test_refined_metrics_merge_only_with_those_of_the_same_bins() -> None:
    maps, masks = draw(13, "random")
    first = metrics.AUPRO(exact=False).update(maps, masks)
    finer = [first.refined().update(maps[i : i + 3], masks[i : i + 3]) for i in (0, 3)]
    parts = metrics.AUPRO(exact=False).merge(first).refined().merge(*finer)
    assert parts.compute() == pytest.approx(first.refined().update(maps, masks).compute(), abs=1e-14)
    fourfold = metrics.AUPRO(exact=False).update(4 * maps, masks).refined()  # as many bins, elsewhere
    other = metrics.AUPRO(exact=False).update(np.exp(maps), masks).refined()
    before = parts.compute()
    for one, into in [(fourfold, parts), (other, parts), (first, parts), (parts, first)]:
        with pytest.raises(UsageError, match="of other bins; merge first"):
            into.merge(one)
    with pytest.raises(UsageError, match="other bins"):
        parts.merge(finer[0], other)
    assert parts.compute() == before


@pytest.mark.parametrize("exact", [True, False])
def test_metrics_of_different_limits_are_not_merged(exact: bool) -> None:
    with pytest.raises(UsageError, match=r"cannot merge AUPRO\(.*\) of limit 0.05 into one of 0.3"):
        metrics.AUPRO(0.3, exact=exact).merge(metrics.AUPRO(0.05, exact=exact))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("cls", FUNCTIONS)
def test_merged_parts_are_the_whole(cls: type, exact: bool) -> None:
    maps, masks = draw(5, "random")
    whole = cls(exact=exact).update(maps, masks)
    parts = [cls(exact=exact).update(maps[i : i + 2], masks[i : i + 2]) for i in range(0, 6, 2)]
    restored = cls(exact=exact)
    restored.state = pickle.loads(pickle.dumps(metrics.add_states(*(part.state for part in parts))))
    assert restored.compute() == pytest.approx(whole.compute(), abs=1e-14)
    merged = cls(exact=exact).merge(*parts)
    assert merged.compute() == pytest.approx(whole.compute(), abs=1e-14)
    assert parts[0].compute() != pytest.approx(whole.compute(), abs=1e-9)  # merging leaves the parts alone


def test_streaming_state_is_small_and_sums() -> None:
    maps, masks = draw(6, "random")
    metric = metrics.AUPRO(exact=False).update(maps, masks)
    state = metric.state
    assert sum(array.nbytes for array in state.values()) <= 1.6e6
    twice = metrics.AUPRO(exact=False)
    twice.state = {key: array + array for key, array in state.items()}
    assert twice.compute().value == pytest.approx(metric.compute().value, abs=1e-12)
    with pytest.raises(UsageError, match="is not one of 65536 bins"):
        twice.state = {"/total": np.zeros(5)}


@pytest.mark.parametrize("state", [None, {"total": 1}, {"/else": 1}, {"/scores": [1], "/anomalous": []}])
@pytest.mark.parametrize("exact", [True, False])
def test_states_of_something_else_are_refused(exact: bool, state: object) -> None:
    maps, masks = draw(14, "random")
    metric = metrics.AUPRO(exact=exact).update(maps, masks)
    expected = metric.compute()
    for wrong in (state, metrics.AUPRO(exact=not exact).update(maps, masks).state):
        with pytest.raises(UsageError, match=r"state .*must be"):
            metric.state = wrong
    assert metric.compute() == expected


def test_half_of_an_exact_state_is_refused() -> None:
    maps, masks = draw(14, "random")
    state = metrics.AUPRO().update(maps, masks).state
    with pytest.raises(UsageError, match="'/anomalous' must be a list of tuples, got NoneType"):
        metrics.AUPRO().state = {"/scores": state["/scores"]}


def test_counts_do_not_overflow() -> None:
    maps, masks = draw(7, "random")
    metric = metrics.AUROC(exact=False).update(maps, masks)
    expected = metric.compute().value
    metric.state = {key: array * 10**6 for key, array in metric.state.items()}  # 8e9 pixels
    assert metric.compute().value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("exact", [True, False])
def test_arrays_may_be_written_to_after_an_update(exact: bool) -> None:
    maps, masks = draw(8, "random")
    expected = metrics.aupro(maps, masks)
    buffer, truth = maps.copy(), masks.copy()
    metric = metrics.AUPRO(exact=exact).update(torch.from_numpy(buffer), torch.from_numpy(truth))
    buffer[:], truth[:] = 0, False
    assert abs(metric.compute().value - expected) <= metric.compute().bound + ROUNDING


@pytest.mark.parametrize("exact", [True, False])
def test_nothing_seen_or_reset_is_nan(exact: bool) -> None:
    maps, masks = draw(9, "random")
    for cls in FUNCTIONS:
        metric = cls(exact=exact)
        assert np.isnan(metric.compute().value)
        assert np.isnan(metric.update(maps, masks).reset().compute().value)


def test_wrong_arguments_are_named() -> None:
    maps, masks = draw(10, "random")
    with pytest.raises(UsageError, match=r"cannot merge AUPRO\(exact=False\) into AUPRO\(exact=True\)"):
        metrics.AUPRO().merge(metrics.AUPRO(exact=False))
    with pytest.raises(UsageError, match="one shape"):
        metrics.AUROC().update(maps, masks[1:])
    maps[0, 0, 0] = np.nan
    for metric in (metrics.AUROC(exact=False), metrics.AUPRO(exact=False)):
        with pytest.raises(DataError, match="must be finite"):
            metric.update(maps, masks)
