"""A network as a chain of layers of a strip, with its state in plain sight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from .layers import Layer, Rows, Step

State = tuple[Tensor, ...]


class Link(NamedTuple):
    """Where in the list of values a layer finds its sources and puts its outputs."""

    sources: tuple[int, ...]
    outputs: tuple[int, ...]


class StripNetwork(nn.Module):
    """Layers in the order of execution; value 0 is the input, and ``output`` the map.

    Attributes:
        unit: a step takes a multiple of so many rows, and a strip has a multiple of so many rows and columns.
        rate: map rows per row of the input.
        delay: map rows that are missing when all input rows so far have been taken.
        settled: from so many rows on (and until the strip ends) no step sees a virtual row.
    """

    def __init__(self, layers: Sequence[Layer], links: Sequence[Link], output: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._chain = tuple(zip(layers, links, strict=True))
        self.output = output
        rows = [Rows(layers[0].sources[0].rate), *(r for layer in layers for r in layer.outputs)]
        self.unit = math.lcm(*(r.rate.denominator for r in rows))
        last = next(
            layer.outputs[link.outputs.index(output)]
            for layer, link in self._chain if output in link.outputs
        )  # fmt: skip
        self.rate, self.delay = last.rate, last.delay
        self.settled = max(
            math.ceil((source.delay + max(carried, 0)) / source.rate)
            for layer in layers for source, carried in zip(layer.sources, layer.carried, strict=True)
        )  # fmt: skip
        self._last_use = {value: i for i, link in enumerate(links) for value in link.sources}

    def set_width(self, width: int) -> None:
        for layer, _ in self._chain:
            layer.width = width

    def forward(self, rows: Tensor, state: State | None, step: Step) -> tuple[Tensor, State]:
        """(B, 3, n, W) and what the steps before carried on (None: a new strip) -> (map rows, what to carry on)."""
        values: dict[int, Tensor] = {0: rows}
        carried: list[Tensor] = []
        position = 0
        for i, (layer, link) in enumerate(self._chain):
            before: Sequence[Tensor | None] = [None] * layer.carries
            if state is not None:
                before = state[position : position + layer.carries]
            position += layer.carries
            outputs, kept = layer([values[source] for source in link.sources], before, step)
            carried += kept
            values.update(zip(link.outputs, outputs, strict=True))
            for value in link.sources:  # the block of rows stays small enough for the cache
                if self._last_use[value] == i:
                    values.pop(value, None)
        return values[self.output], tuple(carried)
