"""convolve_ by Winograd's algorithm against torch's convolution."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stadfast import ops
from stadfast.ops import plain_pytorch

compiled_only = pytest.mark.skipif("cpu" not in ops.backend().name, reason="no compiled kernels")

needs_bf16 = pytest.mark.skipif(not ops.has_bf16(), reason="this processor does not multiply bfloat16")
both = pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])

# (batch, groups, channels and filters of a group, height, width, padding)
GEOMETRIES = [
    (1, 1, 64, 64, 8, 12, (1, 1)),
    (2, 1, 16, 48, 7, 9, (1, 1)),  # odd sides: half of the last tiles lies outside
    (3, 1, 32, 16, 5, 4, (0, 1)),  # as row streaming has it
    (1, 1, 16, 80, 1, 1, (1, 1)),
    (1, 1, 48, 32, 3, 3, (0, 0)),  # one pixel
    (2, 1, 16, 16, 2, 21, (3, 2)),  # more padding than window
    (1, 1, 144, 144, 6, 6, (1, 1)),  # filters shared out among threads
    (4, 1, 32, 32, 16, 16, (1, 1)),  # several blocks of tiles
    (2, 3, 16, 32, 6, 11, (1, 1)),
    (1, 2, 144, 160, 8, 4, (0, 1)),  # groups whose filters are shared out
    (0, 1, 16, 16, 8, 8, (1, 1)),  # nothing
]


def case(geometry: tuple, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(input, weight, bias, residual)."""
    batch, groups, channels, filters, height, width, (above, beside) = geometry
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, groups * channels, height, width, generator=generator)
    weight = torch.randn(groups * filters, channels, 3, 3, generator=generator) / (3 * channels**0.5)
    bias = torch.randn(groups * filters, generator=generator)
    size = (height + 2 * above - 2, width + 2 * beside - 2)
    residual = torch.randn(batch, groups * filters, *size, generator=generator)
    return interleaved(x.to(dtype)), weight.to(dtype), bias, interleaved(residual.to(dtype))


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
    filters = ops.pack_filters(weight, winograd=True)
    return ops.convolve_(output, x, filters, bias, residual, [3, 3], 1, geometry[-1], geometry[1], relu)


def exact(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, geometry: tuple, relu: bool
) -> Tensor:
    y = F.conv2d(x.double(), weight.double(), bias.double(), 1, geometry[-1], 1, geometry[1])
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    narrow = found.dtype == torch.bfloat16  # what is multiplied is rounded, and so is the sum
    tolerance = {"rtol": 2**-7, "atol": 0.03} if narrow else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.double(), wanted, **tolerance)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=compiled_only), False])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@both
def test_equals_torch(dtype: torch.dtype, geometry: tuple, added: bool, relu: bool, compiled: bool) -> None:
    x, weight, bias, residual = case(geometry, dtype)
    output = torch.full_like(residual, float("nan"))  # whatever was there
    with contextlib.nullcontext() if compiled else plain_pytorch():
        found = run(output, x, weight, bias, residual if added else None, geometry, relu)
    assert found is output
    assert_equal(found, exact(x, weight, bias, residual if added else None, geometry, relu))


@compiled_only
def test_rounds_as_much_as_plain_sums() -> None:
    geometry = (1, 1, 128, 128, 16, 16, (1, 1))
    x, weight, bias, residual = case(geometry)
    wanted = exact(x, weight, bias, None, geometry, False)
    found = run(torch.empty_like(residual), x, weight, bias, None, geometry, False)
    plain = F.conv2d(x, weight, bias, 1, 1)
    assert (found - wanted).abs().max() < 3 * (plain - wanted).abs().max()


@needs_bf16
def test_rounds_bfloat16_less_than_twice_as_much() -> None:
    """Against sums of the weight as it was before it was bfloat16, both results rounded."""
    geometry = (1, 1, 128, 128, 16, 16, (1, 1))
    x, weight, bias, _ = case(geometry)
    narrow, wanted = x.bfloat16(), exact(x.bfloat16(), weight, bias, None, geometry, False)
    found = run(torch.empty_like(narrow), narrow, weight.bfloat16(), bias, None, geometry, False)
    plain = exact(narrow, weight.bfloat16(), bias, None, geometry, False).bfloat16()
    assert (found - wanted).square().mean().sqrt() < 2 * (plain - wanted).square().mean().sqrt()


