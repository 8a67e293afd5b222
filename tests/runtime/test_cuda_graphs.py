"""Which shapes a scorer captures on a GPU, without one: what torch.cuda does is done on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from stadfast.runtime import cuda
from stadfast.runtime.cuda import CudaGraphs


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (2 * x,)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The memory pool of each capture, in turn."""
    used: list[Any] = []

    def capture(run: Callable[[], tuple[Tensor, ...]], *shared: object) -> tuple[Any, tuple[Tensor, ...]]:
        used.append(shared)
        outputs = run()

        def replay() -> None:
            for output, new in zip(outputs, run(), strict=True):
                output.copy_(new)

        return SimpleNamespace(replay=replay), outputs

    event = SimpleNamespace(synchronize=lambda: None)
    stream = SimpleNamespace(wait_event=lambda event: None, record_event=lambda: event)
    monkeypatch.setattr(cuda, "capture", capture)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    return used


def images(width: int) -> Tensor:
    return torch.rand(1, 3, 4, width)


def widths(graphs: CudaGraphs) -> list[int]:
    return [key[3] for key in graphs.captured]


def call(graphs: CudaGraphs, width: int) -> None:
    x = images(width)
    assert torch.equal(graphs(x)[0], 2 * x)


def test_shapes_share_one_pool_of_memory(pools: list[Any]) -> None:
    graphs = CudaGraphs(fx.symbolic_trace(Twice()))
    for width in (1, 2, 1, 3):
        call(graphs, width)
    assert len(pools) == 3
    assert len(set(pools)) == 1


def test_a_shape_that_comes_often_replaces_the_idle_one(pools: list[Any]) -> None:
    graphs = CudaGraphs(fx.symbolic_trace(Twice()))
    for width in range(1, 9):
        call(graphs, width)
    call(graphs, 1)
    for width in (*range(100, 120), *[50] * 7):  # many sizes in turn
        call(graphs, width)
    assert widths(graphs) == [2, 3, 4, 5, 6, 7, 8, 1]
    call(graphs, 50)
    call(graphs, 3)
    assert widths(graphs) == [4, 5, 6, 7, 8, 1, 50, 3]
    assert len(pools) == 9


def test_uncaptured_calls_do_not_wait_for_each_other(pools: list[Any]) -> None:
    graphs = CudaGraphs(fx.symbolic_trace(Twice()))
    for width in range(1, 9):
        call(graphs, width)
    locked = []
    graphs.graph = lambda x: locked.append(graphs.lock.locked()) or (2 * x,)  # type: ignore[assignment]
    call(graphs, 9)
    assert locked == [False]
