"""Layers whose rows take some neighbouring rows each: convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..runtime.convolutions import convolved
from .layers import Layer, Rows, Step
from .native import is_recorded


class Sliding(Layer):
    """A layer whose row j takes the rows ``stride * j - top`` and the ``reach - 1`` after it.

    Args:
        padding: (left, right, top, bottom).
        others: further sources, of which row j takes row j.

    Attributes:
        later: whether it waits for one of these.
    """

    fill = 0.0  # what stands beyond the strip's ends

    def __init__(
        self, source: Rows, reach: int, stride: int, padding: tuple[int, int, int, int],
        others: Sequence[Rows] = (),
    ) -> None:  # fmt: skip
        top, bottom = padding[2:]
        earliest = -(-(source.delay + reach - top) // stride) - 1  # the first row that cannot be computed yet
        delay = max([earliest, *(other.delay for other in others)])
        extra = (source.extra + top + bottom - reach) // stride + 1
        # Below zero: a kernel smaller than its stride skips rows of the step, which count all the same.
        carried = [stride * delay + top - source.delay, *(delay - other.delay for other in others)]
        super().__init__([source, *others], [Rows(source.rate / stride, delay, extra)], carried)
        self.reach, self.columns, self.later = reach, padding[:2], delay > earliest

    def filled(self, window: Tensor, step: Step) -> Tensor:
        """The window with what stands beyond the strip's ends in the place of virtual rows."""
        before, behind = step.virtual(self.sources[0], self.carried[0], window.shape[2])
        if before or behind:
            window = window.clone()
            window[:, :, :before] = self.fill
            window[:, :, window.shape[2] - behind :] = self.fill
        return window


class Activation(NamedTuple):
    """What follows a convolution at once; it may write into its argument.

    Attributes:
        function: as PyTorch has it.
        name, numbers: as oneDNN knows it.
    """

    function: Callable[[Tensor], Tensor]
    name: str
    numbers: tuple[float, ...] = ()


