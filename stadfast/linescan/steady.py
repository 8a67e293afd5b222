"""The steady state in place: a value's rows lie in memory that is made once, behind those carried over.

What :class:`StripNetwork` does with new tensors in every step is done here without most of the copies. A residual block
adds to its input where this lies, so that its result follows what it carries itself, if there is room before::

    memory                           carried by 2 | carried by 1 | new rows of 1 ...
    window of value 1                             [                                ]
    value 2 = value 1 + convolutions [                           ]  written in place; carried by 1 remains behind
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import Step
from .network import State, StripNetwork


class SteadySteps:
    """Steps of a fixed number of rows, once the strip's beginning is out of sight.

    Args:
        network: with its width set.
        rows: of the network's input in a step.
        state: that comes before the first step.

    Attributes:
        state: after the last step: views of the memory, which the next step overwrites.
    """

    def __init__(self, network: StripNetwork, rows: int, state: State) -> None:
        self.network, self.step = network, Step(rows)
        self._carried = {value: kept.shape[2] for value, kept in zip(network.carrying, state, strict=True)}
        counts = {value: int(rows * network.rows[value].rate) for value in self._carried}
        self._parts = {value for value in network.in_parts if counts[value] >= self._carried[value]}
        self._overwrites = [self._may_overwrite(i) for i in range(len(network.chain))]
        self._windows: dict[int, Tensor] = {}  # carried and new rows; in parts: those carried
        self._shifts: list[tuple[Tensor, Tensor]] = []
        following = self._written_in_place() if state[0].shape[0] == 1 else {}
        with torch.inference_mode(False), torch.no_grad():
            for value, kept in zip(network.carrying, state, strict=True):
                if value in self._parts:
                    self._windows[value] = torch.empty_like(kept)
                elif value not in self._windows:
                    self._allocate(value, following, kept, counts[value])
            self._new = {
                v: window[:, :, self._carried[v] :]
                for v, window in self._windows.items()
                if v not in self._parts
            }
            self.state = tuple(self._windows[v][:, :, :rows] for v, rows in self._carried.items())
            self._inputs = [
                [self._input(*pair) for pair in zip(link.sources, layer.carried, strict=True)]
                for layer, link in network.chain
            ]

    def __call__(self, rows: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, 3, rows, W) and what the step before carried on -> (map rows, what to carry on)."""
        if state is not self.state:
            for mine, given in zip(self.state, state, strict=True):
                mine.copy_(given)
        loose: dict[int, Tensor] = {}
        self._put(0, rows, loose)
        for i, (layer, link) in enumerate(self.network.chain):
            windows = []
            for value, skipped, window in self._inputs[i]:
                if window is not None:
                    windows.append(window)
                if value in loose:
                    windows.append(loose[value][:, :, skipped:] if skipped else loose[value])
            found = layer(windows, self.step, last=self._overwrites[i], into=self._new.get(link.outputs[0]))
            for value, x in zip(link.outputs, found, strict=True):
                self._put(value, x, loose)
            for value in link.sources:
                if self.network.last_use[value] == i and value in loose:
                    self._drop(value, loose)
        for start, end in self._shifts:
            start.copy_(end)
        output = self.network.output
        return loose[output] if output in loose else self._new[output].clone(), self.state

    def _put(self, value: int, x: Tensor, loose: dict[int, Tensor]) -> None:
        if value not in self._new:
            loose[value] = x
        elif x.data_ptr() != self._new[value].data_ptr():
            self._new[value].copy_(x)

    def _drop(self, value: int, loose: dict[int, Tensor]) -> None:
        x = loose.pop(value)
        if value in self._parts:
            self._windows[value].copy_(x[:, :, x.shape[2] - self._carried[value] :])

    def _input(self, value: int, carried: int) -> tuple[int, int, Tensor | None]:
        """A layer's source: (value, rows that it skips of the new ones, its window if this is in memory)."""
        if value not in self._windows:
            return value, -carried, None
        skipped = self._carried[value] - carried
        return value, 0, self._windows[value][:, :, skipped:]

    # ---------------------------------------------------------------- memory

    def _may_overwrite(self, i: int) -> bool:
        """Whether layer i may write over the new rows of its last source without touching what is carried on."""
        layer, link = self.network.chain[i]
        return self.network.overwrites[i] and layer.carried[-1] == self._carried.get(link.sources[-1], 0)

    def _written_in_place(self) -> dict[int, int]:
        """By value: the one that takes its place."""
        return {
            link.sources[1]: link.outputs[0]
            for i, (_, link) in enumerate(self.network.chain)
            if len(link.sources) == 2 and self._overwrites[i]
            and link.sources[1] in self._carried and link.outputs[0] in self._carried
        }  # fmt: skip

    def _allocate(self, value: int, following: dict[int, int], kept: Tensor, rows: int) -> None:
        """Memory for a value and those that take its place, one after the other."""
        values = [value]
        while values[-1] in following:
            values.append(following[values[-1]])
        start = room = sum(self._carried[v] for v in values)
        shape = (*kept.shape[:2], room + rows, kept.shape[3])
        memory = torch.empty(shape, dtype=kept.dtype, device=kept.device).to(
            memory_format=torch.channels_last
        )
        for v in values:
            start -= self._carried[v]
            self._windows[v] = memory[:, :, start : start + self._carried[v] + rows]
        self._shifts += [
            (memory[:, :, first : first + n], memory[:, :, first + rows : first + rows + n])
            for first in range(0, room, rows) for n in [min(rows, room - first)]
        ]  # fmt: skip
