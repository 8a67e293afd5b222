"""Row streaming on a GPU: steps captured as a CUDA graph; where there is none, something stands in for the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from strips import detector, strip
from torch import Tensor

from stadfast.linescan import RowStreamer, steady
from stadfast.linescan.layers import Pointwise

ROWS, WIDTH = 16, 48  # so few rows that some layers carry more than they get


class Graph:
    """What was captured runs again at every replay, from and into the same memory."""

    def __init__(self, run: Callable[[], Tensor], results: Tensor) -> None:
        self.run, self.results = run, results

    def replay(self) -> None:
        self.results.copy_(self.run())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(run: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        for _ in range(3):
            run()
        results = run()
        return Graph(run, results), results

    monkeypatch.setattr(steady, "capture", capture)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())


@pytest.mark.parametrize("name", ["rstpm", "stereotype"])
def test_no_constant_stays_behind(name: str) -> None:
    """A graph that copies one from the host cannot be captured."""
    streamer = RowStreamer(detector(name), 64, 32, precision="bf16")

    def constants() -> list[Tensor]:
        layers = [layer for layer in streamer.module.modules() if isinstance(layer, Pointwise)]
        return [x for layer in layers for x in layer._constants if isinstance(x, Tensor)]

    types = [x.dtype for x in constants()]
    assert types
    assert torch.bfloat16 not in types
    streamer.module.to("meta")
    assert {x.device.type for x in constants()} == {"meta"}
    assert [x.dtype for x in constants()] == types


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("cameras", [1, 2])
@torch.no_grad()
def test_replays_go_on_from_the_given_state(cameras: int) -> None:
    """What ran before the capture leaves nothing behind, and a state may come from elsewhere at any time."""
    streamer = RowStreamer(detector("resnet18"), WIDTH, ROWS)
    image = strip(480, WIDTH, cameras)
    streamer.push(image[:, :, :320])
    begun = streamer.state
    blocks = image[:, :, 320:].split(ROWS, dim=2)
    wanted = [streamer.push(rows) for rows in blocks]
    module = streamer.module
    steps = steady.SteadySteps(module.prepare.normalised, module.network, ROWS, begun)
    captured = steady.CapturedSteps(steps, blocks[0])
    for _ in range(2):
        state = begun
        for rows, expected in zip(blocks, wanted, strict=True):
            maps, state = captured(rows, state)
            assert torch.equal(maps[:, :, :, :WIDTH], expected)
        assert state is captured.state


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", ["resnet18", "msfi", "rstpm"])
def test_on_a_gpu(case: str, precision: str) -> None:
    """Strips of several cameras, of floats and of bytes, one after the other."""
    rows = 32 if case == "rstpm" else ROWS
    streamers = [
        RowStreamer(detector(case), WIDTH, rows, device=device, precision=precision)
        for device in ("cpu", "cuda")
    ]
    for cameras, dtype in ((1, torch.float32), (2, torch.float32), (2, torch.uint8), (1, torch.float32)):
        image = strip(700, WIDTH, cameras)
        image = (image * 255).to(dtype) if dtype == torch.uint8 else image
        wanted, found = (
            torch.cat(
                [*(streamer.push(part).cpu() for part in image.split(90, dim=2)), streamer.finish().cpu()], 2
            )
            for streamer in streamers
        )
        tolerance = 1e-3 if precision == "fp32" else 0.1  # TF32
        assert (found - wanted).abs().max() <= tolerance * wanted.max()
