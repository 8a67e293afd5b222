"""ET-STPM: fine-tuning, loss, map, leak note and options."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import stadfast as sf
from stadfast.backbones import create_backbone
from stadfast.errors import StadfastError
from stadfast.methods.checkpoint import checkpoint_files
from stadfast.methods.et_stpm import _Imitation
from stadfast.methods.features import FeatureStore
from stadfast.methods.finetuning import Classification, Classifier, NoFeatures, read_categories
from stadfast.methods.hardware import Precision

FP32 = Precision("fp32", "test")
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def categories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of noise, one dark, one bright, with defects in white."""
    root = tmp_path_factory.mktemp("categories")
    generator = torch.Generator().manual_seed(2)
    for name, brightness in (("bright", 200), ("dark", 60)):
        for kind, count in (("train/good", 6), ("test/good", 2), ("test/hole", 4)):
            folder = root / name / kind
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = brightness * torch.rand(48, 64, 3, generator=generator)
                if kind == "test/hole":
                    pixels[20:30, 20:30] = 255
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{i}.png")
    return root


@pytest.fixture
def tuned_arguments(arguments: dict[str, Any], categories: Path) -> dict[str, Any]:
    weights = create_backbone("resnet18", ["layer3"], seed=7).state_dict()  # the fixture's, one layer deeper
    return arguments | {"weights": weights, "finetune_data": categories, "epochs": 2}


def data(categories: Path) -> Path:
    return categories / "dark"


def fitted(arguments: dict[str, Any], categories: Path, **more: Any) -> sf.EnhancedTeacherSTPM:
    return sf.EnhancedTeacherSTPM(**arguments).fit(data(categories), show_progress=False, **more)


# ---------------------------------------------------------------- the teacher


def test_fine_tuning_changes_the_teacher_and_freezes_it(
    tuned_arguments: dict[str, Any], categories: Path, teacher_weights: dict[str, Tensor]
) -> None:
    detector = fitted(tuned_arguments, categories)
    teacher = detector.graph_.network.teacher
    changed = {name for name, t in teacher.state_dict().items() if not torch.equal(t, teacher_weights[name])}
    assert {"conv1.weight", "layer2.1.conv2.weight", "bn1.running_mean"} <= changed
    assert not teacher.train().training
    assert not any(p.requires_grad for p in teacher.parameters())
    phases = [record.phase for record in detector.history_]
    assert phases == ["teacher head", "teacher", "teacher", "student", "student"]
    assert not any("layer3" in name or "head" in name for name in detector.graph_.state_dict())
    assert detector.notes_ == []


def classification(
    categories: Path, teacher_weights: dict[str, Tensor], frozen: bool, everything: bool
) -> tuple[Classification, Classifier]:
    preprocess, _ = sf.EnhancedTeacherSTPM(image_size=(48, 64))._build(pretrained=False)
    found = read_categories(categories, 0.0, 0)
    backbone = create_backbone("resnet18", ["layer2"], teacher_weights)
    classifier = Classifier(backbone, 2, 0, frozen)
    store = FeatureStore(
        found.images, preprocess, NoFeatures(), precision=FP32, device=CPU, show_progress=False
    )
    labels = found.labels_without([])
    trained = classifier if everything else classifier.head
    return Classification(classifier, trained, store, labels, FP32, 0.05), classifier


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_statistics_move_unless_frozen(
    categories: Path, teacher_weights: dict[str, Tensor], frozen: bool
) -> None:
    trainee, classifier = classification(categories, teacher_weights, frozen, everything=False)
    before = {name: t.clone() for name, t in classifier.state_dict().items()}
    classifier.train()
    trainee.loss(torch.arange(12)).backward()
    trainee.optimizer.step()
    moved = {name for name, t in classifier.state_dict().items() if not torch.equal(t, before[name])}
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    assert moved == {"head.weight", "head.bias"} | (set() if frozen else statistics)


def test_head_first_then_everything(categories: Path, teacher_weights: dict[str, Tensor]) -> None:
    _, classifier = classification(categories, teacher_weights, False, everything=False)
    assert [p for p in classifier.parameters() if p.requires_grad] == list(classifier.head.parameters())
    trainee, classifier = classification(categories, teacher_weights, False, everything=True)
    assert all(p.requires_grad for p in classifier.parameters())
    classifier.train()
    losses = []
    for _ in range(12):
        loss = trainee.loss(torch.arange(12))
        losses.append(loss.item())
        trainee.optimizer.zero_grad()
        loss.backward()
        trainee.optimizer.step()
    assert losses[-1] < 0.3 * losses[0]  # it can tell bright from dark


