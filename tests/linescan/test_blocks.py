"""Residual blocks in one operator: the same rows as convolution by convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from strips import detector
from torch import Tensor

from stadfast import ops
from stadfast.linescan import RowStreamer, steady

pytestmark = pytest.mark.skipif(not ops.has_bf16(), reason="this processor does not multiply bfloat16")

WIDTH = 288  # more than 16 columns in layer 3
STAGES = {("stream_pool_blocks_", 4), ("stream_stage_", 3)}  # layer 1 behind the stem, layers 2 and 3
# The cache holds the filters of three convolutions of layer 2, or of two; this network has no layer 3.
DEEP_STAGES = {("stream_pool_blocks_", 6), ("stream_stage_", 3), ("stream_blocks_", 2)}


@pytest.fixture(autouse=True)
def plain_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with AMX, also by vectors."""
    monkeypatch.setattr("stadfast.ops.convolution.has_amx", lambda: True)


def streamed(
    backbone: str, strip: Tensor, pushes: list[int], monkeypatch: pytest.MonkeyPatch, *, threads: int
) -> tuple[Tensor, set[tuple[str, int]]]:
    """(the whole map, the operators that took several convolutions, with how many carried rows)."""
    taken: set[tuple[str, int]] = set()

    def noted(name: str, place: int) -> Callable[..., Tensor]:
        kernel = getattr(ops, name)

        def run(*arguments: Any) -> Tensor:
            taken.add((name, len(arguments[place])))
            return kernel(*arguments)

        return run

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with monkeypatch.context() as patch:
            for name, place in (("stream_blocks_", 2), ("stream_pool_blocks_", 8), ("stream_stage_", 9)):
                patch.setattr(ops, name, noted(name, place))
            streamer = RowStreamer(detector(backbone), WIDTH, 32, precision="bf16")
            maps = [streamer.push(rows) for rows in strip.split(pushes, dim=2)]
            return torch.cat([*maps, streamer.finish()], dim=2), taken
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("backbone", "pushes", "operators"),
    [
        pytest.param("resnet18", [32] * 20, STAGES, id="even"),
        pytest.param("resnet18", [7, 200, 33, 400], STAGES, id="uneven"),
        pytest.param("resnet34", [32] * 30, DEEP_STAGES, id="resnet34"),
    ],
)
def test_the_same_bits(
    backbone: str, pushes: list[int], operators: set, monkeypatch: pytest.MonkeyPatch
) -> None:
    strip = torch.rand(1, 3, sum(pushes), WIDTH, generator=torch.Generator().manual_seed(0))
    found, taken = streamed(backbone, strip, pushes, monkeypatch, threads=2)
    assert taken == operators
    wanted, taken = streamed(backbone, strip, pushes, monkeypatch, threads=3)
    assert not taken  # a thread takes a network, and the third would have nothing to do
    assert torch.equal(found, wanted)


@torch.no_grad()
def test_a_state_from_elsewhere_is_taken_over() -> None:
    """A step is a function of its state, wherever this lies."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        streamer = RowStreamer(detector("resnet18"), WIDTH, 32, precision="bf16")
        strip = torch.rand(1, 3, 640, WIDTH, generator=torch.Generator().manual_seed(0))
        for rows in strip[:, :, :480].split(32, dim=2):
            streamer.push(rows)
        steps = streamer._steps
        assert isinstance(steps, steady.SteadySteps)
        assert steps._blocks
        state = tuple(x.clone() for x in steps.state)
        rows = strip[:, :, 480:512]
        first, _ = steps(rows, steps.state)
        first = first.clone()
        again, _ = steps(rows, state)
        assert torch.equal(again, first)
    finally:
        torch.set_num_threads(before)


def test_without_matrix_units_convolutions_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Winograd's algorithm, whose tiles lie elsewhere in every push: equal but for bfloat16."""
    strip = torch.rand(1, 3, 640, WIDTH, generator=torch.Generator().manual_seed(0))
    wanted, _ = streamed("resnet18", strip, [32] * 20, monkeypatch, threads=2)
    monkeypatch.setattr("stadfast.ops.convolution.has_amx", lambda: False)
    for pushes in ([32] * 20, [7, 200, 33, 400]):
        found, taken = streamed("resnet18", strip, pushes, monkeypatch, threads=2)
        assert not taken
        assert (found - wanted).abs().max() < 0.05 * wanted.max()
