"""The ops inside TorchScript archives, exported programs and compiled graphs."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stadfast import ops

from .cases import pyramid, skip_without_kernel

SHAPES = [(8, 16, 12), (16, 8, 6)]


class Maps(nn.Module):
    """Two levels of features -> anomaly map, by both ways."""

    def forward(self, s0: Tensor, s1: Tensor, t0: Tensor, t1: Tensor) -> tuple[Tensor, Tensor]:
        fused = ops.anomaly_map([s0, s1], [t0, t1], size=(32, 24), grid=(16, 12))
        distances = ops.pyramid_distance([s0, s1], [t0, t1])
        return fused, ops.upsample_combine(distances, (32, 24), (16, 12))


def example(batch: int = 2, layout: str = "planar", seed: int = 0) -> tuple[Tensor, ...]:
    levels = (pyramid(SHAPES, batch=batch, layout=layout, seed=seed + k) for k in (1, 2))
    return tuple(x for level in levels for x in level)


def assert_same(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
    for got, want in zip(module(*arguments), Maps()(*arguments), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.fixture(autouse=True)
def _compiled_kernels() -> None:
    skip_without_kernel("cpu")


def traced(arguments: tuple[Tensor, ...]) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return torch.jit.trace(Maps().eval(), arguments)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_trace_save_load_freeze(tmp_path: Path, layout: str) -> None:
    module = traced(example(layout=layout))
    module.save(str(tmp_path / "maps.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(str(tmp_path / "maps.pt"))
        frozen = torch.jit.freeze(loaded.eval())
    for form in (module, loaded, frozen):
        assert_same(form, example(layout=layout))
        assert_same(form, example(batch=3, layout=layout, seed=5))  # another batch than the traced one
    assert "stadfast::anomaly_map" in str(loaded.inlined_graph)


def test_an_archive_needs_the_library_alone(tmp_path: Path) -> None:
    """A process that never imports stadfast loads the library, then the archive."""
    arguments = example()
    traced(arguments).save(str(tmp_path / "maps.pt"))
    torch.save({"arguments": arguments, "results": Maps()(*arguments)}, tmp_path / "expected.pt")
    program = """
import sys, torch
folder, library = sys.argv[1:]
torch.ops.load_library(library)
expected = torch.load(folder + "/expected.pt")
for got, want in zip(torch.jit.load(folder + "/maps.pt")(*expected["arguments"]), expected["results"]):
    assert torch.equal(got, want)
assert not any(name.startswith("stadfast") for name in sys.modules)
"""
    library = str(ops.backend().libraries["cpu"])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path), library],
        cwd=tmp_path,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


def test_export_with_a_dynamic_batch(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {name: {0: batch} for name in ("s0", "s1", "t0", "t1")}
    program = torch.export.export(Maps().eval(), example(), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "maps.pt2")
    loaded = torch.export.load(tmp_path / "maps.pt2").module()
    for size in (1, 2, 5):
        assert_same(loaded, example(batch=size))
    targets = {str(node.target) for node in program.graph.nodes}
    assert {
        f"stadfast.{op}.default" for op in ("anomaly_map", "pyramid_distance", "upsample_combine")
    } <= targets


def test_training_through_aot_autograd() -> None:
    """Forward and backward captured as graphs, without a compiler behind them."""
    student, teacher = pyramid(SHAPES, seed=1), pyramid(SHAPES, seed=2)

    def loss(*levels: Tensor) -> Tensor:
        return sum(d.mean() for d in ops.pyramid_distance(levels, teacher))  # type: ignore[return-value]

    leaves = [s.requires_grad_() for s in student]
    wanted = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(*leaves), leaves)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.slow
def test_compile_in_one_graph() -> None:
    torch._dynamo.reset()
    assert_same(torch.compile(Maps().eval(), fullgraph=True), example())


def test_cuda_graph_capture() -> None:
    """No synchronisation and no allocation but torch's: the ops can be captured and replayed."""
    if "cuda" not in ops.backend().libraries:
        pytest.skip("no GPU")
    static = [x.cuda() for x in example()]
    Maps()(*static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = Maps()(*static)
    for x, new in zip(static, example(seed=7), strict=True):
        x.copy_(new)
    graph.replay()
    for got, want in zip(results, Maps()(*example(seed=7)), strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-6)


def test_a_side_stream_and_another_device() -> None:
    if "cuda" not in ops.backend().libraries:
        pytest.skip("no GPU")
    device = f"cuda:{torch.cuda.device_count() - 1}"  # not the current one, where there are several
    stream = torch.cuda.Stream(device)
    arguments = [x.to(device) for x in example()]
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream):
        results = Maps()(*arguments)
    stream.synchronize()
    for got, want in zip(results, Maps()(*example()), strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-6)
