"""peer_distance's CUDA kernels without a GPU: run on the host (tests/cpp/emulator.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .cases import DTYPES, LAYOUTS
from .host import compile_host
from .test_cuda_kernels import GUARD, READ_IN_PLACE, View, guarded, untouched
from .test_peer_distance import PAIRS, SHAPES, Pairs, assert_near, descriptors, expected


class Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "channels", "pixels")),
        ("channels_last", ctypes.c_bool),
    ]


class PairArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("first", "second", "group")),
        ("weight", ctypes.c_double),
    ]


class Edge(ctypes.Structure):
    _fields_ = [("factor", ctypes.c_int32), ("other", ctypes.c_int32)]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    # hidden: another emulator in this process must not share its variables
    return compile_host(
        "peers", tmp_path_factory.mktemp("peers"), "-O1", "-Wno-unknown-pragmas", "-fvisibility=hidden"
    )


def channels_last(x: Tensor) -> bool:
    """As layout.h decides."""
    _, c, h, w = x.shape
    return (c == 1 or x.stride(1) == 1) and h * w > 1 and x.stride(3 if w > 1 else 2) != 1


def view(x: Tensor, last: bool) -> View:
    return View(x.data_ptr(), x.stride(0), x.stride((3 if x.shape[3] > 1 else 2) if last else 1))


def shared(x: list[Tensor]) -> tuple[Shape, Any]:
    b, c, h, w = x[0].shape
    last = channels_last(x[0])
    return Shape(b, c, h * w, last), (View * len(x))(*(view(y, last) for y in x))


def function(kernels: ctypes.CDLL, kind: str, dtype: torch.dtype) -> Callable[..., None]:
    return getattr(kernels, f"{kind}_{str(dtype).removeprefix('torch.')}")


def run_distance(
    kernels: ctypes.CDLL, x: list[Tensor], pairs: Pairs, groups: list[int], squared: bool, blocks: int = 3
) -> Tensor:
    b, _, h, w = x[0].shape
    shape, views = shared(x)
    table = sorted(zip(groups, pairs, strict=True))
    arguments = (PairArguments * len(pairs))(*(PairArguments(i, j, g, 1.0) for g, (i, j) in table))
    maps = max(groups) + 1
    storage = guarded(b * maps * h * w, torch.float64 if x[0].dtype == torch.float64 else torch.float32)
    storage[GUARD:-GUARD] = 0
    run = function(kernels, "distance", x[0].dtype)
    address = ctypes.c_void_p(storage[GUARD:].data_ptr())
    run(blocks, ctypes.byref(shape), len(x), views, len(pairs), arguments, int(squared), address)
    assert untouched(storage)
    return storage[GUARD:-GUARD].view(b, maps, h, w)


def run_gradient(kernels: ctypes.CDLL, x: list[Tensor], pairs: Pairs, factors: Tensor, wanted: int) -> Tensor:
    b, c, h, w = x[0].shape
    shape, views = shared(x)
    edges = [
        Edge(p, pair[1 - side]) for p, pair in enumerate(pairs) for side in (0, 1) if pair[side] == wanted
    ]
    storage = guarded(x[0].numel(), x[0].dtype)
    result = storage[GUARD:-GUARD].view((b, h, w, c) if shape.channels_last else (b, c, h, w))
    result = result.permute(0, 3, 1, 2) if shape.channels_last else result
    run = function(kernels, "gradient", x[0].dtype)
    run(2, ctypes.byref(shape), len(x), views, wanted, len(edges), (Edge * len(edges))(*edges),
        ctypes.c_void_p(factors.data_ptr()), ctypes.c_int64(len(pairs)),
        ctypes.byref(view(result, shape.channels_last)))  # fmt: skip
    assert untouched(storage)
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", READ_IN_PLACE)
@pytest.mark.parametrize("name", SHAPES)
def test_distance_and_gradient(kernels: ctypes.CDLL, name: str, layout: str, dtype: torch.dtype) -> None:
    count, pairs, groups = PAIRS["ordered and out of order"]
    shape = (
        (5, 9, 11) if name == "more pixels than a block" else SHAPES[name]
    )  # an emulated GPU is no fast one
    x = descriptors(count, shape, dtype, layout, "cpu")
    for squared in (False, True):
        found = run_distance(kernels, x, pairs, groups, squared)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(
            found.double(), expected(x, pairs, groups, squared), rtol=tolerance, atol=0
        )
    factors = torch.randn(2, len(pairs), *shape[1:], dtype=found.dtype)
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for wanted in range(count):
        gradient = sum(
            factors[:, p, None].double() * (x[wanted].double() - x[pair[1 - side]].double())
            for p, pair in enumerate(pairs)
            for side in (0, 1)
            if pair[side] == wanted
        )
        assert_near(run_gradient(kernels, x, pairs, factors, wanted), gradient, rounding)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("channels", [3, 24, 300])
def test_several_launches_and_any_number_of_blocks(kernels: ctypes.CDLL, channels: int, layout: str) -> None:
    count, pairs, groups = PAIRS["more pairs than a launch"]
    x = descriptors(count, (channels, 5, 7), torch.float32, layout, "cpu")
    first, *others = (run_distance(kernels, x, pairs, groups, False, blocks) for blocks in (1, 4, 64))
    assert_near(first, expected(x, pairs, groups, False), 1e-6)
    for other in others:
        assert torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("count", [0, 128, 129, 300])
def test_a_gradient_of_more_pairs_than_a_launch(
    kernels: ctypes.CDLL, count: int, layout: str, dtype: torch.dtype
) -> None:
    x = descriptors(4, (8, 3, 5), dtype, layout, "cpu")
    pairs = [(0, 1 + i % 2) for i in range(count)] + [(1, 2)]
    factors = torch.randn(2, len(pairs), 3, 5)
    wanted = sum(
        (
            factors[:, p, None].double() * (x[0].double() - x[j].double())
            for p, (i, j) in enumerate(pairs)
            if i == 0
        ),
        torch.zeros(2, 8, 3, 5, dtype=torch.float64),
    )
    rounding = 1e-5 if dtype == torch.float32 else 1e-2
    assert_near(run_gradient(kernels, x, pairs, factors, 0), wanted, rounding)


def test_layouts_of_the_table_are_read_in_place() -> None:
    for layout in READ_IN_PLACE:
        x = LAYOUTS[layout](torch.ones(2, 6, 4, 5))
        assert channels_last(x) == (layout != "planar" and not layout.startswith("planar,"))
