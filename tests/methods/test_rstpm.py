"""RSTPM: shapes, gates, the map, the two trainings, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import stadfast as sf
from stadfast.backbones import create_backbone
from stadfast.errors import StadfastError
from stadfast.methods.features import FeatureStore
from stadfast.methods.hardware import Precision
from stadfast.methods.reconstruction import Decoder, Gate, GatedPyramid, Reconstruction, Teachers
from stadfast.methods.rstpm import _Imitator, _Reconstructor

FP32 = Precision("fp32", "test")
LEVELS = ["layer1", "layer2", "layer3"]
SIZE = (48, 64)


@pytest.fixture(scope="session")
def weights() -> dict[str, Tensor]:
    return create_backbone("resnet18", LEVELS, seed=7).state_dict()


@pytest.fixture
def arguments(weights: dict[str, Tensor]) -> dict[str, Any]:
    """One backbone for both teachers, so that a fit takes seconds."""
    return {
        "weights": weights, "backbone2": "resnet18", "image_size": SIZE, "epochs": 2, "batch_size": 4,
        "decoder_blocks": 1, "precision": "fp32", "device": "cpu",
    }  # fmt: skip


@pytest.fixture(scope="module")
def fitted(weights: dict[str, Tensor], images: Tensor) -> sf.ReconstructionSTPM:
    detector = sf.ReconstructionSTPM(
        backbone2="resnet18", weights=weights, image_size=SIZE, epochs=4, batch_size=4, decoder_blocks=1,
        precision="fp32", device="cpu",
    )  # fmt: skip
    return detector.fit(images, show_progress=False)  # type: ignore[return-value]


def network(**arguments: Any) -> Reconstruction:
    return sf.ReconstructionSTPM(image_size=SIZE, **arguments)._build(pretrained=False)[1]  # type: ignore[return-value]


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("size", [(48, 64), (64, 64), (40, 72), (33, 57)])
@pytest.mark.parametrize("pair", [("resnet18", "resnet50"), ("resnet50", "resnet18")])
def test_both_students_have_their_teachers_shapes(pair: tuple[str, str], size: tuple[int, int]) -> None:
    with torch.device("meta"):
        first = create_backbone_on_meta(pair[0], [*LEVELS, "layer4"])
        second = create_backbone_on_meta(pair[1], LEVELS)
        teachers = Teachers(first, second)
        imitator = GatedPyramid(create_backbone_on_meta(pair[0], LEVELS), "residual")
        decoder = Decoder(first.channels[-1], second.channels, 2, "residual")
        image = torch.empty(2, 3, *size)
        stored = teachers(image)
        for student, teacher in (
            (imitator(image, stored[:3]), stored[:3]),
            (decoder(stored[3], stored[4:]), stored[4:]),
        ):
            assert [s.shape for s in student] == [t.shape for t in teacher]


def create_backbone_on_meta(name: str, layers: list[str]) -> Any:
    with torch.device("cpu"):
        return create_backbone(name, layers, seed=0).to("meta")


def test_the_decoder_is_as_large_as_specified() -> None:
    """3 x 3 convolutions: 512-1024 and one block; three transposed ones, each with two blocks."""
    decoder = Decoder(512, (256, 512, 1024), 2, "none")
    steps = [512 * 1024, 2 * 1024**2, 1024**2, 4 * 1024**2, 1024 * 512, 4 * 512**2, 512 * 256, 4 * 256**2]
    assert sum(p.numel() for p in decoder.parameters() if p.dim() == 4) == 9 * sum(steps)


# ---------------------------------------------------------------- gates


@pytest.mark.parametrize("kind", ["residual", "mul"])
def test_a_gate_weighs_positions_by_the_teacher_and_gives_it_no_gradient(kind: str) -> None:
    torch.manual_seed(0)
    gate = Gate(8, kind).eval()
    x, teacher = torch.randn(2, 8, 5, 6), torch.randn(2, 8, 5, 6, requires_grad=True)
    with torch.no_grad():
        attention = gate.attention(teacher)
    assert attention.shape == (2, 1, 5, 6)
    assert attention.std() > 0
    found = gate(x, teacher)
    torch.testing.assert_close(found, x * attention + (x if kind == "residual" else 0))
    found.sum().backward()
    assert teacher.grad is None
    assert all(p.grad is not None for p in gate.parameters())


@pytest.mark.parametrize("kind", ["residual", "mul"])
def test_a_gate_behind_the_last_level_would_change_nothing(kind: str) -> None:
    """It scales vectors that are then normalised: no gate there is missing."""
    torch.manual_seed(0)
    gate = Gate(8, kind).double().eval()
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    teacher = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    (gated,), (plain,) = (sf.ops.pyramid_distance([s], [teacher]) for s in (gate(x, teacher), x))
    torch.testing.assert_close(gated, plain)
    gated.sum().backward()
    assert all(p.grad.abs().max() < 1e-12 for p in gate.parameters())


def test_gates_of_every_level_that_feeds_another() -> None:
    assert [len(m.gates) for m in (network().imitator, network().decoder)] == [2, 2]
    for kind, gates in (("none", 0), ("mul", 2)):
        found = network(gate=kind, backbone2="resnet18")
        assert len(found.imitator.gates) == len(found.decoder.gates) == gates


def test_the_gates_see_the_teacher_and_feed_the_next_level() -> None:
    found = network(backbone2="resnet18").eval()
    with torch.no_grad():
        image = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
        stored = found.teachers(image)
        others = [stored[0].flip(-1), *stored[1:3]]
        plain, other = (found.imitator(image, teacher) for teacher in (stored[:3], others))
        assert all((a - b).abs().max() > 0 for a, b in zip(plain, other, strict=True))
        coarse = [*stored[4:6], stored[6].flip(-1)]
        plain, other = (found.decoder(stored[3], teacher) for teacher in (stored[4:], coarse))
        assert all((a - b).abs().max() > 0 for a, b in zip(plain, other, strict=True))


# ---------------------------------------------------------------- teachers, map


def test_one_kind_of_teacher_is_computed_once(weights: dict[str, Tensor]) -> None:
    shared = network(backbone2="resnet18")
    assert shared.teachers.second is None
    stored = shared.teachers(torch.randn(1, 3, *SIZE))
    assert all(a is b for a, b in zip(stored[:3], stored[4:], strict=True))
    assert network(backbone2="resnet18", weights2=weights).teachers.second is not None


def test_a_bottleneck_without_weights_is_random_and_noted(
    fitted: sf.ReconstructionSTPM, weights: dict[str, Tensor]
) -> None:
    (note,) = fitted.notes_
    assert "layer4 of resnet18, which the decoder starts from, is random" in note
    teacher = fitted.graph_.network.teachers.first.state_dict()
    seeded = create_backbone("resnet18", [*LEVELS, "layer4"], seed=0).state_dict()
    for name, tensor in teacher.items():
        assert torch.equal(tensor, (seeded if name.startswith("layer4") else weights)[name]), name


def test_map_is_the_plain_one(fitted: sf.ReconstructionSTPM, images: Tensor) -> None:
    found: Reconstruction = fitted.graph_.network  # type: ignore[assignment]
    with torch.no_grad():
        x = fitted.graph_.preprocess(sf.data.to_float(images[:3]))
        students, teachers = found.pyramids(x)
        distances = [
            0.5 * (F.normalize(s, dim=1) - F.normalize(t, dim=1)).pow(2).sum(1, keepdim=True)
            for s, t in zip(students, teachers, strict=True)
        ]
        product: Tensor = torch.ones(())
        for ours, theirs in zip(distances[:3], distances[3:], strict=True):
            product = product * F.interpolate(ours + theirs, (12, 16), mode="bilinear")
        expected = F.interpolate(product, SIZE, mode="bilinear")
        torch.testing.assert_close(found(x), expected, rtol=1e-4, atol=1e-9)  # a product of three sums
        maps = torch.cat([F.interpolate(d, SIZE, mode="bilinear") for d in distances], 1)
    by_level = fitted.level_maps(images[:3], batch_size=2)
    assert by_level.shape == (3, 2, 3, *SIZE)
    torch.testing.assert_close(by_level.flatten(1, 2), maps, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- training


def test_no_gradient_reaches_a_teacher_and_each_student_learns_alone(
    arguments: dict[str, Any], images: Tensor
) -> None:
    detector = sf.ReconstructionSTPM(**arguments)
    preprocess, net = detector._build(pretrained=True)
    store = FeatureStore(
        list(images), preprocess, net.teachers, precision=FP32, device=torch.device("cpu"), show_progress=False
    )  # fmt: skip
    net.train()
    assert not any(m.training for m in net.teachers.first.modules())
    for trainee, mine, other in (
        (_Imitator(detector, net.imitator, store, store, FP32, 0.0), net.imitator, net.decoder),
        (_Reconstructor(detector, net.decoder, store, store, FP32, 0.0), net.decoder, net.imitator),
    ):
        net.zero_grad()
        loss = trainee.loss(torch.arange(4))
        loss.backward()
        assert all(p.grad is not None for p in mine.parameters())
        assert all(p.grad is None for p in [*other.parameters(), *net.teachers.parameters()])


def test_loss_is_the_plain_one(arguments: dict[str, Any], images: Tensor) -> None:
    detector = sf.ReconstructionSTPM(**arguments)
    preprocess, net = detector._build(pretrained=True)
    store = FeatureStore(
        list(images), preprocess, net.teachers, precision=FP32, device=torch.device("cpu"), show_progress=False
    )  # fmt: skip
    net.eval()
    x, stored = store.batch(torch.arange(5))
    for trainee, students, teachers in (
        (_Imitator(detector, net.imitator, store, None, FP32, 0.0), net.imitator(x, stored[:3]), stored[:3]),
        (
            _Reconstructor(detector, net.decoder, store, None, FP32, 0.0),
            net.decoder(stored[3], stored[4:]),
            stored[4:],
        ),
    ):
        pairs = zip(students, teachers, strict=True)
        distances = [(F.normalize(s, dim=1) - F.normalize(t, dim=1)).pow(2).sum(1).mean() for s, t in pairs]
        torch.testing.assert_close(trainee.loss(torch.arange(5)), 0.5 * torch.stack(distances).sum())
        assert trainee.validate() is None


def test_phases_lower_their_losses_and_leave_the_teachers_alone(
    fitted: sf.ReconstructionSTPM, weights: dict[str, Tensor]
) -> None:
    phases = {name: [r for r in fitted.history_ if r.phase == name] for name in ("imitator", "decoder")}
    assert [len(records) for records in phases.values()] == [
        4,
        2,
    ]  # the decoder has a third of the epochs, rounded up
    for records in phases.values():
        assert records[-1].loss < records[0].loss
    assert set(fitted.metadata_["training"]["phases"]) == {"imitator", "decoder"}
    for name, tensor in fitted.graph_.network.teachers.first.state_dict().items():
        assert name.startswith("layer4") or torch.equal(tensor, weights[name]), name


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("killed_in", ["imitator", "decoder"])
def test_a_killed_phase_is_resumed(
    arguments: dict[str, Any], images: Tensor, tmp_path: Path, killed_in: str
) -> None:
    arguments = arguments | {"decoder_epochs": 2}
    whole = sf.ReconstructionSTPM(**arguments).fit(images, show_progress=False)

    def kill(record: sf.methods.EpochRecord) -> None:
        if record.phase == killed_in:
            raise KilledError

    def fit(**more: Any) -> sf.Detector:
        detector = sf.ReconstructionSTPM(**arguments)
        return detector.fit(images, checkpoint=tmp_path / "c", show_progress=False, **more)

    with pytest.raises(KilledError):
        fit(callbacks=[kill])
    seen: list[tuple[str, int]] = []
    resumed = fit(resume=True, callbacks=[lambda r: seen.append((r.phase, r.epoch))])
    assert ("imitator", 1) not in seen
    assert (("imitator", 2) in seen) == (killed_in == "imitator")
    assert resumed.history_ == whole.history_
    for name, tensor in whole.graph_.state_dict().items():
        assert torch.equal(tensor, resumed.graph_.state_dict()[name]), name


def test_the_same_seed_gives_the_same_network() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (network(backbone2="resnet18", **more) for more in ({}, {}, {"gate": "mul"}))
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_loaded_bundle_scores_the_same_to_the_bit(
    fitted: sf.ReconstructionSTPM, images: Tensor, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "m.safetensors")
    loaded = sf.load(tmp_path / "m.safetensors")
    for ours, theirs in zip(loaded.predict(images), fitted.predict(images), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.notes_ == fitted.notes_


def test_two_files_of_weights_are_named_in_the_bundle(
    arguments: dict[str, Any], weights: dict[str, Tensor], images: Tensor, tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "second.pth")
    detector = sf.ReconstructionSTPM(**arguments | {"weights2": tmp_path / "second.pth", "epochs": 1})
    detector.fit(images, show_progress=False).save(tmp_path / "m.safetensors")
    loaded = sf.load(tmp_path / "m.safetensors")
    assert loaded.get_params()["weights2"] == "second.pth"
    assert torch.equal(loaded.score(images), detector.score(images))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"backbone": "vgg16"}, "backbone: expected one of resnet18"),
        ({"backbone2": "efficientnet_lite0"}, "backbone2: expected one of resnet18"),
        ({"gate": "add"}, "gate"),
        ({"decoder_blocks": 0}, "decoder_blocks"),
        ({"decoder_blocks": None}, "decoder_blocks"),
        ({"decoder_epochs": 0}, "decoder_epochs"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"weights2": "resnet"}, "weights file resnet"),
        ({"weights": {}}, "no tensors"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], images: Tensor, wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises(StadfastError, match=named):
        sf.ReconstructionSTPM(**(arguments | wrong)).fit(images, show_progress=False)
