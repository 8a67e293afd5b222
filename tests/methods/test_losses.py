"""The loss with a gradient of its own against the plain PyTorch lines."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stadfast.methods.losses import unit_l1_cosine


def plain(student: Tensor, teacher: Tensor, l1_weight: float, cosine_weight: float) -> Tensor:
    u, v = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    return (l1_weight * (u - v).abs().sum(1) + cosine_weight * (u - v).square().sum(1) / 2).mean()


def features(dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(3, 16, 5, 4, generator=generator).to(dtype).contiguous(memory_format=memory_format)
        for _ in range(2)
    )
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 2.0), (0.3, 0.0)])
def test_value_and_gradient_are_the_plain_ones(
    dtype: torch.dtype, memory_format: torch.memory_format, weights: tuple[float, float]
) -> None:
    student, teacher = features(dtype, memory_format)
    reference = student.detach().float().requires_grad_()
    value, expected = (
        unit_l1_cosine(student, teacher, *weights),
        plain(reference, teacher.float(), *weights),
    )
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    (3 * value).backward()
    (3 * expected).backward()
    assert student.grad is not None
    assert student.grad.dtype == dtype
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-4}
    torch.testing.assert_close(student.grad.float(), reference.grad, **tolerance)


def test_gradient_by_differences() -> None:
    student, teacher = features(torch.float64, torch.contiguous_format)
    assert torch.autograd.gradcheck(lambda s: unit_l1_cosine(s, teacher, 0.7, 1.3), (student,))


def test_zero_vectors_have_the_gradient_of_normalize() -> None:
    student, teacher = features(torch.float32, torch.contiguous_format)
    with torch.no_grad():
        student[:, :, 0, 0] = 0
        teacher[:, :, 0, :2] = 0
    reference = student.detach().clone().requires_grad_()
    unit_l1_cosine(student, teacher, 1.0, 1.0).backward()
    plain(reference, teacher, 1.0, 1.0).backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-4, atol=1e-6)
