"""Convolutions on the matrix units (AMX) as nodes of a graph, and those that are one with what is around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .. import ops

mkldnn = torch.ops.mkldnn

_LARGE = 3_000_000  # elements of a convolution's input and output
_CACHED = 2**20  # bytes of filters: half of a core's second cache; the features' rows are in the rest
_PIXELS = 16  # of a row, that are convolved at once
_ROWS = 8  # a thread's, for each further convolution: below, those that it computes twice cost what the cache saves


def convolved(
    x: Tensor, filters: Tensor, bias: Tensor, residual: Tensor | None, overwrite: bool,
    kernel: list[int], stride: list[int], padding: list[int], groups: int, rectify: bool,
    large: Tensor | None, large_bias: Tensor | None,
) -> Tensor:  # fmt: skip
    """:func:`~stadfast.ops.convolve_` into the residual, if it may be overwritten, or into new memory.

    Features that no cache holds are for oneDNN, if its weight ``large`` is there: it waits less for memory.
    """
    shape = (x.shape[0], len(bias), *_sides(x.shape[2:], kernel, stride[0], padding))
    if large is not None and x.numel() + math.prod(shape) > _LARGE:
        rest: tuple[Any, ...] = (padding, stride, [1, 1], groups, "relu" if rectify else "none", [], "")
        return mkldnn._convolution_pointwise(x, large, large_bias, *rest)  # type: ignore[no-any-return]
    output = residual
    if output is None or not overwrite or output.stride(1) != 1:
        output = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    return ops.convolve_(output, x, filters, bias, residual, kernel, stride[0], padding, groups, rectify)


def _sides(sides: Sequence[int], kernel: Sequence[int], stride: int, padding: Sequence[int]) -> list[int]:
    return [(n + 2 * p - k) // stride + 1 for n, p, k in zip(sides, padding, kernel, strict=True)]


class Convolved(NamedTuple):
    """The arguments of :func:`convolved`."""

    x: fx.Node
    filters: fx.Node
    bias: fx.Node
    residual: fx.Node | None
    overwrite: bool
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    groups: int
    rectify: bool
    large: fx.Node | None
    large_bias: fx.Node | None


def join_poolings(module: fx.GraphModule) -> None:
    """Pooling right behind a rectified convolution: in one, without the large features between."""
    for node in list(module.graph.nodes):
        made = node.args[0] if node.target is ops.max_pool2d else None
        if not isinstance(made, fx.Node) or made.target is not convolved or len(made.users) > 1:
            continue
        c = Convolved(*made.args)  # type: ignore[arg-type]
        if c.residual is None and c.groups == 1 and c.rectify:
            _, size, step, around = node.args
            pooling = [size, step, around, around]
            node.args = (c.x, c.filters, c.bias, c.kernel, c.stride[0], c.padding, pooling)
            node.target = ops.convolve_pool
            module.graph.erase_node(made)


def residual_blocks(x: Tensor, filters: list[Tensor], bias: list[Tensor], groups: int) -> Tensor:
    """:func:`~stadfast.ops.convolve_blocks`; convolution by convolution where rows are short or threads have few."""
    if _row_by_row(len(x) * groups, x.shape[2:], len(filters)):
        return ops.convolve_blocks(x, filters, bias, groups)
    geometry = ([3, 3], 1, [1, 1], groups, True)
    for i in range(0, len(filters), 2):
        inner, outer = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
        ops.convolve_(inner, x, filters[i], bias[i], None, *geometry)
        x = ops.convolve_(outer, inner, filters[i + 1], bias[i + 1], x, *geometry)
    return x


def stem_blocks(
    x: Tensor, filters: Tensor, bias: Tensor, kernel: list[int], stride: int, padding: list[int],
    pooling: list[int], block_filters: list[Tensor], block_bias: list[Tensor], groups: int,
) -> Tensor:  # fmt: skip
    """:func:`~stadfast.ops.convolve_pool_blocks`, or its parts, as :func:`residual_blocks` does it."""
    size, step, *around = pooling
    sides = _sides(_sides(x.shape[2:], kernel, stride, padding), [size, size], step, around)
    stem = (x, filters, bias, kernel, stride, padding, pooling)
    if _row_by_row(len(x) * groups, sides, len(block_filters)):
        return ops.convolve_pool_blocks(*stem, block_filters, block_bias, groups)
    return residual_blocks(ops.convolve_pool(*stem), block_filters, block_bias, groups)


def _row_by_row(images: int, sides: Sequence[int], convolutions: int) -> bool:
    height, width = sides
    return width > _PIXELS and images * height >= torch.get_num_threads() * _ROWS * (convolutions - 1)


class Blocks(NamedTuple):
    """The arguments of :func:`residual_blocks`."""

    x: fx.Node
    filters: list[fx.Node]
    bias: list[fx.Node]
    groups: int


def join_blocks(module: fx.GraphModule) -> None:
    """Residual blocks, one behind the other: in one, as far as a core's cache holds their filters."""
    for node in list(module.graph.nodes):
        found = _block(module, node)
        if found is None or not _cached(module, found):
            continue
        x, joined = found.x, [node, *node.args[:1]]
        if x.target is residual_blocks and set(x.users) == set(joined):
            before = Blocks(*x.args)  # type: ignore[arg-type]
            filters, bias = [*before.filters, *found.filters], [*before.bias, *found.bias]
            both = Blocks(before.x, filters, bias, found.groups)
            if before.groups == found.groups and _cached(module, both):
                found = both
                joined.append(x)
        _replace(joined, residual_blocks, found)


def _block(module: fx.GraphModule, node: fx.Node) -> Blocks | None:
    """``relu(conv(relu(conv(x))) + x)``, if that is what ends with ``node``."""
    inner = node.args[0] if node.target is convolved else None
    if not isinstance(inner, fx.Node) or inner.target is not convolved or len(inner.users) > 1:
        return None
    pair = Convolved(*inner.args), Convolved(*node.args)  # type: ignore[arg-type]
    first, second = pair
    alike = all(list(c[5:10]) == [[3, 3], [1, 1], [1, 1], first.groups, True] for c in pair)
    square = len({len(getattr(module, str(c.bias.target))) for c in pair}) == 1  # as many channels in between
    if not alike or not square or first.residual is not None or second.residual is not first.x:
        return None
    return Blocks(first.x, [c.filters for c in pair], [c.bias for c in pair], first.groups)


def _cached(module: fx.GraphModule, blocks: Blocks) -> bool:
    values = sum(getattr(module, str(node.target)).nbytes for node in blocks.filters)
    return bool(values <= _CACHED * blocks.groups)


def join_stems(module: fx.GraphModule) -> None:
    """Residual blocks right behind the first pooling: in one with it, without the features between."""
    for node in list(module.graph.nodes):
        stem = node.args[0] if node.target is residual_blocks else None
        if isinstance(stem, fx.Node) and stem.target is ops.convolve_pool and len(stem.users) == 1:
            _replace([node, stem], stem_blocks, (*stem.args, *node.args[1:]))


def _replace(joined: list[Any], function: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
    """One call instead of nodes, the last of them first.

    It takes the place of the first, where its input is still what it was, and constants are called for once more.
    """
    last, first = joined[0], joined[-1]
    with first.graph.inserting_before(first):
        here = fx.map_arg(args, lambda x: first.graph.get_attr(x.target) if x.op == "get_attr" else x)
        made = first.graph.call_function(function, tuple(here))
    made.meta.update(last.meta)
    last.replace_all_uses_with(made)
    for node in joined:
        first.graph.erase_node(node)
