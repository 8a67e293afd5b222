"""The protocol's switches change the figures as they say, and are recorded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from stadfast import metrics
from stadfast.errors import DataError, UsageError

from .cases import draw


def test_the_default_is_recorded() -> None:
    maps, masks = draw(0, "random")
    protocol = json.loads(json.dumps(metrics.evaluate(maps, masks)["protocol"]))
    assert protocol == {
        "connectivity": 8,
        "limits": [0.3, 0.05],
        "mask_threshold": None,
        "resize": None,
        "smoothing": 0.0,
        "images": "all",
        "image_score": "maximum of the map",
        "exact": True,
    }


def test_masks_of_grey_values_need_a_threshold() -> None:
    maps, masks = draw(1, "random")
    grey = np.where(masks, 0.6, 0.1)
    with pytest.raises(DataError, match="binarise first"):
        metrics.evaluate(maps, grey)
    result = metrics.evaluate(maps, grey, mask_threshold=0.5)
    assert result["aupro"]["0.3"] == pytest.approx(metrics.aupro(maps, masks), abs=1e-14)
    assert result["protocol"]["mask_threshold"] == 0.5


def test_smoothing_blurs_the_maps() -> None:
    maps, masks = draw(2, "random")
    blurred = np.stack([gaussian_filter(image, 1.5) for image in maps])
    result = metrics.evaluate(maps, masks, smoothing=1.5)
    assert result["aupro"]["0.3"] == pytest.approx(metrics.aupro(blurred, masks), abs=1e-14)
    assert result["image"]["auroc"] == metrics.auroc(blurred.max((1, 2)), masks.any((1, 2)))


def test_smoothing_keeps_float64() -> None:
    maps, masks = draw(2, "random")
    close = 1.0 + 1e-10 * maps.astype(np.float64)
    blurred = np.stack([gaussian_filter(image, 1.5) for image in close])
    result = metrics.evaluate(close, masks, smoothing=1.5)
    assert result["pixel"]["auroc"] == metrics.auroc(blurred, masks) > 0.5


def test_resizing() -> None:
    maps, masks = draw(3, "random")
    small = F.interpolate(torch.from_numpy(maps)[:, None], (20, 16), mode="bilinear")
    to_masks = F.interpolate(small, masks.shape[1:], mode="bilinear")
    got = metrics.evaluate(small, masks, resize="maps")["aupro"]["0.3"]
    assert got == pytest.approx(metrics.aupro(to_masks, masks), abs=1e-14)
    grey = F.interpolate(torch.from_numpy(masks).float()[:, None], (20, 16), mode="bilinear")
    for threshold in (None, 0.0):
        wanted = metrics.aupro(small, grey > (threshold or 0.0 if threshold is not None else 0.5))
        got = metrics.evaluate(small, masks.astype(np.uint8), resize="masks", mask_threshold=threshold)
        assert got["aupro"]["0.3"] == pytest.approx(wanted, abs=1e-14)
    fixed = metrics.evaluate(maps, [m if m.any() else None for m in masks], resize=(20, 16))
    assert fixed["aupro"]["0.3"] == pytest.approx(metrics.aupro(small, grey > 0.5), abs=1e-14)
    assert fixed["protocol"]["resize"] == [20, 16]
    with pytest.raises(UsageError, match=r"masks\[0\] is None: resize='maps' needs its size"):
        metrics.evaluate(maps, [None, *masks[1:]], resize="maps")


@pytest.mark.parametrize("resize", [(20, 16), "masks"])
def test_a_mask_threshold_leaves_bool_masks_alone(resize) -> None:
    maps, masks = draw(5, "random")
    given = maps[:, ::2, ::2] if resize == "masks" else maps
    result = metrics.evaluate(given, masks, resize=resize, mask_threshold=127)
    assert result["n"]["anomalous"] == 4
    grey = metrics.evaluate(given, masks.astype(np.uint8) * 255, resize=resize, mask_threshold=127.5)
    assert result["pixel"] == grey["pixel"]


def test_bool_masks_that_are_resized_follow_a_threshold_for_binary_ones() -> None:
    maps, masks = draw(5, "random")
    by_type = [
        metrics.evaluate(maps[:, ::2, ::2], masks.astype(dtype), resize="masks", mask_threshold=0)
        for dtype in (bool, np.uint8)
    ]
    assert by_type[0] == by_type[1]
    assert by_type[0] != metrics.evaluate(maps[:, ::2, ::2], masks, resize="masks")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16])
def test_a_mask_threshold_is_not_rounded(dtype: type) -> None:
    maps, masks = draw(6, "random")
    grey = np.where(masks, 201, 200).astype(dtype)
    result = metrics.evaluate(maps, grey, mask_threshold=200.999)
    assert result["pixel"] == metrics.evaluate(maps, masks)["pixel"]


def test_limits_may_be_any_iterable() -> None:
    maps, masks = draw(7, "random")
    assert list(metrics.evaluate(maps, masks, limits=iter([0.3, 0.1]))["aupro"]) == ["0.3", "0.1"]


def test_pixels_of_anomalous_images_only() -> None:
    maps, masks = draw(4, "random")
    result = metrics.evaluate(maps, masks, images="anomalous")
    assert result["pixel"]["auroc"] == metrics.auroc(maps[2:], masks[2:])
    assert result["image"]["auroc"] == metrics.auroc(maps.max((1, 2)), masks.any((1, 2)))


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"resize": "both"}, "resize must be"),
        ({"smoothing": -1}, "smoothing"),
        ({"images": "bad"}, "images must"),
        ({"images": np.zeros(2)}, "images must be 'all' or 'anomalous', got ndarray"),
        ({"resize": np.array([8, 8])}, "resize must be .*, got ndarray"),
        ({"smoothing": None}, "smoothing must be a number, got None"),
        ({"smoothing": np.nan}, "smoothing must be a number, got nan"),
        ({"smoothing": np.inf}, "smoothing must be at least 0 and finite"),
        ({"mask_threshold": "a"}, "mask_threshold must be a number, got 'a'"),
        ({"mask_threshold": np.nan}, "mask_threshold must be a number, got nan"),
        ({"limits": 0.3}, "limits must be a sequence of numbers, got 0.3"),
        ({"limits": "0.3"}, "limit must be a number, got '0'"),
        ({"smooth": 1}, "unknown option 'smooth': expected one of mask_threshold, resize"),
    ],
)
def test_unknown_switches_are_named(switch: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        metrics.Evaluation(**switch)
