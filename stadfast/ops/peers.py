"""Distances among the descriptors of several networks: of students from teachers, and of students from each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from .maps import _FLOATS, _kernel, _unshared

Pair = tuple[int, int]
_STRIP = 2048  # positions


def peer_distance(
    descriptors: Sequence[Tensor],
    pairs: Sequence[Pair],
    groups: Sequence[int] | None = None,
    *,
    squared: bool = False,
) -> Tensor:
    """The sum, over the pairs of each group, of the Euclidean distance between two descriptors at every position.

    ``out[:, g] = sum over pairs (i, j) of group g of ||x_i - x_j||_2``: the terms of Stereotype Deepening's
    score (eqs. 7 to 9) and, squared, of Uninformed Students' (see :func:`ensemble_scores`). Equivalent to::

        distance = lambda i, j: torch.linalg.vector_norm(x[i] - x[j], dim=1)
        torch.stack([sum(distance(*pair) for pair in group) for group in pairs_by_group], dim=1)

    with each descriptor read once for all pairs, no difference ever stored, and sums in float32 for half types.
    Differentiable in all descriptors (once); the gradient of a distance of zero is zero.

    Args:
        descriptors: N tensors (B, C, H, W) of one shape; float32, float16, bfloat16 or float64, planar or
            channels_last (all as the first one, or they are copied).
        pairs: P pairs of numbers from 0 to N - 1. The distance is symmetric: (i, j) and (j, i) cost no more than
            one of them, and both count.
        groups: per pair, the group it belongs to (0, 1, ... G - 1); None: one group of all.
        squared: sum the squared distances.

    Returns:
        (B, G, H, W), float32 (float64 for float64 descriptors).

    Raises:
        UsageError: an argument does not fit; the message names it, what came and what was wanted.
    """
    descriptors = list(descriptors)
    _check_descriptors(descriptors)
    groups = [0] * len(pairs) if groups is None else [int(g) for g in groups]
    flat = _check_pairs(pairs, groups, len(descriptors))
    return _kernel("peer_distance", descriptors[0])(_unshared(descriptors), flat, groups, squared)


def reduce_heads(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Small linear heads whose outputs have the pairwise distances of the given large ones.

    For descriptors ``x_i = W_i z_i + b_i``, affine in codes of few channels, the thin QR decomposition of
    ``[W_1 b_1 W_2 b_2 ...] = Q [R_1 R_2 ...]`` gives ``x_i = Q R_i [z_i; 1]`` with orthonormal columns of Q, so that
    ``R_i [z_i; 1]``, of r = min(d, sum_i (k_i + 1)) channels, have the same distances: for
    :func:`peer_distance`, no map of d channels need ever be made. Computed in float64.

    Args:
        weights: N matrices (d, k_i), float32 or float64.
        biases: N vectors (d,).

    Returns:
        N matrices (r, k_i) and N vectors (r,), of the dtype of ``weights[0]``.

    Raises:
        UsageError: no heads, or shapes that do not fit together.
    """
    weights, biases = list(weights), list(biases)
    if not weights or len(weights) != len(biases):
        raise UsageError(
            f"biases: expected one per weight and at least one, got {len(weights)} and {len(biases)}"
        )
    channels = weights[0].shape[0]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.dim() != 2 or weight.shape[0] != channels:
            raise UsageError(f"weights[{i}]: expected ({channels}, k), got {tuple(weight.shape)}")
        if bias.shape != (channels,):
            raise UsageError(f"biases[{i}]: expected ({channels},), got {tuple(bias.shape)}")
    columns = [
        torch.cat([w.double(), b.double()[:, None]], dim=1) for w, b in zip(weights, biases, strict=True)
    ]
    reduced = torch.linalg.qr(torch.cat(columns, dim=1)).R.to(weights[0].dtype)
    heads = reduced.split([c.shape[1] for c in columns], dim=1)
    return [h[:, :-1].contiguous() for h in heads], [h[:, -1].contiguous() for h in heads]


