"""Residual blocks on the next rows of an endless image: those of the whole image, later."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from stadfast import ops
from stadfast.ops import plain_pytorch

from .test_convolve_blocks import STEMS, blocks, case, random, stem_case

needs_amx = pytest.mark.skipif(not ops.has_amx(), reason="this processor has no AMX")

# (groups, channels of a group, width, blocks, rows of each step)
STRIPS = [
    (2, 32, 33, 2, [1, 1, 2, 7, 3, 16]),
    (1, 64, 5, 1, [4, 4, 1, 4]),
    (3, 32, 70, 3, [12, 8]),
]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_amx), False])
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


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_amx), False])
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


@needs_amx
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


@needs_amx
def test_operator_contract() -> None:
    torch.library.opcheck(torch.ops.stadfast.stream_blocks_.default, tuple(small().values()))
    stem, rest = stem_case((1, *STEMS[0][1:]))
    stem = tuple(list(each) if isinstance(each, tuple) else each for each in stem)
    output = ops.convolve_pool(*stem)
    carried = channels_last(torch.zeros(len(rest[0]), output.shape[1], 2, output.shape[3]).bfloat16())
    torch.library.opcheck(torch.ops.stadfast.stream_pool_blocks_.default, (output, *stem, carried, *rest))


@needs_amx
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
