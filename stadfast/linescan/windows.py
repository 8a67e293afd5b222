"""Where the rows of a strip's values lie in the steady state: memory that is made once.

A value's new rows lie behind those carried over. A residual block adds to its input where this lies, so that its result
follows what it carries itself, if there is room before::

    memory                           carried by 2 | carried by 1 | new rows of 1 ...
    window of value 1                             [                                ]
    value 2 = value 1 + convolutions [                           ]  written in place; carried by 1 remains behind

Values between two convolutions live so short that they lend each other one memory, which stays in the cache; what they
carry lies beside it and is copied in and out. Of values within residual blocks that one operator takes (blocks.py)
there is only what they carry.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import find_blocks
from .network import State, StripNetwork
from .sliding import Convolution


class Copy(NamedTuple):
    """Of rows."""

    target: Tensor
    source: Tensor

    def run(self) -> None:
        self.target.copy_(self.source)


class Windows:
    """The memory for steps of a fixed number of rows.

    Args:
        network: with its width set.
        rows: of the network's input in a step.
        state: of the shapes that are carried.

    Attributes:
        windows: by value: carried and new rows; of ``network.in_parts`` those carried only.
        new: by value: the new rows' part of its window.
        state: what is carried, in the order of ``network.carrying``: views of the memory.
        blocks: residual blocks that one operator takes, with what their values carry (N, C, 2, W).
        overwrites: which layers write their result over their last source.
        before, after: what to copy ahead of a layer, and behind it, by its place in the chain.
        shifts: what to copy when a step is done, one after the other.
    """

    def __init__(self, network: StripNetwork, rows: int, state: State) -> None:
        self._network, kept = network, dict(zip(network.carrying, state, strict=True))
        self._carried = {value: x.shape[2] for value, x in kept.items()}
        self._counts = {value: int(rows * network.rows[value].rate) for value in kept}
        self.in_parts = {v for v in network.in_parts if self._counts[v] >= self._carried[v]}
        self.overwrites = [self._may_overwrite(i) for i in range(len(network.chain))]
        self.windows: dict[int, Tensor] = {}
        self.before: dict[int, Copy] = {}
        self.after: dict[int, Copy] = {}
        self.shifts: list[Copy] = []
        beside = {value: torch.empty_like(kept[value]) for value in self.in_parts}
        self.windows.update(beside)
        single = state[0].shape[0] == 1  # of several images rows are no block of memory
        widths = {value: x.shape[3] for value, x in kept.items()}
        self.blocks = [
            (b, _side_by_side(kept, b.values)) for b in (find_blocks(network, widths) if single else [])
        ]
        within = {v: x[i : i + 1] for b, x in self.blocks for i, v in enumerate(b.values)}
        beside.update(within)
        # Stages read these when others would already have got their memory.
        borrowed = {v for b, _ in self.blocks for v in b.borrowed(network)}
        following = self._written_in_place({*within, *borrowed}) if single else {}
        if single:
            beside.update(self._lend(kept, {*following, *following.values(), *within, *borrowed}))
        for value, x in kept.items():
            if value not in self.windows and value not in within:
                self._allocate(value, following, x)
        self.new = {v: x[:, :, self._carried[v] :] for v, x in self.windows.items() if v not in self.in_parts}
        self.state = tuple(
            beside[v] if v in beside else self.windows[v][:, :, :n] for v, n in self._carried.items()
        )

    def of(self, value: int, carried: int) -> Tensor | None:
        """The window of a layer that needs so many carried rows of a value, if this is in memory."""
        if value not in self.windows:
            return None
        return self.windows[value][:, :, self._carried[value] - carried :]

    def _may_overwrite(self, i: int) -> bool:
        """Whether layer i may write over the new rows of its last source without touching what is carried on."""
        layer, link = self._network.chain[i]
        return self._network.overwrites[i] and layer.carried[-1] == self._carried.get(link.sources[-1], 0)

    def _written_in_place(self, without: set[int]) -> dict[int, int]:
        """By value: the one that takes its place."""
        return {
            link.sources[1]: link.outputs[0]
            for i, (_, link) in enumerate(self._network.chain)
            if len(link.sources) == 2 and self.overwrites[i] and not without & {link.sources[1], link.outputs[0]}
            and link.sources[1] in self._carried and link.outputs[0] in self._carried
        }  # fmt: skip

    def _lend(self, kept: dict[int, Tensor], chained: set[int]) -> dict[int, Tensor]:
        """One memory for convolutions' results of which none is needed when the next is made.

        Returns:
            what they carry, by value.
        """
        beside: dict[int, Tensor] = {}
        lent, free = [], 0
        for i, (layer, link) in enumerate(self._network.chain):
            value = link.outputs[0]
            taken = value not in kept or value in chained or value in self.in_parts
            if isinstance(layer, Convolution) and not taken and i >= free and self._ends(value):
                free = self._network.last_use[value] + 1
                lent.append((value, i, free - 1))
        if not lent:
            return {}
        lengths = [kept[v][:, :, :1].numel() * (self._carried[v] + self._counts[v]) for v, _, _ in lent]
        memory = kept[lent[0][0]].new_empty(max(lengths))
        for (value, first, last), length in zip(lent, lengths, strict=True):
            _, channels, _, width = kept[value].shape
            window = memory[:length].view(1, -1, width, channels).permute(0, 3, 1, 2)
            self.windows[value], beside[value] = window, torch.empty_like(kept[value])
            self.before[first] = Copy(window[:, :, : self._carried[value]], beside[value])
            self.after[last] = Copy(beside[value], window[:, :, self._counts[value] :])
        return beside

    def _ends(self, value: int) -> bool:
        """Whether nothing that its readers give lies in its memory, so that this is free after its last use."""
        readers = [i for i, (_, link) in enumerate(self._network.chain) if value in link.sources]
        return all(
            isinstance(self._network.chain[i][0], Convolution)
            and not (self.overwrites[i] and self._network.chain[i][1].sources[1:] == (value,))
            for i in readers
        )

    def _allocate(self, value: int, following: dict[int, int], kept: Tensor) -> None:
        """Memory for a value and those that take its place, one after the other."""
        values, rows = [value], self._counts[value]
        while values[-1] in following:
            values.append(following[values[-1]])
        start = room = sum(self._carried[v] for v in values)
        shape = (*kept.shape[:2], room + rows, kept.shape[3])
        memory = torch.empty(shape, dtype=kept.dtype, device=kept.device).to(
            memory_format=torch.channels_last
        )
        for v in values:
            start -= self._carried[v]
            self.windows[v] = memory[:, :, start : start + self._carried[v] + rows]
        self.shifts += [
            Copy(memory[:, :, first : first + n], memory[:, :, first + rows : first + rows + n])
            for first in range(0, room, rows) for n in [min(rows, room - first)]
        ]  # fmt: skip


def _side_by_side(kept: dict[int, Tensor], values: tuple[int, ...]) -> Tensor:
    """Memory for what these values carry, one behind the other."""
    return torch.cat([kept[value] for value in values]).contiguous(memory_format=torch.channels_last)
