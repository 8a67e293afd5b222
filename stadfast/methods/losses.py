"""A loss whose gradient comes with its value, image by image: plain autograd over whole batches takes several times
as long, as each of its many steps reads and writes all features once more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..ops.maps import EPS


def unit_l1_cosine(student: Tensor, teacher: Tensor, l1_weight: float, cosine_weight: float) -> Tensor:
    """Mean over all positions of ``l1_weight ||u - v||_1 + cosine_weight ||u - v||^2 / 2``, u and v being the student's
    and the teacher's features normalised along the channels. The second term is ``1 - cos``, but where a vector is
    zero: there it is 1/2, or 0 if both are. Equivalent to::

        u, v = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
        (l1_weight * (u - v).abs().sum(1) + cosine_weight * (u - v).square().sum(1) / 2).mean()

    Differentiable in ``student``, once.

    Args:
        student: (B, C, H, W); float32, float64, or a half type, computed in float32; fastest channels_last.
        teacher: the same shape and dtype.
        l1_weight: of the L1 norm.
        cosine_weight: of the cosine distance.

    Returns:
        A scalar, float32 (float64 for float64).
    """
    return _UnitL1Cosine.apply(student, teacher, l1_weight, cosine_weight)


class _UnitL1Cosine(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, student: Tensor, teacher: Tensor, l1_weight: float, cosine_weight: float
    ) -> Tensor:
        gradient = torch.empty_like(student)
        dtype = torch.promote_types(student.dtype, torch.float32)
        positions = student.numel() // student.shape[1]
        total = torch.zeros((), dtype=dtype, device=student.device)
        for s, t, g in zip(_rows(student), _rows(teacher), _rows(gradient), strict=True):
            u, length = _unit(s.to(dtype))
            difference = u - _unit(t.to(dtype))[0]
            total += l1_weight * difference.abs().sum() + cosine_weight / 2 * difference.square().sum()
            by_u = difference.sign().mul_(l1_weight).add_(difference, alpha=cosine_weight)
            along = (u * by_u).sum(1, keepdim=True).mul_(length > EPS)  # a clamped length is a constant
            g.copy_(by_u.addcmul_(u, along, value=-1).div_(length * positions))
        ctx.save_for_backward(gradient)
        return total / positions

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), None, None, None


def _rows(features: Tensor) -> Iterable[Tensor]:
    """(H W, C) of each image, as views."""
    return features.permute(0, 2, 3, 1).flatten(1, 2).unbind(0)


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The normalised rows and their lengths (N, 1), as ``F.normalize`` has them."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(EPS)
    return rows / length, length