def test_the_deepest_layer_may_be_random_and_the_log_says_so(
    tuned_arguments: dict[str, Any], categories: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitted(tuned_arguments, categories)
    assert "has no layer4 of resnet18: it stays random" in caplog.text


# ---------------------------------------------------------------- the images of the fine-tuning


def test_only_good_training_images_by_default(categories: Path) -> None:
    found = read_categories(categories, 0.0, 0)
    assert (found.names, found.anomalous) == (["bright", "dark"], 0)
    assert {path.parent.parent.name for path in found.images} == {"train"}
    assert [path.parts[-4] for path in found.images] == [found.names[label] for label in found.labels]
    left = found.labels_without([(found.images[0], "broken")])
    assert left.tolist() == found.labels[1:]


def test_anomalous_test_images_are_noted_in_log_bundle_and_evaluation(
    tuned_arguments: dict[str, Any], categories: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"finetune_images": "paper", "finetune_anomalies": 0.25}
    detector = fitted(tuned_arguments | more, categories)
    (note,) = detector.notes_
    assert "LEAK" in note
    assert "2 anomalous test images (25% of each of bright, dark)" in note
    assert note in caplog.text
    detector.save(tmp_path / "m.safetensors")
    loaded = sf.load(tmp_path / "m.safetensors")
    assert loaded.notes_ == [note]
    assert loaded.get_params()["finetune_images"] == "paper"

    figures, _ = sf.evaluate(loaded, sf.MVTecLayout(data(categories)).test)
    assert note in figures["notes"]


def test_without_finetune_data_a_word_says_what_that_means(
    arguments: dict[str, Any],
    images: Tensor,
    teacher_weights: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        detector = sf.EnhancedTeacherSTPM(**arguments).fit(images, show_progress=False)
    assert "the teacher is not fine-tuned, and only the loss differs from stpm" in caplog.text
    assert detector.notes_ == ["the teacher was not fine-tuned (no finetune_data)"]
    for name, tensor in detector.graph_.network.teacher.state_dict().items():
        assert torch.equal(tensor, teacher_weights[name]), name


def test_unreadable_images_are_left_out(
    tuned_arguments: dict[str, Any], categories: Path, tmp_path: Path
) -> None:
    for name in ("bright", "dark"):
        (tmp_path / name).symlink_to(categories / name)
    broken = tmp_path / "grey" / "0.png"
    broken.parent.mkdir()
    broken.write_bytes(b"no image")
    arguments = tuned_arguments | {"finetune_data": tmp_path, "head_epochs": 0, "finetune_epochs": 1}
    detector = fitted(arguments, categories, skip_broken=True)
    assert [path for path, _ in detector.broken_] == [broken]


# ---------------------------------------------------------------- the student


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"l1_weight": 0.5, "cosine_weight": 2.0},
        {"l1_features": "raw"},
        {"loss": "stfpm"},
    ],
)
def test_loss_is_the_plain_one_and_no_gradient_reaches_the_teacher(
    arguments: dict[str, Any], images: Tensor, options: dict[str, Any]
) -> None:
    detector = sf.EnhancedTeacherSTPM(**(arguments | options))
    preprocess, network = detector._build(pretrained=True)
    store = FeatureStore(
        list(images), preprocess, network.teacher, precision=FP32, device=CPU, show_progress=False
    )
    trainee = _Imitation(detector, network, store, store, FP32)
    network.student.eval()  # so that both passes see the same batch norm
    indices = torch.tensor([3, 0, 7, 9])
    x, teacher = store.batch(indices)
    expected = torch.zeros(())
    for s, t in zip(network.student(x), teacher, strict=True):
        u, v = F.normalize(s, dim=1), F.normalize(t, dim=1)
        if detector.loss == "stfpm":
            expected = expected + (u - v).pow(2).sum(1).mean()
            continue
        l1 = (t - s if detector.l1_features == "raw" else v - u).abs().sum(1).mean()
        cosine = (1 - F.cosine_similarity(s, t, dim=1)).mean()
        expected = expected + detector.l1_weight * l1 + detector.cosine_weight * cosine
    loss = trainee.loss(indices)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(p.grad is None for p in network.teacher.parameters())
    assert all(p.grad is not None for p in network.student.parameters())


