"""Rewritten graphs in bfloat16 where the processor multiplies it: our convolutions, alone, pooled and in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from stadfast import ops
from stadfast.runtime import convolutions, fusion
from stadfast.runtime.precision import narrow
from stadfast.runtime.siblings import join

from .test_fusion import NETWORKS, Pair, calls, lowered, propagate, random

pytestmark = pytest.mark.skipif(not ops.has_bf16(), reason="this processor does not multiply bfloat16")


@pytest.fixture(autouse=True)
def plain_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with AMX, also by vectors."""
    monkeypatch.setattr("stadfast.ops.convolution.has_amx", lambda: True)


def in_bfloat16(module: nn.Module, x: Tensor) -> fx.GraphModule:
    graph = lowered(module, x)
    narrow(graph, torch.bfloat16)
    propagate(graph, x)
    return graph


def assert_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    """But for bfloat16."""
    for one, other in zip(found, wanted, strict=True):
        assert (one.float() - other).abs().max() <= 0.05 * other.abs().max()


@pytest.mark.parametrize("amx", [False, True], ids=["winograd", "sums"])
@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_every_network(name: str, joined: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stadfast.ops.convolution.has_amx", lambda: amx)
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
    assert calls(graph, convolutions.stem_blocks) == 1  # the first, the pooling behind it and all of layer 1
    assert calls(graph, convolutions.strided_stage) == 1  # all of layer 2
    assert calls(graph, convolutions.convolved) == 0
    assert calls(graph, ops.convolve_pool) == 0
    assert calls(graph, ops.max_pool2d) == 0


@pytest.mark.parametrize("threads", [1, 2, 8])
@torch.no_grad()
def test_joined_blocks_give_the_same_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = Pair("resnet18", ["layer1", "layer2"]), random(1, 3, 96, 160)
    graphs = []
    for join_blocks in (convolutions.join_blocks, lambda graph: None):
        monkeypatch.setattr(fusion, "join_blocks", join_blocks)
        graphs.append(in_bfloat16(module, x))
        join(graphs[-1])
        fusion.fuse(graphs[-1])
    taken = []
    for name in ("convolve_blocks", "convolve_pool_blocks", "convolve_stage"):
        kernel = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *args, kernel=kernel: taken.append(kernel) or kernel(*args))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for found, wanted in zip(graphs[0](x), graphs[1](x), strict=True):
            assert torch.equal(found, wanted)
    finally:
        torch.set_num_threads(before)
    assert len(taken) == (0 if threads == 8 else 2)  # threads of few rows would compute some of them twice


class Block(nn.Module):
    def __init__(self, channels: int, between: int | None = None) -> None:
        super().__init__()
        between = between or channels
        self.first = nn.Conv2d(channels, between, 3, padding=1)
        self.second = nn.Conv2d(between, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + x)


class Chain(nn.Module):
    """Blocks, and whichever of the features before and between them others want."""

    def __init__(self, *blocks: Block, wanted: int | None = None, added: bool = False) -> None:
        super().__init__()
        channels = blocks[0].first.in_channels
        self.stem, self.other = (nn.Conv2d(3, channels, 3, padding=1) for _ in range(2))
        self.blocks, self.wanted, self.added = nn.ModuleList(blocks), wanted, added

    def forward(self, image: Tensor) -> list[Tensor]:
        x = torch.relu(self.stem(image))
        features = [x]
        for i, block in enumerate(self.blocks):
            features.append(block(features[-1]))
            if self.added and i == 0:  # overwrites the first block's input, which a later one is joined with
                x = torch.relu(self.other(image) + x)
        return [features[-1], x.mean((2, 3)) if self.added else image, features[self.wanted or -1]]


def joined_and_apart(
    module: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The graph with blocks as single operators, and convolution by convolution."""
    joined, apart = (in_bfloat16(module, x) for _ in range(2))
    fusion.fuse(joined)
    with monkeypatch.context() as patch:
        patch.setattr(fusion, "join_blocks", lambda graph: None)
        fusion.fuse(apart)
    return joined, apart


CHAINS = {  # and how many operators take how many convolutions
    "two": (Chain(Block(32), Block(32)), [4]),
    "one between is wanted": (Chain(Block(32), Block(32), Block(32), wanted=2), [4, 2]),
    "the input is overwritten": (Chain(Block(32), Block(32), added=True), [4]),
    "the filters fill the cache": (Chain(Block(128), Block(128)), [2, 2]),
    "the filters do not fit": (Chain(Block(192)), []),
    "more channels between": (Chain(Block(32, between=64), Block(32)), [2]),
}


@pytest.mark.parametrize("name", CHAINS)
@torch.no_grad()
def test_which_blocks_are_joined(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (module, counts), x = CHAINS[name], random(1, 3, 50, 33)
    graph, apart = joined_and_apart(module, x, monkeypatch)
    joined = [node for node in graph.graph.nodes if node.target is convolutions.residual_blocks]
    assert [len(getattr(graph, node.args[1].target)) for node in joined] == counts
    for found, wanted in zip(graph(x), apart(x), strict=True):
        assert torch.equal(found, wanted)


class Strided(nn.Module):
    """A block whose shortcut is a convolution, which others may want, too, or may differ."""

    def __init__(self, *, side: int = 1, relu: bool = False, wanted: bool = False, blocks: int = 1) -> None:
        super().__init__()
        self.stem, self.relu, self.wanted = nn.Conv2d(3, 32, 3, padding=1), relu, wanted
        self.first = nn.Conv2d(32, 64, 3, 2, padding=1)
        self.shortcut = nn.Conv2d(32, 64, side, 2, padding=side // 2)
        self.second = nn.Conv2d(64, 64, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(64) for _ in range(blocks)))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = torch.relu(self.stem(image))
        y = self.second(torch.relu(self.first(x)))
        shortcut = self.shortcut(x)
        shortcut = torch.relu(shortcut) if self.relu else shortcut
        y = torch.relu(y + shortcut)
        return [x, shortcut if self.wanted else x, self.blocks(y)]


STRIDED = {  # and how many of the later convolutions are joined with them
    "with a block": (Strided(), [3]),
    "alone": (Strided(blocks=0), [1]),
    "with two": (Strided(blocks=2), [5]),
    "the shortcut is wanted": (Strided(wanted=True), []),
    "the shortcut is rectified": (Strided(relu=True), []),
    "another shortcut": (Strided(side=3), []),
}


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("name", STRIDED)
@torch.no_grad()
def test_which_strided_stages_are_joined(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (module, counts), x = STRIDED[name], random(1, 3, 100, 66)
    graph, apart = joined_and_apart(module, x, monkeypatch)
    joined = [node for node in graph.graph.nodes if node.target is convolutions.strided_stage]
    assert [len(getattr(graph, node.args[5].target)) for node in joined] == counts
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for found, wanted in zip(graph(x), apart(x), strict=True):
            assert torch.equal(found, wanted)
    finally:
        torch.set_num_threads(before)


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


@pytest.mark.parametrize(("size", "joined"), [(31, True), (32, False)])
@torch.no_grad()
def test_a_pooling_too_high_stays_apart(size: int, joined: bool) -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(32, 32, 5, padding=2)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [nn.functional.max_pool2d(self.first(x).relu(), size)]

    module, x = Stem().eval(), random(1, 32, 64, 70)
    graph = in_bfloat16(module, x)
    assert fusion.fuse(graph) == 1
    assert calls(graph, ops.convolve_pool) == joined
    assert_close(graph(x), module(x))
