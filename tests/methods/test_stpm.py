"""STPM's maps, losses and variants against plain PyTorch re-computations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import stadfast as sf
from stadfast.errors import UsageError
from stadfast.methods.features import FeatureStore
from stadfast.methods.hardware import Precision
from stadfast.methods.stpm import VARIANTS, StudentTeacher, _Imitation

FP32 = Precision("fp32", "test")


def official_map(student: list[Tensor], teacher: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The official pipeline: each level's squared distance to the largest level's size, product, one upsampling."""
    product = torch.ones(())
    for s, t in zip(student, teacher, strict=True):
        distance = (F.normalize(s, dim=1) - F.normalize(t, dim=1)).pow(2).sum(1, keepdim=True)
        product = product * F.interpolate(
            distance, student[0].shape[-2:], mode="bilinear", align_corners=False
        )
    return F.interpolate(product, size, mode="bilinear", align_corners=False)


def paper_map(student: list[Tensor], teacher: list[Tensor], size: tuple[int, int]) -> Tensor:
    product = torch.ones(())
    for s, t in zip(student, teacher, strict=True):
        distance = 0.5 * (F.normalize(s, dim=1) - F.normalize(t, dim=1)).pow(2).sum(1, keepdim=True)
        product = product * F.interpolate(distance, size, mode="bilinear", align_corners=False)
    return product


RECOMPUTED = {"official": official_map, "paper": paper_map, "anomalib": paper_map}


@pytest.mark.parametrize("variant", RECOMPUTED)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maps_are_the_recomputed_ones_on_real_features(
    shared: Any, variant: str, memory_format: torch.memory_format
) -> None:
    detector = sf.STPM(weights=shared / "weights/resnet18_l123.pth", variant=variant)
    preprocess, network = detector._build(pretrained=True)
    network.eval().to(memory_format=memory_format)
    paths = sorted((shared / "data/mvtec_bottle/test/broken_large").glob("*.png"))[:4]
    images = torch.stack([sf.data.to_float(sf.data.read_image(path)) for path in paths])
    with torch.no_grad():
        x = preprocess(images).contiguous(memory_format=memory_format)
        maps = network(x)
        expected = RECOMPUTED[variant](network.student(x), network.teacher(x), (256, 256))
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=0)  # a product of three sums over channels


@pytest.mark.parametrize("variant", RECOMPUTED)
def test_maps_are_the_recomputed_ones(variant: str) -> None:
    preprocess, network = sf.STPM(variant=variant, image_size=(96, 64))._build(pretrained=False)
    network.teacher.load_state_dict(sf.backbones.create_backbone("resnet18", seed=5).state_dict())
    network.eval()
    with torch.no_grad():
        x = preprocess(torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)))
        expected = RECOMPUTED[variant](network.student(x), network.teacher(x), (96, 64))
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=0)


def imitation(detector: sf.STPM, images: Tensor) -> tuple[_Imitation, StudentTeacher, FeatureStore]:
    preprocess, network = detector._build(pretrained=True)
    store = FeatureStore(
        list(images),
        preprocess,
        network.teacher,
        precision=FP32,
        device=torch.device("cpu"),
        show_progress=False,
    )
    return _Imitation(detector, network, store, store, FP32), network, store


@pytest.mark.parametrize(("variant", "factor"), [("official", 1.0), ("paper", 0.5), ("anomalib", 0.5 * 4)])
def test_loss_is_the_variants(arguments: dict[str, Any], images: Tensor, variant: str, factor: float) -> None:
    trainee, network, store = imitation(sf.STPM(variant=variant, **arguments), images)
    network.student.eval()  # so that both passes see the same batch norm
    indices = torch.tensor([3, 0, 7, 9])
    x, teacher = store.batch(indices)
    student = network.student(x)
    expected = sum(
        (F.normalize(s, dim=1) - F.normalize(t, dim=1)).pow(2).sum(1).mean()
        for s, t in zip(student, teacher, strict=True)
    )
    torch.testing.assert_close(trainee.loss(indices), factor * expected)


