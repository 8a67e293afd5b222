"""Residual blocks that one operator takes in the steady state: features between their convolutions stay in the cache.

A thread takes one group of channels, which is one network of several side by side: where threads are more than groups,
the convolutions run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..runtime.convolutions import PIXELS
from .network import StripNetwork
from .sliding import Convolution, ConvolutionPool

_CARRIED = 2  # rows, of every convolution's input


class Blocks(NamedTuple):
    """Consecutive layers of a network.

    Attributes:
        first, last: their convolutions' places in the chain.
        values: what these read.
        start: the place of the layer before that is done with them, if there is one: a convolution with its pooling,
            or that with which a stage begins.
        shortcut: the place of the one beside it, if it is a stage.
    """

    first: int
    last: int
    values: tuple[int, ...]
    start: int | None = None
    shortcut: int | None = None

    @property
    def begin(self) -> int:
        """The place of the first layer."""
        return self.first if self.start is None else self.start

    @property
    def within(self) -> set[int]:
        """The places of layers that do not run by themselves, but for the last."""
        beside = set() if self.shortcut is None else {self.shortcut}
        return {self.begin, *range(self.first, self.last), *beside}

    def borrowed(self, network: StripNetwork) -> tuple[int, ...]:
        """The values that must lie in memory when the last layer is at its turn: what a stage reads, its shortcut."""
        if self.shortcut is None:
            return ()
        link = network.chain[self.shortcut][1]
        return (*link.sources, *link.outputs)

    def bound(
        self, network: StripNetwork, carried: Tensor, rows: int, windows: Sequence[Tensor]
    ) -> Callable[[Tensor | None, Tensor | None], Tensor]:
        """What runs them: (new rows of the first of ``values``, where to write or None) -> the output's new rows.

        Args:
            network: of which they are layers.
            carried: (N, C, 2, W), the rows of all ``values``, which every call moves on.
            rows: of the output.
            windows: what the layer before reads, where there is one (a call needs no new rows then); for a stage also
                what its shortcut reads, and the shortcut's rows, carried and new.
        """
        layers = _convolutions(network, self)
        filters, bias = (torch.stack(tensors) for tensors in zip(*(x.packed() for x in layers), strict=True))
        blocks = (carried, filters, bias, layers[0].groups)
        shape = (1, carried.shape[1], rows, carried.shape[3])
        before = network.chain[self.begin][0]

        def output(into: Tensor | None) -> Tensor:
            if into is not None:
                return into
            return torch.empty(shape, dtype=carried.dtype, memory_format=torch.channels_last)

        if self.shortcut is not None:
            pair = [_convolution(network, place) for place in (self.begin, self.shortcut)]
            stride = pair[0].stride[0]
            first, beside = (
                (x[:, :, : (rows - 1) * stride + layer.reach], *layer.packed())
                for x, layer in zip(windows, pair, strict=False)
            )
            stage = (*first, windows[2], *beside, stride, *blocks)
            return lambda _, into: ops.stream_stage_(output(into), *stage)
        if isinstance(before, ConvolutionPool):
            stem: tuple[Any, ...] = (windows[0], *before.packed(), *blocks)
            return lambda _, into: ops.stream_pool_blocks_(output(into), *stem)
        return lambda x, into: ops.stream_blocks_(output(into), x, *blocks)  # type: ignore[arg-type]


def find_blocks(network: StripNetwork, widths: dict[int, int]) -> list[Blocks]:
    """As many blocks one behind the other as a core's cache holds the filters of, or all where it holds not even one's.

    Args:
        network: with its width set.
        widths: columns of each value that is carried.
    """
    found: list[Blocks] = []
    for i in range(len(network.chain)):
        if found and i <= found[-1].last:
            continue
        block = _block(network, i, widths) or _stage(network, i, widths)
        if block is None:
            continue
        while following := _block(network, block.last + 1, widths):
            longer = block._replace(last=following.last, values=(*block.values, *following.values))
            behind = following.values[0] == network.chain[block.last][1].outputs[0]
            if not behind or not _alike(network, longer) or _fits(network, block) > _fits(network, longer):
                break
            block = longer
        found.append(block._replace(start=i - 1) if _has_stem(network, block) else block)
    return found


def _has_stem(network: StripNetwork, blocks: Blocks) -> bool:
    """Whether the layer before is a convolution with its pooling, of which only the blocks want to know."""
    layer, link = network.chain[blocks.begin - 1]
    if blocks.begin == 0 or link.outputs != blocks.values[:1] or not isinstance(layer, ConvolutionPool):
        return False
    weight = layer.convolution.weight
    return weight.dtype == torch.bfloat16 and layer.convolution.runs_with(weight, layer.pool)


def _block(network: StripNetwork, i: int, widths: dict[int, int]) -> Blocks | None:
    """The block that begins with layer i: two convolutions, of which the second adds what the first one reads."""
    if i + 1 >= len(network.chain):
        return None
    (first, link), (second, behind) = network.chain[i : i + 2]
    if not isinstance(first, Convolution) or not isinstance(second, Convolution):
        return None
    outer, inner = link.sources[0], link.outputs[0]
    joined = link.sources == (outer,) and behind.sources == (inner, outer)
    own = joined and _is_own(network, outer, [i, i + 1]) and _is_own(network, inner, [i + 1])
    carried = first.carried == (_CARRIED,) and second.carried == (_CARRIED, _CARRIED)
    block = Blocks(i, i + 1, (outer, inner))
    return block if own and carried and widths[outer] > PIXELS and _alike(network, block) else None


def _stage(network: StripNetwork, i: int, widths: dict[int, int]) -> Blocks | None:
    """The block whose second convolution is layer i, and whose first has a stride, with a shortcut beside it."""
    second, link = network.chain[i]
    if (
        i < 2
        or len(link.sources) != 2
        or not isinstance(second, Convolution)
        or second.carried[0] != _CARRIED
    ):
        return None
    before = {linked.outputs: j for j, (_, linked) in enumerate(network.chain[i - 2 : i], i - 2)}
    start, shortcut = (before.get((value,)) for value in link.sources)
    if start is None or shortcut is None or not all(_is_own(network, value, [i]) for value in link.sources):
        return None
    (first, source), (beside, same) = network.chain[start], network.chain[shortcut]
    if not isinstance(first, Convolution) or not isinstance(beside, Convolution):
        return None
    simple = _is_simple(first) and _is_shortcut(beside, first) and first.groups == second.groups
    kept = (
        len(source.sources) == 1
        and source.sources == same.sources
        and source.sources[0] not in network.in_parts
    )
    block = Blocks(i, i, link.sources[:1], start, shortcut)
    in_memory = all(value in widths for value in (*block.values, *block.borrowed(network)))
    joined = simple and kept and in_memory and len(first.weight) == len(second.weight)
    return block if joined and widths[block.values[0]] > PIXELS and _alike(network, block) else None


def _is_own(network: StripNetwork, value: int, readers: list[int]) -> bool:
    """Whether only these layers want to know of a value."""
    return value != network.output and readers == [
        i for i, (_, link) in enumerate(network.chain) if value in link.sources
    ]


def _is_simple(layer: Convolution) -> bool:
    """Whether it is one of those that blocks are made of, but for a stride."""
    small = layer.weight.shape[2:] == (3, 3) and layer.columns == (1, 1) and len(set(layer.stride)) == 1
    rectified = layer.activation is not None and layer.activation.name == "relu"
    plain = small and rectified and layer.weight.dtype == torch.bfloat16 and not layer.winograd()
    return plain and ops.convolve_takes(layer.weight, layer.stride, layer.dilation, layer.groups)


def _is_shortcut(layer: Convolution, first: Convolution) -> bool:
    """Whether it takes single pixels to as many channels, rows and columns as a stage's first convolution."""
    plain = layer.weight.dtype == torch.bfloat16 and layer.activation is None and layer.columns == (0, 0)
    single = layer.weight.shape == (*first.weight.shape[:2], 1, 1) and len(layer.sources) == 1
    alike = layer.groups == first.groups and layer.stride == first.stride
    taken = ops.convolve_takes(layer.weight, layer.stride, layer.dilation, layer.groups)
    return plain and single and alike and taken


def _alike(network: StripNetwork, blocks: Blocks) -> bool:
    """Whether one operator takes all of the convolutions, with a network for each of the threads."""
    layers = _convolutions(network, blocks)
    first = layers[0]
    square = len(first.weight) == first.weight.shape[1] * first.groups and first.stride == [1, 1]
    alike = {(layer.weight.shape, layer.groups, tuple(layer.stride)) for layer in layers}
    fit = len(alike) == 1 and torch.get_num_threads() <= first.groups
    return square and fit and all(map(_is_simple, layers))


def _fits(network: StripNetwork, blocks: Blocks) -> bool:
    layers = _convolutions(network, blocks)
    return ops.cache_holds([layer.packed()[0] for layer in layers], layers[0].groups)


def _convolution(network: StripNetwork, place: int) -> Convolution:
    return network.chain[place][0]  # type: ignore[return-value]


def _convolutions(network: StripNetwork, blocks: Blocks) -> list[Convolution]:
    return [_convolution(network, place) for place in range(blocks.first, blocks.last + 1)]
