"""A strided residual stage in one pass against its convolutions one by one: the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from stadfast import ops
from stadfast.ops import plain_pytorch, reference

from .test_convolve_blocks import random

pytestmark = pytest.mark.skipif(not ops.has_bf16(), reason="this processor does not multiply bfloat16")

# (batch, groups, channels in and out of a group, height, width, convolutions after the first, stride)
GEOMETRIES = [
    (1, 1, 32, 32, 1, 1, 1, 2),
    (3, 2, 32, 64, 9, 66, 3, 2),
    (2, 2, 64, 32, 14, 31, 3, 2),  # a shortcut that is read from a copy
    (1, 2, 32, 64, 40, 64, 1, 2),  # one that is read in place
    (1, 1, 32, 32, 2, 70, 5, 1),
    (2, 1, 96, 64, 67, 18, 3, 3),
    (0, 1, 32, 32, 4, 4, 1, 2),
]


def case(geometry: tuple[int, ...]) -> tuple:
    """The arguments of convolve_stage."""
    batch, groups, channels, filters, height, width, later, stride = geometry
    x = random(batch, groups * channels, height, width).bfloat16()

    def packed(channels: int, side: int) -> Tensor:
        weight = random(groups * filters, channels, side, side) / (side * channels**0.5)
        return ops.pack_filters(weight.bfloat16())

    block_filters = torch.stack([packed(filters, 3).roll(i) for i in range(later)])
    first = (packed(channels, 3), random(groups * filters), packed(channels, 1), -random(groups * filters))
    block_bias = random(later, groups * filters)
    return x.contiguous(memory_format=torch.channels_last), *first, block_filters, block_bias, stride, groups


def apart(
    x: Tensor, filters: Tensor, bias: Tensor, shortcut_filters: Tensor, shortcut_bias: Tensor,
    block_filters: Tensor, block_bias: Tensor, stride: int, groups: int,
) -> Tensor:  # fmt: skip
    shape = (len(x), len(bias), *((n - 1) // stride + 1 for n in x.shape[2:]))
    y, inner, shortcut = (
        torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last) for _ in range(3)
    )
    ops.convolve_(inner, x, filters, bias, None, [3, 3], stride, [1, 1], groups, True)
    ops.convolve_(shortcut, x, shortcut_filters, shortcut_bias, None, [1, 1], stride, [0, 0], groups, False)
    ops.convolve_(y, inner, block_filters[0], block_bias[0], shortcut, [3, 3], 1, [1, 1], groups, True)
    return ops.convolve_blocks(y, block_filters[1:], block_bias[1:], groups) if len(block_filters) > 1 else y


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_equals_its_convolutions(geometry: tuple, threads: int, set_threads: Callable[[int], None]) -> None:
    given = case(geometry)
    wanted = apart(*given)
    set_threads(threads)
    found = ops.convolve_stage(*given)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("geometry", GEOMETRIES[:-1], ids=str)
def test_equals_the_reference(geometry: tuple) -> None:
    given = case(geometry)
    with plain_pytorch():
        plain = ops.convolve_stage(*given)
    assert torch.equal(plain, reference.convolve_stage(*given))
    torch.testing.assert_close(ops.convolve_stage(*given), plain, rtol=0.03, atol=0.03)


def test_nan_passes_through() -> None:
    """As far as three convolutions see, and no further: nothing of a row that was there before is left."""
    x, *rest = case((2, 1, 32, 32, 24, 80, 1, 2))
    x[0, 3, 12, 40] = float("nan")
    found = ops.convolve_stage(x, *rest)
    wanted = torch.zeros_like(found, dtype=torch.bool)
    wanted[0, :, 5:8, 19:22] = True
    assert torch.equal(found.isnan(), wanted)
    assert torch.equal(ops.convolve_stage(x.nan_to_num(), *rest)[1], found[1])


def test_operator_contract() -> None:
    torch.library.opcheck(torch.ops.stadfast.convolve_stage.default, case(GEOMETRIES[1]))


GIVEN = (
    "input",
    "filters",
    "bias",
    "shortcut_filters",
    "shortcut_bias",
    "block_filters",
    "block_bias",
    "stride",
    "groups",
)
SMALL = dict(zip(GIVEN, case((1, 1, 32, 32, 6, 40, 3, 2)), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(1, 32, 5, 7)}, "bfloat16"),
        ({"input": torch.zeros(1, 64, 5, 7, dtype=torch.bfloat16)}, "pack_filters"),
        ({"stride": 0}, "stride"),
        ({"groups": 2}, "multiples of 32"),
        ({"filters": SMALL["shortcut_filters"]}, "pack_filters"),
        ({"shortcut_filters": SMALL["filters"]}, "pack_filters"),
        ({"shortcut_bias": torch.zeros(64), "shortcut_filters": SMALL["shortcut_filters"].repeat(2)}, "as many"),
        ({"block_filters": SMALL["block_filters"][:2], "block_bias": SMALL["block_bias"][:2]}, "two of both"),
        ({"block_bias": SMALL["block_bias"][:1]}, "two of both"),
        ({"block_bias": SMALL["block_bias"].bfloat16()}, "float32 bias"),
        ({"block_filters": SMALL["block_filters"][:, 1:]}, "pack_filters"),
    ],
)  # fmt: skip
def test_mistakes(change: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.convolve_stage(**{**SMALL, **change})