@compiled_only
@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("geometry", [GEOMETRIES[1], GEOMETRIES[6], GEOMETRIES[7], GEOMETRIES[9]], ids=str)
@both
def test_threads_change_nothing(dtype: torch.dtype, geometry: tuple, threads: int) -> None:
    x, weight, bias, residual = case(geometry, dtype)
    once = run(torch.empty_like(residual), x, weight, bias, residual, geometry, True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(run(torch.empty_like(residual), x, weight, bias, residual, geometry, True), once)
    finally:
        torch.set_num_threads(before)


@compiled_only
@both
def test_views_of_rows_and_channels_and_the_residual_itself(dtype: torch.dtype) -> None:
    """As row streaming has them: windows of a memory, results behind the rows that are carried, sums in place."""
    geometry = GEOMETRIES[0]
    x, weight, bias, residual = case(geometry, dtype)
    wide = interleaved(torch.cat([x, x], dim=1))
    wide = interleaved(torch.cat([wide, wide], dim=2))
    memory = interleaved(torch.cat([torch.zeros_like(residual[:, :, :2]), residual], dim=2))
    output = memory[:, :, 2:]
    run(output, wide[:, : x.shape[1], : x.shape[2]], weight, bias, output, geometry, True)
    assert_equal(output, exact(x, weight, bias, residual, geometry, True))
    assert not memory[:, :, :2].any()


@compiled_only
@both
def test_planar_features_are_copied(dtype: torch.dtype) -> None:
    geometry = GEOMETRIES[1]
    x, weight, bias, residual = case(geometry, dtype)
    found = run(
        torch.empty_like(residual), x.contiguous(), weight, bias, residual.contiguous(), geometry, False
    )
    assert_equal(found, exact(x, weight, bias, residual, geometry, False))


@compiled_only
@both
def test_nan_stays_and_spreads_no_further_than_the_tile_beside(dtype: torch.dtype) -> None:
    geometry = GEOMETRIES[0]
    x, weight, bias, residual = case(geometry, dtype)
    x[0, 0, 0, 0], residual[0, 1, 7, 6] = float("nan"), float("inf")
    found = run(torch.empty_like(residual), x, weight, bias, residual, geometry, True)
    assert found[0, :, :2, :2].isnan().all()
    assert found[0, 1, 7, 6] == float("inf")
    assert found[0, :, 2:6].isfinite().all()
    assert found[0, :, :, 8:].isfinite().all()


@compiled_only
@both
def test_operator_contract(dtype: torch.dtype) -> None:
    geometry = GEOMETRIES[1]
    x, weight, bias, residual = case(geometry, dtype)
    arguments = (
        torch.empty_like(residual),
        x,
        ops.pack_filters(weight, winograd=True),
        bias,
        residual,
        [1, 1],
        1,
        True,
    )
    torch.library.opcheck(torch.ops.stadfast.winograd_.default, arguments)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="no AVX2")
@compiled_only
def test_what_convolve_takes() -> None:
    weight = torch.zeros(64, 32, 3, 3)
    assert ops.convolve_takes(weight, [1, 1], [1, 1], 1)
    assert not ops.convolve_takes(weight.double(), [1, 1], [1, 1], 1)
    assert not ops.convolve_takes(weight, [2, 2], [1, 1], 1)
    assert not ops.convolve_takes(weight, [1, 1], [2, 2], 1)
    assert ops.convolve_takes(weight, [1, 1], [1, 1], 2)
    assert not ops.convolve_takes(weight, [1, 1], [1, 1], 8)
    assert not ops.convolve_takes(weight[..., :1], [1, 1], [1, 1], 1)
    assert not ops.convolve_takes(weight[:, :24], [1, 1], [1, 1], 1)
    assert not ops.convolve_takes(weight[:24], [1, 1], [1, 1], 1)
    with plain_pytorch():
        assert not ops.convolve_takes(weight, [1, 1], [1, 1], 1)


@needs_bf16
def test_on_matrix_units_plain_sums_are_faster() -> None:
    weight = torch.zeros(64, 32, 3, 3).bfloat16()
    assert ops.winograd_takes(weight, [1, 1], [1, 1], 1) is not ops.has_amx()
    assert not ops.winograd_takes(weight, [2, 2], [1, 1], 1)
    assert ops.convolve_takes(weight, [1, 1], [1, 1], 1)
    assert not ops.is_winograd(ops.pack_filters(weight))
    assert ops.is_winograd(ops.pack_filters(weight, winograd=True))


@compiled_only
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": interleaved(torch.zeros(1, 64, 8, 11)), "residual": None}, "does not follow"),
        ({"output": torch.zeros(1, 64, 8, 12)}, "channels_last"),
        ({"output": torch.zeros(1, 64, 8, 12, dtype=torch.bfloat16)}, "filters' type"),
        ({"x": torch.zeros(1, 64, 8, 12, dtype=torch.bfloat16)}, "filters' type"),
        ({"x": torch.zeros(64, 8, 12)}, "filters' type"),
        ({"weight": torch.zeros(64, 64, 3, 3).double()}, "float32 or bfloat16"),
        ({"x": torch.zeros(1, 24, 8, 12)}, "multiples of 16"),
        ({"residual": torch.zeros(1, 64, 8, 11)}, "residual"),
        ({"weight": torch.zeros(64, 32, 3, 3)}, "pack_filters"),
        ({"bias": torch.zeros(63)}, "multiples of 16"),
        ({"bias": torch.zeros(32)}, "pack_filters"),
        ({"bias": torch.zeros(64, dtype=torch.float64)}, "float32 bias"),
        ({"padding": (1,)}, "paddings"),
        ({"padding": (-1, 1)}, "paddings"),
        ({"x": torch.zeros(1, 64, 2, 12), "padding": (0, 1)}, "larger"),
        ({"kernel": (1, 1)}, "3 x 3"),
        ({"stride": 2}, "3 x 3"),
        ({"groups": 2}, "pack_filters"),
        ({"groups": 8}, "each group"),
        ({"groups": 0}, "two paddings, and groups"),
    ],
)  # fmt: skip
def test_mistakes_are_named(change: dict, message: str) -> None:
    x, weight, bias, residual = case(GEOMETRIES[0])
    given = {
        "output": torch.empty_like(residual), "x": x, "weight": weight, "bias": bias, "residual": residual,
        "kernel": (3, 3), "stride": 1, "padding": (1, 1), "groups": 1, **change,
    }  # fmt: skip
    filters = ops.pack_filters(given.pop("weight"), winograd=True)
    with pytest.raises(RuntimeError, match=message):
        ops.convolve_(given["output"], given["x"], filters, given["bias"], given["residual"], given["kernel"],
                      given["stride"], given["padding"], given["groups"], True)  # fmt: skip
