"""A detector against labelled images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

import stadfast as sf
from stadfast.backbones import create_backbone
from stadfast.data import image_size, read_mask, resize_mask
from stadfast.errors import DataError, UsageError

SIDE = 72, 96


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with a dark spot; the third defect is one pixel, which no mask of half the size shows."""
    root, rng = tmp_path_factory.mktemp("category"), np.random.default_rng(0)
    spots = {"spot/0": (20, 30, 14), "spot/1": (40, 60, 9), "spot/2": (11, 11, 1)}
    for name in [
        "train/good/0",
        "train/good/1",
        "train/good/2",
        "test/good/0",
        *(f"test/{s}" for s in spots),
    ]:
        image, mask = rng.integers(120, 130, (*SIDE, 3), dtype=np.uint8), np.zeros(SIDE, np.uint8)
        if (kind := name.removeprefix("test/")) in spots:
            y, x, size = spots[kind]
            image[y : y + size, x : x + size] = 0
            mask[y : y + size, x : x + size] = 255
            path = root / "ground_truth" / f"{kind}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


@pytest.fixture(scope="module")
def detector(category: Path) -> sf.Detector:
    weights = create_backbone("resnet18", seed=1).state_dict()
    return sf.STPM(weights=weights, image_size=32, epochs=1, layers=["layer1"]).fit(category)


def test_masks_come_to_the_maps(detector: sf.Detector, category: Path) -> None:
    found = sf.evaluate(detector, category)
    dataset = sf.MVTecLayout(category)
    assert found.figures == sf.evaluate(detector, dataset, batch_size=1, show_progress=False).figures
    maps = detector.maps(dataset.test)
    masks = [None if s.mask is None else resize_mask(read_mask(s.mask), (32, 32)) for s in dataset.test]
    expected = sf.metrics.evaluate(maps, masks, labels=[0, 1, 1, 1], types=[None, "spot", "spot", "spot"])
    assert {k: found.figures[k] for k in ("image", "pixel", "aupro", "n")} == {
        k: expected[k] for k in ("image", "pixel", "aupro", "n")
    }
    assert found.figures["n"]["regions"] == 2
    assert any(
        note.startswith("1 anomalous images have no anomalous pixel") for note in found.figures["notes"]
    )
    assert found.figures["at_threshold"].keys() == {"true_positive_rate", "false_positive_rate"}


def test_maps_come_to_their_images(detector: sf.Detector, category: Path) -> None:
    found = sf.evaluate(detector, category, resize="maps")
    assert {record.map.shape for record in found.records} == {torch.Size(SIDE)}
    maps = interpolate(detector.maps(sf.MVTecLayout(category).test), SIDE, mode="bilinear")
    masks = [np.zeros(SIDE, bool)] + [r.mask.numpy() for r in found.records[1:]]
    expected = sf.metrics.evaluate(maps, masks)
    assert found.figures["aupro"] == expected["aupro"]
    assert found.figures["pixel"] == expected["pixel"]
    assert found.figures["n"]["regions"] == 3
    assert found.figures["image"] == sf.evaluate(detector, category).figures["image"]


def test_the_protocols_switches(detector: sf.Detector, category: Path) -> None:
    found = sf.evaluate(detector, category, smoothing=2, images="anomalous").figures
    assert (found["protocol"]["smoothing"], found["protocol"]["images"]) == (2.0, "anomalous")
    assert found["pixel"] != sf.evaluate(detector, category).figures["pixel"]
    for wrong in ({"resize": "both"}, {"smoothing": -1}, {"images": "some"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            sf.evaluate(detector, category, **wrong)  # type: ignore[arg-type]


def test_nothing_to_evaluate(detector: sf.Detector) -> None:
    with pytest.raises(DataError, match="no test images"):
        sf.evaluate(detector, [])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_the_size_of_a_turned_picture(tmp_path: Path, suffix: str) -> None:
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = 6
    Image.new("RGB", (5, 3)).save(path, exif=exif)
    assert image_size(path) == (5, 3) == tuple(sf.data.read_image(path).shape[1:])


def test_the_size_of_what_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"b\.png: no such file"):
        image_size(tmp_path / "b.png")
    Image.new("L", (50, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"a\.png: too large"):
        image_size(tmp_path / "a.png")
