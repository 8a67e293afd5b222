"""convolve_ against torch's convolution, in all geometries that it takes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stadfast import ops
from stadfast.ops import plain_pytorch

needs_bf16 = pytest.mark.skipif(not ops.has_bf16(), reason="this processor does not multiply bfloat16")

# (batch, groups, channels in and out of a group, height, width, kernel, stride, padding)
GEOMETRIES = [
    (1, 1, 32, 32, 5, 7, (3, 3), 1, (1, 1)),
    (2, 2, 64, 64, 9, 33, (3, 3), 1, (0, 1)),
    (3, 2, 32, 96, 8, 16, (3, 3), 1, (1, 1)),
    (1, 2, 64, 32, 17, 65, (3, 3), 2, (1, 1)),
    (1, 1, 96, 64, 6, 40, (1, 1), 2, (0, 0)),
    (2, 2, 64, 32, 5, 32, (1, 1), 1, (0, 0)),  # read in place
    (2, 1, 32, 32, 5, 31, (1, 1), 2, (0, 0)),  # likewise, two rows at once
    (2, 1, 32, 64, 11, 12, (5, 3), 1, (2, 1)),
    (1, 2, 32, 32, 3, 1, (3, 1), 3, (0, 0)),
    (1, 1, 32, 128, 5, 7, (3, 3), 1, (1, 1)),  # fewer rows than threads
    (2, 1, 3, 64, 21, 38, (7, 7), 2, (3, 3)),  # the values under a row are no multiple of 32
    (1, 1, 20, 32, 6, 18, (3, 3), 1, (1, 1)),
    (1, 1, 32, 32, 4, 18, (1, 2), 2, (3, 4)),  # more padding than window
    (1, 2, 256, 256, 6, 64, (3, 3), 1, (0, 1)),  # filters larger than a core's cache
    (2, 1, 8, 32, 1, 1, (3, 3), 1, (1, 1)),  # a single pixel, whose stride says nothing
    (3, 1, 24, 32, 1, 1, (1, 1), 1, (0, 0)),
]


def case(geometry: tuple, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(input, weight, bias, residual)."""
    batch, groups, channels, filters, height, width, kernel, stride, padding = geometry
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, groups * channels, height, width, generator=generator).bfloat16()
    weight = torch.randn(groups * filters, channels, *kernel, generator=generator) / channels**0.5
    bias = torch.randn(groups * filters, generator=generator)
    size = [(n + 2 * p - k) // stride + 1 for n, p, k in zip((height, width), padding, kernel, strict=True)]
    residual = torch.randn(batch, groups * filters, *size, generator=generator).bfloat16()
    return interleaved(x), weight.bfloat16(), bias, interleaved(residual)


def interleaved(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def run(
    output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    geometry: tuple,
    relu: bool,
):
    _, groups, *_, kernel, stride, padding = geometry
    filters = ops.pack_filters(weight)
    return ops.convolve_(output, x, filters, bias, residual, kernel, stride, padding, groups, relu)


def exact(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, geometry: tuple, relu: bool
) -> Tensor:
    _, groups, *_, stride, padding = geometry
    y = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding, 1, groups)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    """But for one rounding, and that of sums in float32."""
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_bf16), False])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_equals_torch(geometry: tuple, added: bool, relu: bool, compiled: bool) -> None:
    x, weight, bias, residual = case(geometry)
    output = torch.full_like(residual, float("nan"))  # whatever was there
    with contextlib.nullcontext() if compiled else plain_pytorch():
        assert ops.convolve_takes(weight, [geometry[-2]] * 2, [1, 1], geometry[1]) == compiled
        found = run(output, x, weight, bias, residual if added else None, geometry, relu)
    assert found is output
    assert_equal(found, exact(x, weight, bias, residual if added else None, geometry, relu))


POOLED = [  # and the pooling's side, stride, paddings
    ((2, 1, 3, 64, 37, 70, (7, 7), 2, (3, 3)), (3, 2, 1, 1)),
    ((1, 1, 32, 32, 6, 9, (3, 3), 1, (1, 1)), (2, 2, 0, 0)),
    ((3, 1, 32, 96, 5, 33, (1, 1), 1, (0, 0)), (3, 1, 0, 1)),
    ((1, 1, 64, 32, 9, 40, (3, 3), 1, (1, 1)), (2, 3, 1, 0)),
]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_bf16), False])
@pytest.mark.parametrize(("geometry", "pooling"), POOLED, ids=str)
def test_pooled_equals_both_apart(geometry: tuple, pooling: tuple, compiled: bool, threads: int) -> None:
    x, weight, bias, residual = case(geometry)
    _, _, *_, kernel, stride, padding = geometry
    apart = run(torch.empty_like(residual), x, weight, bias, None, geometry, True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with contextlib.nullcontext() if compiled else plain_pytorch():
            found = ops.convolve_pool(x, ops.pack_filters(weight), bias, kernel, stride, padding, pooling)
    finally:
        torch.set_num_threads(before)
    wanted = F.max_pool2d(apart, pooling[0], pooling[1], pooling[2:])
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, wanted, rtol=0 if compiled else 2**-7, atol=0 if compiled else 1e-4)


