"""From features to anomaly maps: the distance between student and teacher, upsampled and combined."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from . import _library, reference

EPS = 1e-12  # F.normalize's: a vector shorter than this counts as zero
COMBINATIONS = ("product", "sum", "mean")
MAX_LEVELS = 32
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def pyramid_distance(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, eps: float = EPS
) -> list[Tensor]:
    """Squared distance of the channel-normalised student and teacher vectors at every position of each level.

    ``d = sum_c (s_c / |s| - t_c / |t|)^2`` with ``|x| = max(||x||_2, eps)``: between 0 and 4, twice the loss
    of STPM's paper (Wang et al. 2021, eq. 1). Equivalent to::

        [(F.normalize(s, dim=1) - F.normalize(t, dim=1)).square().sum(1, keepdim=True) for s, t in zip(...)]

    in one pass over the features, with sums in float32 for half types. Differentiable in both arguments.

    Args:
        student: L tensors (B, C_l, H_l, W_l); float32, float16, bfloat16 or float64, planar or channels_last.
        teacher: the same shapes and dtypes.
        eps: the length below which a vector counts as zero.

    Returns:
        L tensors (B, 1, H_l, W_l), float32 (float64 for float64 features).

    Raises:
        UsageError: the lists differ in length, or two tensors in shape, dtype or device.
    """
    student, teacher = list(student), list(teacher)
    _check_pyramids(student, teacher)
    return _kernel("pyramid_distance", student[0])(_unshared(student), _unshared(teacher), eps)


def anomaly_map(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    size: tuple[int, int],
    grid: tuple[int, int] | None = None,
    groups: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    combine: str = "product",
    *,
    eps: float = EPS,
) -> Tensor:
    """The anomaly map of a student-teacher pair: ``pyramid_distance`` and ``upsample_combine`` in one.

    Equivalent to::

        pairs = zip(student, teacher)
        distances = [(F.normalize(s) - F.normalize(t)).square().sum(1, keepdim=True) for s, t in pairs]
        at_grid = [F.interpolate(d, grid, mode="bilinear") for d in distances]
        F.interpolate(at_grid[0] * at_grid[1] * at_grid[2], size, mode="bilinear")

    Args:
        student: L tensors (B, C_l, H_l, W_l); float32, float16, bfloat16 or float64, planar or channels_last.
        teacher: the same shapes and dtypes.
        size: (H, W) of the result.
        grid: (H, W) at which the levels are combined before one last upsampling; ``size`` if None (as
            anomalib does). STPM's official code uses the largest level's size.
        groups: per level, the group it belongs to (0, 1, ...); levels of one group are summed before groups
            are combined. None: every level is a group of its own.
        weights: per level, a factor. None: 1.
        combine: ``"product"`` of the groups, ``"sum"``, or ``"mean"`` (the sum over the sum of the weights).
        eps: the length below which a vector counts as zero.

    Returns:
        (B, 1, H, W), float32 (float64 for float64 features).

    Raises:
        UsageError: an argument does not fit; the message names it, what came and what was wanted.
    """
    student, teacher = list(student), list(teacher)
    _check_pyramids(student, teacher)
    rest = _combination(len(student), size, grid, groups, weights, combine)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*student, *teacher)):
        return reference.anomaly_map(student, teacher, *rest, eps)  # the fused kernel has no backward
    return _kernel("anomaly_map", student[0])(_unshared(student), _unshared(teacher), *rest, eps)


def upsample_combine(
    maps: Sequence[Tensor],
    size: tuple[int, int],
    grid: tuple[int, int] | None = None,
    groups: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    combine: str = "product",
) -> Tensor:
    """Combine level maps at ``grid`` and upsample the result to ``size``; bilinear, ``align_corners=False``.

    Args:
        maps: L tensors (B, 1, H_l, W_l), float32 or float64.
        size: (H, W) of the result.
        grid: as in :func:`anomaly_map`, like the arguments that follow.
        groups: per level, the group it belongs to.
        weights: per level, a factor.
        combine: ``"product"``, ``"sum"`` or ``"mean"``.

    Returns:
        (B, 1, H, W) of the maps' dtype.

    Raises:
        UsageError: an argument does not fit; the message names it, what came and what was wanted.
    """
    maps = list(maps)
    _check_maps(maps)
    rest = _combination(len(maps), size, grid, groups, weights, combine)
    if torch.is_grad_enabled() and any(m.requires_grad for m in maps):
        return reference.upsample_combine(maps, *rest)
    return _kernel("upsample_combine", maps[0])(_unshared(maps), *rest)


def reads_half(operator: object) -> bool:
    """Whether a compiled operator (a ``torch._ops.OpOverload``) reads half types and gives float32 maps."""
    name = str(getattr(operator, "_schema", operator)).partition("(")[0]
    return name in ("stadfast::anomaly_map", "stadfast::pyramid_distance", "stadfast::peer_distance")


def _kernel(name: str, tensor: Tensor) -> Any:
    compiled = _library.has_kernel(tensor.device.type)
    return getattr(torch.ops.stadfast if compiled else reference, name)


def _unshared(levels: list[Tensor]) -> list[Tensor]:
    """Under tracing, a list that no other call in the graph has; otherwise the list itself.

    TorchScript merges equal lists of a graph into one, but torch (2.11 to 2.15 at least) moves the tensors
    out of a list that it hands to an operator of the stable ABI: a second operator would find it emptied. A
    slice that keeps everything, with an end of its own, makes the list unlike all others.
    """
    if not torch.jit.is_tracing():
        return levels
    position = sum(1 for _ in torch._C._get_tracing_state().graph().nodes())
    return [levels[0][: sys.maxsize - position], *levels[1:]]


def _combination(
    levels: int,
    size: Sequence[int],
    grid: Sequence[int] | None,
    groups: Sequence[int] | None,
    weights: Sequence[float] | None,
    combine: str,
) -> tuple[list[int], list[float], list[int], list[int], str]:
    """The arguments of the combination with their defaults filled in, in the order of the schema."""
    size = _check_size("size", size)
    grid = size if grid is None else _check_size("grid", grid)
    groups = list(range(levels)) if groups is None else [int(g) for g in groups]
    weights = [1.0] * levels if weights is None else [float(w) for w in weights]
    for name, values in (("groups", groups), ("weights", weights)):
        if len(values) != levels:
            raise UsageError(f"{name}: expected one per level ({levels}), got {len(values)}")
    if sorted(set(groups)) != list(range(max(groups) + 1)):
        raise UsageError(f"groups: expected the numbers 0, 1, ... without a gap, got {groups}")
    if combine not in COMBINATIONS:
        raise UsageError(f"combine: expected one of {', '.join(COMBINATIONS)}, got {combine!r}")
    if combine == "mean" and sum(weights) == 0:
        raise UsageError("weights: a mean needs a sum that is not zero")
    return groups, weights, grid, size, combine


def _check_size(name: str, size: Sequence[int]) -> list[int]:
    if isinstance(size, (int, str)) or len(size) != 2 or any(int(n) < 1 for n in size):
        raise UsageError(f"{name}: expected two positive numbers (H, W), got {size!r}")
    return [int(n) for n in size]


def _check_levels(name: str, levels: list[Tensor]) -> None:
    if not 1 <= len(levels) <= MAX_LEVELS:
        raise UsageError(f"{name}: expected 1 to {MAX_LEVELS} levels, got {len(levels)}")


def _check_pyramids(student: list[Tensor], teacher: list[Tensor]) -> None:
    if torch.jit.is_tracing():  # sizes are symbols then, and the example has been checked in eager mode
        return
    _check_levels("student", student)
    if len(student) != len(teacher):
        raise UsageError(
            f"teacher: expected as many levels as the student ({len(student)}), got {len(teacher)}"
        )
    first = student[0]
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if s.dim() != 4 or 0 in s.shape[1:]:
            raise UsageError(
                f"student[{i}]: expected a shape (B, C, H, W) without zeros, got {tuple(s.shape)}"
            )
        if s.shape != t.shape:
            raise UsageError(
                f"teacher[{i}]: expected the student's shape {tuple(s.shape)}, got {tuple(t.shape)}"
            )
        if s.shape[0] != first.shape[0]:
            raise UsageError(
                f"student[{i}]: expected the batch size of level 0 ({first.shape[0]}), got {s.shape[0]}"
            )
        for name, x in (("student", s), ("teacher", t)):
            if x.dtype not in _FLOATS:
                raise UsageError(f"{name}[{i}]: expected a floating-point dtype, got {x.dtype}")
            if x.dtype != first.dtype or x.device != first.device:
                raise UsageError(
                    f"{name}[{i}]: expected {first.dtype} on {first.device} as student[0], "
                    f"got {x.dtype} on {x.device}"
                )


def _check_maps(maps: list[Tensor]) -> None:
    if torch.jit.is_tracing():
        return
    _check_levels("maps", maps)
    first = maps[0]
    for i, m in enumerate(maps):
        if m.dim() != 4 or m.shape[1] != 1 or 0 in m.shape[2:] or m.shape[0] != first.shape[0]:
            raise UsageError(f"maps[{i}]: expected a shape ({first.shape[0]}, 1, H, W), got {tuple(m.shape)}")
        wide = m.dtype in (torch.float32, torch.float64)
        if not wide or m.dtype != first.dtype or m.device != first.device:
            raise UsageError(
                f"maps[{i}]: expected float32 or float64 on one device, as maps[0]; "
                f"got {m.dtype} on {m.device}"
            )
