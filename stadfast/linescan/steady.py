"""The steady state in place: what :class:`StripNetwork` does with new tensors in every step, without most copies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .blocks import Blocks
from .layers import Step
from .network import State, StripNetwork
from .windows import Windows


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
        with torch.inference_mode(False), torch.no_grad():
            self._memory = Windows(network, rows, state)
            self._inputs = [
                [self._input(*pair) for pair in zip(link.sources, layer.carried, strict=True)]
                for layer, link in network.chain
            ]
            self._bound = [self._bind(i) for i in range(len(network.chain))]
            self._blocks = {b.last: (b, self._bind_blocks(b, x)) for b, x in self._memory.blocks}
            self._within = {i for b, _ in self._memory.blocks for i in range(b.begin, b.last)}
        self._targets = [copy.target for copy in self._memory.shifts]
        self._moved = [copy.source for copy in self._memory.shifts]
        self.state = self._memory.state

    def __call__(self, rows: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, 3, rows, W) and what the step before carried on -> (map rows, what to carry on)."""
        if state is not self.state:
            for mine, given in zip(self.state, state, strict=True):
                mine.copy_(given)
        memory = self._memory
        loose: dict[int, Tensor] = {}
        self._put(0, rows, loose)
        for i, (_, link) in enumerate(self.network.chain):
            if i in memory.before:
                memory.before[i].run()
            if i not in self._within:
                bound = self._bound[i]
                found = self._run(i, loose) if bound is None else bound()
                for value, x in zip(link.outputs, found, strict=True):
                    self._put(value, x, loose)
                for value in link.sources:
                    if self.network.last_use[value] == i and value in loose:
                        self._drop(value, loose)
            if i in memory.after:
                memory.after[i].run()
        if self._targets:
            torch._foreach_copy_(self._targets, self._moved)  # one after the other
        output = self.network.output
        return loose[output] if output in loose else memory.new[output].clone(), self.state

    def _put(self, value: int, x: Tensor, loose: dict[int, Tensor]) -> None:
        new = self._memory.new.get(value)
        if new is None:
            loose[value] = x
        elif x.data_ptr() != new.data_ptr():
            new.copy_(x)

    def _drop(self, value: int, loose: dict[int, Tensor]) -> None:
        x = loose.pop(value)
        if value in self._memory.in_parts:
            kept = self._memory.windows[value]
            kept.copy_(x[:, :, x.shape[2] - kept.shape[2] :])

    # ---------------------------------------------------------------- layers

    def _input(self, value: int, carried: int) -> tuple[int, int, Tensor | None]:
        """A layer's source: (value, rows that it skips of the new ones, its window if this is in memory)."""
        window = self._memory.of(value, carried)
        return value, -carried if window is None else 0, window

    def _windows(self, i: int, loose: dict[int, Tensor]) -> list[Tensor]:
        """What layer i reads."""
        windows = []
        for value, skipped, window in self._inputs[i]:
            if window is not None:
                windows.append(window)
            if value in loose:
                windows.append(loose[value][:, :, skipped:] if skipped else loose[value])
        return windows

    def _bind(self, i: int) -> Callable[[], list[Tensor]] | None:
        """Layer i as a function, if all that it reads is in memory."""
        layer, link = self.network.chain[i]
        if not set(link.sources) <= set(self._memory.new):
            return None
        return layer.bound(
            self._windows(i, {}), self.step, last=self._memory.overwrites[i], into=self._into(i)
        )

    def _bind_blocks(self, blocks: Blocks, carried: Tensor) -> Callable[[Tensor, Tensor | None], Tensor]:
        rate = self.network.rows[self.network.chain[blocks.last][1].outputs[0]].rate
        return blocks.bound(self.network, carried, int(self.step.rows * rate))

    def _run(self, i: int, loose: dict[int, Tensor]) -> list[Tensor]:
        if i in self._blocks:
            blocks, run = self._blocks[i]
            x = self._windows(blocks.begin, loose)[0] if blocks.stem else loose.pop(blocks.values[0])
            return [run(x, self._into(i))]
        layer = self.network.chain[i][0]
        windows = self._windows(i, loose)
        return layer(windows, self.step, last=self._memory.overwrites[i], into=self._into(i))  # type: ignore[no-any-return]

    def _into(self, i: int) -> Tensor | None:
        """Where layer i may write its result."""
        return self._memory.new.get(self.network.chain[i][1].outputs[0])
