"""Our own convolutions as nodes of a graph; of bfloat16, those that are one with what is around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .. import ops

PIXELS = 16  # of a row, that are convolved at once: shorter rows are faster one convolution after the other
_POOLED = 32  # rows of a pooling's window, from which on no operator holds them beside the convolution
_ROWS = 8  # a thread's, for each further convolution: below, those that it computes twice cost what the cache saves


def convolved(
    x: Tensor, filters: Tensor, bias: Tensor, residual: Tensor | None, overwrite: bool,
    kernel: list[int], stride: list[int], padding: list[int], groups: int, rectify: bool,
) -> Tensor:  # fmt: skip
    """:func:`~stadfast.ops.convolve_` into the residual, if it may be overwritten, or into new memory."""
    output = residual
    if output is None or not overwrite or output.stride(1) != 1:
        shape = (x.shape[0], len(bias), *_sides(x.shape[2:], kernel, stride[0], padding))
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


def join_poolings(module: fx.GraphModule) -> None:
    """Pooling right behind a rectified convolution of bfloat16: in one, without the large features between."""
    for node in list(module.graph.nodes):
        made = node.args[0] if node.target is ops.max_pool2d else None
        if not isinstance(made, fx.Node) or made.target is not convolved or len(made.users) > 1:
            continue
        c = Convolved(*made.args)  # type: ignore[arg-type]
        plain = not ops.is_winograd(getattr(module, str(c.filters.target)))
        narrow = node.meta["dtype"] == torch.bfloat16
        _, size, step, around = node.args
        if plain and narrow and c.residual is None and c.groups == 1 and c.rectify and size < _POOLED:  # type: ignore[operator]
            pooling = [size, step, around, around]
            node.args = (c.x, c.filters, c.bias, c.kernel, c.stride[0], c.padding, pooling)
            node.target = ops.convolve_pool
            module.graph.erase_node(made)


def residual_blocks(x: Tensor, filters: Tensor, bias: Tensor, groups: int) -> Tensor:
    """:func:`~stadfast.ops.convolve_blocks`; convolution by convolution where rows are short or threads have few."""
    if len(filters) and _row_by_row(len(x) * groups, x.shape[2:], len(filters)):
        return ops.convolve_blocks(x, filters, bias, groups)
    geometry = ([3, 3], 1, [1, 1], groups, True)
    for i in range(0, len(filters), 2):
        inner, outer = (torch.empty_like(x, memory_format=torch.channels_last) for _ in range(2))
        ops.convolve_(inner, x, filters[i], bias[i], None, *geometry)
        x = ops.convolve_(outer, inner, filters[i + 1], bias[i + 1], x, *geometry)
    return x


def stem_blocks(
    x: Tensor, filters: Tensor, bias: Tensor, kernel: list[int], stride: int, padding: list[int],
    pooling: list[int], block_filters: Tensor, block_bias: Tensor, groups: int,
) -> Tensor:  # fmt: skip
    """:func:`~stadfast.ops.convolve_pool_blocks`, or its parts, as :func:`residual_blocks` does it."""
    size, step, *around = pooling
    sides = _sides(_sides(x.shape[2:], kernel, stride, padding), [size, size], step, around)
    stem = (x, filters, bias, kernel, stride, padding, pooling)
    if _row_by_row(len(x) * groups, sides, len(block_filters)):
        return ops.convolve_pool_blocks(*stem, block_filters, block_bias, groups)
    return residual_blocks(ops.convolve_pool(*stem), block_filters, block_bias, groups)


def strided_stage(
    x: Tensor, filters: Tensor, bias: Tensor, shortcut_filters: Tensor, shortcut_bias: Tensor,
    block_filters: Tensor, block_bias: Tensor, stride: int, groups: int,
) -> Tensor:  # fmt: skip
    """:func:`~stadfast.ops.convolve_stage`, or its parts, as :func:`residual_blocks` does it."""
    first, shortcut = (filters, bias), (shortcut_filters, shortcut_bias)
    if _row_by_row(len(x) * groups, _sides(x.shape[2:], [3, 3], stride, [1, 1]), len(block_filters) + 1):
        return ops.convolve_stage(x, *first, *shortcut, block_filters, block_bias, stride, groups)
    inner = convolved(x, *first, None, False, [3, 3], [stride], [1, 1], groups, True)
    added = convolved(x, *shortcut, None, False, [1, 1], [stride], [0, 0], groups, False)
    y = convolved(inner, block_filters[0], block_bias[0], added, True, [3, 3], [1], [1, 1], groups, True)
    return residual_blocks(y, block_filters[1:], block_bias[1:], groups)


def _row_by_row(images: int, sides: Sequence[int], convolutions: int) -> bool:
    height, width = sides
    return width > PIXELS and images * height >= torch.get_num_threads() * _ROWS * (convolutions - 1)


def join_blocks(module: fx.GraphModule) -> None:
    """Residual blocks, one behind the other: in one, as far as a core's cache holds their filters.

    The first may begin with a stride.
    """
    chains: dict[fx.Node, list[fx.Node]] = {}  # by the last of their convolutions
    for node in module.graph.nodes:
        block = _block(node) or _strided_block(node)
        if not block or not _fit(module, block):
            continue
        chain, x = block, _arguments(node).residual
        if x in chains and set(x.users) == set(block) and _fit(module, [*chains[x], *block]):
            chain = [*chains.pop(x), *block]
        chains[node] = chain
    for chain in chains.values():
        _join(module, chain)


def _arguments(node: fx.Node) -> Convolved:
    return Convolved(*node.args)  # type: ignore[arg-type]


def _block(node: fx.Node) -> list[fx.Node]:
    """The two convolutions of ``conv(conv(x)) + x``, if ``node`` is the second."""
    inner = node.args[0] if node.target is convolved else None
    if not isinstance(inner, fx.Node) or inner.target is not convolved or len(inner.users) > 1:
        return []
    first, second = _arguments(inner), _arguments(node)
    return [inner, node] if first.residual is None and second.residual is first.x else []


def _strided_block(node: fx.Node) -> list[fx.Node]:
    """First convolution, shortcut and second convolution of ``conv(conv(x)) + conv(x)``, if ``node`` is the last."""
    others = node.args[:4:3] if node.target is convolved else ()
    if not others or not all(
        isinstance(n, fx.Node) and n.target is convolved and len(n.users) == 1 for n in others
    ):
        return []
    first, shortcut = (_arguments(other) for other in others)  # type: ignore[arg-type]
    if first.x is not shortcut.x or first.residual is not None or shortcut.residual is not None:
        return []
    stride, groups = [first.stride[0]] * 2, first.groups
    alike = list(first[5:]) == [[3, 3], stride, [1, 1], groups, True]
    beside = list(shortcut[5:]) == [[1, 1], stride, [0, 0], groups, False]
    return [*others, node] if alike and beside else []  # type: ignore[list-item]


def _fit(module: fx.GraphModule, chain: list[fx.Node]) -> bool:
    """Whether one operator takes the convolutions, and a cache their filters."""
    blocks = chain[_head(chain) :]
    groups = _arguments(chain[0]).groups
    alike = all(list(_arguments(node)[5:]) == [[3, 3], [1, 1], [1, 1], groups, True] for node in blocks)
    filters, bias = _constants(module, chain)
    kinds = {(each.dtype, len(sums)) for each, sums in zip(filters, bias, strict=True)}
    narrow = len(kinds) == 1 and filters[0].dtype == torch.bfloat16 and not any(map(ops.is_winograd, filters))
    return alike and narrow and ops.cache_holds(filters, groups)


def _head(chain: list[fx.Node]) -> int:
    """How many convolutions of a chain come before the alike ones: those with a stride."""
    return 2 * (len(chain) % 2)


def _constants(module: fx.GraphModule, chain: list[fx.Node]) -> tuple[list[Tensor], list[Tensor]]:
    """(filters, bias) of each convolution."""
    found = [_arguments(node)[1:3] for node in chain]
    filters, bias = (
        [getattr(module, str(node.target)) for node in nodes] for nodes in zip(*found, strict=True)
    )
    return filters, bias


def _join(module: fx.GraphModule, chain: list[fx.Node]) -> None:
    first, head = _arguments(chain[0]), _head(chain)
    names = [str(constant.target) for node in chain[:head] for constant in _arguments(node)[1:3]]
    for kind, tensors in zip(("filters", "bias"), _constants(module, chain[head:]), strict=True):
        names.append("_".join([*(str(_arguments(node).filters.target) for node in chain[head:]), kind]))
        module.register_buffer(names[-1], torch.stack(tensors), persistent=False)
    if head:
        _replace(chain, strided_stage, (first.x,), names, (first.stride[0], first.groups))
    else:
        _replace(chain, residual_blocks, (first.x,), names, (first.groups,))


def join_stems(module: fx.GraphModule) -> None:
    """Residual blocks right behind the first pooling: in one with it, without the features between."""
    for node in list(module.graph.nodes):
        stem = node.args[0] if node.target is residual_blocks else None
        if isinstance(stem, fx.Node) and stem.target is ops.convolve_pool and len(stem.users) == 1:
            _, filters, bias, groups = node.args
            names = [str(constant.target) for constant in (filters, bias)]  # type: ignore[union-attr]
            _replace([stem, node], stem_blocks, stem.args, names, (groups,))


def _replace(
    nodes: list[fx.Node], function: Callable[..., Tensor], given: Sequence[Any], constants: Sequence[str],
    rest: Sequence[Any],
) -> None:  # fmt: skip
    """One call at the place of the first of them, whose input may be overwritten before the last."""
    graph, last = nodes[0].graph, nodes[-1]
    with graph.inserting_before(next(node for node in graph.nodes if node in nodes)):
        joined = graph.call_function(function, (*given, *map(graph.get_attr, constants), *rest))
    joined.meta.update(last.meta)
    last.replace_all_uses_with(joined)
    for node in reversed(nodes):
        graph.erase_node(node)
