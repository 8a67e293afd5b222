"""Detectors on images as they are: fitting on crops, predicting at the images' own resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from strips import strip, untrained
from torch import Tensor
from typer.testing import CliRunner

import stadfast as sf
from stadfast.cli import app
from stadfast.errors import DataError, UsageError
from stadfast.linescan import native_maps
from stadfast.methods.native_scale import native_crops

OPTIONS: dict[str, Any] = {
    "weights": None,
    "layers": ["layer1"],
    "image_size": 32,
    "epochs": 1,
    "batch_size": 8,
    "device": "cpu",
}


def photo(height: int, width: int, seed: int) -> Tensor:
    return (strip(height, width, seed=seed)[0] * 255).to(torch.uint8)


def write(folder: Path, images: list[Tensor]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


@pytest.fixture(scope="module")
def fitted() -> sf.STPM:
    images = [photo(100, 40, seed) for seed in range(5)]
    return sf.STPM(**OPTIONS, validation_fraction=0.2).fit(images, native_scale=True, show_progress=False)


def test_crops_are_cut_out_of_the_images_at_places_drawn_with_the_seed() -> None:
    image = photo(200, 100, 0)
    crops = native_crops([image], (20, 50), seed=3)
    assert len(crops) == 20  # as many as have the image's area
    windows = image.unfold(1, 20, 1).unfold(2, 50, 1)
    for crop in crops:
        assert (windows == crop[:, None, None]).flatten(3).all(dim=3).all(dim=0).any()
    again, other = (native_crops([image], (20, 50), seed=seed) for seed in (3, 4))
    assert all(map(torch.equal, crops, again))
    assert not all(map(torch.equal, crops, other))


def test_a_fit_at_native_scale_predicts_at_it(fitted: sf.STPM, tmp_path: Path) -> None:
    image = photo(150, 60, 9)
    found = fitted.predict(image)
    assert found.anomaly_map.shape == (1, 1, 150, 60)
    torch.testing.assert_close(found.anomaly_map, native_maps(fitted, image))
    assert torch.equal(found.pred_score, found.anomaly_map.flatten(1).amax(1))
    assert torch.equal(fitted.score(image), found.pred_score)
    assert torch.equal(found.pred_mask, found.anomaly_map > fitted.pixel_threshold_)
    assert fitted.predict(image, native_scale=False).anomaly_map.shape == (1, 1, 32, 32)
    assert fitted.metadata_["training"]["native_scale"] is True
    assert fitted.metadata_["training"]["crops"] == 4 * round(100 * 40 / 32**2)
    fitted.save(tmp_path / "model.safetensors")
    loaded = sf.load(tmp_path / "model.safetensors")
    assert loaded.native_scale_
    assert torch.equal(loaded.predict(image).anomaly_map, found.anomaly_map)


def test_any_detector_predicts_at_native_scale_if_asked() -> None:
    detector = untrained(sf.STPM(**OPTIONS))
    detector._set_thresholds(0.1, 0.1)
    images = [photo(40, 40, 0), photo(40, 40, 1)]
    assert detector.maps(images).shape == (2, 1, 32, 32)
    assert detector.maps(images, native_scale=True).shape == (2, 1, 40, 40)


def test_images_of_several_sizes_come_one_by_one(fitted: sf.STPM) -> None:
    images = [photo(40, 70, 0), photo(50, 33, 1), photo(40, 70, 2)]
    found = [out.anomaly_map.shape[2:] for _, out in fitted.stream(images)]
    assert found == [(40, 70), (50, 33), (40, 70)]
    assert fitted.score(images).shape == (3,)
    with pytest.raises(DataError, match=r"2 sizes, such as \(40, 70\) and \(50, 33\).*stream"):
        fitted.predict(images)


def test_files_are_read_one_by_one_and_broken_ones_listed(fitted: sf.STPM, tmp_path: Path) -> None:
    paths = write(tmp_path, [photo(40, 40, seed) for seed in range(2)])
    (tmp_path / "broken.png").write_bytes(b"no image")
    scores = fitted.score([*paths, tmp_path / "broken.png"], skip_broken=True)
    assert scores.shape == (2,)
    assert [path.name for path, _ in fitted.broken_] == ["broken.png"]


def test_errors_say_what_came() -> None:
    with pytest.raises(
        DataError, match=r"image 0 is 20 x 40; at native scale wanted at least .* \(32 x 32\)"
    ):
        sf.STPM(**OPTIONS).fit([photo(20, 40, 0)], native_scale=True, show_progress=False)
    mkd = untrained(sf.MultiresolutionKD(weights=None, device="cpu"))
    with pytest.raises(UsageError, match=r"native_scale: the image score is the loss .*native_maps"):
        mkd.score(photo(64, 64, 0), native_scale=True)


def test_the_command_line(tmp_path: Path) -> None:
    good = [photo(64, 40, seed) for seed in range(4)]
    write(tmp_path / "web" / "train" / "good", good)
    bad = photo(64, 40, 5)
    bad[:, 30:40, 10:20] = 255
    paths = write(tmp_path / "web" / "test" / "good", [photo(70, 40, 6)])
    paths += write(tmp_path / "web" / "test" / "spot", [bad])
    mask = torch.zeros(64, 40, dtype=torch.uint8)
    mask[30:40, 10:20] = 255
    (tmp_path / "web" / "ground_truth" / "spot").mkdir(parents=True)
    Image.fromarray(mask.numpy()).save(tmp_path / "web" / "ground_truth" / "spot" / "0_mask.png")
    model = tmp_path / "model.safetensors"

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    settings = ["--backbone", "efficientnet_lite0", "--epochs", 1, "--image-size", 32, "--device", "cpu"]
    run("fit", tmp_path / "web", "-o", model, "--native-scale", *settings)
    assert sf.load(model).native_scale_
    lines = run("score", model, *paths, "--device", "cpu").splitlines()
    native = [float(line.split("\t")[1]) for line in lines]
    torch.testing.assert_close(
        torch.tensor(native), torch.cat([sf.load(model).score(p) for p in paths]), rtol=1e-4, atol=1e-6
    )
    assert run("score", model, *paths, "--resize-images", "--device", "cpu").splitlines() != lines
    assert "image AUROC" in run("evaluate", model, tmp_path / "web", "--device", "cpu")


@pytest.mark.parametrize("seed", [0, 1, 2, 3])  # the broken file is held out, or trained on
def test_broken_files_are_left_out_of_the_crops(tmp_path: Path, seed: int) -> None:
    paths = write(tmp_path, [photo(40, 60, seed) for seed in range(5)])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"broken")
    detector = sf.STPM(**(OPTIONS | {"seed": seed}), validation_fraction=0.5)
    detector.fit([*paths, broken], native_scale=True, skip_broken=True, show_progress=False)
    assert [path for path, _ in detector.broken_] == [broken]
    counts = detector.metadata_["data"]
    assert counts["train"] + counts["held_out"] == 5
