"""normalize_images against the lines of PyTorch that it stands for, in every layout and type."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stadfast import ops
from stadfast.errors import UsageError
from stadfast.ops import reference

from .cases import DEVICES

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SHAPES = [(2, 3, 16, 18), (1, 3, 1, 1), (3, 3, 5, 1), (1, 3, 1, 7), (1, 3, 33, 67), (0, 3, 4, 4)]
LAYOUTS = {
    "planar": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "cropped": lambda x: torch.nn.functional.pad(x, (3, 2, 1, 4)).contiguous(
        memory_format=torch.channels_last
    )[:, :, 1 : 1 + x.shape[2], 3 : 3 + x.shape[3]],
    "with alpha": lambda x: torch.cat([x, x[:, :1]], dim=1).contiguous(memory_format=torch.channels_last)[:, :3],
    "planar, cropped": lambda x: torch.nn.functional.pad(x, (3, 2, 1, 4))[
        :, :, 1 : 1 + x.shape[2], 3 : 3 + x.shape[3]
    ],
    "grey": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "rows swapped": lambda x: x.mT.contiguous().mT,
}  # fmt: skip


def pixels(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> Tensor:
    values = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return (values if dtype == torch.uint8 else values / 255).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_equals_pytorch(
    device: str, dtype: torch.dtype, wanted: torch.dtype, shape: tuple[int, ...], layout: str
) -> None:
    images = LAYOUTS[layout](pixels(shape, dtype, device))
    found = ops.normalize_images(images, MEAN, STD, wanted)
    assert found.dtype == wanted
    assert found.is_contiguous(memory_format=torch.channels_last)
    exact = reference.normalize_images(images, MEAN, STD, False)
    assert found.shape == exact.shape
    # a bfloat16 may fall on the other side of a tie
    tolerance = 1e-6 if wanted == torch.float32 else 2**-8
    torch.testing.assert_close(found.float(), exact, rtol=tolerance, atol=1e-6)


def test_rounds_as_pytorch_does() -> None:
    """Numbers of all magnitudes, infinities and NaN, with a normalisation that changes nothing."""
    bits = torch.randint(-(2**31), 2**31, (1, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    values = bits.to(torch.int32).view(torch.float32).contiguous(memory_format=torch.channels_last)
    values[0, 0, 0, :3] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    values[0, 0, 1, :2] = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    found = ops.normalize_images(values, [0.0] * 3, [1.0] * 3, torch.bfloat16)
    torch.testing.assert_close(found, values.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_does_not_depend_on_threads() -> None:
    images = pixels((4, 3, 128, 128), torch.uint8).contiguous(memory_format=torch.channels_last)
    found = ops.normalize_images(images, MEAN, STD, torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(ops.normalize_images(images, MEAN, STD, torch.bfloat16), found)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_opcheck(bfloat16: bool) -> None:
    ops.backend()
    torch.library.opcheck(
        torch.ops.stadfast.normalize_images, (pixels((2, 3, 8, 9), torch.uint8), MEAN, STD, bfloat16)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 4, 4), MEAN, STD), "images: expected a shape"),
        ((torch.ones(1, 4, 4, 4), MEAN, STD), "images: expected a shape"),
        ((torch.ones(1, 3, 4, 4, dtype=torch.float64), MEAN, STD), "images: expected uint8 or float32"),
        ((torch.ones(1, 3, 4, 4, requires_grad=True), MEAN, STD), "images: requires a gradient"),
        ((torch.ones(1, 3, 4, 4), MEAN[:2], STD), "mean: expected 3 numbers, got 2"),
        ((torch.ones(1, 3, 4, 4), MEAN, [0.1, 0.0, 0.1]), "std: expected positive"),
        ((torch.ones(1, 3, 4, 4), MEAN, STD, torch.float16), "dtype: expected torch.float32 or torch.bfloat16"),
    ],
)  # fmt: skip
def test_messages(arguments: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ops.normalize_images(*arguments)


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 2, 4, 4), (1, 3, 0, 4)])
def test_memory_is_safe_past_python(shape: tuple[int, ...]) -> None:
    if "cpu" not in ops.backend().libraries:
        pytest.skip("no compiled kernels")
    with pytest.raises(RuntimeError, match="stadfast: normalize_images"):
        torch.ops.stadfast.normalize_images(torch.ones(shape), MEAN, STD, False)
