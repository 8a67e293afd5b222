"""The steady state in place: what :class:`StripNetwork` does with new tensors in every step, without most copies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..runtime.cuda import capture
from .blocks import Blocks
from .layers import Step
from .network import State, StripNetwork
from .windows import Windows


class SteadySteps:
    """Steps of a fixed number of rows, once the strip's beginning is out of sight.

    Args:
        prepare: camera rows as the network wants them.
        network: with its width set.
        rows: of the network's input in a step.
        state: that comes before the first step.

    Attributes:
        state: after the last step: views of the memory, which the next step overwrites.
    """

    def __init__(
        self, prepare: Callable[[Tensor], Tensor], network: StripNetwork, rows: int, state: State
    ) -> None:
        self._prepare, self.network, self.step = prepare, network, Step(rows)
        with torch.inference_mode(False), torch.no_grad():
            self._memory = Windows(network, rows, state)
            self._inputs = [
                [self._input(*pair) for pair in zip(link.sources, layer.carried, strict=True)]
                for layer, link in network.chain
            ]
            self._bound = [self._bind(i) for i in range(len(network.chain))]
            self._blocks = {b.last: (b, self._bind_blocks(b, x)) for b, x in self._memory.blocks}
            self._within = {i for b, _ in self._memory.blocks for i in b.within}
        self._targets = [copy.target for copy in self._memory.shifts]
        self._moved = [copy.source for copy in self._memory.shifts]
        self.state = self._memory.state

    def __call__(self, rows: Tensor, state: State) -> tuple[Tensor, State]:
        """Camera rows and what the step before carried on -> (map rows, what to carry on)."""
        self.take(state)
        memory = self._memory
        loose: dict[int, Tensor] = {}
        self._put(0, self._prepare(rows), loose)
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
        self._shift()
        output = self.network.output
        return loose[output] if output in loose else memory.new[output].clone(), self.state

    def take(self, state: State) -> None:
        """Go on from a state, which may come from elsewhere."""
        if state is not self.state:
            for mine, given in zip(self.state, state, strict=True):
                mine.copy_(given)

    def _shift(self) -> None:
        """To the start of each window what the next step needs of its end, one copy after the other."""
        if self._targets and self._targets[0].device.type == "cpu":
            torch._foreach_copy_(self._targets, self._moved)
        else:  # a GPU would do them all at once, and one may read what another writes
            for target, moved in zip(self._targets, self._moved, strict=True):
                target.copy_(moved)

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

    def _bind_blocks(
        self, blocks: Blocks, carried: Tensor
    ) -> Callable[[Tensor | None, Tensor | None], Tensor]:
        rate = self.network.rows[self.network.chain[blocks.last][1].outputs[0]].rate
        before = (place for place in (blocks.start, blocks.shortcut, blocks.first) if place is not None)
        windows = [x for place in before for x in self._windows(place, {})]
        return blocks.bound(self.network, carried, int(self.step.rows * rate), windows)

    def _run(self, i: int, loose: dict[int, Tensor]) -> list[Tensor]:
        if i in self._blocks:
            blocks, run = self._blocks[i]
            x = loose.pop(blocks.values[0]) if blocks.start is None else None
            return [run(x, self._into(i))]
        layer = self.network.chain[i][0]
        windows = self._windows(i, loose)
        return layer(windows, self.step, last=self._memory.overwrites[i], into=self._into(i))  # type: ignore[no-any-return]

    def _into(self, i: int) -> Tensor | None:
        """Where layer i may write its result."""
        return self._memory.new.get(self.network.chain[i][1].outputs[0])


class CapturedSteps:
    """Steps as one CUDA graph, which a GPU is told to run in a single launch.

    Args:
        steps: the state that they are in is lost.
        rows: like all that will come, in shape and type.

    Attributes:
        state: as of :class:`SteadySteps`.
    """

    def __init__(self, steps: SteadySteps, rows: Tensor) -> None:
        self._steps, self._rows, self.state = steps, rows.clone(), steps.state
        with torch.cuda.device(rows.device):
            self._graph, self._maps = capture(lambda: steps(self._rows, steps.state)[0])

    def __call__(self, rows: Tensor, state: State) -> tuple[Tensor, State]:
        """As of :class:`SteadySteps`; the next call overwrites the map rows."""
        self._steps.take(state)
        self._rows.copy_(rows)
        with torch.cuda.device(rows.device):
            self._graph.replay()
        return self._maps, self.state
