"""Layers that see a strip a few rows at a time and compute every row once.

Row j of a layer stands at row j / rate of the network's input. In a step that takes n input rows each layer gives
``n * rate`` rows, later by its delay: after n input rows in all it has given its rows 0 ... n * rate - delay - 1. What
it still needs of the rows that it has seen, it carries into the next step: a number of rows that never changes.

Rows before the strip's first and behind its last are virtual: they keep every step's shapes equal, and each layer
replaces them by what belongs there (zeros, -inf, a copy of the last row) before it mixes rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..errors import UsageError


class Rows(NamedTuple):
    """The rows that a layer gives.

    Attributes:
        rate: per row of the network's input; the inverse of the stride.
        delay: how many are missing when all input rows so far have been taken.
        extra: how many there are at the end beyond ``rate`` times the strip's length.
    """

    rate: Fraction
    delay: int = 0
    extra: int = 0


class Step(NamedTuple):
    """One step of the whole network.

    Attributes:
        rows: of the network's input that it takes.
        taken: those of the steps before; None in the steady state, when no virtual row is in sight.
        total: rows of the whole strip, as soon as it has ended.
    """

    rows: int
    taken: int | None = None
    total: int | None = None

    def virtual(self, source: Rows, carried: int, length: int) -> tuple[int, int]:
        """How many of ``length`` rows lie before and behind the strip, where ``carried`` precede the new ones."""
        if self.taken is None:
            return 0, 0
        start = int(self.taken * source.rate) - source.delay - carried
        behind = 0
        if self.total is not None:
            behind = start + length - (int(self.total * source.rate) + source.extra)
        return min(max(-start, 0), length), min(max(behind, 0), length)


class Layer(nn.Module):
    """A layer of a strip.

    Attributes:
        sources: the rows that it takes.
        outputs: the rows that it gives.
        carried: per source, how many rows before the new ones it needs; below zero: so many of the new ones it skips.
        width: columns of the network's input.
    """

    width = 0

    def __init__(self, sources: Sequence[Rows], outputs: Sequence[Rows], carried: Sequence[int]) -> None:
        super().__init__()
        self.sources, self.outputs, self.carried = tuple(sources), tuple(outputs), tuple(carried)

    def forward(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> list[Tensor]:
        """The outputs from each source's carried and new rows.

        Args:
            windows: by source: carried and new rows.
            step: which step of the strip this is.
            last: nobody reads the last window afterwards, and the result may be written over its first rows.
            into: where the result may be written as well.
        """
        raise NotImplementedError

    def bound(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> Callable[[], list[Tensor]]:
        """:meth:`forward` for windows that lie where they are in every step: what can be decided, is."""
        return partial(self.forward, windows, step, last=last, into=into)


class Pointwise(Layer):
    """An operator that mixes no rows; sources of different delay wait for the latest.

    Args:
        function: of the sources, in their order.
        constants: that it reads. They follow the layer from device to device, as a captured graph may copy nothing from
            the host, and keep their type whatever the layer's precision.
    """

    def __init__(
        self, sources: Sequence[Rows], function: Callable[..., Tensor], constants: list[Any] | None = None
    ) -> None:
        latest = max(source.delay for source in sources)
        super().__init__(sources, [sources[0]._replace(delay=latest)], [latest - s.delay for s in sources])
        self.function, self._constants = function, constants if constants is not None else []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Pointwise:
        for i, value in enumerate(self._constants):
            if isinstance(value, Tensor):
                self._constants[i] = value.to(fn(value.new_empty(0, dtype=torch.bool)).device)
        super()._apply(fn, recurse)
        return self

    def forward(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> list[Tensor]:
        return [self.function(*_wait(windows, self.carried))]

    def bound(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> Callable[[], list[Tensor]]:
        (found,) = self.forward(windows, step)  # a part of a window lies where it is in every step, too
        part = any(
            found.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() and found.numel() < x.numel()
            for x in windows
        )
        return (lambda: [found]) if part else super().bound(windows, step, last=last, into=into)


class Distance(Layer):
    """``pyramid_distance`` of one level; it waits for the later of student and teacher."""

    def __init__(self, student: Rows, teacher: Rows, eps: float) -> None:
        latest = max(student.delay, teacher.delay)
        super().__init__(
            [student, teacher],
            [student._replace(delay=latest)],
            [latest - student.delay, latest - teacher.delay],
        )
        self.eps = eps

    def forward(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> list[Tensor]:
        student, teacher = _wait(windows, self.carried)
        return ops.pyramid_distance([student], [teacher], eps=self.eps)


def _wait(windows: list[Tensor], carried: Sequence[int]) -> list[Tensor]:
    return [x[:, :, :-rows] if rows else x for x, rows in zip(windows, carried, strict=True)]


class Reflection(Layer):
    """Mirrored borders: ``F.pad(x, padding, mode="reflect")``.

    Row j is row ``j - top`` of the source; the first one is known as soon as row ``top`` is.

    Args:
        padding: (left, right, top, bottom).
    """

    def __init__(self, source: Rows, padding: Sequence[int]) -> None:
        left, right, top, bottom = padding
        out = Rows(source.rate, source.delay + top, source.extra + top + bottom)
        super().__init__([source], [out], [2 * (top + bottom)])
        self.padding = left, right, top, bottom

    def forward(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> list[Tensor]:
        window, source = windows[0], self.sources[0]
        left, right, top, bottom = self.padding
        if int(self.width * source.rate) <= max(left, right):
            raise UsageError(
                f"width: expected more than {max(left, right)} columns, of which the border is mirrored"
            )
        rows = int(step.rows * source.rate)
        if step.taken is None:
            x = window[:, :, 2 * bottom : 2 * bottom + rows]
        else:
            new = (
                int(step.taken * source.rate) - source.delay
            )  # the strip's row that is the window's first new one
            wanted = torch.arange(new - 2 * top, new - 2 * top + rows, device=window.device).abs()
            if step.total is not None:
                end = int(step.total * source.rate) + source.extra
                if end <= max(top, bottom):
                    raise UsageError(
                        f"rows: the strip has {end}, and the mirrored border {max(top, bottom)}: wanted more"
                    )
                wanted = torch.minimum(wanted, 2 * (end - 1) - wanted)
            x = window.index_select(2, (wanted - new + self.carried[0]).clamp(0, window.shape[2] - 1))
        return [F.pad(x, (left, right, 0, 0), mode="reflect")]


class Bilinear(Layer):
    """Bilinear upsampling of L sources to a grid, and from there to the output; ``align_corners=False``.

    It resizes a window whose edges lie between rows of all of them, and keeps what the edges do not reach.

    Args:
        sources: without extra rows.
        grid, rate: rows of the grid and of the output per row of the network's input.
        resize: (windows, grid size, size) -> rows of that size.
    """

    def __init__(
        self, sources: Sequence[Rows], grid: Fraction, rate: Fraction,
        resize: Callable[[list[Tensor], tuple[int, int], tuple[int, int]], Tensor],
    ) -> None:  # fmt: skip
        coarse = _common_multiple([1 / grid, 1 / rate, *(1 / source.rate for source in sources)])
        # In rows of the grid, then of the output: what lies so near to the window's edge depends on rows outside.
        edge = max(math.ceil((grid / source.rate - 1) / 2) for source in sources)
        edge = math.ceil(edge * rate / grid + (rate / grid - 1) / 2)
        # In rows of the network's input: the window ends so far behind the last, and starts so far before the new.
        end = coarse * max(math.ceil(source.delay / (source.rate * coarse)) for source in sources)
        delay = int(end * rate) + edge
        start = coarse * math.ceil((delay + edge) / (rate * coarse))
        super().__init__(
            sources, [Rows(rate, delay)], [int(start * source.rate) - source.delay for source in sources]
        )
        self.grid, self.rate, self.resize = grid, rate, resize
        self.length = start - end
        self.first = int(start * rate) - delay
        self.unseen = [int(end * source.rate) - source.delay for source in sources]

    def forward(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> list[Tensor]:
        levels = [
            self._within(x, i, step)[:, :, : x.shape[2] - unseen]
            for i, (x, unseen) in enumerate(zip(windows, self.unseen, strict=True))
        ]
        rows = step.rows + self.length
        sizes = [(int(rows * rate), int(self.width * rate)) for rate in (self.grid, self.rate)]
        x = self.resize(levels, *sizes)
        return [x[:, :, self.first : self.first + int(step.rows * self.rate)]]

    def _within(self, x: Tensor, i: int, step: Step) -> Tensor:
        """Copies of the strip's first and last row in the place of virtual ones, as interpolation has it."""
        before, behind = step.virtual(self.sources[i], self.carried[i], x.shape[2])
        if not before and not behind:
            return x
        rows = torch.arange(x.shape[2], device=x.device)
        first = min(before, x.shape[2] - 1)
        return x.index_select(2, rows.clamp(first, max(first, x.shape[2] - behind - 1)))


def _common_multiple(lengths: Sequence[Fraction]) -> Fraction:
    """The shortest length that is a whole multiple of all."""
    return Fraction(math.lcm(*(x.numerator for x in lengths)), math.gcd(*(x.denominator for x in lengths)))


def combination(groups: Any, weights: Any, combine: str) -> Callable[..., Tensor]:
    """``upsample_combine`` as :class:`Bilinear` calls it."""

    def resize(levels: list[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        return ops.upsample_combine(levels, size, grid, groups, weights, combine)

    return resize


def interpolation(levels: list[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Plain bilinear resizing as :class:`Bilinear` calls it; grid and size are the same."""
    return F.interpolate(levels[0], size, mode="bilinear", align_corners=False)
