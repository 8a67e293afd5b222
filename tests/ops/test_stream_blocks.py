"""Residual blocks on the next rows of an endless image: those of the whole image, later."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from stadfast import ops
from stadfast.ops import plain_pytorch

from .test_convolve_blocks import STEMS, blocks, case, random, stem_case

needs_bf16 = pytest.mark.skipif(not ops.has_bf16(), reason="this processor does not multiply bfloat16")

# (groups, channels of a group, width, blocks, rows of each step)
STRIPS = [
    (2, 32, 33, 2, [1, 1, 2, 7, 3, 16]),
    (1, 64, 5, 1, [4, 4, 1, 4]),
    (3, 32, 70, 3, [12, 8]),
]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_bf16), False])
@pytest.mark.parametrize("strip", STRIPS, ids=str)
def test_steps_give_the_rows_of_the_whole(strip: tuple, compiled: bool) -> None:
    groups, channels, width, count, steps = strip
    filters, bias = blocks(groups, channels, count)
    above = 2 * len(filters)  # so many rows are at the strip's beginning, of which the whole knows nothing
    x = channels_last(random(1, groups * channels, above + sum(steps), width).bfloat16())
    carried = channels_last(torch.zeros(len(filters), groups * channels, 2, width, dtype=torch.bfloat16))
    with contextlib.nullcontext() if compiled else plain_pytorch():
        whole = ops.convolve_blocks(x, filters, bias, groups)
        rows = []
        for part in x.split([above, *steps], dim=2):
            memory = channels_last(torch.full((1, part.shape[1], part.shape[2] + 3, width), 7.0).bfloat16())
            output = memory[:, :, 2:-1]
            assert ops.stream_blocks_(output, part, carried, filters, bias, groups) is output
            assert (memory[:, :, :2] == 7).all()
            assert (memory[:, :, -1:] == 7).all()
            rows.append(output)
    found = torch.cat(rows, dim=2)
    wanted = whole[:, :, len(filters) : -len(filters)]
    found = found[:, :, 2 * len(filters) :]
    if compiled:
        assert torch.equal(found, wanted)
    else:
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
    assert torch.equal(carried[:1], x[:, :, -2:])


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_bf16), False])
@pytest.mark.parametrize("geometry", STEMS[:4], ids=str)
def test_behind_a_pooling(geometry: tuple, compiled: bool) -> None:
    stem, (filters, bias, groups) = stem_case((1, *geometry[1:]))
    with contextlib.nullcontext() if compiled else plain_pytorch():
        pooled = ops.convolve_pool(*stem)
        carried = channels_last(random(len(filters), pooled.shape[1], 2, pooled.shape[3]).bfloat16())
        wanted_carried = carried.clone()
        wanted = ops.stream_blocks_(torch.empty_like(pooled), pooled, wanted_carried, filters, bias, groups)
        output = torch.empty_like(pooled)
        assert ops.stream_pool_blocks_(output, *stem, carried, filters, bias, groups) is output
    assert torch.equal(output, wanted)
    assert torch.equal(carried, wanted_carried)


# (groups, channels in and out of a group, rows and columns of the output, convolutions after the first, stride, rows of
# the shortcut above the new ones)
STAGES = [
    (2, 32, 64, 8, 33, 3, 2, 2),
    (1, 64, 32, 1, 5, 1, 2, 1),
    (3, 32, 32, 4, 70, 1, 1, 5),
    (2, 32, 192, 4, 16, 5, 2, 0),  # more filters than the cache holds
]


def stage_case(geometry: tuple[int, ...]) -> dict:
    """The arguments of stream_stage_, by name."""
    groups, channels, filters, rows, columns, later, stride, above = geometry

    def features(rows: int, columns: int, channels: int, batch: int = 1) -> Tensor:
        return channels_last(random(batch, groups * channels, rows, columns).bfloat16())

    def packed(channels: int, side: int) -> Tensor:
        weight = random(groups * filters, channels, side, side) / (side * channels**0.5)
        return ops.pack_filters(weight.bfloat16())

    return {
        "output": torch.empty_like(features(rows, columns, filters)),
        "input": features((rows - 1) * stride + 3, columns * stride, channels),
        "filters": packed(channels, 3), "bias": random(groups * filters),
        "shortcut": features(above + rows, columns, 2 * filters)[:, : groups * filters],
        "shortcut_input": features((rows - 1) * stride + 1, columns * stride, channels),
        "shortcut_filters": packed(channels, 1), "shortcut_bias": -random(groups * filters),
        "stride": stride, "carried": features(2, columns, filters, later),
        "block_filters": torch.stack([packed(filters, 3).roll(i) for i in range(later)]),
        "block_bias": random(later, groups * filters), "groups": groups,
    }  # fmt: skip


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_bf16), False])
@pytest.mark.parametrize("geometry", STAGES, ids=str)
def test_behind_a_stride(geometry: tuple, compiled: bool) -> None:
    given = stage_case(geometry)
    rows, stride, groups, filters = (given[n] for n in ("output", "stride", "groups", "block_filters"))
    shortcut, carried, bias = (given[name].clone() for name in ("shortcut", "carried", "block_bias"))
    with contextlib.nullcontext() if compiled else plain_pytorch():
        inner, y, wanted = (torch.empty_like(rows) for _ in range(3))
        first = (given["input"], given["filters"], given["bias"], None)
        ops.convolve_(inner, *first, [3, 3], stride, [0, 1], groups, True)
        beside = (given["shortcut_input"], given["shortcut_filters"], given["shortcut_bias"], None)
        ops.convolve_(shortcut[:, :, geometry[-1] :], *beside, [1, 1], stride, [0, 0], groups, False)
        window = channels_last(torch.cat([carried[:1], inner], 2))
        added = shortcut[:, :, : rows.shape[2]]
        ops.convolve_(y, window, filters[0], bias[0], added, [3, 3], 1, [0, 1], groups, True)
        carried[0] = window[0, :, -2:]
        if len(filters) > 1:
            ops.stream_blocks_(wanted, y, carried[1:], filters[1:], bias[1:], groups)
        assert ops.stream_stage_(**given) is rows
    assert torch.equal(rows, wanted if len(filters) > 1 else y)
    assert torch.equal(given["carried"], carried)
    assert torch.equal(given["shortcut"], shortcut)


@needs_bf16
def test_threads_change_nothing() -> None:
    groups, channels, width, count, steps = STRIPS[0]
    filters, bias = blocks(groups, channels, count)
    x = channels_last(random(1, groups * channels, steps[-1], width).bfloat16())
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            carried = channels_last(random(len(filters), groups * channels, 2, width).bfloat16())
            output = ops.stream_blocks_(torch.empty_like(x), x, carried, filters, bias, groups)
            results.append((output, carried))
    finally:
        torch.set_num_threads(before)
    for output, carried in results[1:]:
        assert torch.equal(output, results[0][0])
        assert torch.equal(carried, results[0][1])


def small() -> dict:
    x, filters, bias, groups = case((1, 1, 32, 5, 7, 1))
    carried = channels_last(torch.zeros(2, 32, 2, 7, dtype=torch.bfloat16))
    return {
        "output": torch.empty_like(x), "input": x, "carried": carried, "filters": filters, "bias": bias,
        "groups": groups,
    }  # fmt: skip


@needs_bf16
def test_operator_contract() -> None:
    torch.library.opcheck(torch.ops.stadfast.stream_blocks_.default, tuple(small().values()))
    stem, rest = stem_case((1, *STEMS[0][1:]))
    stem = tuple(list(each) if isinstance(each, tuple) else each for each in stem)
    output = ops.convolve_pool(*stem)
    carried = channels_last(torch.zeros(len(rest[0]), output.shape[1], 2, output.shape[3]).bfloat16())
    torch.library.opcheck(torch.ops.stadfast.stream_pool_blocks_.default, (output, *stem, carried, *rest))
    stage = stage_case(STAGES[0])
    torch.library.opcheck(torch.ops.stadfast.stream_stage_.default, tuple(stage.values()))


@needs_bf16
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input", torch.zeros(1, 32, 5, 7), "bfloat16"),
        ("input", torch.zeros(2, 32, 5, 7, dtype=torch.bfloat16), "one image"),
        ("carried", torch.zeros(2, 32, 2, 7), "carried"),
        ("carried", channels_last(torch.zeros(2, 32, 3, 7).bfloat16()), "carried"),
        ("carried", channels_last(torch.zeros(1, 32, 2, 7).bfloat16()), "carried"),
        ("carried", torch.zeros(2, 32, 2, 7).bfloat16(), "carried"),
        ("output", channels_last(torch.zeros(1, 32, 4, 7).bfloat16()), "output"),
        ("output", torch.zeros(1, 32, 5, 7).bfloat16(), "output"),
        ("groups", 2, "multiples of 32"),
    ],
)
def test_mistakes(name: str, value: object, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.stream_blocks_(**{**small(), name: value})


@needs_bf16
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input", torch.zeros(1, 32, 3, 10), "bfloat16"),
        ("input", channels_last(torch.zeros(1, 32, 11, 10).bfloat16()), "as many"),
        ("bias", torch.zeros(9).bfloat16(), "multiples of 32"),
        ("stride", 0, "stride"),
        ("shortcut", channels_last(torch.zeros(1, 32, 3, 5).bfloat16()), "shortcut"),
        ("shortcut", torch.zeros(1, 32, 4, 5).bfloat16(), "shortcut"),
        ("shortcut", channels_last(torch.zeros(1, 32, 4, 5)), "shortcut"),
        ("shortcut_input", channels_last(torch.zeros(1, 32, 9, 10).bfloat16()), "as many"),
        ("shortcut_filters", torch.zeros(64).bfloat16(), "pack_filters"),
        ("carried", torch.zeros(1, 32, 3, 5).bfloat16(), "carried"),
        ("groups", 2, "multiples of 32"),
    ],
)
def test_mistakes_behind_a_stride(name: str, value: object, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.stream_stage_(**{**stage_case((1, 32, 32, 4, 5, 1, 2, 1)), name: value})
