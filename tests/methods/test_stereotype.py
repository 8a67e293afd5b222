"""Stereotype Deepening: the networks, the tree, who learns from whom, the maps, and the whole detector."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stadfast as sf
from stadfast.errors import DataError, UsageError
from stadfast.methods._deepening import (
    LevelTraining,
    Recipe,
    compactness_loss,
    scale_terms,
    standardise_level,
)
from stadfast.methods._descriptors import (
    ARCHITECTURES,
    DESCRIPTOR,
    Architecture,
    PatchNetwork,
    choose_architecture,
    pad_images,
    padding,
)
from stadfast.methods._tree import TERMS, DescriptorTree, Family
from stadfast.methods.features import FeatureStore
from stadfast.methods.graph import Preprocess
from stadfast.methods.hardware import Precision
from stadfast.methods.stereotype import labelled_images

FP32 = Precision("fp32", "test")
EVERY = [found for variants in ARCHITECTURES.values() for found in variants]
TINY = Architecture(18, ((6, 3), None, (5, 3), None, (4, 3)))  # a field of 18, all parts in little


def tree(
    widths: tuple[int, ...] = (2, 2), size: tuple[int, int] = (24, 20), **changes: Any
) -> DescriptorTree:
    arguments: dict[str, Any] = {
        "one_patch": False, "terms": TERMS, "all_pairs": False, "ordered": True, "seed": 0, "stride": 2,
    }  # fmt: skip
    arguments |= changes
    return DescriptorTree(TINY, Family(widths), size, arguments.pop("stride"), **arguments)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the networks


def test_the_printed_table() -> None:
    """Parameters, sizes and the field of 61 pixels, as the paper's table has them."""
    paper = choose_architecture("paper", None)
    network = PatchNetwork(paper, seed=0)
    assert sum(p.numel() for p in network.parameters()) == 47_361
    assert (paper.patch, paper.field, paper.stride, paper.code) == (64, 61, 8, 1)
    sides, x = [], torch.zeros(1, 3, 64, 64)
    convs = iter(network.convs)
    for layer in paper.layers:
        x = torch.max_pool2d(x, 2) if layer is None else next(convs)(x)
        sides.append(x.shape[-1])
    assert sides == [61, 30, 27, 13, 10, 5, 2, 1]
    assert choose_architecture("wide", None).code == 4


@pytest.mark.parametrize("architecture", EVERY, ids=lambda a: f"{a.patch}, code {a.code}")
def test_dense_equals_patch_by_patch(architecture: Architecture) -> None:
    network = PatchNetwork(architecture, seed=1).double()
    field = architecture.field
    images = random(2, 3, field + 9, field + 8).double()
    with torch.no_grad():
        dense = network(images, 1)
        assert dense.shape == (2, DESCRIPTOR, 10, 9)
        for y, x in [(0, 0), (3, 5), (9, 8)]:
            patch = images[:, :, y : y + architecture.patch, x : x + architecture.patch]
            if patch.shape[-2:] == (architecture.patch, architecture.patch):
                alone = network(patch, architecture.stride)
                assert alone.shape == (2, DESCRIPTOR, 1, 1)
                torch.testing.assert_close(dense[:, :, y, x], alone[:, :, 0, 0], rtol=0, atol=1e-6)
            # What lies beyond the field is not seen.
            field_only = network(images[:, :, y : y + field, x : x + field], architecture.stride)
            torch.testing.assert_close(dense[:, :, y, x], field_only[:, :, 0, 0], rtol=0, atol=1e-6)
        for stride in (2, 4, 8):
            if stride <= architecture.stride:
                torch.testing.assert_close(
                    network(images, stride), dense[:, :, ::stride, ::stride], rtol=0, atol=1e-6
                )