class Convolution(Sliding):
    """A convolution (with the batch norm behind it in its weights), an addition and an activation.

    On a CPU oneDNN does all in one operator, with the weights laid out once: blocks of a few rows are so small that
    laying them out for each would cost as much as the convolution. Recorded steps have PyTorch's operators.

    Args:
        residual: what is added to the result.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, source: Rows, weight: Tensor, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int],
        groups: int, padding: tuple[int, int, int, int], activation: Activation | None = None,
        residual: Rows | None = None,
    ) -> None:  # fmt: skip
        others = [] if residual is None else [residual]
        reach = dilation[0] * (weight.shape[2] - 1) + 1
        super().__init__(source, reach, stride[0], padding, others)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride, self.dilation, self.groups = list(stride), list(dilation), groups
        self.activation = activation
        self._laid_out: Tensor | None = None  # for oneDNN
        self._packed: tuple[Tensor, Tensor] | None = None  # for our own kernels: filters and bias

    def forward(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> list[Tensor]:
        window, residual = self._sources(windows, step)
        if self._ahead(window):
            return [self._fused(window, residual, last, into)()]
        x = F.conv2d(window, self.weight, self.bias, self.stride, self._padding, self.dilation, self.groups)
        x = x if residual is None else x + residual
        return [x if self.activation is None else self.activation.function(x)]

    def bound(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> Callable[[], list[Tensor]]:
        window, residual = self._sources(windows, step)
        if not self._ahead(window) or window.data_ptr() != windows[0].data_ptr():
            return super().bound(windows, step, last=last, into=into)
        run = self._fused(window, residual, last, into)
        return lambda: [run()]

    def _sources(self, windows: list[Tensor], step: Step) -> tuple[Tensor, Tensor | None]:
        """The rows to convolve, with columns beside them if the padding differs left and right; the residual."""
        rows = int(step.rows * self.outputs[0].rate)
        window = self.filled(windows[0], step).to(self.weight.dtype)
        if self.later:
            window = window[:, :, : (rows - 1) * self.stride[0] + self.reach]
        if self.columns[0] != self.columns[1]:
            window = F.pad(window, self.columns)
        return window, windows[1][:, :, :rows] if len(windows) > 1 else None

    @property
    def _padding(self) -> list[int]:
        left, right = self.columns
        return [0, left if left == right else 0]

    def _ahead(self, window: Tensor) -> bool:
        """Whether the weights can be laid out ahead."""
        return window.device.type == "cpu" and not is_recorded() and ops.onednn_takes(window.dtype)

    def _fused(
        self, window: Tensor, residual: Tensor | None, last: bool, into: Tensor | None
    ) -> Callable[[], Tensor]:
        """What runs the convolution, as often as it is called, with what lies in its arguments then."""
        name, numbers = ("none", ()) if self.activation is None else self.activation[1:]
        if name in ("none", "relu") and ops.convolve_takes(
            self.weight, self.stride, self.dilation, self.groups
        ):
            return self._packed_ahead(window, residual, last, into)
        rest = (self._padding, self.stride, self.dilation, self.groups)
        if self._laid_out is None:
            operator = torch.ops.mkldnn._reorder_convolution_weight
            self._laid_out = operator(self.weight, *rest, list(window.shape))
        filters = (self._laid_out, self.bias, *rest)
        added = residual
        if residual is None and into is not None and name in ("none", "relu") and _is_dense(into):
            added, last = into, True
        if added is None:
            alone = torch.ops.mkldnn._convolution_pointwise.default
            return partial(alone, window, *filters, name, list(numbers), "")
        after: tuple[Any, ...] = ("add", 1.0, None if name == "none" else name, [], "")

        def run() -> Tensor:
            if residual is None:
                total = added.zero_()  # writing zeros costs less than copying the result
            else:
                total = added.contiguous(memory_format=torch.channels_last)
                total = total.clone() if total is added and not last else total
            torch.ops.mkldnn._convolution_pointwise_.binary(total, window, *filters, *after)
            return total

        return run

    def _packed_ahead(
        self, window: Tensor, residual: Tensor | None, last: bool, into: Tensor | None
    ) -> Callable[[], Tensor]:
        """The same by our own kernel, which writes wherever it shall."""
        features = (window, *self.packed(), residual)
        kernel, rectified = list(self.weight.shape[2:]), self.activation is not None
        padding, groups = self._padding, self.groups
        if into is None:
            return partial(convolved, *features, last, kernel, self.stride, padding, groups, rectified)
        return partial(ops.convolve_, into, *features, kernel, self.stride[0], padding, groups, rectified)

    def packed(self) -> tuple[Tensor, Tensor]:
        """Filters and bias for our own kernels."""
        if self._packed is None:
            bias = self.weight.new_zeros(self.weight.shape[0]) if self.bias is None else self.bias
            self._packed = ops.pack_filters(self.weight, winograd=self.winograd()), bias.float()
        return self._packed

    def winograd(self) -> bool:
        """Whether our kernel for it is Winograd's, which runs by itself."""
        return ops.winograd_takes(self.weight, self.stride, self.dilation, self.groups)

    def starts(self) -> bool:
        """Whether it makes many channels of few, as a network's first convolution does."""
        return (
            4 * self.weight.shape[1] <= self.weight.shape[0] and self.groups == 1 and len(self.sources) == 1
        )

    def runs_with(self, window: Tensor, pool: MaxPool) -> bool:
        """Whether one kernel does this and the pooling behind it."""
        rectified = self.activation is not None and self.activation.name == "relu"
        even = self.columns[0] == self.columns[1] and pool.simple
        if not (rectified and even and self._ahead(window) and window.dtype == torch.bfloat16):
            return False
        taken = ops.convolve_takes(self.weight, self.stride, self.dilation, self.groups)
        return taken and not self.winograd()


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