def test_map_is_the_official_one(arguments: dict[str, Any], images: Tensor) -> None:
    preprocess, network = sf.EnhancedTeacherSTPM(**arguments)._build(pretrained=True)
    network.eval()
    with torch.no_grad():
        x = preprocess(sf.data.to_float(images[:2]))
        product: Tensor = torch.ones(())
        for s, t in zip(network.student(x), network.teacher(x), strict=True):
            distance = (F.normalize(s, dim=1) - F.normalize(t, dim=1)).pow(2).sum(1, keepdim=True)
            product = product * F.interpolate(distance, (12, 16), mode="bilinear")
        torch.testing.assert_close(network(x), F.interpolate(product, (48, 64), mode="bilinear"))


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("killed_in", ["teacher", "student"])
def test_a_killed_phase_is_resumed(
    tuned_arguments: dict[str, Any], categories: Path, tmp_path: Path, killed_in: str
) -> None:
    whole = fitted(tuned_arguments, categories)

    def kill(record: sf.methods.EpochRecord) -> None:
        if record.phase == killed_in:
            raise KilledError

    with pytest.raises(KilledError):
        fitted(tuned_arguments, categories, checkpoint=tmp_path / "c", callbacks=[kill])
    seen: list[str] = []
    resumed = fitted(
        tuned_arguments, categories, checkpoint=tmp_path / "c", resume=True, callbacks=[lambda r: seen.append(r.phase)]
    )  # fmt: skip
    assert "teacher head" not in seen  # finished before
    assert [r.phase for r in resumed.history_] == [r.phase for r in whole.history_]
    assert len(checkpoint_files(tmp_path / "c")) == 3
    for name, tensor in whole.graph_.state_dict().items():
        assert torch.equal(tensor, resumed.graph_.state_dict()[name]), name


def test_a_loaded_bundle_scores_the_same_to_the_bit(
    tuned_arguments: dict[str, Any], categories: Path, tmp_path: Path
) -> None:
    detector = fitted(tuned_arguments, categories)
    detector.save(tmp_path / "m.safetensors")
    loaded = sf.load(tmp_path / "m.safetensors")
    for ours, theirs in zip(
        loaded.predict(data(categories)), detector.predict(data(categories)), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert loaded.get_params()["finetune_data"] == categories.name  # not its folder


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"loss": "l2"}, "loss"),
        ({"finetune_images": "all"}, "finetune_images"),
        ({"finetune_batch_norm": "eval"}, "finetune_batch_norm"),
        ({"l1_features": "unit"}, "l1_features"),
        ({"finetune_anomalies": 0.0}, "finetune_anomalies"),
        ({"head_epochs": -1}, "head_epochs"),
        ({"finetune_epochs": 1.5}, "finetune_epochs"),
        ({"l1_weight": -1.0}, "l1_weight"),
        ({"finetune_learning_rate": "fast"}, "finetune_learning_rate"),
        ({"finetune_data": "nowhere"}, "finetune_data"),
        ({"finetune_data": 3}, "finetune_data"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], images: Tensor, wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises(StadfastError, match=named):
        sf.EnhancedTeacherSTPM(**(arguments | wrong)).fit(images, show_progress=False)


def test_one_category_is_not_enough(arguments: dict[str, Any], categories: Path, tmp_path: Path) -> None:
    (tmp_path / "only").symlink_to(categories / "dark")
    for folder in (tmp_path, categories / "dark"):
        with pytest.raises(StadfastError, match="finetune_data: wanted at least two category folders"):
            fitted(arguments | {"finetune_data": folder}, categories)


def test_anomalies_that_are_not_there_are_named(
    arguments: dict[str, Any], categories: Path, tmp_path: Path
) -> None:
    for name in ("bright", "dark"):
        (tmp_path / name).symlink_to(categories / name / "train" / "good")
    with pytest.raises(StadfastError, match="finetune_images: no anomalous test images"):
        fitted(arguments | {"finetune_data": tmp_path, "finetune_images": "paper"}, categories)