def test_networks_follow_from_their_seed() -> None:
    first, again, other = (PatchNetwork(TINY, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("architecture", EVERY, ids=lambda a: f"{a.patch}, code {a.code}")
def test_adapted_networks_have_no_dead_channel(architecture: Architecture) -> None:
    network, images = PatchNetwork(architecture, seed=2), 3 * random(2, 3, 96, 96) + 1
    network.adapt(images)
    codes = network.codes(images, architecture.stride)
    if not architecture.scalar:  # before the LeakyReLU
        codes = torch.where(codes < 0, codes / 5e-3, codes)
    torch.testing.assert_close(
        codes.mean((0, 2, 3)), torch.full((architecture.code,), 0.5), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(codes.std((0, 2, 3)), torch.ones(architecture.code), rtol=0, atol=1e-3)


@pytest.mark.parametrize("architecture", [TINY, *EVERY], ids=lambda a: f"{a.patch}")
@pytest.mark.parametrize("side", [64, 77, 100])
def test_padding_gives_every_position_its_patch(architecture: Architecture, side: int) -> None:
    for stride in (s for s in (1, 2, 4, 8) if s <= architecture.stride):
        positions, before, after = padding(side, architecture.field, stride)
        assert positions == -(-side // stride)
        assert (before + side + after - architecture.field) // stride + 1 == positions
        # The first field's centre is the centre of the first `stride` pixels, to half a pixel.
        centre = (architecture.field - 1) / 2 - before
        assert abs(centre - (stride - 1) / 2) <= 0.5 or architecture.field < stride
    assert (
        pad_images(torch.zeros(1, 3, side, 80), architecture.field, 1).shape[2]
        == side + architecture.field - 1
    )


# ---------------------------------------------------------------- the tree


@pytest.mark.parametrize(
    ("widths", "levels", "parents"),
    [
        ((2, 2), [[0], [1, 2], [3, 4, 5, 6]], [0, 0, 1, 1, 2, 2]),
        ((3,), [[0], [1, 2, 3]], [0, 0, 0]),
        ((1, 3, 1), [[0], [1], [2, 3, 4], [5, 6, 7]], [0, 1, 1, 1, 2, 3, 4]),
    ],
)
def test_who_learns_from_whom(widths: tuple[int, ...], levels: list[list[int]], parents: list[int]) -> None:
    family = Family(widths)
    assert family.levels == levels
    assert family.parents == parents
    assert family.teachers == len(parents) + 1 - len(levels[-1])


def test_pairs_of_the_three_terms() -> None:
    family = Family((2, 2))
    default = family.pairs(all_pairs=False, ordered=True)
    assert default["inference"] == [(0, 1), (0, 2)]
    assert default["delivery"] == [(1, 3), (1, 4), (2, 5), (2, 6)]
    assert default["peer"] == [(1, 2), (2, 1), *itertools.permutations(range(3, 7), 2)]
    other = family.pairs(all_pairs=True, ordered=False)
    assert other["delivery"] == [*itertools.product((1, 2), (3, 4, 5, 6))]
    assert other["peer"] == [(1, 2), *itertools.combinations(range(3, 7), 2)]


def expected_terms(found: DescriptorTree, images: Tensor, all_pairs: bool, ordered: bool) -> Tensor:
    """By the 512-channel descriptors, one pair after the other."""
    padded = pad_images(images, TINY.field, found.stride)
    said = [network(padded, found.stride) for network in found.networks]
    known = [found.standardised(i, said[i]) for i in range(found.family.teachers)]
    pairs = found.family.pairs(all_pairs=all_pairs, ordered=ordered)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().sum(1).sqrt()

    maps = [sum(distance(known[i], said[j]) for i, j in pairs[name]) for name in ("inference", "delivery")]
    maps.append(sum(distance(said[i], said[j]) for i, j in pairs["peer"]))
    return torch.stack(maps, 1)


@pytest.mark.parametrize("all_pairs", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_terms_are_those_of_the_full_descriptors(all_pairs: bool, ordered: bool, stride: int) -> None:
    found = tree(all_pairs=all_pairs, ordered=ordered, stride=stride).double()
    found.mean.copy_(random(3, DESCRIPTOR, seed=1))
    found.std.copy_(random(3, DESCRIPTOR, seed=2).abs() + 0.5)
    found.reduce()
    images = random(2, 3, 24, 20).double()
    with torch.no_grad():
        terms = found.raw_terms(images)
        assert terms.shape == (2, 3, -(-24 // stride), -(-20 // stride))
        torch.testing.assert_close(
            terms, expected_terms(found, images, all_pairs, ordered), rtol=1e-6, atol=0
        )
        assert found.small_weight.shape[1] == 9 * 5  # channels of the maps that are made, not 512
    assert all(term.min() > 0 for term in terms.unbind(1))


def test_the_map_is_the_sum_of_the_scaled_terms() -> None:
    found = tree()
    found.term_scale.copy_(torch.tensor([2.0, 0.5, 4.0]))
    images = random(2, 3, 24, 20)
    with torch.no_grad():
        raw = found.raw_terms(images) / found.term_scale.view(1, 3, 1, 1)
        terms = found.term_maps(images)
        torch.testing.assert_close(found(images), terms.sum(1, keepdim=True), rtol=1e-4, atol=1e-4)
        for i in range(3):
            wanted = sf.ops.upsample_combine([raw[:, i : i + 1]], (24, 20))
            torch.testing.assert_close(terms[:, i : i + 1], wanted)


def test_terms_can_be_chosen_and_empty_ones_are_left_out() -> None:
    assert tree(terms=["peer", "inference"]).terms == ["inference", "peer"]
    assert tree((3,)).terms == ["inference", "peer"]
    assert tree((1, 1)).terms == ["inference", "delivery"]
    images = random(1, 3, 24, 20)
    with torch.no_grad():
        alone = tree(terms=["delivery"])(images)
        torch.testing.assert_close(alone, tree().term_maps(images)[:, 1:2])


def test_one_patch_has_one_score() -> None:
    found = tree(one_patch=True, size=(18, 18), stride=4)
    with torch.no_grad():
        maps, scores = found(random(5, 3, 18, 18))
    assert maps.shape == (5, 1, 18, 18)
    assert scores.shape == (5,)
    assert torch.equal(maps, scores.view(5, 1, 1, 1).expand_as(maps))


def test_the_tree_can_be_traced_and_exported() -> None:
    found = tree().eval().requires_grad_(False)
    images = random(2, 3, 24, 20)
    program = torch.export.export(found, (images,)).module()
    torch.testing.assert_close(program(images), found(images))


# ---------------------------------------------------------------- the losses


def test_compactness_is_equation_five_as_reconstructed() -> None:
    x = random(7, DESCRIPTOR, seed=4).double()
    r = torch.corrcoef(x)
    above = [r[i, j] for i in range(7) for j in range(i + 1, 7)]
    assert float(compactness_loss(x)) == pytest.approx(
        2 / (7 * 6) * sum(float(v) ** 2 for v in above), rel=1e-5
    )
    assert float(compactness_loss(x, "abs")) == pytest.approx(
        sum(abs(float(v)) for v in above) / 21, rel=1e-5
    )
    assert float(compactness_loss(x, "literal")) == 21
    few = x[:, :5]
    channels = torch.corrcoef(few.t())
    wanted = [float(channels[i, j]) ** 2 for i in range(5) for j in range(i + 1, 5)]
    assert float(compactness_loss(few, "dims")) == pytest.approx(sum(wanted) / 10, rel=1e-5)


@pytest.mark.parametrize("form", ["pairs", "abs", "dims"])
def test_compactness_lowers_correlation_and_literal_does_not(form: str) -> None:
    x = (random(6, DESCRIPTOR) + random(1, DESCRIPTOR, seed=9)).requires_grad_()
    (gradient,) = torch.autograd.grad(compactness_loss(x, form), x)
    assert float(compactness_loss(x - 50 * gradient, form).detach()) < float(
        compactness_loss(x, form).detach()
    )
    assert not compactness_loss(x, "literal").requires_grad


def recipe(**changes: Any) -> Recipe:
    arguments: dict[str, Any] = {
        "mu": 1.0, "compactness": "pairs", "compact_doctor": False, "compact_students": True, "compact_batch": 16,
        "over_channels": True, "learning_rate": 1e-2, "weight_decay": 0.0, "seed": 0,
    }  # fmt: skip
    return Recipe(**(arguments | changes))


def store(images: Tensor, size: tuple[int, int]) -> FeatureStore:
    preprocess = Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return FeatureStore(
        list(images),
        preprocess,
        lambda _: [],
        precision=FP32,
        device=torch.device("cpu"),
        show_progress=False,
    )


@pytest.fixture
def small() -> FeatureStore:
    return store((random(6, 3, 24, 20) * 60 + 128).clamp(0, 255).to(torch.uint8), (24, 20))


def test_children_learn_from_their_parents_and_these_stay(small: FeatureStore) -> None:
    found = tree()
    standardise_level(found, 0, small, 4)
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    for level in (1, 2):
        training = LevelTraining(found, level, small, small, recipe(), FP32, 4)
        first = training.validate()
        for _ in range(12):
            loss = training.loss(torch.arange(4))
            training.optimizer.zero_grad()
            loss.backward()
            training.optimizer.step()
        with torch.no_grad():
            assert training.validate() < 0.8 * first
        if level == 1:
            standardise_level(found, 1, small, 4)
            masters = {i: found.networks[i].head.weight.clone() for i in (1, 2)}
    after = found.state_dict()
    doctor = [name for name in before if name.startswith("networks.0.")]
    assert all(torch.equal(before[name], after[name]) for name in doctor)
    assert all(torch.equal(masters[i], found.networks[i].head.weight) for i in masters)
    assert all(p.grad is None for p in found.networks[0].parameters())


def test_the_error_is_towards_ones_own_parent(small: FeatureStore) -> None:
    found = tree()
    for level in (0, 1):
        standardise_level(found, level, small, 4)
    training = LevelTraining(found, 2, small, None, recipe(), FP32, 4)
    images = pad_images(small.batch(torch.arange(3))[0], TINY.field, TINY.stride)
    error, learnt = training._errors(images)
    wanted = torch.zeros(())
    for child, parent in {3: 1, 4: 1, 5: 2, 6: 2}.items():
        known = found.standardised(parent, found.networks[parent](images, TINY.stride))
        wanted = wanted + (known - found.networks[child](images, TINY.stride)).square().mean()
    torch.testing.assert_close(error, wanted, rtol=1e-4, atol=1e-5)
    assert len(learnt) == 4
    summed = LevelTraining(found, 2, small, None, recipe(over_channels=False), FP32, 4)._errors(images)[0]
    torch.testing.assert_close(summed, DESCRIPTOR * error, rtol=1e-4, atol=1e-4)


def test_mu_weighs_error_against_compactness(small: FeatureStore) -> None:
    found = tree()

    def loss(**changes: Any) -> float:
        return float(
            LevelTraining(found, 1, small, None, recipe(**changes), FP32, 4).loss(torch.arange(4)).detach()
        )

    error = loss()
    assert loss(mu=0.5, compact_students=False) == pytest.approx(0.5 * error, rel=1e-5)
    compactness = loss(mu=0.0)
    assert 0 < compactness <= 2  # of two masters
    assert loss(mu=0.5) == pytest.approx(0.5 * error + 0.5 * compactness, rel=1e-5)
    assert loss(mu=0.5, compactness="literal") == pytest.approx(0.5 * error + 0.5 * 2 * 16 * 15 / 2, rel=1e-5)


def test_a_level_is_standardised_over_the_images(small: FeatureStore) -> None:
    found = tree()
    standardise_level(found, 1, small, 4)
    images = pad_images(small.batch(torch.arange(6))[0], TINY.field, TINY.stride)
    with torch.no_grad():
        for master in (1, 2):
            x = found.standardised(master, found.networks[master](images, TINY.stride))
            torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(DESCRIPTOR), rtol=0, atol=1e-3)
            torch.testing.assert_close(
                x.std((0, 2, 3), correction=0), torch.ones(DESCRIPTOR), rtol=0, atol=1e-3
            )
    assert torch.equal(found.mean[0], torch.zeros(DESCRIPTOR))  # the doctor is another level


def test_terms_are_scaled_by_their_deviation(small: FeatureStore) -> None:
    found = tree()
    scale_terms(found, small, 4)
    with torch.no_grad():
        raw = found.raw_terms(small.batch(torch.arange(6))[0])
    torch.testing.assert_close(found.term_scale, raw.std((0, 2, 3), correction=0), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- the detector


@pytest.fixture
def quick(teacher_weights: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "weights": teacher_weights, "layers": ["layer1", "layer2"], "image_size": (64, 72), "epochs": 2,
        "doctor_epochs": 2, "patches_per_image": 2, "batch_size": 4, "map_stride": 8, "precision": "fp32",
        "device": "cpu",
    }  # fmt: skip


def test_fit_predict_save_load(quick: dict[str, Any], images: Tensor, tmp_path: Path) -> None:
    detector = sf.StereotypeDeepening(**quick, arch="paper").fit(images, show_progress=False)
    assert [record.phase for record in detector.history_] == [
        name for name in ("doctor", "masters", "bachelors") for _ in range(2)
    ]
    found = detector.predict(images[:3])
    assert found.anomaly_map.shape == (3, 1, 64, 72)
    torch.testing.assert_close(found.pred_score, found.anomaly_map.flatten(1).amax(1))
    maps = detector.term_maps(images[:3])
    assert list(maps) == ["inference", "delivery", "peer"]
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
    arguments = quick | {"widths": [1, 1], "mu": 0.9, "compactness_on": "both"}
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


def test_images_of_one_patch(quick: dict[str, Any], images: Tensor) -> None:
    arguments = quick | {"image_size": None, "one_patch": True, "widths": (2,)}
    detector = sf.StereotypeDeepening(**arguments).fit(images[:, :, :28, :28], show_progress=False)
    found = detector.predict(images[:5, :, 10:38, 10:38])
    assert found.anomaly_map.shape == (5, 1, 64, 64)
    assert found.pred_score.shape == (5,)
    assert detector.threshold_ == detector.pixel_threshold_


def test_the_doctor_learns_classes(quick: dict[str, Any], images: Tensor, tmp_path: Path) -> None:
    from PIL import Image

    for number, image in enumerate(images[:6]):
        path = tmp_path / ("cloth", "wood", "tile")[number % 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    found, labels, classes = labelled_images(tmp_path)
    assert classes == ["cloth", "tile", "wood"]
    assert [path.parent.name for path in found] == [classes[label] for label in labels]
    arguments = quick | {"doctor_data": tmp_path, "widths": (1,), "epochs": 1, "doctor_epochs": 1}
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
        "layers": '["layer1", "layer2"]', "widths": "[1, 2]", "doctor_epochs": 1, "patches_per_image": 1,
        "arch": "paper", "map_stride": 8,
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
        ({"compactness_batch": 1}, "compactness_batch"),
        ({"terms": "peer"}, "terms: expected some of inference, delivery, peer, got 'peer'"),
        ({"terms": ["pears"]}, "terms"),
        (
            {"terms": ["delivery"], "widths": (2,)},
            r"terms: \['delivery'\] are empty in a tree of widths \[2\]",
        ),
        ({"map_stride": 3}, r"map_stride: expected one of \[1, 2, 4, 8\]"),
        ({"arch": "stad", "patch_size": 33, "map_stride": 8}, r"map_stride: expected one of \[1, 2, 4\]"),
        ({"doctor_epochs": 0}, "doctor_epochs"),
        ({"patches_per_image": 0.5}, "patches_per_image"),
        ({"class_weight": -1}, "class_weight"),
        ({"doctor_data": "nowhere"}, "doctor_data"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_wrong_arguments_are_named(
    quick: dict[str, Any], images: Tensor, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        sf.StereotypeDeepening(**(quick | wrong)).fit(images, show_progress=False)