class MaxPool(Sliding):
    """Max pooling. In the steady state carried and new rows may come apart: a copy less of the largest features.

    Attributes:
        simple: what our own kernel can do, for which the parts may stay apart.
    """

    fill = -math.inf

    def __init__(
        self, source: Rows, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
        padding: Sequence[int],
    ) -> None:  # fmt: skip
        rows, columns = padding
        super().__init__(source, dilation[0] * (kernel[0] - 1) + 1, stride[0], (columns, columns, rows, rows))
        self.kernel, self.stride, self.dilation = list(kernel), list(stride), list(dilation)
        square = all(len(set(sides)) == 1 for sides in (kernel, stride))
        self.simple = square and set(dilation) == {1}

    def forward(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> list[Tensor]:
        above, rows = windows if len(windows) == 2 else (None, self.filled(windows[0], step))
        if self.simple and not is_recorded():
            return [ops.max_pool2d(rows, self.kernel[0], self.stride[0], (0, self.columns[0]), above=above)]
        return [F.max_pool2d(rows, self.kernel, self.stride, (0, self.columns[0]), self.dilation)]


class ConvolutionPool(Layer):
    """A convolution of few channels with the pooling behind it.

    The convolution's last rows are not carried to the next step, but computed again: they are larger than what they are
    computed from, and of bfloat16 one kernel does both, so that they are never in memory.
    """

    def __init__(self, convolution: Convolution, pool: MaxPool) -> None:
        carried = convolution.carried[0] + pool.carried[0] * convolution.stride[0]
        super().__init__(convolution.sources, pool.outputs, [carried])
        convolution.carried = (carried,)
        self.convolution, self.pool = convolution, pool

    def forward(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> list[Tensor]:
        if step.taken is not None or not self.convolution.runs_with(windows[0], self.pool):
            return self.pool.forward(self.convolution.forward(windows, step), step)
        return [ops.convolve_pool(windows[0], *self.packed())]

    def packed(self) -> tuple[Any, ...]:
        """The arguments of ``convolve_pool`` that follow the rows."""
        convolution, pool = self.convolution, self.pool
        pooling = [pool.kernel[0], pool.stride[0], 0, pool.columns[0]]
        geometry = (list(convolution.weight.shape[2:]), convolution.stride[0], [0, convolution.columns[0]])
        return *convolution.packed(), *geometry, pooling


class Antialiased(Sliding):
    """Bilinear down-scaling by a whole factor q with antialiasing: triangles of 2q pixels, cut off at the ends."""

    def __init__(self, source: Rows, factor: int) -> None:
        super().__init__(source, 2 * factor, factor, (0, 0, factor // 2, factor - factor // 2))
        taps = torch.arange(2 * factor) - factor // 2 + 0.5 - factor / 2
        self.factor = factor
        self.register_buffer("weight", (1 - taps.abs() / factor).clamp_min(0).view(1, 1, -1, 1))

    weight: Tensor

    def forward(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> list[Tensor]:
        window = self.filled(windows[0], step).float()
        real = self.filled(torch.ones_like(window[:1, :1, :, :1]), step)
        weight, channels = self.weight.float(), window.shape[1]
        sums = F.conv2d(window, weight.expand(channels, -1, -1, -1), stride=(self.factor, 1), groups=channels)
        rows = sums / F.conv2d(real, weight, stride=(self.factor, 1))
        x = F.interpolate(
            rows, (rows.shape[2], rows.shape[3] // self.factor), mode="bilinear", antialias=True
        )
        return [x.to(windows[0].dtype)]


class TransposedConvolution(Layer):
    """Row j of the input goes into the rows ``stride * j - padding`` and the ``reach - 1`` after it."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, source: Rows, weight: Tensor, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int],
        groups: int, padding: Sequence[int], output_padding: Sequence[int],
        activation: Activation | None = None,
    ) -> None:  # fmt: skip
        reach = dilation[0] * (weight.shape[2] - 1) + 1
        extra = (source.extra - 1) * stride[0] - 2 * padding[0] + reach + output_padding[0]
        out = Rows(source.rate * stride[0], source.delay * stride[0] + padding[0], extra)
        super().__init__([source], [out], [(reach - 1) // stride[0]])
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride, self.dilation, self.groups = list(stride), list(dilation), groups
        self.columns = [0, padding[1]], [0, output_padding[1]]
        self.activation = activation

    def forward(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> list[Tensor]:
        window, carried = windows[0], self.carried[0]
        before, behind = step.virtual(self.sources[0], carried, window.shape[2])
        if before or behind:
            window = window.clone()
            window[:, :, :before] = 0
            window[:, :, window.shape[2] - behind :] = 0
        x = F.conv_transpose2d(
            window.to(self.weight.dtype), self.weight, self.bias, self.stride, self.columns[0], self.columns[1],
            self.groups, self.dilation,
        )  # fmt: skip
        first, rows = self.stride[0] * carried, int(step.rows * self.outputs[0].rate)
        x = F.pad(x, (0, 0, 0, first + rows - x.shape[2])) if x.shape[2] < first + rows else x
        x = x[:, :, first : first + rows]
        return [x if self.activation is None else self.activation.function(x)]


def scale_and_shift(
    gain: Tensor | None, offset: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """A batch norm at inference is ``x * scale + shift``; float64."""
    scale = (variance.double() + eps).rsqrt()
    scale = scale if gain is None else scale * gain.double()
    shift = -mean.double() * scale
    return scale, shift if offset is None else shift + offset.double()
