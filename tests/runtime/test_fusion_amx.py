"""Rewritten graphs in bfloat16 where the processor has AMX: our convolutions, and oneDNN's for large features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from stadfast import ops
from stadfast.runtime import amx, fusion
from stadfast.runtime.precision import narrow
from stadfast.runtime.siblings import join

from .test_fusion import NETWORKS, Pair, calls, lowered, propagate, random

pytestmark = pytest.mark.skipif(not ops.has_amx(), reason="this processor has no AMX")


def in_bfloat16(module: nn.Module, x: Tensor) -> fx.GraphModule:
    graph = lowered(module, x)
    narrow(graph, torch.bfloat16)
    propagate(graph, x)
    return graph


def assert_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    """But for bfloat16."""
    for one, other in zip(found, wanted, strict=True):
        assert (one.float() - other).abs().max() <= 0.05 * other.abs().max()


@pytest.mark.parametrize("large", [0, amx._LARGE], ids=["all large", "none large"])
@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_every_network(name: str, joined: bool, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "_LARGE", large)
    module, x = Pair(name, NETWORKS[name]), random(2, 3, 48, 56)
    graph = in_bfloat16(module, x)
    if joined:
        join(graph)
    assert fusion.fuse(graph) > 0
    assert_close(graph(x), module(x))
    again = x.flip(0)
    assert_close(graph(again), module(again))


@torch.no_grad()
def test_all_convolutions_of_a_joined_resnet() -> None:
    module, x = Pair("resnet18", ["layer1", "layer2"]), random(1, 3, 64, 64)
    graph = in_bfloat16(module, x)
    join(graph)
    assert fusion.fuse(graph) == 10
    assert calls(graph, amx.stem_blocks) == 1  # the first, the pooling behind it and all of layer 1
    assert calls(graph, amx.residual_blocks) == 1  # the second block of layer 2
    assert calls(graph, amx.convolved) == 3
    assert calls(graph, ops.convolve_pool) == 0
    assert calls(graph, ops.max_pool2d) == 0


class Residuals(nn.Module):
    """One that is read afterwards, one that is convolved itself, one whose memory is free; a pooling behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        a, b = torch.relu(self.first(x)), torch.relu(self.first(-x))
        c = torch.relu(self.second(a) + b)
        d = torch.relu(self.second(c) + c)
        return [a, nn.functional.max_pool2d(c, 2), nn.functional.max_pool2d(self.second(d), 2), d]


@torch.no_grad()
def test_residuals_and_poolings() -> None:
    torch.manual_seed(0)
    module, x = Residuals().eval(), torch.randn(2, 3, 21, 40)
    graph = in_bfloat16(module, x)
    fusion.fuse(graph)
    assert calls(graph, ops.convolve_pool) == 0  # there is an addition, and one without relu
    for _ in range(2):
        assert_close(graph(x), module(x))
