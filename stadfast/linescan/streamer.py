"""Exact row streaming: the anomaly map of a strip that has no end, each of its rows computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..methods.hardware import choose_device
from .arguments import check_multiple
from .flat_field import FlatField
from .layers import Step
from .model import strip_model
from .native import (
    DTYPES,
    Preparation,
    check_rows,
    check_strip,
    extend_rows,
)  # fmt: skip
from .network import State, StripNetwork
from .steady import CapturedSteps, SteadySteps

_ROWS_AT_ONCE = 64  # few enough that a block's features stay in the cache


class RowStreamer:
    """Anomaly maps of an endless strip, row for row what the network says about the strip as a whole.

    However the strip is cut into pushes, the maps put together are those of :func:`native_maps` on all of it (float32:
    to 1e-5 of the map's maximum), nothing is computed twice, and the memory does not grow. Only the strip's own ends
    are padded. A batch is several cameras, whose strips advance together.

    Args:
        detector: fitted, of any method whose maps depend on nothing but a neighbourhood; or the path of a bundle, or of
            a TorchScript or ``torch.export`` archive of :func:`stadfast.export` for images of any size, which streams
            in its own precision, and without ``downscale``.
        width: columns of the strip.
        rows_per_push: compute steps of exactly so many rows, a multiple of ``unit``, as :meth:`step` needs; None: as
            many as have come.
        device: None: the detector's.
        precision: ``"fp32"`` or ``"bf16"`` (of the networks; maps are float32 in any case).
        downscale: average squares of so many pixels first; the map has the strip's resolution all the same.
        flat_field: correction of the columns.

    Attributes:
        unit: rows are taken up in multiples of this: the network's deepest stride times ``downscale``.
        delay_rows: so many rows after it has come, at the latest, a row's map is out.

    Raises:
        UsageError: an argument is out of range, the detector's maps have a global term, or the archive's resizing
            cannot be taken out.
        StadfastError: the detector is not fitted. BundleError: the bundle or archive is damaged or refused.
    """

    _pending: Tensor | None
    _state: State | None

    def __init__(
        self,
        detector: Any,
        width: int,
        rows_per_push: int | None = None,
        *,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        downscale: int = 1,
        flat_field: FlatField | None = None,
    ) -> None:
        width, downscale = check_strip(width, downscale, precision, flat_field)
        network, preprocess, unit = strip_model(detector, downscale, precision)
        self.unit = unit * downscale
        if rows_per_push is not None:
            rows_per_push = check_multiple("rows_per_push", rows_per_push, self.unit)
        self.rows_per_push = rows_per_push
        self._device = choose_device(str(device)) if device else preprocess.mean.device
        self._preprocess, self._downscale, self._dtype = preprocess, downscale, DTYPES[precision]
        self._network = network.to(self._dtype).to(memory_format=torch.channels_last)
        self._block = rows_per_push or self.unit
        self.delay_rows = network.delay + self._block - 1
        self.set_width(width, flat_field)

    def set_width(self, width: int, flat_field: FlatField | None = None) -> None:
        """Begin a strip of another width; the networks stay as they are.

        Raises:
            UsageError: as at construction.
        """
        width, _ = check_strip(width, self._downscale, "fp32", flat_field)
        columns = width + -width % self.unit
        self.width = width
        self._network.set_width(columns // self._downscale)
        prepare = Preparation(self._preprocess, width, columns, self._downscale, flat_field, self._dtype)
        self.module = StripStep(prepare, self._network, width, self.rows_per_push).to(self._device).eval()
        self._steps: SteadySteps | CapturedSteps | None = None
        self._alike: tuple[torch.Size, torch.dtype] | None = None  # what these take
        self.reset()

    # ---------------------------------------------------------------- a strip

    def push(self, rows: Tensor) -> Tensor:
        """Take the next rows of the strip.

        Args:
            rows: (B, 3, n, W), n >= 0, uint8 or float in [0, 1]; B and dtype as in the strip's first push. Pinned
                memory must stay as it is until the map is there.

        Returns:
            (B, 1, m, W) float32: the map's rows that are final now, m >= 0.

        Raises:
            UsageError: another shape, batch size or dtype than wanted.
        """
        check_rows(rows, self.width, self._pending)
        rows = rows.to(self._device, non_blocking=self._device.type == "cuda")
        if self._pending is not None and self._pending.shape[2]:
            rows = torch.cat([self._pending, rows], dim=2)
        whole = rows.shape[2] // self._block * self._block
        self._pending = rows[:, :, whole:].clone()
        return self._advance(rows[:, :, :whole], None)

    def finish(self) -> Tensor:
        """End the strip: the rest of its map's rows, (B, 1, m, W). The next push begins a new strip."""
        rows, length = self._pending, self.rows
        if rows is None or length == 0:
            self.reset()
            return torch.zeros(0 if rows is None else rows.shape[0], 1, 0, self.width, device=self._device)
        rows = extend_rows(rows, self.unit) if rows.shape[2] else rows
        total = self._taken + rows.shape[2]
        missing = rows.shape[2] + self.module.network.delay  # virtual rows push out what is real
        virtual = rows.new_zeros(
            *rows.shape[:2], missing + -missing % self._block - rows.shape[2], self.width
        )
        before = self._given
        maps = self._advance(torch.cat([rows, virtual], dim=2), total)[:, :, : length - before]
        self.reset()
        return maps

    def reset(self) -> None:
        """Forget the strip; the next push begins a new one."""
        self._pending = self._state = None
        self._taken = self._given = 0

    @property
    def rows(self) -> int:
        """Rows of the strip that have been pushed."""
        return self._taken + (0 if self._pending is None else self._pending.shape[2])

    # ---------------------------------------------------------------- the steady state

    def step(self, rows: Tensor, state: State) -> tuple[Tensor, State]:
        """``push`` of exactly ``rows_per_push`` rows as a pure function, in the steady state.

        ``streamer.module`` is the same as a module, for ``torch.jit.trace``, ``torch.export`` and CUDA graphs.

        Args:
            rows: (B, 3, rows_per_push, W).
            state: :attr:`state` to begin with, then that of the step before.

        Returns:
            (B, 1, rows_per_push, W) map rows, ``delay_rows - rows_per_push + 1`` behind the rows that came in;
            the state for the next step.

        Raises:
            UsageError: the streamer was made without ``rows_per_push``.
        """
        if self.rows_per_push is None:
            raise UsageError(
                "rows_per_push: a step has a fixed number of rows; make the RowStreamer with one"
            )
        return self.module(rows, state)

    @property
    def state(self) -> State:
        """All that the steps carry on, once the strip's beginning is out of sight.

        Raises:
            UsageError: it is not yet, or rows are waiting for the next block.
        """
        needed = self.module.settled
        if (
            self._state is None
            or self._taken < needed
            or (self._pending is not None and self._pending.shape[2])
        ):
            raise UsageError(
                f"state: the steady state needs {needed} rows and whole blocks of {self._block}, {self.rows} came"
            )
        return tuple(kept.clone() for kept in self._state)  # the next push writes into them

    @property
    def state_bytes(self) -> int:
        """Memory of what is carried from push to push, without rows that wait for their block (less than one)."""
        return sum(t.numel() * t.element_size() for t in self._state or ())

    # ---------------------------------------------------------------- details

    def _steady(self, block: Tensor) -> tuple[Tensor, State]:
        assert self._state is not None
        if self._steps is None or self._alike != (block.shape, block.dtype):
            rows = block.shape[2] // self.module.prepare.downscale
            steps = SteadySteps(self.module.prepare.normalised, self.module.network, rows, self._state)
            self._steps = CapturedSteps(steps, block) if block.is_cuda else steps
            self._alike = block.shape, block.dtype
        with torch.inference_mode():  # less to do for each of the many small operators
            maps, state = self._steps(block, self._state)
        return maps[:, :, :, : self.width].clone(), state

    @torch.no_grad()
    def _advance(self, rows: Tensor, total: int | None) -> Tensor:
        """Blocks of rows through the network; ``total`` rows of the strip, if it has ended."""
        maps = []
        at_once = self.rows_per_push or max(self.unit, _ROWS_AT_ONCE // self.unit * self.unit)
        for first in range(0, rows.shape[2], at_once):
            block = rows[:, :, first : first + at_once] if rows.shape[2] > at_once else rows
            if total is None and self._taken >= self.module.settled and block.shape[2] == at_once:
                found, self._state = self._steady(block)
            else:
                found, self._state = self.module.at(block, self._state, self._taken, total)
            self._taken += block.shape[2]
            unborn = max(0, self._given - (self._taken - block.shape[2] - self.module.network.delay))
            maps.append(found[:, :, unborn:])
            self._given += maps[-1].shape[2]
        if maps:
            return torch.cat(maps, dim=2) if len(maps) > 1 else maps[0]
        return torch.zeros(rows.shape[0], 1, 0, self.width, device=self._device)


class StripStep(nn.Module):
    """Camera rows and state to map rows and state: preparation, network, and the strip's columns.

    Attributes:
        settled: camera rows after which a strip's beginning is out of sight.
    """

    def __init__(self, prepare: Preparation, network: StripNetwork, width: int, rows: int | None) -> None:
        super().__init__()
        self.prepare, self.network, self.width, self.rows = prepare, network, width, rows
        self.settled = network.settled * prepare.downscale

    def forward(self, rows: Tensor, state: State) -> tuple[Tensor, State]:
        """The steady state: (B, 3, rows, W) and what the step before carried on."""
        assert self.rows is not None
        return self._run(rows, state, Step(self.rows // self.prepare.downscale))

    def at(self, rows: Tensor, state: State | None, taken: int, total: int | None) -> tuple[Tensor, State]:
        """A step anywhere: after ``taken`` camera rows of a strip that has ``total``, if it has ended."""
        scale = self.prepare.downscale
        if total is None and taken >= self.settled:
            step = Step(rows.shape[2] // scale)
        else:
            step = Step(rows.shape[2] // scale, taken // scale, None if total is None else total // scale)
        return self._run(rows, state, step)

    def _run(self, rows: Tensor, state: State | None, step: Step) -> tuple[Tensor, State]:
        maps, state = self.network(self.prepare(rows), state, step)
        return maps[:, :, :, : self.width], state
