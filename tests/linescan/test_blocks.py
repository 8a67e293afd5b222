"""Residual blocks in one operator: the same rows as convolution by convolution."""

from __future__ import annotations

import pytest
import torch
from strips import detector
from torch import Tensor

from stadfast import ops
from stadfast.linescan import RowStreamer, steady

pytestmark = pytest.mark.skipif(not ops.has_amx(), reason="this processor has no AMX")

WIDTH = 144


def streamed(
    strip: Tensor, pushes: list[int], monkeypatch: pytest.MonkeyPatch, *, threads: int
) -> tuple[Tensor, set]:
    """(the whole map, how many convolutions ran in one operator)."""
    taken: set[int] = set()

    def noted(output: Tensor, x: Tensor, carried: Tensor, *rest: object) -> Tensor:
        taken.add(len(carried))
        return kernel(output, x, carried, *rest)

    def noted_behind_the_stem(*arguments: object) -> Tensor:
        taken.add(len(arguments[8]))  # type: ignore[arg-type]
        return stem_kernel(*arguments)

    kernel, stem_kernel = ops.stream_blocks_, ops.stream_pool_blocks_
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ops, "stream_blocks_", noted)
            patch.setattr(ops, "stream_pool_blocks_", noted_behind_the_stem)
            streamer = RowStreamer(detector("resnet18"), WIDTH, 32, precision="bf16")
            maps = [streamer.push(rows) for rows in strip.split(pushes, dim=2)]
            return torch.cat([*maps, streamer.finish()], dim=2), taken
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("pushes", [[32] * 20, [7, 200, 33, 400]], ids=["even", "uneven"])
def test_the_same_bits(pushes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    strip = torch.rand(1, 3, sum(pushes), WIDTH, generator=torch.Generator().manual_seed(0))
    found, taken = streamed(strip, pushes, monkeypatch, threads=2)
    assert taken == {
        4,
        2,
    }  # all of layer 1, the second block of layer 2; the filters of layer 3 fill the cache
    wanted, taken = streamed(strip, pushes, monkeypatch, threads=3)
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
