"""The rewritten graphs compute what the recorded ones do, whatever the networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from stadfast import ops
from stadfast.backbones import create_backbone
from stadfast.runtime.convolutions import convolved
from stadfast.runtime.export import record
from stadfast.runtime.fusion import fuse
from stadfast.runtime.lowering import UnsupportedGraphError, lower, propagate
from stadfast.runtime.precision import narrow
from stadfast.runtime.siblings import join

mkldnn = torch.ops.mkldnn
needs_ours = pytest.mark.skipif(
    not ops.convolve_takes(torch.zeros(16, 16, 3, 3), [1, 1], [1, 1], 1), reason="no kernels, or no AVX2"
)
CPU = torch.device("cpu")


def lowered(module: nn.Module, example: Tensor) -> fx.GraphModule:
    graph = lower(record(module.eval(), example), CPU)
    propagate(graph, example)
    return graph


def calls(graph: fx.GraphModule, target: object) -> int:
    return sum(node.target is target for node in graph.graph.nodes)


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """Two networks of one architecture on one input, as a student and its teacher."""

    def __init__(self, name: str, layers: list[str]) -> None:
        super().__init__()
        self.first = create_backbone(name, layers, seed=1)
        self.second = create_backbone(name, layers, seed=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [*self.first(x), *self.second(x)]


NETWORKS = {
    "resnet18": ["layer1", "layer2"],
    "resnet50": ["layer1"],
    "vgg16": ["pool2", "pool3"],
    "efficientnet_lite0": ["blocks.1", "blocks.2"],
}


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_every_network(name: str, joined: bool) -> None:
    module, x = Pair(name, NETWORKS[name]), random(2, 3, 48, 56)
    graph = lowered(module, x)
    convolutions = calls(graph, torch.ops.aten.convolution.default)
    saved = join(graph) if joined else 0
    assert saved == 0 or joined
    assert fuse(graph) == convolutions - saved
    assert calls(graph, torch.ops.aten.convolution.default) == 0
    for found, wanted in zip(graph(x), module(x), strict=True):
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    again = x.flip(0)  # nothing of the first call was written into constants
    for found, wanted in zip(graph(again), module(again), strict=True):
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@torch.no_grad()
def test_resnets_are_joined_throughout_and_add_in_place() -> None:
    module, x = Pair("resnet18", ["layer1", "layer2"]), random(1, 3, 64, 64)
    graph = lowered(module, x)
    assert join(graph) == 10  # all of one network
    assert fuse(graph) == 10
    added = [n for n in graph.graph.nodes if n.target is convolved and n.args[3] is not None]
    assert calls(graph, mkldnn._convolution_pointwise_.binary) + len(added) == 4
    assert all(n.args[4] for n in added)
    assert calls(graph, torch.ops.aten.relu_.default) == 0


@torch.no_grad()
def test_half_precision_gives_half_features_and_float_maps() -> None:
    class Maps(Pair):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return ops.anomaly_map(self.first(x), self.second(x), (64, 64))

    module, x = Maps("resnet18", ["layer1", "layer2"]), random(2, 3, 64, 64)
    graph = lowered(module, x)
    narrow(graph, torch.bfloat16)
    propagate(graph, x)
    dtypes = {n.meta["dtype"] for n in graph.graph.nodes if n.target is torch.ops.aten.convolution.default}
    assert dtypes == {torch.bfloat16}
    assert not any(b.dtype == torch.float32 and b.dim() == 4 and b.shape[0] > 1 for b in graph.buffers())
    wanted = module(x)
    assert graph(x).dtype == torch.float32
    assert (graph(x) - wanted).abs().max() <= 0.05 * wanted.abs().max()
    join(graph)
    fuse(graph)
    assert (graph(x) - wanted).abs().max() <= 0.05 * wanted.abs().max()


@torch.no_grad()
def test_half_precision_stays_with_torch_where_onednn_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stadfast.ops.onednn_takes", lambda dtype: dtype == torch.float32)
    module, x = Pair("resnet18", ["layer1"]), torch.rand(2, 3, 64, 64)
    graph = lowered(module, x)
    narrow(graph, torch.bfloat16)
    propagate(graph, x)
    assert fuse(graph) == 0
    for found, wanted in zip(graph(x), module(x), strict=True):
        assert (found - wanted).abs().max() <= 0.05 * wanted.abs().max()


class KeepsItsResidual(nn.Module):
    """The residual is an output, too: it must not be overwritten. With 16 channels convolutions are our own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = torch.relu(self.first(x))
        return torch.relu(self.second(residual) + residual), residual


