"""Every op in plain PyTorch: the tests' oracle, the fallback without a compiler, and the differentiable form.

The signatures are the compiled ops' (csrc/schema.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WINOGRAD = [
    [1, 0, 0],
    [0.5, 0.5, 0.5],
    [0.5, -0.5, 0.5],
    [0, 0, 1],
]  # the filters' transform G of F(2 x 2, 3 x 3)


def _widen(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def pyramid_distance(student: list[Tensor], teacher: list[Tensor], eps: float) -> list[Tensor]:
    distances = []
    for s, t in zip(student, teacher, strict=True):
        difference = F.normalize(_widen(s), dim=1, eps=eps) - F.normalize(_widen(t), dim=1, eps=eps)
        distances.append(difference.square().sum(dim=1, keepdim=True))
    return distances


def _resize(maps: Tensor, size: list[int]) -> Tensor:
    if list(maps.shape[-2:]) == list(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def upsample_combine(
    maps: list[Tensor],
    groups: list[int],
    weights: list[float],
    grid: list[int],
    size: list[int],
    combine: str,
) -> Tensor:
    if maps[0].shape[0] == 0:  # F.interpolate refuses empty batches
        return maps[0].new_empty((0, 1, *size))
    at_grid = [_resize(level, grid) * weight for level, weight in zip(maps, weights, strict=True)]
    members: list[list[Tensor]] = [[] for _ in range(max(groups) + 1)]
    for level, group in zip(at_grid, groups, strict=True):
        members[group].append(level)
    sums = [torch.stack(group).sum(dim=0) if len(group) > 1 else group[0] for group in members]
    if combine == "product":
        combined = math.prod(sums[1:], start=sums[0])
    else:
        combined = sum(sums[1:], start=sums[0])
        if combine == "mean":
            combined = combined / sum(weights)
    return _resize(combined, size)


def anomaly_map(
    student: list[Tensor], teacher: list[Tensor], groups: list[int], weights: list[float],
    grid: list[int], size: list[int], combine: str, eps: float,
) -> Tensor:  # fmt: skip
    return upsample_combine(pyramid_distance(student, teacher, eps), groups, weights, grid, size, combine)


def peer_distance(descriptors: list[Tensor], pairs: list[int], groups: list[int], squared: bool) -> Tensor:
    wide = [_widen(x) for x in descriptors]
    members: list[list[Tensor]] = [[] for _ in range(max(groups) + 1)]
    for i, j, group in zip(pairs[::2], pairs[1::2], groups, strict=True):
        difference = wide[i] - wide[j]
        if squared:
            distance = difference.square().sum(1, keepdim=True)
        else:
            distance = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
        members[group].append(distance)
    return torch.cat([sum(group[1:], start=group[0]) for group in members], dim=1)


def max_pool2d(input: Tensor, above: Tensor | None, kernel: int, stride: int, padding: list[int]) -> Tensor:
    rows = input if above is None else torch.cat([above, input], dim=2)
    return F.max_pool2d(rows, kernel, stride, padding)


def convolve_(
    output: Tensor, input: Tensor, filters: Tensor, bias: Tensor, residual: Tensor | None,
    kernel: Sequence[int], stride: int, padding: Sequence[int], groups: int, rectify: bool,
) -> None:  # fmt: skip
    (rows, columns), channels = kernel, input.shape[1] // groups
    blocks = filters.view(len(bias) // 32, rows, -1, 2, 16, 16, 2).permute(0, 3, 5, 1, 2, 4, 6)
    values = blocks.reshape(len(bias), rows, -1)[..., : columns * channels]
    weight = values.unflatten(-1, (columns, channels)).permute(0, 3, 1, 2)
    sums = F.conv2d(input.float(), weight.float(), bias, stride, list(padding), 1, groups)
    sums = sums if residual is None else sums + residual
    output.copy_(sums.relu() if rectify else sums)


def convolve_pool(
    input: Tensor, filters: Tensor, bias: Tensor, kernel: Sequence[int], stride: int, padding: Sequence[int],
    pooling: Sequence[int],
) -> Tensor:  # fmt: skip
    sides = [(n + 2 * p - k) // stride + 1 for n, p, k in zip(input.shape[2:], padding, kernel, strict=True)]
    features = input.new_empty((input.shape[0], len(bias), *sides))
    convolve_(features, input, filters, bias, None, kernel, stride, padding, 1, True)
    pooled = F.max_pool2d(features.float(), pooling[0], pooling[1], list(pooling[2:]))
    return pooled.to(input.dtype, memory_format=torch.channels_last)


def convolve_blocks(input: Tensor, filters: Tensor, bias: Tensor, groups: int) -> Tensor:
    for i in range(0, len(filters), 2):
        inner, outer = (torch.empty_like(input, memory_format=torch.channels_last) for _ in range(2))
        convolve_(inner, input, filters[i], bias[i], None, [3, 3], 1, [1, 1], groups, True)
        convolve_(outer, inner, filters[i + 1], bias[i + 1], input, [3, 3], 1, [1, 1], groups, True)
        input = outer
    return input


def convolve_pool_blocks(
    input: Tensor, filters: Tensor, bias: Tensor, kernel: Sequence[int], stride: int, padding: Sequence[int],
    pooling: Sequence[int], block_filters: Tensor, block_bias: Tensor, groups: int,
) -> Tensor:  # fmt: skip
    pooled = convolve_pool(input, filters, bias, kernel, stride, padding, pooling)
    return convolve_blocks(pooled, block_filters, block_bias, groups)


def winograd_(
    output: Tensor, input: Tensor, filters: Tensor, bias: Tensor, residual: Tensor | None, padding: list[int],
    groups: int, rectify: bool,
) -> None:  # fmt: skip
    together = 1 if filters.dtype == torch.float32 else 2
    panels = filters.view(4, 4, len(bias) // 16, -1, 16, together).permute(2, 4, 3, 5, 0, 1)
    tiles = panels.reshape(len(bias), -1, 4, 4)
    inverse = torch.linalg.pinv(tiles.new_tensor(WINOGRAD, dtype=torch.float64))
    weight = (inverse @ tiles.double() @ inverse.mT).float()
    sums = F.conv2d(input.float(), weight, bias, 1, list(padding), 1, groups)
    sums = sums if residual is None else sums + residual
    output.copy_(sums.relu() if rectify else sums)


def convolve_stage(
    input: Tensor, filters: Tensor, bias: Tensor, shortcut_filters: Tensor, shortcut_bias: Tensor,
    block_filters: Tensor, block_bias: Tensor, stride: int, groups: int,
) -> Tensor:  # fmt: skip
    sides = [(n - 1) // stride + 1 for n in input.shape[2:]]
    inner, shortcut = (input.new_empty((len(input), len(bias), *sides)) for _ in range(2))
    convolve_(inner, input, filters, bias, None, [3, 3], stride, [1, 1], groups, True)
    convolve_(shortcut, input, shortcut_filters, shortcut_bias, None, [1, 1], stride, [0, 0], groups, False)
    output = torch.empty_like(shortcut, memory_format=torch.channels_last)
    convolve_(output, inner, block_filters[0], block_bias[0], shortcut, [3, 3], 1, [1, 1], groups, True)
    return convolve_blocks(output, block_filters[1:], block_bias[1:], groups)


def stream_blocks_(
    output: Tensor, input: Tensor, carried: Tensor, filters: Tensor, bias: Tensor, groups: int
) -> None:
    x = input
    for i in range(0, len(filters), 2):
        residual = torch.cat([carried[i : i + 1], x], 2)[:, :, : x.shape[2]]
        inner = _next_rows(x, None, carried[i], filters[i], bias[i], groups)
        x = _next_rows(inner, residual, carried[i + 1], filters[i + 1], bias[i + 1], groups)
    output.copy_(x)


def _next_rows(
    x: Tensor, residual: Tensor | None, carried: Tensor, filters: Tensor, bias: Tensor, groups: int
) -> Tensor:
    """A convolution of the rows carried (C, 2, W) and the new ones (1, C, H, W), of which the last are carried on."""
    window, output = torch.cat([carried[None], x], 2), x.new_empty(x.shape)
    convolve_(output, window, filters, bias, residual, [3, 3], 1, [0, 1], groups, True)
    carried.copy_(window[0, :, -2:])
    return output


def stream_pool_blocks_(
    output: Tensor, input: Tensor, filters: Tensor, bias: Tensor, kernel: Sequence[int], stride: int,
    padding: Sequence[int], pooling: Sequence[int], carried: Tensor, block_filters: Tensor, block_bias: Tensor,
    groups: int,
) -> None:  # fmt: skip
    pooled = convolve_pool(input, filters, bias, kernel, stride, padding, pooling)
    stream_blocks_(output, pooled, carried, block_filters, block_bias, groups)


def stream_stage_(
    output: Tensor, input: Tensor, filters: Tensor, bias: Tensor, shortcut: Tensor, shortcut_input: Tensor,
    shortcut_filters: Tensor, shortcut_bias: Tensor, stride: int, carried: Tensor, block_filters: Tensor,
    block_bias: Tensor, groups: int,
) -> None:  # fmt: skip
    rows, inner = output.shape[2], input.new_empty(output.shape)
    convolve_(inner, input, filters, bias, None, [3, 3], stride, [0, 1], groups, True)
    beside = (shortcut[:, :, -rows:], shortcut_input, shortcut_filters, shortcut_bias)
    convolve_(*beside, None, [1, 1], stride, [0, 0], groups, False)
    x = _next_rows(inner, shortcut[:, :, :rows], carried[0], block_filters[0], block_bias[0], groups)
    stream_blocks_(output, x, carried[1:], block_filters[1:], block_bias[1:], groups)


def has_bf16() -> bool:
    return False


def has_amx() -> bool:
    return False


def normalize_images(images: Tensor, mean: list[float], std: list[float], bfloat16: bool) -> Tensor:
    unit = images.float() / 255 if images.dtype == torch.uint8 else images
    shift, scale = (unit.new_tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    normalized = ((unit - shift) / scale).contiguous(memory_format=torch.channels_last)
    return normalized.bfloat16() if bfloat16 else normalized
