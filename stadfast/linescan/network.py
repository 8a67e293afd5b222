"""A network as a chain of layers of a strip, with its state in plain sight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers import Layer, Rows, Step
from .sliding import Convolution, ConvolutionPool, MaxPool

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
        rows: of each value.
        carrying: the values of which the state holds rows, in its order.
        in_parts: the values whose carried and new rows need not be brought together.
        overwrites: which layers may write their result over their last source.
    """

    def __init__(self, layers: Sequence[Layer], links: Sequence[Link], output: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.chain = tuple(zip(layers, links, strict=True))
        self.output = output
        self.rows = {0: Rows(layers[0].sources[0].rate)}
        for layer, link in self.chain:
            self.rows.update(zip(link.outputs, layer.outputs, strict=True))
        self.unit = math.lcm(*(r.rate.denominator for r in self.rows.values()))
        self.rate, self.delay = self.rows[output].rate, self.rows[output].delay
        self.settled = max(
            math.ceil((source.delay + max(carried, 0)) / source.rate)
            for layer in layers for source, carried in zip(layer.sources, layer.carried, strict=True)
        )  # fmt: skip
        self.last_use = {value: i for i, link in enumerate(links) for value in link.sources}
        self._carried = self._rows_to_carry()
        self.carrying = [value for value in self.rows if self._carried.get(value, 0) > 0]
        self.in_parts = {
            link.sources[0] for layer, link in self.chain
            if isinstance(layer, MaxPool) and layer.simple and layer.carried[0] > 0
            and self._uses(link.sources[0]) == 1
        }  # fmt: skip
        self.overwrites = [self._overwrites(i) for i in range(len(self.chain))]

    def _rows_to_carry(self) -> dict[int, int]:
        """By value: what the neediest of its readers needs, so that they share one window."""
        carried: dict[int, int] = {}
        for layer, link in self.chain:
            for value, rows in zip(link.sources, layer.carried, strict=True):
                carried[value] = max(rows, carried.get(value, 0))
        return carried

    def _overwrites(self, i: int) -> bool:
        """Whether layer i may write its result over its last source: a copy of which nobody else has a view."""
        value = self.chain[i][1].sources[-1]
        made = next((layer for layer, link in self.chain if value in link.outputs), None)
        fresh = self._carried[value] > 0 or isinstance(made, (Convolution, ConvolutionPool, MaxPool))
        readers = [layer for layer, link in self.chain if value in link.sources]
        copied = value not in self.in_parts and all(isinstance(layer, Convolution) for layer in readers)
        return fresh and copied and self.last_use[value] == i and self.chain[i][1].sources.count(value) == 1

    def _uses(self, value: int) -> int:
        return sum(link.sources.count(value) for _, link in self.chain)

    def set_width(self, width: int) -> None:
        for layer, _ in self.chain:
            layer.width = width

    def forward(self, rows: Tensor, state: State | None, step: Step) -> tuple[Tensor, State]:
        """(B, 3, n, W) and what the steps before carried on (None: a new strip) -> (map rows, what to carry on)."""
        kept: list[Tensor] = []
        windows = {0: self._window(0, rows, state, kept)}
        for i, (layer, link) in enumerate(self.chain):
            sources = zip(link.sources, layer.carried, strict=True)
            found = layer([self._part(windows[v], v, c) for v, c in sources], step, last=self.overwrites[i])
            for value in link.sources:  # the block of rows stays small enough for the cache
                if self.last_use[value] == i:
                    windows.pop(value, None)
            for value, x in zip(link.outputs, found, strict=True):
                windows[value] = self._window(value, x, state, kept)
        return windows[self.output], tuple(kept)

    def _window(self, value: int, new: Tensor, state: State | None, kept: list[Tensor]) -> Tensor:
        """The carried and the new rows of a value; ``kept`` gets what the next step needs."""
        rows = self._carried.get(value, 0)
        if rows == 0:
            return new
        before = _rows_before(new, rows) if state is None else state[len(kept)]
        window = torch.cat([before, new], dim=2)
        kept.append(window[:, :, window.shape[2] - rows :].clone())  # a view would keep the whole block alive
        return window

    def _part(self, window: Tensor, value: int, carried: int) -> Tensor:
        """A window without the rows that only other layers need."""
        skipped = self._carried[value] - carried
        return window[:, :, skipped:] if skipped else window


def _rows_before(new: Tensor, rows: int) -> Tensor:
    """Virtual rows; whatever is in them, no layer reads it."""
    shape = (*new.shape[:2], rows, new.shape[3])
    return torch.zeros(shape, dtype=new.dtype, device=new.device).to(memory_format=torch.channels_last)