class SlicesItsResidual(KeepsItsResidual):
    """A view of it is read afterwards."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = torch.relu(self.first(x))
        part = residual[:, :4]
        return torch.relu(self.second(residual) + residual), part * 2


class AddsToItsInput(KeepsItsResidual):
    """The residual is what is convolved: it cannot be overwritten meanwhile."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = torch.relu(self.first(x)), torch.relu(self.first(-x))
        return torch.relu(self.second(a) + a), self.second(b) + b


class OtherActivations(KeepsItsResidual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = nn.functional.leaky_relu(self.first(x), 0.2)
        b = nn.functional.hardtanh(self.second(a), -0.5, 0.5)
        return nn.functional.silu(self.second(b)), torch.sigmoid(self.second(b)) + 2 * b


class ScaledAddition(KeepsItsResidual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.first(x)
        return torch.add(self.second(a), a, alpha=3), self.second(a) + a.mean()


@pytest.mark.parametrize(
    "module", [KeepsItsResidual, SlicesItsResidual, AddsToItsInput, OtherActivations, ScaledAddition]
)
@pytest.mark.parametrize("channels", [8, 16])
@torch.no_grad()
def test_what_must_not_be_fused_is_not(module: type[nn.Module], channels: int) -> None:
    torch.manual_seed(0)
    net, x = module(channels).eval(), torch.randn(2, 3, 9, 9)
    graph = lowered(net, x)
    assert fuse(graph) > 0
    for found, wanted in zip(graph(x), net(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@needs_ours
@torch.no_grad()
def test_convolutions_of_our_own_take_fewer_multiplications() -> None:
    module, x = Pair("resnet18", ["layer1", "layer2"]), random(1, 3, 64, 64)
    graph = lowered(module, x)
    fuse(graph)
    assert calls(graph, convolved) == 2 * (4 + 3)


@needs_ours
@torch.no_grad()
def test_gradients_that_a_rounding_would_turn_are_left_to_torch() -> None:
    class Gradient(KeepsItsResidual):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            y = self.second(self.first(x))
            slope = torch.ops.aten.threshold_backward(torch.ones_like(y), torch.relu(y), 0)
            return torch.nn.functional.conv_transpose2d(slope, self.second.weight, padding=1)

    graph = lowered(Gradient(16), random(1, 3, 9, 9))
    assert fuse(graph) > 0
    assert calls(graph, convolved) == 0


@torch.no_grad()
def test_networks_that_differ_are_joined_as_far_as_they_are_alike() -> None:
    class Unlike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stems = nn.ModuleList([nn.Conv2d(3, 32, 3) for _ in range(3)])
            self.tails = nn.ModuleList([nn.Conv2d(32, n, 3) for n in (32, 32, 16)])

        def forward(self, x: Tensor) -> list[Tensor]:
            return [tail(torch.relu(stem(x))) for stem, tail in zip(self.stems, self.tails, strict=True)]

    torch.manual_seed(0)
    net, x = Unlike().eval(), torch.randn(2, 3, 12, 12)
    graph = lowered(net, x)
    assert join(graph) == 2  # three stems are one, and the third tail is another
    fuse(graph)
    for found, wanted in zip(graph(x), net(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_branch_is_refused() -> None:
    @torch.jit.script
    def branch(x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return branch(x)

    with pytest.raises(UnsupportedGraphError, match="prim::If"):
        lower(record(Branching(), torch.ones(2)), CPU)
