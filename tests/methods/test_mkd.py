"""Multiresolution KD: the cloner, its losses, scores and maps against plain PyTorch, and its life as a detector."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

import stadfast as sf
from stadfast.backbones import create_backbone
from stadfast.errors import StadfastError, UsageError
from stadfast.methods.features import FeatureStore
from stadfast.methods.hardware import Precision
from stadfast.methods.mkd import _Cloning
from stadfast.methods.mkd_network import (
    SourceCloner,
    TrainingLoss,
    create_cloner,
    distillation_loss,
    layer_gradient,
)

SIZE = (32, 48)
POOLS = ["pool2", "pool3", "pool4", "pool5"]
FP32 = Precision("fp32", "")


@pytest.fixture(scope="module")
def vgg() -> dict[str, Tensor]:
    return create_backbone("vgg16", ["pool5"], seed=3).state_dict()


@pytest.fixture
def arguments(vgg: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "weights": vgg, "image_size": SIZE, "epochs": 3, "batch_size": 4, "precision": "fp32", "device": "cpu",
        "samples": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def fitted(vgg: dict[str, Tensor], images: Tensor) -> sf.MultiresolutionKD:
    detector = sf.MultiresolutionKD(
        weights=vgg, image_size=SIZE, epochs=30, batch_size=4, precision="fp32", device="cpu"
    )
    return detector.fit(images, show_progress=False)


def network_of(arguments: dict[str, Any], **changes: Any) -> SourceCloner:
    detector = sf.MultiresolutionKD(**(arguments | changes))
    detector._check_arguments()
    network = detector._build(pretrained=True)[1].eval()
    generator = torch.Generator().manual_seed(0)
    for module in network.cloner.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.2 * torch.rand(module.num_features, generator=generator)
            module.running_var = 0.5 + torch.rand(module.num_features, generator=generator)
    return network


def image_losses(network: SourceCloner, x: Tensor, layers: list[str], weights: Any) -> Tensor:
    """The loss of each image in plain lines."""
    total = torch.zeros(len(x), dtype=x.dtype)
    pairs = zip(network.cloner.layers, network.cloner(x), network.source(x), strict=True)
    for layer, c, s in pairs:
        if layer in layers:
            direction = 1 - F.cosine_similarity(c.flatten(1), s.flatten(1))
            value = torch.stack([F.mse_loss(a, b) for a, b in zip(c, s, strict=True)])
            total = total + weights[0] * direction + weights[1] * value
    return total


def test_the_cloner_is_the_compact_one() -> None:
    cloner = create_cloner(POOLS, seed=0)
    assert sum(p.numel() for p in cloner.parameters()) == 343_984
    source = create_backbone("vgg16", POOLS, seed=0)
    assert (cloner.channels, cloner.strides) == (source.channels, source.strides)
    convolutions = [m for m in cloner.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16, 16, 16, 128, 16, 16, 256, 16, 16, 512, 16, 16, 512]
    assert all(c.bias is None for c in convolutions)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in cloner.modules()) == 8
    for convolution in convolutions:  # Xavier: uniform up to sqrt(6 / (fan in + fan out))
        bound = math.sqrt(6 / (9 * (convolution.in_channels + convolution.out_channels)))
        assert 0.9 * bound < convolution.weight.abs().max() <= bound
    state = torch.random.get_rng_state()
    again = create_cloner(POOLS, seed=0).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, again[name]) for name, tensor in cloner.state_dict().items())
    other = create_cloner(POOLS, seed=1).state_dict()
    assert not torch.equal(other["features.0.weight"], again["features.0.weight"])


def features(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(4)
    shapes = [(3, 8, 6, 4), (3, 16, 3, 2)]
    return tuple(  # type: ignore[return-value]
        [torch.randn(shape, generator=generator, dtype=dtype).relu().add(0.01) for shape in shapes]
        for _ in range(2)
    )


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.25, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_loss_and_its_gradients_are_autograds(weights: tuple[float, float]) -> None:
    cloner, source = features()
    for tensor in (*cloner, *source):
        tensor.requires_grad_()
    given = torch.tensor(weights, dtype=torch.float64)
    plain = torch.zeros(3, dtype=torch.float64)
    for c, s in zip(cloner, source, strict=True):
        plain = plain + weights[0] * (1 - F.cosine_similarity(c.flatten(1), s.flatten(1)))
        plain = plain + weights[1] * (c - s).pow(2).mean((1, 2, 3))
    torch.testing.assert_close(distillation_loss(cloner, source, given), plain)
    expected = torch.autograd.grad(plain.sum(), [*cloner, *source], retain_graph=True)
    pairs = list(zip(cloner, source, strict=True))
    ours = [layer_gradient(c, s, given) for c, s in pairs] + [layer_gradient(s, c, given) for c, s in pairs]
    torch.testing.assert_close(ours, list(expected))
    detached = [s.detach() for s in source]
    scale = torch.tensor([0.2, 3.0, -1.0], dtype=torch.float64)
    training = torch.autograd.grad(TrainingLoss.apply(given, detached, *cloner) @ scale, cloner)
    torch.testing.assert_close(training, torch.autograd.grad(plain @ scale, cloner))


def test_a_layer_without_signal_has_a_finite_loss_and_gradient() -> None:
    zero, one = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    weights = torch.tensor([1.0, 0.5])
    assert torch.equal(distillation_loss([zero], [one], weights), torch.full((2,), 1.5))
    assert layer_gradient(zero, zero, weights).isfinite().all()


def cloning(detector: sf.MultiresolutionKD, images: Tensor) -> tuple[_Cloning, SourceCloner, FeatureStore]:
    preprocess, network = detector._build(pretrained=True)
    store = FeatureStore(
        list(images), preprocess, network.source, precision=FP32, device=torch.device("cpu"), show_progress=False
    )  # fmt: skip
    return _Cloning(detector, network, store, store, FP32), network, store


@pytest.mark.parametrize(
    ("choice", "weights"),
    [({}, (1.0, 0.5)), ({"lam": 0.01}, (1.0, 0.01)), ({"variant": "paper", "lam": 0.3}, (0.3, 1.0))],
)
def test_training_loss_has_lambda_where_the_variant_puts_it(
    arguments: dict[str, Any], images: Tensor, choice: dict[str, Any], weights: tuple[float, float]
) -> None:
    trainee, network, store = cloning(sf.MultiresolutionKD(**arguments, **choice), images)
    network.cloner.eval()  # so that both passes see the same batch norm
    indices = torch.tensor([3, 0, 7, 9])
    x, source = store.batch(indices)
    assert len(source) == 4
    expected = image_losses(network, x, POOLS, weights).mean()
    torch.testing.assert_close(trainee.loss(indices), expected)


def test_the_papers_lambda_starts_both_losses_at_equal_weight(
    arguments: dict[str, Any], images: Tensor
) -> None:
    _, network, store = cloning(sf.MultiresolutionKD(**arguments, variant="paper"), images)
    network.cloner.eval()
    x, _ = store.batch(torch.arange(4))
    direction = image_losses(network, x, POOLS, (1.0, 0.0)).mean()
    value = image_losses(network, x, POOLS, (0.0, 1.0)).mean()
    torch.testing.assert_close(network.loss_weights[0] * direction, value, rtol=1e-4, atol=0)
    assert network.loss_weights[1] == 1


def test_no_gradient_reaches_the_source_and_training_leaves_it_alone(
    arguments: dict[str, Any], images: Tensor, vgg: dict[str, Tensor]
) -> None:
    trainee, network, _ = cloning(sf.MultiresolutionKD(**arguments), images)
    network.train()
    assert not network.source.training
    trainee.loss(torch.arange(4)).backward()
    assert all(p.grad is None for p in network.source.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.cloner.parameters())
    detector = sf.MultiresolutionKD(**arguments).fit(images, show_progress=False)
    for name, tensor in detector.graph_.network.source.state_dict().items():
        assert torch.equal(tensor, vgg[name]), name


@pytest.mark.parametrize(
    ("choice", "layers", "weights"),
    [
        ({}, POOLS[1:], (1.0, 0.5)),
        ({"variant": "paper", "lam": 0.2}, POOLS, (0.2, 1.0)),
        ({"layers": ["pool2", "pool4"], "detection_layers": ["pool2"]}, ["pool2"], (1.0, 0.5)),
    ],
)
def test_image_score_is_the_loss_of_the_detection_layers(
    arguments: dict[str, Any], choice: dict[str, Any], layers: list[str], weights: tuple[float, float]
) -> None:
    network = network_of(arguments, **choice)
    x = torch.rand(10, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps, scores = network(x)
    torch.testing.assert_close(
        scores, image_losses(network, x, layers, weights).detach(), rtol=1e-4, atol=1e-6
    )
    assert maps.shape == (10, 1, *SIZE)


def autograd_gradient(network: SourceCloner, x: Tensor, weights: Any) -> Tensor:
    """As the official code has it: backward through both networks; guided in the cloner alone."""
    hooks = []
    for module in (*network.cloner.modules(), *network.source.modules()):
        if isinstance(module, nn.ReLU):
            module.inplace = False
    if network.localisation.method == "gbp":
        relus = [m for m in network.cloner.modules() if isinstance(m, nn.ReLU)]
        hooks = [m.register_full_backward_hook(lambda _, given, __: (given[0].clamp(min=0),)) for m in relus]
    x = x.clone().requires_grad_()
    losses = image_losses(network, x, POOLS[1:], weights)
    if network.localisation.through == "cloner":
        found = zip(network.cloner.layers, network.cloner(x), network.source(x), strict=True)
        kept = {layer: (c, s.detach()) for layer, c, s in found if layer in POOLS[1:]}
        losses = distillation_loss(*zip(*kept.values(), strict=True), torch.tensor(weights, dtype=x.dtype))
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    for hook in hooks:
        hook.remove()
    return gradient


def plain_map(network: SourceCloner, x: Tensor, weights: Any) -> Tensor:
    """The map of the official code, one image at a time, with NumPy and SciPy."""
    how, paper = network.localisation, network.localisation.protocol == "paper"

    def saliency(image: Tensor) -> Any:
        grey = autograd_gradient(network, image[None], weights)[0].abs().sum(0).numpy()
        if paper:
            low, high = grey.min(), np.percentile(grey, 99)
            grey = np.clip((grey - low) / (high - low), 0, 1)
        return grey

    maps = []
    for image in x:
        if how.method == "smoothgrad":
            deviation = (how.noise / (image.max() - image.min())) ** 2
            grey = np.mean(
                [saliency(image + deviation * noise) for noise in network.noise.to(x.dtype)], axis=0
            )
            grey = (grey - grey.min()) / (grey.max() - grey.min()) if paper else grey
        else:
            grey = saliency(image)
        blurred = ndimage.gaussian_filter(grey, sigma=4)
        cross = ndimage.generate_binary_structure(2, 1)
        eroded = ndimage.grey_erosion(blurred, footprint=cross, mode="constant", cval=np.inf)
        maps.append(ndimage.grey_dilation(eroded, footprint=cross, mode="constant", cval=-np.inf))
    return torch.from_numpy(np.stack(maps))[:, None]


@pytest.mark.parametrize("localisation", ["gradient", "gbp", "smoothgrad"])
@pytest.mark.parametrize("protocol", ["raw", "paper"])
@pytest.mark.parametrize("through", ["both", "cloner"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_maps_are_those_of_autograd(
    arguments: dict[str, Any], localisation: str, protocol: str, through: str, dtype: torch.dtype
) -> None:
    if through == "cloner" and (protocol, dtype) == ("paper", torch.float32):
        pytest.skip("covered by the others")
    network = network_of(
        arguments, localisation=localisation, protocol=protocol, through=through, noise=0.2
    ).to(dtype)
    x = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0), dtype=dtype)
    with torch.inference_mode():
        maps, _ = network(x)
    expected = plain_map(network, x, (1.0, 0.5)).to(dtype)
    assert expected.max() > 0
    error = (maps - expected).abs()
    if dtype == torch.float64:
        assert error.max() <= 1e-6 * expected.max()  # the blur's matrices are float32 in the making
    else:  # a ReLU may be so close to its kink that two orders of rounding switch it, and the gradient jumps there
        assert error.mean() <= 1e-2 * expected.mean()


def test_localisations_and_networks_give_different_maps(arguments: dict[str, Any]) -> None:
    x = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    choices: list[dict[str, Any]] = [
        {}, {"localisation": "gbp"}, {"localisation": "smoothgrad", "noise": 0.5}, {"through": "cloner"},
    ]  # fmt: skip
    with torch.no_grad():
        maps = [network_of(arguments, **choice)(x)[0] for choice in choices]
    for i, one in enumerate(maps):
        for other in maps[i + 1 :]:
            assert (one - other).abs().max() > 1e-3 * one.max()


def test_smoothgrad_repeats_and_depends_on_the_seed(arguments: dict[str, Any]) -> None:
    x = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        network = network_of(arguments, localisation="smoothgrad", noise=0.5).double()
        maps = network(x)[0]
        torch.rand(5)  # whatever the state of torch's generator is
        assert torch.equal(network(x)[0], maps)
        assert torch.allclose(network(x[1:])[0], maps[1:])
        other = network_of(arguments, localisation="smoothgrad", noise=0.5).double()
        other.noise = -network.noise
        assert not torch.equal(other(x)[0], maps)


def test_papers_protocol_makes_every_image_bright(arguments: dict[str, Any]) -> None:
    x = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = network_of(arguments, protocol="paper")(x)[0]
        raw = network_of(arguments)(x)[0]
        flat = network_of(arguments, protocol="paper")(torch.zeros(1, 3, *SIZE))[0]
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert flat.isfinite().all()
    assert not torch.allclose(maps, raw)


@pytest.mark.parametrize("localisation", ["gradient", "gbp", "smoothgrad"])
def test_trace_and_export_run_without_autograd_and_give_the_same(
    arguments: dict[str, Any], images: Tensor, localisation: str
) -> None:
    detector = sf.MultiresolutionKD(**arguments, localisation=localisation).fit(images, show_progress=False)
    # In float64: a rounding in float32 can switch a ReLU, and a gradient jumps where one switches.
    graph = detector.graph_.double()
    x = torch.rand(3, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        traced = torch.jit.trace(graph, x[:2])
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
        exported = torch.export.export(graph, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    batch = torch.cat([x, x.flip(0), x])  # more than one chunk, and more than was traced
    with torch.inference_mode():
        expected = graph(batch)
        for found in (loaded(batch), exported.module()(batch)):
            for ours, theirs in zip(found, expected, strict=True):
                if theirs.dtype == torch.bool:
                    assert torch.equal(ours, theirs)
                else:
                    assert (ours - theirs).abs().max() <= 1e-5 * theirs.max()
    assert not expected.anomaly_map.requires_grad


def test_thresholds_belong_to_scores_and_to_maps(fitted: sf.MultiresolutionKD, images: Tensor) -> None:
    assert fitted.threshold_ != fitted.pixel_threshold_
    broken = images[:4].clone()
    broken[:, :, 10:50, 10:70] = torch.randint(
        0, 256, (4, 3, 40, 60), generator=torch.Generator().manual_seed(0)
    )
    good, bad = fitted.predict(images), fitted.predict(broken)
    assert bad.pred_score.mean() > good.pred_score.mean()  # a few steps of training find no more than that
    assert torch.equal(bad.pred_label, bad.pred_score > fitted.threshold_)
    assert torch.equal(bad.pred_mask, bad.anomaly_map > fitted.pixel_threshold_)


def test_training_lowers_the_loss_and_selects_the_best_epoch(fitted: sf.MultiresolutionKD) -> None:
    losses = [record.loss for record in fitted.history_]
    assert losses[-1] < 0.8 * losses[0]
    values = [record.validation for record in fitted.history_]
    assert fitted.metadata_["training"]["validation"] == min(values)


@pytest.mark.parametrize("choice", [{}, {"variant": "paper"}, {"localisation": "smoothgrad"}])
def test_saved_and_loaded_it_predicts_the_same_bits(
    arguments: dict[str, Any], images: Tensor, tmp_path: Path, choice: dict[str, Any]
) -> None:
    detector = sf.MultiresolutionKD(**arguments, **choice).fit(images, show_progress=False)
    detector.save(tmp_path / "m.safetensors")
    loaded = sf.load(tmp_path / "m.safetensors", device="cpu")
    assert isinstance(loaded, sf.MultiresolutionKD)
    for ours, theirs in zip(loaded.predict(images[:5]), detector.predict(images[:5]), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_a_resumed_run_is_the_uninterrupted_one(
    arguments: dict[str, Any], images: Tensor, tmp_path: Path, variant: str
) -> None:
    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    arguments["variant"] = variant
    file = tmp_path / "run.checkpoint"
    whole = sf.MultiresolutionKD(**arguments).fit(images, show_progress=False)
    stopped = sf.MultiresolutionKD(**arguments)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(images, checkpoint=file, callbacks=[stop], show_progress=False)
    resumed = sf.MultiresolutionKD(**arguments).fit(images, checkpoint=file, resume=True, show_progress=False)
    assert resumed.history_ == whole.history_
    for name, tensor in whole.graph_.state_dict().items():
        assert torch.equal(tensor, resumed.graph_.state_dict()[name]), name


def test_stretched_maps_are_noted(
    arguments: dict[str, Any], images: Tensor, fitted: sf.MultiresolutionKD
) -> None:
    detector = sf.MultiresolutionKD(**(arguments | {"epochs": 1, "protocol": "paper"}))
    detector.fit(images, show_progress=False)
    assert "stretched" in detector.notes_[0]
    assert fitted.notes_ == []


def test_normalise_and_raw_input(arguments: dict[str, Any]) -> None:
    x = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    raw, _ = sf.MultiresolutionKD(**arguments)._build(pretrained=False)
    normalised, network = sf.MultiresolutionKD(**arguments, normalise=True)._build(pretrained=False)
    assert torch.equal(raw(x), x)
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (network.source.mean, network.source.std))
    torch.testing.assert_close(normalised(x), (x - mean) / std)


def test_the_defaults() -> None:
    detector = sf.MultiresolutionKD()
    assert (detector.image_size, detector.learning_rate) == (128, 1e-3)
    assert (detector.protocol, detector.through, detector.normalise) == ("raw", "both", False)
    assert sf.methods.create("mkd").method == "mkd"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"variant": "oficial"}, "variant"),
        ({"lam": -1.0}, "lam"),
        ({"lam": "auto"}, "lam"),
        ({"layers": ["pool6"]}, "layers"),
        ({"layers": "pool3"}, "layers"),
        ({"layers": []}, "layers"),
        ({"layers": [["pool3"]]}, "layers"),
        ({"layers": ["pool3", "pool3"]}, "layers"),
        ({"layers": ["pool1"]}, "layers"),
        ({"layers": ["pool4"], "detection_layers": ["pool5"]}, "detection_layers"),
        ({"detection_layers": 3}, "detection_layers"),
        ({"localisation": "cam"}, "localisation"),
        ({"through": "source"}, "through"),
        ({"protocol": "official"}, "protocol"),
        ({"samples": 0}, "samples"),
        ({"samples": 2.5}, "samples"),
        ({"noise": -0.1}, "noise"),
        ({"normalise": "yes"}, "normalise"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"epochs": 0}, "epochs"),
        ({"image_size": 16}, "image_size"),
        ({"weights": "vgg"}, "weights"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], images: Tensor, wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises((UsageError, StadfastError), match=named):
        sf.MultiresolutionKD(**(arguments | wrong)).fit(images, show_progress=False)
