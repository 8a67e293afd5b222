"""Stereotype Deepening: the whole detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import stadfast as sf
from stadfast.errors import DataError, UsageError
from stadfast.methods.stereotype import labelled_images


@pytest.fixture
def quick(teacher_weights: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "weights": teacher_weights, "layers": ["layer1", "layer2"], "arch": "wide", "image_size": (64, 72),
        "epochs": 2, "doctor_epochs": 2, "patches_per_image": 2, "batch_size": 4, "precision": "fp32",
        "device": "cpu",
    }  # fmt: skip


@pytest.mark.parametrize("doctor", ["pretrained", "distilled"])
@pytest.mark.parametrize("distance", ["mahalanobis", "euclidean"])
def test_fit_predict_save_load(
    quick: dict[str, Any], images: Tensor, tmp_path: Path, doctor: str, distance: str
) -> None:
    arguments = quick | {"arch": "paper", "doctor": doctor, "distance": distance}
    detector = sf.StereotypeDeepening(**arguments).fit(images, show_progress=False)
    phases = ("doctor", "masters", "bachelors") if doctor == "distilled" else ("masters", "bachelors")
    assert [record.phase for record in detector.history_] == [name for name in phases for _ in range(2)]
    found = detector.predict(images[:3])
    assert found.anomaly_map.shape == (3, 1, 64, 72)
    torch.testing.assert_close(found.pred_score, found.anomaly_map.flatten(1).amax(1))
    maps = detector.term_maps(images[:3])
    assert list(maps) == ["inference", "delivery", "peer"]
    with pytest.raises(UsageError, match="batch_size"):
        detector.term_maps(images[:3], batch_size=0)
    (tmp_path / "0.png").touch()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "1.png")
    left = detector.term_maps(tmp_path, batch_size=1, skip_broken=True)
    torch.testing.assert_close(left["peer"], maps["peer"][:1], rtol=1e-4, atol=1e-4)
    assert [path.name for path, _ in detector.broken_] == ["0.png"]
    torch.testing.assert_close(sum(maps.values()), found.anomaly_map, rtol=1e-4, atol=1e-4)
    assert found.anomaly_map.min() > 0
    assert any("reconstruction" in note for note in detector.notes_)

    detector.save(tmp_path / "m.safetensors")
    loaded = sf.load(tmp_path / "m.safetensors", device="cpu")
    assert loaded.get_params()["arch"] == "paper"
    assert torch.equal(loaded.predict(images[:3]).anomaly_map, found.anomaly_map)
    assert loaded.threshold_ == detector.threshold_
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.term_maps(images[:3]).values(), maps.values(), strict=True)
    )


class StopError(Exception):
    pass


def test_resume_is_the_uninterrupted_run(
    quick: dict[str, Any], images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stadfast.methods.training._CHECKPOINT_OVERHEAD", float("inf"))
    arguments = quick | {"doctor": "distilled", "widths": [1, 1], "mu": 0.9, "compactness_on": "both"}
    whole = sf.StereotypeDeepening(**arguments).fit(images, show_progress=False)

    def stop(record: sf.methods.EpochRecord) -> None:
        if (record.phase, record.epoch) in (("doctor", 1), ("masters", 1)):
            raise StopError

    checkpoint = tmp_path / "m.checkpoint"
    for callbacks in ([stop], [stop], []):
        resumed = sf.StereotypeDeepening(**arguments)
        try:
            resumed.fit(images, checkpoint=checkpoint, resume=True, callbacks=callbacks, show_progress=False)
        except StopError:
            continue
    assert resumed.history_ == whole.history_
    for name, tensor in whole.graph_.state_dict().items():
        assert torch.equal(tensor, resumed.graph_.state_dict()[name]), name


@pytest.mark.parametrize("doctor", ["pretrained", "distilled"])
def test_images_of_one_patch(quick: dict[str, Any], images: Tensor, doctor: str) -> None:
    arguments = quick | {"image_size": None, "one_patch": True, "widths": (2,), "doctor": doctor}
    detector = sf.StereotypeDeepening(**arguments).fit(images[:, :, :28, :28], show_progress=False)
    found = detector.predict(images[:5, :, 10:38, 10:38])
    assert found.anomaly_map.shape == (5, 1, 64, 64)
    assert found.pred_score.shape == (5,)
    assert detector.threshold_ == detector.pixel_threshold_


def test_the_batch_size_follows_from_one_patch(quick: dict[str, Any], images: Tensor) -> None:
    arguments = quick | {"image_size": None, "widths": (2,)}
    detector = sf.StereotypeDeepening(**arguments).set_params(batch_size=None)
    assert detector.batch_size is None
    assert detector._batch_size == 1
    detector.set_params(one_patch=True).fit(images[:, :, :28, :28], show_progress=False)
    assert detector._batch_size == 64
    assert detector.score(images[:3, :, :28, :28]).shape == (3,)


def test_the_doctor_learns_classes(quick: dict[str, Any], images: Tensor, tmp_path: Path) -> None:
    for number, image in enumerate(images[:6]):
        path = tmp_path / ("cloth", "wood", "tile")[number % 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    found, labels, classes = labelled_images(tmp_path)
    assert classes == ["cloth", "tile", "wood"]
    assert [path.parent.name for path in found] == [classes[label] for label in labels]
    arguments = quick | {
        "doctor": "distilled", "doctor_data": tmp_path, "widths": (1,), "epochs": 1, "doctor_epochs": 1,
    }  # fmt: skip
    detector = sf.StereotypeDeepening(**arguments).fit(images, show_progress=False)
    assert "the doctor learnt the classes cloth, tile, wood" in detector.notes_
    assert detector.header()["arguments"]["doctor_data"] == tmp_path.name
    with pytest.raises(DataError, match="sub-folder for each of two or more classes"):
        labelled_images(tmp_path / "cloth")


def test_by_the_command_line(teacher_weights: dict[str, Tensor], images: Tensor, tmp_path: Path) -> None:
    from PIL import Image
    from typer.testing import CliRunner

    from stadfast.cli.app import app

    for number, image in enumerate(images[:5]):
        path = tmp_path / "good" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    torch.save(teacher_weights, tmp_path / "w.pth")
    settings = {
        "layers": '["layer1", "layer2"]', "widths": "[1, 2]", "arch": "paper", "window": 4,
    }  # fmt: skip
    given = {
        "--output": tmp_path / "m", "--weights": tmp_path / "w.pth", "--image-size": 64, "--epochs": 1,
        "--batch-size": 4, "--precision": "fp32", "--device": "cpu",
    }  # fmt: skip
    command: list[Any] = ["fit", tmp_path / "good", "--method", "stereotype"]
    command += [part for pair in given.items() for part in pair]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    assert sf.load(tmp_path / "m").get_params()["widths"] == [1, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"arch": "big"}, "arch: expected one of paper, wide, stad, got 'big'"),
        ({"patch_size": 65}, "patch_size: arch wide has 64, got 65"),
        ({"image_size": 48}, r"image_size: expected at least the patch \(64\), got 48"),
        (
            {"image_size": 128, "one_patch": True},
            r"image_size: with one_patch it is the patch \(64\), got 128",
        ),
        ({"widths": []}, "widths"),
        ({"widths": (2, 0)}, r"widths: .*got \(2, 0\)"),
        ({"mu": 1.5}, "mu: expected a number from 0 to 1, got 1.5"),
        ({"compactness": "sum"}, "compactness: expected one of pairs"),
        ({"compactness_on": "masters"}, "compactness_on: expected one of students"),
        ({"compactness_on": "both"}, "compactness_on: only a distilled doctor learns, got 'both'"),
        ({"compactness_batch": 1}, "compactness_batch"),
        ({"terms": "peer"}, "terms: expected some of inference, delivery, peer, got 'peer'"),
        ({"terms": ["pears"]}, "terms"),
        (
            {"terms": ["delivery"], "widths": (2,)},
            r"terms: \['delivery'\] are empty in a tree of widths \[2\]",
        ),
        ({"map_stride": 3}, "map_stride: expected 1, 2, 4, 8 or None, got 3"),
        (
            {"map_stride": 8},
            r"map_stride: expected one of \[1, 2, 4\] for arch wide and layers of strides \[4, 8\]",
        ),
        (
            {"arch": "stad", "patch_size": 17, "map_stride": 2},
            r"map_stride: expected one of \[1\] for arch stad",
        ),
        ({"doctor": "quack"}, "doctor: expected one of pretrained, distilled, got 'quack'"),
        ({"distance": "cosine"}, "distance: expected one of mahalanobis, euclidean, got 'cosine'"),
        ({"window": 0}, "window: expected a whole number from 1, got 0"),
        ({"doctor_data": "somewhere"}, "doctor_data: only a distilled doctor learns from it"),
        ({"doctor_epochs": 0}, "doctor_epochs"),
        ({"patches_per_image": 0.5}, "patches_per_image"),
        ({"class_weight": -1}, "class_weight"),
        ({"doctor": "distilled", "doctor_data": "nowhere"}, "doctor_data"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_wrong_arguments_are_named(
    quick: dict[str, Any], images: Tensor, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        sf.StereotypeDeepening(**(quick | wrong)).fit(images, show_progress=False)