@needs_bf16
def test_nan_is_the_highest_and_zero_the_lowest() -> None:
    geometry, pooling = POOLED[1]
    x, weight, bias, _ = case(geometry)
    x[0, 0, 2, 4] = float("nan")
    filters = ops.pack_filters(weight)
    found = ops.convolve_pool(x, filters, bias - 1e6, [3, 3], 1, [1, 1], pooling)
    wanted = torch.zeros(3, 4).index_put(
        (torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 1, 2])), torch.tensor(1.0)
    )
    assert torch.equal(found.isnan()[0, 5], wanted.bool())
    assert torch.equal(found.nan_to_num(0.0), torch.zeros_like(found))


@needs_bf16
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("geometry", [GEOMETRIES[1], GEOMETRIES[9]], ids=str)
def test_threads_change_nothing(geometry: tuple, threads: int) -> None:
    x, weight, bias, residual = case(geometry)
    once = run(torch.empty_like(residual), x, weight, bias, residual, geometry, True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(run(torch.empty_like(residual), x, weight, bias, residual, geometry, True), once)
    finally:
        torch.set_num_threads(before)


@needs_bf16
def test_views_of_rows_and_channels_and_the_residual_itself() -> None:
    """As row streaming has them: windows of a memory, results behind the rows that are carried, sums in place."""
    geometry = GEOMETRIES[1]
    x, weight, bias, residual = case(geometry)
    x, residual = x[:1], residual[:1]
    wanted = exact(x, weight, bias, residual, geometry, True)
    wide = interleaved(torch.cat([x, x], dim=1))
    wide = interleaved(torch.cat([wide, wide], dim=2))
    memory = interleaved(torch.cat([torch.zeros_like(residual[:, :, :2]), residual], dim=2))
    output = memory[:, :, 2:]
    run(output, wide[:, : x.shape[1], : x.shape[2]], weight, bias, output, geometry, True)
    assert_equal(output, wanted)
    assert not memory[:, :, :2].any()


@needs_bf16
def test_planar_features_are_copied() -> None:
    geometry = GEOMETRIES[0]
    x, weight, bias, residual = case(geometry)
    found = run(
        torch.empty_like(residual), x.contiguous(), weight, bias, residual.contiguous(), geometry, False
    )
    assert_equal(found, exact(x, weight, bias, residual, geometry, False))


@needs_bf16
def test_nan_and_infinity_stay() -> None:
    geometry = GEOMETRIES[0]
    x, weight, bias, residual = case(geometry)
    x[0, 0, 0, 0], residual[0, 1, 4, 6] = float("nan"), float("inf")
    found = run(torch.empty_like(residual), x, weight, bias, residual, geometry, True)
    assert found[0, :, :2, :2].isnan().all()
    assert found[0, 1, 4, 6] == float("inf")
    assert found[0, 2:, 2:, 2:].isfinite().all()


@needs_bf16
def test_others_tiles_are_left_alone() -> None:
    """oneDNN keeps its tiles' shapes between two calls."""
    geometry = GEOMETRIES[1]
    x, weight, bias, residual = case(geometry)
    before = F.conv2d(x, weight, bias.bfloat16(), 1, (0, 1), 1, 2)
    for _ in range(3):
        run(torch.empty_like(residual), x, weight, bias, None, geometry, False)
        assert torch.equal(F.conv2d(x, weight, bias.bfloat16(), 1, (0, 1), 1, 2), before)


@needs_bf16
def test_operator_contract() -> None:
    geometry = GEOMETRIES[2]
    x, weight, bias, residual = case(geometry)
    arguments = (
        torch.empty_like(residual),
        x,
        ops.pack_filters(weight),
        bias,
        residual,
        [3, 3],
        1,
        [1, 1],
        2,
        True,
    )
    torch.library.opcheck(torch.ops.stadfast.convolve_.default, arguments)
    geometry, pooling = POOLED[0]
    x, weight, bias, _ = case(geometry)
    pooled = (x, ops.pack_filters(weight), bias, [7, 7], 2, [3, 3], list(pooling))
    torch.library.opcheck(torch.ops.stadfast.convolve_pool.default, pooled)


@needs_bf16
def test_what_convolve_takes() -> None:
    weight = torch.zeros(64, 32, 3, 3, dtype=torch.bfloat16)
    assert ops.convolve_takes(weight, [1, 1], [1, 1], 2)
    assert not ops.convolve_takes(weight.half(), [1, 1], [1, 1], 2)
    assert ops.convolve_takes(weight[:, :6], [1, 1], [1, 1], 1)
    assert not ops.convolve_takes(weight[:, :5], [1, 1], [1, 1], 1)
    assert not ops.convolve_takes(weight[:, :16], [2, 2], [1, 1], 2)
    assert not ops.convolve_takes(weight[:40], [1, 1], [1, 1], 1)
    assert not ops.convolve_takes(weight, [1, 2], [1, 1], 2)
    assert not ops.convolve_takes(weight, [1, 1], [2, 2], 2)
    assert not ops.convolve_takes(weight.new_zeros(32, 32, 32, 1), [1, 1], [1, 1], 1)
    with plain_pytorch():
        assert not ops.convolve_takes(weight, [1, 1], [1, 1], 2)


@needs_bf16
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": torch.zeros(1, 32, 5, 6, dtype=torch.bfloat16), "residual": None}, "does not follow"),
        ({"output": torch.zeros(1, 32, 5, 7)}, "bfloat16"),
        ({"x": torch.zeros(1, 32, 5, 7)}, "bfloat16"),
        ({"x": torch.zeros(32, 5, 7, dtype=torch.bfloat16)}, "bfloat16"),
        ({"residual": torch.zeros(1, 32, 5, 6, dtype=torch.bfloat16)}, "residual"),
        ({"weight": torch.zeros(32, 32, 1, 1, dtype=torch.bfloat16)}, "pack_filters"),
        ({"bias": torch.zeros(31)}, "multiples of 32"),
        ({"bias": torch.zeros(64)}, "pack_filters"),
        ({"bias": torch.zeros(32, dtype=torch.bfloat16)}, "bias"),
    ],
)  # fmt: skip
def test_mistakes(change: dict, message: str) -> None:
    geometry = GEOMETRIES[0]
    x, weight, bias, residual = case(geometry)
    given = {
        "output": torch.empty_like(residual),
        "x": x,
        "weight": weight,
        "bias": bias,
        "residual": residual,
    }
    given |= change
    given["output"] = interleaved(given["output"])
    with pytest.raises(RuntimeError, match=message):
        run(**given, geometry=geometry, relu=True)