def test_no_gradient_reaches_the_teacher_and_training_leaves_it_alone(
    arguments: dict[str, Any], images: Tensor, teacher_weights: dict[str, Tensor]
) -> None:
    trainee, network, _ = imitation(sf.STPM(**arguments), images)
    network.train()
    assert not network.teacher.training
    trainee.loss(torch.arange(4)).backward()
    assert all(p.grad is None for p in network.teacher.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.student.parameters())
    detector = sf.STPM(**arguments).fit(images, show_progress=False)
    for name, tensor in detector.graph_.network.teacher.state_dict().items():
        assert torch.equal(tensor, teacher_weights[name]), name


def test_training_lowers_the_loss_and_selects_the_best_epoch(
    arguments: dict[str, Any], images: Tensor
) -> None:
    detector = sf.STPM(**(arguments | {"epochs": 8})).fit(images, show_progress=False)
    losses = [record.loss for record in detector.history_]
    assert losses[-1] < 0.8 * losses[0]
    values = [record.validation for record in detector.history_]
    assert detector.metadata_["training"]["validation"] == min(values)


@pytest.mark.parametrize("variant", ["paper", "anomalib"])
def test_variants_without_held_out_images_keep_the_last_epoch_and_warn(
    arguments: dict[str, Any], images: Tensor, variant: str, caplog: pytest.LogCaptureFixture
) -> None:
    detector = sf.STPM(variant=variant, **arguments).fit(images, show_progress=False)
    assert detector.metadata_["data"]["held_out"] == 0
    assert detector.metadata_["training"]["selected_epoch"] == 3
    assert "calibrate() on other good images" in caplog.text


def test_variants_differ_as_documented() -> None:
    official, paper, anomalib = (VARIANTS[name] for name in ("official", "paper", "anomalib"))
    assert (official.weight_decay, paper.weight_decay, anomalib.weight_decay) == (1e-4, 1e-4, 1e-3)
    assert [v.at_level_size for v in (official, paper, anomalib)] == [True, False, False]


@pytest.mark.parametrize("combine", ["product", "sum", "mean"])
def test_combine_option_reaches_the_map(arguments: dict[str, Any], images: Tensor, combine: str) -> None:
    preprocess, network = sf.STPM(**arguments, combine=combine)._build(pretrained=True)
    network.eval()
    with torch.no_grad():
        x = preprocess(sf.data.to_float(images[:2]))
        distances = sf.ops.pyramid_distance(network.student(x), network.teacher(x))
        expected = sf.ops.upsample_combine(distances, (48, 64), grid=(12, 16), combine=combine)
        torch.testing.assert_close(network(x), expected)


def test_background_quantile_divides_each_map_by_its_own(arguments: dict[str, Any], images: Tensor) -> None:
    preprocess, plain = sf.STPM(**arguments)._build(pretrained=True)
    _, divided = sf.STPM(**arguments, background_quantile=0.25)._build(pretrained=True)
    x = preprocess(sf.data.to_float(images[:3]))
    with torch.no_grad():
        raw, relative = plain.eval()(x), divided.eval()(x)
    for ours, theirs in zip(relative, raw, strict=True):
        torch.testing.assert_close(ours, theirs / theirs[0, ::4, ::4].quantile(0.25), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"variant": "oficial"}, "variant"),
        ({"combine": "max"}, "combine"),
        ({"background_quantile": 2.0}, "background_quantile"),
        ({"backbone": "resnet19"}, "resnet19"),
        ({"layers": ["layer9"]}, "layer9"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": -1}, "batch_size"),
        ({"image_size": 8}, "image_size"),
        ({"image_size": "big"}, "image_size"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"patience": 0}, "patience"),
        ({"precision": "int3"}, "precision"),
        ({"device": "tpu"}, "device"),
        ({"device": "cuda:7"}, "cuda:7"),
        ({"cache_gb": -1.0}, "cache_gb"),
        ({"weights": "resnet"}, "weights"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], images: Tensor, wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises((UsageError, sf.StadfastError), match=named):
        sf.STPM(**(arguments | wrong)).fit(images, show_progress=False)
