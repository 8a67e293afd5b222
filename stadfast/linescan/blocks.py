"""Residual blocks that one operator takes in the steady state: features between their convolutions stay in the cache.

A thread takes one group of channels, which is one network of several side by side: where threads are more than groups,
the convolutions run one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from .network import StripNetwork
from .sliding import Convolution, ConvolutionPool

_CARRIED = 2  # rows, of every convolution's input
_COLUMNS = 16  # of a row, that are convolved at once


class Blocks(NamedTuple):
    """Consecutive layers of a network.

    Attributes:
        first, last: their convolutions' places in the chain.
        values: what these read.
        stem: whether the layer before, a convolution with its pooling, is done with them.
    """

    first: int
    last: int
    values: tuple[int, ...]
    stem: bool = False

    @property
    def begin(self) -> int:
        """The place of the first layer."""
        return self.first - self.stem

    def bound(
        self, network: StripNetwork, carried: Tensor, rows: int
    ) -> Callable[[Tensor, Tensor | None], Tensor]:
        """What runs them: (what the first layer reads, where to write or None) -> the output's new rows.

        Args:
            network: of which they are layers.
            carried: (N, C, 2, W), the rows of all ``values``, which every call moves on.
            rows: of the output.
        """
        layers = _convolutions(network, self)
        packed = [layer.packed() for layer in layers]
        filters, bias = (torch.stack(tensors) for tensors in zip(*packed, strict=True))
        blocks = (carried, filters, bias, layers[0].groups)
        shape = (1, carried.shape[1], rows, carried.shape[3])
        before = network.chain[self.begin][0]

        def run(x: Tensor, into: Tensor | None) -> Tensor:
            output = into
            if output is None:
                output = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
            if isinstance(before, ConvolutionPool):
                return ops.stream_pool_blocks_(output, x, *before.packed(), *blocks)  # type: ignore[call-arg]
            return ops.stream_blocks_(output, x, *blocks)

        return run


def find_blocks(network: StripNetwork, widths: dict[int, int]) -> list[Blocks]:
    """As many blocks one behind the other as a core's cache holds the filters of.

    Args:
        network: with its width set.
        widths: columns of each value that is carried.
    """
    found: list[Blocks] = []
    for i in range(len(network.chain) - 1):
        if found and i <= found[-1].last:
            continue
        block = _block(network, i, widths)
        if block is None:
            continue
        while following := _block(network, block.last + 1, widths):
            values = (*block.values, *following.values)
            longer = Blocks(block.first, following.last, values)
            if following.values[0] != network.chain[block.last][1].outputs[0] or not _fits(network, longer):
                break
            block = longer
        found.append(block._replace(stem=_has_stem(network, block)))
    return found


def _has_stem(network: StripNetwork, blocks: Blocks) -> bool:
    """Whether the layer before is a convolution with its pooling, of which only the blocks want to know."""
    layer, link = network.chain[blocks.first - 1]
    if blocks.first == 0 or link.outputs != blocks.values[:1] or not isinstance(layer, ConvolutionPool):
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
    readers = [
        [j for j, (_, other) in enumerate(network.chain) if v in other.sources] for v in (outer, inner)
    ]
    own = readers == [[i, i + 1], [i + 1]] and network.output not in (outer, inner)
    joined = link.sources == (outer,) and behind.sources == (inner, outer)
    carried = first.carried == (_CARRIED,) and second.carried == (_CARRIED, _CARRIED)
    if not (own and joined and carried and widths[outer] > _COLUMNS):
        return None
    block = Blocks(i, i + 1, (outer, inner))
    alike = first.groups == second.groups and first.weight.shape == second.weight.shape
    return block if alike and all(map(_simple, (first, second))) and _fits(network, block) else None


def _simple(layer: Convolution) -> bool:
    """Whether it is one of those that ``stream_blocks_`` does."""
    square = list(layer.weight.shape) == [
        len(layer.weight), len(layer.weight) // layer.groups, 3, 3
    ] and layer.columns == (1, 1)  # fmt: skip
    rectified = layer.activation is not None and layer.activation.name == "relu"
    plain = square and rectified and layer.weight.dtype == torch.bfloat16 and layer.stride == [1, 1]
    return plain and ops.convolve_takes(layer.weight, layer.stride, layer.dilation, layer.groups)


def _fits(network: StripNetwork, blocks: Blocks) -> bool:
    layers = _convolutions(network, blocks)
    groups = layers[0].groups
    alike = {layer.weight.shape for layer in layers} == {layers[0].weight.shape}
    return (
        alike
        and torch.get_num_threads() <= groups
        and ops.cache_holds([layer.packed()[0] for layer in layers], groups)
    )


def _convolutions(network: StripNetwork, blocks: Blocks) -> list[Convolution]:
    return [layer for layer, _ in network.chain[blocks.first : blocks.last + 1]]  # type: ignore[misc]