HUGE = 2**63 - 1


@needs_bf16
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("convolve_", ([HUGE, 3], 2**62, [1, 1], 1, False)),
        ("convolve_", ([3, 3], 1, [1, HUGE], 1, False)),
        ("convolve_pool", ([3, 3], 1, [1, 1], [3, 1, HUGE, 0])),
        ("convolve_pool", ([3, 3], 1, [1, 1], [3, HUGE, 0, HUGE])),
        ("winograd_", ([1, 1], 2**60, False)),
        ("max_pool2d", (HUGE, 1, [2**62, 0])),
        ("max_pool2d", (2, HUGE, [1, 1])),
    ],
)
def test_absurd_numbers_are_refused(name: str, arguments: tuple) -> None:
    """Past Python's checks, as an archive may call: before a sum or a product of them overflows."""
    x, weight, bias, residual = case(GEOMETRIES[0])
    filters = ops.pack_filters(weight, winograd=name == "winograd_")
    tensors = {
        "convolve_": (torch.empty_like(residual), x, filters, bias, None),
        "convolve_pool": (x, filters, bias),
        "winograd_": (torch.empty_like(residual), x, filters, bias, None),
        "max_pool2d": (x, None),
    }[name]
    with pytest.raises(RuntimeError, match="expected"):
        getattr(torch.ops.stadfast, name)(*tensors, *arguments)


@pytest.mark.skipif(not ops.has_amx(), reason="this processor has no AMX: all tests ran without")
def test_without_matrix_units() -> None:
    """The same by vectors, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "not without_matrix_units", str(Path(__file__))]
    done = subprocess.run(command, env=os.environ | {"STADFAST_AMX": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
