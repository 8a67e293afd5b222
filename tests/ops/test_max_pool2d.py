"""max_pool2d against PyTorch's own, in every layout and type."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stadfast import ops
from stadfast.errors import UsageError

from .cases import DEVICES, LAYOUTS

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WINDOWS = [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2), (1, 1, 0), (3, 5, 0)]


def features(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 64, 16, 18), (1, 3, 7, 9), (3, 1, 5, 5), (1, 17, 3, 40), (0, 4, 6, 6)], ids=str
)
def test_equals_pytorch(
    device: str, dtype: torch.dtype, window: tuple[int, int, int], shape: tuple[int, ...]
) -> None:
    x = features(shape, dtype, device)
    found = ops.max_pool2d(x.contiguous(memory_format=torch.channels_last), *window)
    assert found.dtype == dtype
    assert torch.equal(found, F.max_pool2d(x, *window))


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout(layout: str) -> None:
    x = features((2, 10, 9, 8), torch.bfloat16, "cpu")
    assert torch.equal(ops.max_pool2d(LAYOUTS[layout](x), 3, 2, 1), F.max_pool2d(x, 3, 2, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_zeros_and_nan(dtype: torch.dtype) -> None:
    values = torch.tensor([float("inf"), float("-inf"), float("nan"), -float("nan"), 0.0, -0.0, 1.0, -1.0])
    for seed in range(20):
        pick = torch.randint(0, 8, (1, 5, 6, 7), generator=torch.Generator().manual_seed(seed))
        x = values[pick].to(dtype)
        torch.testing.assert_close(
            ops.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 3, 2, 1), rtol=0, atol=0, equal_nan=True
        )


def test_is_channels_last_and_does_not_depend_on_threads() -> None:
    x = features((4, 128, 64, 64), torch.bfloat16, "cpu").contiguous(memory_format=torch.channels_last)
    found = ops.max_pool2d(x, 3, 2, 1)
    assert found.is_contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(ops.max_pool2d(x, 3, 2, 1), found)
    finally:
        torch.set_num_threads(before)


def test_opcheck() -> None:
    x = features((2, 8, 9, 10), torch.float32, "cpu").contiguous(memory_format=torch.channels_last)
    above = x[:, :, :3]
    torch.library.opcheck(torch.ops.stadfast.max_pool2d, (x, above, 3, 2, [0, 1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 4, 4), 3, 2, 1), "input: expected a shape"),
        ((torch.ones(1, 2, 4, 4, dtype=torch.float64), 3, 2, 1), "input: expected float32"),
        ((torch.ones(1, 2, 4, 4, requires_grad=True), 3, 2, 1), "F.max_pool2d gives one"),
        ((torch.ones(1, 2, 4, 4), 0, 2, 0), "kernel: expected a number from 1"),
        ((torch.ones(1, 2, 4, 4), 3, 2, 2), "padding: expected 0 to half"),
        ((torch.ones(1, 2, 4, 4), 7, 2, 1), "kernel: expected at most"),
        ((torch.ones(1, 2, 4, 4), 3, 2, (1, 2)), "padding: expected 0 to half"),
    ],
)
def test_messages(arguments: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ops.max_pool2d(*arguments)
    with pytest.raises(UsageError, match="above: expected the input's batch"):
        ops.max_pool2d(torch.ones(1, 2, 4, 4), 3, 2, 1, above=torch.ones(1, 2, 4, 3))


@pytest.mark.parametrize("arguments", [(0, 2, [0, 0]), (3, 0, [1, 1]), (3, 2, [2, 2]), (9, 2, [1, 1])])
def test_memory_is_safe_past_python(arguments: tuple[int, int, list[int]]) -> None:
    ops.backend()
    with pytest.raises(RuntimeError, match="stadfast: max_pool2d"):
        torch.ops.stadfast.max_pool2d(torch.ones(1, 2, 4, 4), None, *arguments)


@pytest.mark.parametrize(
    "above", [torch.ones(1, 2, 2, 5), torch.ones(1, 3, 2, 4), torch.ones(2, 2, 2, 4).half()]
)
def test_memory_is_safe_past_rows_above(above: Tensor) -> None:
    ops.backend()
    with pytest.raises(RuntimeError, match="stadfast: max_pool2d"):
        torch.ops.stadfast.max_pool2d(torch.ones(1, 2, 4, 4), above, 3, 2, [0, 1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [0, 1, 2, 5])
@pytest.mark.parametrize("padding", [(0, 1), (1, 0), (1, 1)])
def test_rows_above_are_rows_of_the_input(device: str, rows: int, padding: tuple[int, int]) -> None:
    x = features((2, 6, 11, 8), torch.bfloat16, device).contiguous(memory_format=torch.channels_last)
    found = ops.max_pool2d(x[:, :, rows:], 3, 2, padding, above=x[:, :, :rows])
    assert torch.equal(found, F.max_pool2d(x, 3, 2, padding))
