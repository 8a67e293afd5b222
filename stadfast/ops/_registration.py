"""Shapes (fake kernels) and gradients of the compiled ops; imported once their schemas are loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _map_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _gradient_like(features: Tensor) -> Tensor:
    """channels_last where the kernels read the features so (find_layout in csrc/layout.h), else planar."""
    _, channels, height, width = features.shape
    _, channel, row, column = features.stride()
    rows_follow = height == 1 or width == 1 or row == width * column
    pixel = column if width > 1 else row if height > 1 else 1
    interleaved = rows_follow and pixel != 1 and (channels == 1 or channel == 1)
    form = torch.channels_last if interleaved else torch.contiguous_format
    return torch.empty_like(features, memory_format=form)


@torch.library.register_fake("stadfast::pyramid_distance")
def _(student: list[Tensor], teacher: list[Tensor], eps: float) -> list[Tensor]:
    return [s.new_empty((s.shape[0], 1, *s.shape[2:]), dtype=_map_dtype(s)) for s in student]


@torch.library.register_fake("stadfast::pyramid_distance_backward")
def _(grad: list[Tensor], student: list[Tensor], teacher: list[Tensor], eps: float) -> list[Tensor]:
    return [_gradient_like(s) for s in student]


@torch.library.register_fake("stadfast::anomaly_map")
def _(
    student: list[Tensor], teacher: list[Tensor], groups: list[int], weights: list[float],
    grid: list[int], size: list[int], combine: str, eps: float,
) -> Tensor:  # fmt: skip
    return student[0].new_empty((student[0].shape[0], 1, *size), dtype=_map_dtype(student[0]))


@torch.library.register_fake("stadfast::upsample_combine")
def _(
    maps: list[Tensor],
    groups: list[int],
    weights: list[float],
    grid: list[int],
    size: list[int],
    combine: str,
) -> Tensor:
    return maps[0].new_empty((maps[0].shape[0], 1, *size))


@torch.library.register_fake("stadfast::max_pool2d")
def _(input: Tensor, above: Tensor | None, kernel: int, stride: int, padding: list[int]) -> Tensor:
    rows, columns = input.shape[2:]
    rows += 0 if above is None else above.shape[2]
    size = [(n + 2 * p - kernel) // stride + 1 for n, p in zip((rows, columns), padding, strict=True)]
    shape = (*input.shape[:2], *size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


@torch.library.register_fake("stadfast::convolve_")
def _(output: Tensor, *arguments: Any) -> None:
    return None


@torch.library.register_fake("stadfast::stream_blocks_")
@torch.library.register_fake("stadfast::stream_pool_blocks_")
@torch.library.register_fake("stadfast::stream_stage_")
@torch.library.register_fake("stadfast::winograd_")
def _(output: Tensor, *arguments: Any) -> None:
    return None


@torch.library.register_fake("stadfast::convolve_pool_blocks")
@torch.library.register_fake("stadfast::convolve_pool")
def _(
    input: Tensor, filters: Tensor, bias: Tensor, kernel: list[int], stride: int, padding: list[int],
    pooling: list[int], *blocks: Any,
) -> Tensor:  # fmt: skip
    sides = [(n + 2 * p - k) // stride + 1 for n, p, k in zip(input.shape[2:], padding, kernel, strict=True)]
    size, step, *around = pooling
    sides = [(n + 2 * p - size) // step + 1 for n, p in zip(sides, around, strict=True)]
    shape = (input.shape[0], bias.shape[0], *sides)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


@torch.library.register_fake("stadfast::convolve_blocks")
def _(input: Tensor, filters: Tensor, bias: Tensor, groups: int) -> Tensor:
    return torch.empty_like(input, memory_format=torch.channels_last)


@torch.library.register_fake("stadfast::convolve_stage")
def _(input: Tensor, filters: Tensor, bias: Tensor, *arguments: Any) -> Tensor:
    sides = [(n - 1) // arguments[-2] + 1 for n in input.shape[2:]]
    shape = (input.shape[0], bias.shape[0], *sides)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


@torch.library.register_fake("stadfast::normalize_images")
def _(images: Tensor, mean: list[float], std: list[float], bfloat16: bool) -> Tensor:
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    return torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)


def _save_pyramids(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    student, teacher, ctx.eps = inputs
    ctx.levels = len(student)
    ctx.save_for_backward(*student, *teacher)


def _pyramid_distance_backward(ctx: Any, grad: list[Tensor | None]) -> tuple[Any, ...]:
    tensors = list(ctx.saved_tensors)
    student, teacher = tensors[: ctx.levels], tensors[ctx.levels :]
    filled = [
        g if g is not None else s.new_zeros((s.shape[0], 1, *s.shape[2:]), dtype=_map_dtype(s))
        for g, s in zip(grad, student, strict=True)
    ]
    backward = torch.ops.stadfast.pyramid_distance_backward

    def gradient(of: list[Tensor], against: list[Tensor], needed: list[bool]) -> list[Tensor] | list[None]:
        return backward(filled, of, against, ctx.eps) if any(needed) else [None] * ctx.levels

    # The distance is symmetric: the teacher's gradient is the student's with the roles exchanged.
    needs_student, needs_teacher, _ = ctx.needs_input_grad
    return gradient(student, teacher, needs_student), gradient(teacher, student, needs_teacher), None


torch.library.register_autograd(
    "stadfast::pyramid_distance", _pyramid_distance_backward, setup_context=_save_pyramids
)


@torch.library.register_fake("stadfast::peer_distance")
def _(descriptors: list[Tensor], pairs: list[int], groups: list[int], squared: bool) -> Tensor:
    first = descriptors[0]
    return first.new_empty((first.shape[0], max(groups) + 1, *first.shape[2:]), dtype=_map_dtype(first))


@torch.library.register_fake("stadfast::peer_distance_backward")
def _(factors: Tensor, descriptors: list[Tensor], pairs: list[int], wanted: list[int]) -> list[Tensor]:
    return [_gradient_like(descriptors[0]) for _ in wanted]


def _save_peers(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    descriptors, ctx.pairs, ctx.groups, ctx.squared = inputs
    ctx.save_for_backward(*descriptors)


def _peer_distance_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """d|a - b|^2 / da = 2 (a - b) and d|a - b| / da = (a - b) / |a - b|, 0 where a = b (as torch has it)."""
    descriptors = list(ctx.saved_tensors)
    maps = grad.unbind(1)
    # Of each pair; an index tensor would be copied from the host.
    factors = torch.stack([maps[group] for group in ctx.groups], 1)
    if ctx.squared:
        factors = 2 * factors
    else:
        each = list(range(len(ctx.groups)))
        distance = torch.ops.stadfast.peer_distance(descriptors, ctx.pairs, each, False)
        factors = torch.where(distance > 0, factors / distance, torch.zeros_like(factors))
    wanted = [i for i, needed in enumerate(ctx.needs_input_grad[0]) if needed]
    found = torch.ops.stadfast.peer_distance_backward(factors, descriptors, ctx.pairs, wanted)
    gradients: list[Tensor | None] = [None] * len(descriptors)
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return gradients, None, None, None


torch.library.register_autograd("stadfast::peer_distance", _peer_distance_backward, setup_context=_save_peers)


def _no_second_derivative(ctx: Any, *grad: Any) -> Any:
    raise NotImplementedError(
        "stadfast's distances have no second derivative; STADFAST_BACKEND=reference, plain PyTorch, has it"
    )


for _name in ("pyramid_distance_backward", "peer_distance_backward"):
    torch.library.register_autograd(f"stadfast::{_name}", _no_second_derivative)


@torch.library.register_fake("stadfast::label_regions")
def _(masks: Tensor) -> tuple[Tensor, Tensor]:
    labels = masks.new_empty(masks.shape, dtype=torch.int32)
    return labels, masks.new_empty(masks.shape[:1], dtype=torch.int64)


@torch.library.register_fake("stadfast::region_pixels")
def _(maps: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    pixels, regions = context.new_dynamic_size(), context.new_dynamic_size()
    return (
        maps[0].new_empty((pixels,)),
        maps[0].new_empty((pixels,), dtype=torch.int32),
        maps[0].new_empty((regions,), dtype=torch.int64),
        maps[0].new_empty((len(maps),), dtype=torch.int64),
    )


@torch.library.register_fake("stadfast::region_histogram")
def _(maps: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    pixels = maps[0].new_empty((65536,), dtype=torch.int64)
    return pixels, pixels.to(torch.float64), pixels.new_empty((len(maps),))


@torch.library.register_fake("stadfast::rank_counts")
def _(scores: list[Tensor], edges: Tensor) -> Tensor:
    return edges.new_empty((2 * edges.shape[0] + 2,), dtype=torch.int64)


@torch.library.register_fake("stadfast::key_histogram")
def _(scores: list[Tensor]) -> Tensor:
    return scores[0].new_empty((65536,), dtype=torch.int64)
