"""``evaluate``: every figure at once, from one dict that json can write."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stadfast import metrics
from stadfast.errors import DataError, UsageError

TYPES = ["good"] * 3 + ["scratch"] * 2 + ["stain"] * 3


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    masks = np.zeros((8, 1, 32, 24), bool)
    masks[3:5, :, 4:9, 2:20] = True
    masks[5:, :, 20:30, 10:14] = True
    masks[6, :, 1:3, 1:3] = True
    return (rng.normal(size=masks.shape) + 0.8 * masks).astype(np.float32), masks


def test_every_figure_is_its_own_functions(scored) -> None:
    maps, masks = scored
    result = json.loads(json.dumps(metrics.evaluate(maps, masks, types=TYPES)))
    scores, labels = maps.max((1, 2, 3)), masks.any((1, 2, 3))
    for level, of in (("image", (scores, labels)), ("pixel", (maps, masks))):
        wanted = {
            "auroc": metrics.auroc(*of),
            "ap": metrics.average_precision(*of),
            "f1_max": metrics.f1_max(*of).value,
        }
        assert result[level] == pytest.approx(wanted, abs=1e-14)
    wanted = {"0.3": metrics.aupro(maps, masks), "0.05": metrics.aupro(maps, masks, 0.05)}
    assert result["aupro"] == pytest.approx(wanted, abs=1e-14)
    assert result["n"] == {"images": 8, "normal": 3, "anomalous": 5, "regions": 6}
    assert result["notes"] == []
    stain = [0, 1, 2, 5, 6, 7]
    assert list(result["per_type"]) == ["scratch", "stain"]
    wanted = {
        "n": 3,
        "image_auroc": metrics.auroc(scores[stain], labels[stain]),
        "pixel_auroc": metrics.auroc(maps[stain], masks[stain]),
        "aupro": metrics.aupro(maps[stain], masks[stain]),
    }
    assert result["per_type"]["stain"] == pytest.approx(wanted, abs=1e-14)


def test_none_stands_for_a_good_image(scored) -> None:
    maps, masks = scored
    optional = [None] * 3 + list(torch.from_numpy(masks[3:]))
    assert metrics.evaluate(torch.from_numpy(maps), optional) == metrics.evaluate(maps, masks)


def test_given_image_scores_and_limits(scored) -> None:
    maps, masks = scored
    scores = np.arange(8)
    result = metrics.evaluate(maps, masks, image_scores=scores, limits=(0.1,))
    assert result["image"]["auroc"] == 1.0
    assert list(result["aupro"]) == ["0.1"]
    assert result["protocol"]["image_score"] == "given"


def test_anomalous_images_without_a_mask_count_for_images_only(scored) -> None:
    maps, masks = scored
    some = [*masks[:7], None]
    result = metrics.evaluate(maps, some, labels=[0, 0, 0, 1, 1, 1, 1, 1])
    assert result["n"]["anomalous"] == 5
    assert result["pixel"]["auroc"] == metrics.auroc(maps[:7], masks[:7])
    assert "leave out 1 images" in result["notes"][0]


def test_anomalous_images_whose_masks_are_empty_are_told_of(scored) -> None:
    maps, masks = scored
    labels = [0, 0, 1, 1, 1, 1, 1, 1]  # the third has an empty mask
    parts = [metrics.Evaluation().update(maps[i], masks[i], labels[i : i + 1]) for i in range(8)]
    result = metrics.Evaluation().merge(*parts).compute()
    assert result == metrics.evaluate(maps, masks, labels)
    assert result["notes"][0].startswith("1 anomalous images have no anomalous pixel in their masks")
    assert result["pixel"] == metrics.evaluate(maps, masks)["pixel"]


def test_labels_alone_give_the_image_metrics(scored) -> None:
    maps, _ = scored
    result = metrics.evaluate(maps, None, labels=[0, 0, 0, 1, 1, 1, 1, 1])
    assert 0 < result["image"]["auroc"] <= 1
    assert np.isnan(result["pixel"]["auroc"])
    assert np.isnan(result["aupro"]["0.3"])
    assert any("pixel metrics are undefined" in note for note in result["notes"])


def test_good_images_alone_are_undefined_with_the_reason(scored) -> None:
    maps, _ = scored
    result = metrics.evaluate(maps, [None] * 8)
    assert np.isnan(result["image"]["auroc"])
    assert result["notes"] == [
        "image metrics are undefined: there are no anomalous scores",
        "pixel metrics are undefined: there are no anomalous scores",
    ]


def test_contradictions_and_wrong_lengths_are_named(scored) -> None:
    maps, masks = scored
    with pytest.raises(DataError, match=r"labels\[3\] says normal, but masks\[3\] has pixels set"):
        metrics.evaluate(maps, masks, labels=[0] * 8)
    with pytest.raises(UsageError, match="labels must be one per map, 8, got 3"):
        metrics.evaluate(maps, masks, labels=[0] * 3)
    with pytest.raises(UsageError, match="types must be one per map"):
        metrics.evaluate(maps, masks, types=["a"])
    with pytest.raises(UsageError, match="image_scores must be one per map"):
        metrics.evaluate(maps, masks, image_scores=[1.0])
    with pytest.raises(UsageError, match="needs masks or labels"):
        metrics.evaluate(maps, None)


@pytest.mark.parametrize("exact", [True, False])
def test_batches_merge_to_the_whole(scored, exact: bool) -> None:
    maps, masks = scored
    whole = metrics.evaluate(maps, masks, types=TYPES, exact=exact)
    parts = [
        metrics.Evaluation(exact=exact).update(maps[i : i + 3], masks[i : i + 3], types=TYPES[i : i + 3])
        for i in range(0, 8, 3)
    ]
    merged = metrics.Evaluation(exact=exact).merge(*parts).compute()
    assert flat(merged) == pytest.approx(flat(whole), abs=1e-14, nan_ok=True)
    for wrong, message in ((metrics.Evaluation(exact=exact, smoothing=2), "different protocols"), (5, "int")):
        with pytest.raises(UsageError, match=message):
            parts[0].merge(parts[1], wrong)
    again = parts[0].merge(*parts[1:]).compute()  # nothing of what was refused is in it
    assert flat(again) == flat(merged)


def test_what_is_no_evaluation_is_refused(scored) -> None:
    for state, message in ((None, "must be a dict"), ({}, "has no 'unknown'")):
        with pytest.raises(UsageError, match=message):
            metrics.Evaluation().state = state
    streaming = metrics.Evaluation(exact=False).update(*scored)
    exact = metrics.Evaluation()
    with pytest.raises(UsageError, match="do not mix"):
        exact.state = streaming.state
    assert exact.compute()["n"]["images"] == 0
    with pytest.raises(UsageError, match="cannot merge AUPRO"):
        exact.merge(metrics.AUPRO())


def test_streaming_is_within_the_bounds_beside_it(scored) -> None:
    maps, masks = scored
    exact, streaming = (metrics.evaluate(maps, masks, types=TYPES, exact=e) for e in (True, False))
    assert "bounds" not in exact
    for part in ("pixel", "aupro"):
        for name, bound in streaming["bounds"][part].items():
            assert abs(streaming[part][name] - exact[part][name]) <= bound + 1e-12
            assert 0 < bound < 0.02
    assert streaming["image"] == exact["image"]


def flat(result: dict, prefix: str = "") -> dict[str, float]:
    numbers: dict[str, float] = {}
    for key, value in result.items():
        if isinstance(value, dict):
            numbers |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)):
            numbers[prefix + key] = value
    return numbers
