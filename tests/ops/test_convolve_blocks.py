"""Residual blocks in one pass against their convolutions one by one: the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from stadfast import ops
from stadfast.ops import plain_pytorch, reference

needs_bf16 = pytest.mark.skipif(not ops.has_bf16(), reason="this processor does not multiply bfloat16")

# (batch, groups, channels of a group, height, width, blocks)
GEOMETRIES = [
    (1, 1, 32, 1, 1, 1),
    (3, 2, 64, 9, 33, 2),
    (2, 2, 32, 7, 16, 3),
    (1, 2, 32, 1, 20, 2),  # one row, all of its neighbours padding
    (1, 1, 32, 2, 70, 2),
    (5, 1, 96, 12, 5, 1),
    (1, 1, 32, 67, 18, 2),  # where there are many threads, several begin in the middle of the image
    (2, 2, 128, 6, 40, 1),
    (0, 1, 32, 4, 4, 1),
]

# (batch, groups, images' sides, kernel, stride, padding; pooling's side, stride, paddings)
STEMS = [
    (2, 2, (37, 70), (7, 7), 2, (3, 3), (3, 2, 1, 1)),
    (1, 1, (70, 41), (7, 7), 2, (3, 3), (3, 2, 1, 1)),
    (3, 2, (9, 8), (3, 3), 1, (1, 1), (2, 2, 0, 0)),
    (1, 1, (20, 37), (3, 3), 1, (0, 1), (2, 3, 1, 0)),  # rows that no window reads
    (0, 1, (20, 37), (3, 3), 1, (1, 1), (2, 2, 0, 0)),
]

Case = tuple[Tensor, Tensor, Tensor, int]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def blocks(groups: int, channels: int, count: int) -> tuple[Tensor, Tensor]:
    """(filters, bias)."""
    weights = random(2 * count, groups * channels, channels, 3, 3).bfloat16() / (3 * channels**0.5)
    return torch.stack([ops.pack_filters(weight) for weight in weights]), random(2 * count, groups * channels)


def case(geometry: tuple[int, ...]) -> Case:
    """The arguments of convolve_blocks."""
    batch, groups, channels, height, width, count = geometry
    x = random(batch, groups * channels, height, width).bfloat16()
    return x.contiguous(memory_format=torch.channels_last), *blocks(groups, channels, count), groups


def stem_case(geometry: tuple) -> tuple:
    """Those of convolve_pool, and those of convolve_blocks that follow in convolve_pool_blocks."""
    batch, groups, sides, kernel, stride, padding, pooling = geometry
    x = random(batch, 3, *sides).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = random(groups * 64, 3, *kernel).bfloat16() / (3 * kernel[0] * kernel[1]) ** 0.5
    bias = random(groups * 64)
    return (x, ops.pack_filters(weight), bias, kernel, stride, padding, pooling), (
        *blocks(groups, 64, 2),
        groups,
    )


def apart(x: Tensor, filters: Tensor, bias: Tensor, groups: int) -> Tensor:
    for i in range(0, len(filters), 2):
        inner, outer = torch.empty_like(x), torch.empty_like(x)
        ops.convolve_(inner, x, filters[i], bias[i], None, [3, 3], 1, [1, 1], groups, True)
        ops.convolve_(outer, inner, filters[i + 1], bias[i + 1], x, [3, 3], 1, [1, 1], groups, True)
        x = outer
    return x


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_bf16
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_equals_its_convolutions(geometry: tuple, threads: int, set_threads: Callable[[int], None]) -> None:
    given = case(geometry)
    wanted = apart(*given)
    set_threads(threads)
    found = ops.convolve_blocks(*given)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, wanted)


@needs_bf16
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("geometry", STEMS, ids=str)
def test_equals_both_apart(geometry: tuple, threads: int, set_threads: Callable[[int], None]) -> None:
    stem, rest = stem_case(geometry)
    wanted = apart(ops.convolve_pool(*stem), *rest)
    set_threads(threads)
    found = ops.convolve_pool_blocks(*stem, *rest)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, wanted)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """But for the roundings on the way."""
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


@needs_bf16
@pytest.mark.parametrize("geometry", GEOMETRIES[:-1], ids=str)
def test_equals_the_reference(geometry: tuple) -> None:
    given = case(geometry)
    assert_close(ops.convolve_blocks(*given), reference.convolve_blocks(*given))


@needs_bf16
@pytest.mark.parametrize("geometry", STEMS[:-1], ids=str)
def test_equals_the_reference_of_both(geometry: tuple) -> None:
    stem, rest = stem_case(geometry)
    assert_close(ops.convolve_pool_blocks(*stem, *rest), reference.convolve_pool_blocks(*stem, *rest))


def test_the_reference_equals_torch() -> None:
    """Without the kernels: the operators of PyTorch, a rounding behind each."""
    groups, channels = 2, 32
    x = random(2, groups * channels, 5, 9).bfloat16().contiguous(memory_format=torch.channels_last)
    weights = random(2, groups * channels, channels, 3, 3).bfloat16() / (3 * channels**0.5)
    bias = random(2, groups * channels)
    inner = (
        torch.nn.functional.conv2d(x.float(), weights[0].float(), bias[0], 1, 1, 1, groups).relu().bfloat16()
    )
    sums = torch.nn.functional.conv2d(inner.float(), weights[1].float(), bias[1], 1, 1, 1, groups) + x
    with plain_pytorch():
        found = ops.convolve_blocks(x, torch.stack([ops.pack_filters(w) for w in weights]), bias, groups)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, sums.relu().bfloat16())


@needs_bf16
def test_views_and_planar_features() -> None:
    given, rest = case(GEOMETRIES[1])[0], case(GEOMETRIES[1])[1:]
    wanted = ops.convolve_blocks(given, *rest)
    assert torch.equal(ops.convolve_blocks(given.contiguous(), *rest), wanted)
    wide = torch.cat([given, given], dim=1).contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.convolve_blocks(wide[:, given.shape[1] :], *rest), wanted)


@needs_bf16
def test_nan_passes_through() -> None:
    """As far as two 3 x 3 convolutions see, and no further: nothing of a row that was there before is left."""
    x, filters, bias, groups = case((2, 1, 32, 12, 40, 1))
    x[0, 3, 6, 20] = float("nan")
    found = ops.convolve_blocks(x, filters, bias, groups)
    wanted = torch.zeros_like(found, dtype=torch.bool)
    wanted[0, :, 4:9, 18:23] = True
    assert torch.equal(found.isnan(), wanted)
    assert torch.equal(ops.convolve_blocks(x.nan_to_num(), filters, bias, groups)[1], found[1])


@needs_bf16
def test_operator_contract() -> None:
    torch.library.opcheck(torch.ops.stadfast.convolve_blocks.default, case(GEOMETRIES[1]))
    stem, rest = stem_case(STEMS[0])
    stem = tuple(list(each) if isinstance(each, tuple) else each for each in stem)
    torch.library.opcheck(torch.ops.stadfast.convolve_pool_blocks.default, (*stem, *rest))


SMALL = case(GEOMETRIES[0])


@needs_bf16
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(1, 32, 5, 7)}, "bfloat16"),
        ({"input": torch.zeros(32, 5, 7, dtype=torch.bfloat16)}, "bfloat16"),
        ({"input": torch.zeros(1, 64, 5, 7, dtype=torch.bfloat16)}, "pack_filters"),
        ({"groups": 0}, "groups"),
        ({"groups": 2}, "multiples of 32"),
        ({"filters": SMALL[1][:0], "bias": SMALL[2][:0]}, "two of both for each block"),
        ({"filters": SMALL[1][:1], "bias": SMALL[2][:1]}, "two of both for each block"),
        ({"bias": SMALL[2][:1]}, "two of both for each block"),
        ({"filters": SMALL[1][0]}, "two of both for each block"),
        ({"bias": SMALL[2][0]}, "two of both for each block"),
        ({"filters": SMALL[1][:, 1:]}, "pack_filters"),
        ({"filters": SMALL[1].float()}, "pack_filters"),
        ({"bias": SMALL[2].bfloat16()}, "float32 bias"),
        ({"bias": torch.zeros(2, 64)}, "pack_filters"),
        ({"filters": torch.zeros(2, 64 * 9 * 32, dtype=torch.bfloat16), "bias": torch.zeros(2, 64)}, "as many"),
    ],
)  # fmt: skip
def test_mistakes(change: dict, message: str) -> None:
    given = dict(zip(("input", "filters", "bias", "groups"), SMALL, strict=True))
    with pytest.raises(RuntimeError, match=message):
        ops.convolve_blocks(**{**given, **change})


@needs_bf16
@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(1, 3, 20, 20), "bfloat16"),
        (1, torch.zeros(5, dtype=torch.bfloat16), "pack_filters"),
        (6, (9, 2, 5, 5), "pooling window"),
        (6, (3, 2, 1), "pooling window"),
        (7, SMALL[1][:0], "two of both for each block"),
        (9, 3, "multiples of 32"),
    ],
)
def test_mistakes_of_both(position: int, value: object, message: str) -> None:
    stem, rest = stem_case(STEMS[0])
    given = [*stem, *rest]
    given[position] = value
    with pytest.raises(RuntimeError, match=message):
        ops.convolve_pool_blocks(*given)
