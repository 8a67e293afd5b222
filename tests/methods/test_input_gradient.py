"""The written-out backward pass against autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stadfast.backbones import FeaturePyramid, create_backbone, freeze
from stadfast.methods.input_gradient import ExplicitBackward
from stadfast.methods.mkd_network import create_cloner

LAYERS = ["pool2", "pool4", "pool5"]
BUILD: dict[str, Callable[[], FeaturePyramid]] = {
    "source": lambda: create_backbone("vgg16", LAYERS, seed=1),
    "cloner": lambda: create_cloner(LAYERS, seed=1),
}


def network(kind: str, dtype: torch.dtype) -> FeaturePyramid:
    """In evaluation mode, with batch norm that does something."""
    pyramid = BUILD[kind]().to(dtype)
    generator = torch.Generator().manual_seed(2)
    for module in pyramid.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.2),
                                (module.running_var, 0.5)):  # fmt: skip
                assert tensor is not None
                tensor.data = low + torch.rand(tensor.shape, generator=generator, dtype=dtype)
    return freeze(pyramid)


def images(
    dtype: torch.dtype, memory_format: torch.memory_format, size: tuple[int, int] = (32, 64)
) -> Tensor:
    x = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x[0, :, :16] = 1.0  # of equal pixels a pooling takes the first
    return x.contiguous(memory_format=memory_format)


def loss(features: list[Tensor]) -> Tensor:
    return torch.stack([(f - f.mean()).pow(2).sum() for f in features]).sum()


def gradients(features: list[Tensor]) -> list[Tensor]:
    return [2 * (f - f.mean()) for f in features]


def close(ours: Tensor, expected: Tensor) -> None:
    """Agreement relative to the largest gradient: sums of many terms nearly cancel in some pixels.

    In float32 it is asked for on average: a rounding may switch a ReLU or a pooling, and the gradient jumps there.
    """
    assert expected.abs().max() > 0
    if expected.dtype == torch.float64:
        assert (ours - expected).abs().max() <= 1e-12 * expected.abs().max()
    else:
        assert (ours - expected).abs().mean() <= 1e-3 * expected.abs().mean()


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gradient_is_autograds(
    kind: str, memory_format: torch.memory_format, dtype: torch.dtype, tolerance: float
) -> None:
    pyramid = network(kind, dtype)
    x = images(dtype, memory_format).requires_grad_()
    features = pyramid(x)
    (expected,) = torch.autograd.grad(loss(features), x)
    explicit = ExplicitBackward(pyramid, LAYERS)
    with torch.inference_mode():
        found, tape = explicit.forward(x.detach())
        for ours, theirs in zip(found, features, strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=100 * tolerance, atol=tolerance)
        close(explicit.backward(tape, gradients(found)), expected)


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_guided_gradient_is_that_of_autograd_with_hooks(kind: str, dtype: torch.dtype) -> None:
    pyramid = network(kind, dtype)
    explicit = ExplicitBackward(pyramid, LAYERS)
    x = images(dtype, torch.contiguous_format)
    found, tape = explicit.forward(x)
    ours = explicit.backward(tape, gradients(found), guided=True)
    plain = explicit.backward(tape, gradients(found))
    for module in pyramid.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
            module.register_full_backward_hook(lambda _, given, __: (given[0].clamp(min=0),))
    x.requires_grad_()
    (expected,) = torch.autograd.grad(loss(pyramid(x)), x)
    close(ours, expected)
    assert (ours - plain).abs().max() > 0.01 * expected.abs().max()


@pytest.mark.parametrize("layers", [["pool1"], ["pool3", "pool1"]])
def test_only_what_is_needed_is_computed(layers: list[str]) -> None:
    pyramid = create_cloner(["pool1", "pool3", "pool5"], seed=0).eval().double()
    explicit = ExplicitBackward(pyramid, layers)
    assert len(explicit.stages) == max(int(layer[-1]) for layer in layers)
    x = images(torch.float64, torch.contiguous_format).requires_grad_()
    every = dict(zip(pyramid.layers, pyramid(x), strict=True))
    features = [every[layer] for layer in layers]
    (expected,) = torch.autograd.grad(loss(features), x)
    found, tape = explicit.forward(x.detach())
    close(explicit.backward(tape, gradients(found)), expected)


@pytest.mark.parametrize("size", [(33, 47), (32, 63)])
def test_rows_that_a_pooling_drops_get_no_gradient_from_it(size: tuple[int, int]) -> None:
    pyramid = network("cloner", torch.float64)
    x = images(torch.float64, torch.contiguous_format, size).requires_grad_()
    (expected,) = torch.autograd.grad(loss(pyramid(x)), x)
    explicit = ExplicitBackward(pyramid, LAYERS)
    found, tape = explicit.forward(x.detach())
    close(explicit.backward(tape, gradients(found)), expected)


def test_deterministic_algorithms_give_the_same() -> None:
    explicit = ExplicitBackward(network("cloner", torch.float32), LAYERS)
    found, tape = explicit.forward(images(torch.float32, torch.channels_last))
    plain = explicit.backward(tape, gradients(found))
    torch.use_deterministic_algorithms(True)
    try:
        deterministic = explicit.backward(tape, gradients(found))
    finally:
        torch.use_deterministic_algorithms(False)
    assert (deterministic - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_other_networks_are_refused() -> None:
    with pytest.raises(TypeError, match="3x3 convolutions"):
        ExplicitBackward(create_backbone("resnet18", ["layer1"], seed=0), ["layer1"])


def test_a_pooling_with_overlap_is_refused() -> None:
    pyramid = create_cloner(["pool1"], seed=0)
    pyramid.features[-2] = nn.MaxPool2d(3, 2, 1)
    with pytest.raises(TypeError, match="2x2 pooling"):
        ExplicitBackward(pyramid, ["pool1"])


def test_gradient_of_a_pooling_goes_to_the_largest_pixel_alone() -> None:
    pyramid = create_cloner(["pool1"], seed=0).eval()
    explicit = ExplicitBackward(pyramid, ["pool1"])
    x = images(torch.float32, torch.contiguous_format)
    (feature,), tape = explicit.forward(x)
    assert torch.equal(feature, F.relu(feature))
    alone = torch.zeros_like(feature)
    alone[0, :, 3, 5] = 1.0
    reached = explicit.backward(tape, [alone]).abs().sum(1)
    # rows 6 and 7, columns 10 and 11, and two 3 x 3 convolutions around them
    outside = reached.clone()
    outside[0, 4:10, 8:14] = 0
    assert reached.sum() > 0
    assert outside.sum() == 0
