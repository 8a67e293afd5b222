"""Convolutions on the matrix units (AMX) as nodes of a graph, and those that are one with what is around them."""

from __future__ import annotations

import math
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
    sides = [(n + 2 * p - k) // stride[0] + 1 for n, p, k in zip(x.shape[2:], padding, kernel, strict=True)]
    shape = (x.shape[0], len(bias), *sides)
    if large is not None and x.numel() + math.prod(shape) > _LARGE:
        rest: tuple[Any, ...] = (padding, stride, [1, 1], groups, "relu" if rectify else "none", [], "")
        return mkldnn._convolution_pointwise(x, large, large_bias, *rest)  # type: ignore[no-any-return]
    output = residual
    if output is None or not overwrite or output.stride(1) != 1:
        output = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    return ops.convolve_(output, x, filters, bias, residual, kernel, stride[0], padding, groups, rectify)


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
    rows = len(x) * groups * x.shape[2] / torch.get_num_threads()
    if x.shape[3] > _PIXELS and rows >= _ROWS * (len(filters) - 1):
        return ops.convolve_blocks(x, filters, bias, groups)
    geometry = ([3, 3], 1, [1, 1], groups, True)
    for i in range(0, len(filters), 2):
        inner, outer = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
        ops.convolve_(inner, x, filters[i], bias[i], None, *geometry)
        x = ops.convolve_(outer, inner, filters[i + 1], bias[i + 1], x, *geometry)
    return x


def join_blocks(module: fx.GraphModule) -> None:
    """Residual blocks, one behind the other: in one, as far as a core's cache holds their filters."""
    for node in list(module.graph.nodes):
        pair = _block(module, node)
        if pair is None:
            continue
        x, groups, dead = pair[0].x, pair[0].groups, [node, node.args[0]]
        filters, bias = ([getattr(c, name) for c in pair] for name in ("filters", "bias"))
        if x.target is residual_blocks and set(x.users) == set(dead):
            before = x.args
            if before[3] == groups and _cached(module, [*before[1], *filters], groups):  # type: ignore[misc]
                dead.append(x)
                x, filters, bias = before[0], [*before[1], *filters], [*before[2], *bias]  # type: ignore
        if _cached(module, filters, groups):
            with module.graph.inserting_before(node):
                joined = module.graph.call_function(residual_blocks, (x, filters, bias, groups))
            joined.meta.update(node.meta)
            node.replace_all_uses_with(joined)
            for each in dead:
                module.graph.erase_node(each)


def _block(module: fx.GraphModule, node: fx.Node) -> tuple[Convolved, Convolved] | None:
    """The two convolutions of ``relu(conv(relu(conv(x))) + x)``, if that is what ends with ``node``."""
    inner = node.args[0] if node.target is convolved else None
    if not isinstance(inner, fx.Node) or inner.target is not convolved or len(inner.users) > 1:
        return None
    first, second = Convolved(*inner.args), Convolved(*node.args)  # type: ignore[arg-type]
    channels = {len(getattr(module, str(c.bias.target))) for c in (first, second)}
    plain = [[3, 3], [1, 1], [1, 1], first.groups, True]
    alike = all(list(c[5:10]) == plain for c in (first, second)) and len(channels) == 1
    return (first, second) if alike and first.residual is None and second.residual is first.x else None


def _cached(module: fx.GraphModule, filters: list[fx.Node], groups: int) -> bool:
    values = sum(getattr(module, str(node.target)).nbytes for node in filters)
    return values // groups <= _CACHED  # type: ignore[no-any-return]