def code_distance(
    codes: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    pairs: Sequence[Pair],
    groups: Sequence[int] | None = None,
    *,
    squared: bool = False,
) -> Tensor:
    """:func:`peer_distance` of ``x_i = W_i z_i + b_i``, made strip by strip, so that they never leave the caches.

    Args:
        codes: N tensors (B, k_i, H, W).
        weights: N matrices (r, k_i), such as :func:`reduce_heads` gives.
        biases: N vectors (r,).
        pairs: as of :func:`peer_distance`, like the arguments that follow.
        groups: per pair, its group.
        squared: sum the squared distances.

    Returns:
        (B, G, H, W).

    Raises:
        UsageError: see :func:`peer_distance`.
    """
    batch, _, height, width = codes[0].shape
    most = max(weight.shape[1] for weight in weights)
    matrices = torch.stack([F.pad(weight, (0, most - weight.shape[1])) for weight in weights])[:, None]
    offsets = torch.stack(list(biases))[:, None, :, None]
    strips = []
    for parts in zip(*(code.flatten(2).split(_STRIP, dim=2) for code in codes), strict=True):
        padded = [F.pad(x, (0, 0, 0, most - x.shape[1])) if x.shape[1] < most else x for x in parts]
        descriptors = torch.matmul(matrices, torch.stack(padded)).add_(offsets)  # all networks' at once
        strips.append(peer_distance([x.unsqueeze(2) for x in descriptors], pairs, groups, squared=squared))
    return torch.cat(strips, dim=3).view(batch, -1, height, width)


def ensemble_scores(teacher: Tensor, students: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The regression error and the predictive variance of Uninformed Students (Bergmann et al. 2020, eqs. 7 and 8).

    With the mean ``m`` of M students' descriptors: ``error = ||m - t||^2`` and
    ``variance = mean_i ||s_i||^2 - ||m||^2``, computed from distances, without m, in one pass over everything::

        variance = sum_{i<j} ||s_i - s_j||^2 / M^2,    error = sum_i ||s_i - t||^2 / M - variance

    Args:
        teacher: (B, C, H, W), the descriptor that the students learnt, on their scale.
        students: M tensors of that shape.

    Returns:
        error (B, H, W) and variance (B, H, W), float32 (float64 for float64 descriptors).

    Raises:
        UsageError: no students, or tensors that do not fit together.
    """
    count = len(students)
    if count == 0:
        raise UsageError("students: expected at least one, got none")
    errors = [(0, 1 + i) for i in range(count)]
    spreads = [(1 + i, 1 + j) for j in range(count) for i in range(j)]
    groups = [0] * len(errors) + [1] * len(spreads)
    sums = peer_distance([teacher, *students], errors + spreads, groups, squared=True)
    variance = sums[:, 1] / count**2 if spreads else torch.zeros_like(sums[:, 0])
    return (sums[:, 0] / count - variance).clamp_min(0), variance


def _check_descriptors(descriptors: list[Tensor]) -> None:
    if torch.jit.is_tracing():  # sizes are symbols then, and the example has been checked in eager mode
        return
    if not descriptors:
        raise UsageError("descriptors: expected at least one, got none")
    first = descriptors[0]
    if first.dim() != 4 or 0 in first.shape[1:]:
        raise UsageError(
            f"descriptors[0]: expected a shape (B, C, H, W) without zeros, got {tuple(first.shape)}"
        )
    if first.dtype not in _FLOATS:
        raise UsageError(f"descriptors[0]: expected a floating-point dtype, got {first.dtype}")
    for i, x in enumerate(descriptors):
        if x.shape != first.shape:
            raise UsageError(
                f"descriptors[{i}]: expected the shape of descriptors[0] {tuple(first.shape)}, got {tuple(x.shape)}"
            )
        if x.dtype != first.dtype or x.device != first.device:
            raise UsageError(
                f"descriptors[{i}]: expected {first.dtype} on {first.device} as descriptors[0], "
                f"got {x.dtype} on {x.device}"
            )


def _check_pairs(pairs: Sequence[Pair], groups: list[int], descriptors: int) -> list[int]:
    """The pairs as one flat list."""
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise UsageError(f"pairs: expected at least one pair (i, j), got {list(pairs)}")
    flat = [int(i) for pair in pairs for i in pair]
    if min(flat) < 0 or max(flat) >= descriptors:
        raise UsageError(f"pairs: expected numbers from 0 to {descriptors - 1}, got {list(pairs)}")
    if len(groups) != len(pairs):
        raise UsageError(f"groups: expected one per pair ({len(pairs)}), got {len(groups)}")
    if sorted(set(groups)) != list(range(max(groups) + 1)):
        raise UsageError(f"groups: expected the numbers 0, 1, ... without a gap, got {groups}")
    return flat
