"""Layers whose rows take some neighbouring rows each: convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .layers import Layer, Rows, Step


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
        self._laid_out: Tensor | None = None

    def forward(
        self, windows: list[Tensor], step: Step, *, last: bool = False, into: Tensor | None = None
    ) -> list[Tensor]:
        rows = int(step.rows * self.outputs[0].rate)
        window = self.filled(windows[0], step).to(self.weight.dtype)
        if self.later:
            window = window[:, :, : (rows - 1) * self.stride[0] + self.reach]
        residual = windows[1][:, :, :rows] if len(windows) > 1 else None
        left, right = self.columns
        if left != right:
            window, left = F.pad(window, (left, right)), 0
        if window.device.type == "cpu" and not _recorded() and ops.onednn_takes(window.dtype):
            return [self._fused(window, [0, left], residual, last, into)]
        x = F.conv2d(window, self.weight, self.bias, self.stride, (0, left), self.dilation, self.groups)
        x = x if residual is None else x + residual
        return [x if self.activation is None else self.activation.function(x)]

    def _fused(
        self, window: Tensor, padding: list[int], residual: Tensor | None, last: bool, into: Tensor | None
    ) -> Tensor:
        rest = (padding, self.stride, self.dilation, self.groups)
        if self._laid_out is None:
            operator = torch.ops.mkldnn._reorder_convolution_weight
            self._laid_out = operator(self.weight, *rest, list(window.shape))
        name, numbers = ("none", ()) if self.activation is None else self.activation[1:]
        if residual is None and into is not None and name in ("none", "relu") and _is_dense(into):
            residual, last = into.zero_(), True  # writing zeros costs less than copying the result
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(
                window, self._laid_out, self.bias, *rest, name, list(numbers), ""
            )
        dense = residual.contiguous(memory_format=torch.channels_last)
        total = dense if last or dense is not residual else residual.clone()
        torch.ops.mkldnn._convolution_pointwise_.binary(
            total,
            window,
            self._laid_out,
            self.bias,
            *rest,
            "add",
            1.0,
            None if name == "none" else name,
            [],
            "",
        )
        return total


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _recorded() -> bool:
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


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
        if self.simple and not _recorded():
            return [ops.max_pool2d(rows, self.kernel[0], self.stride[0], (0, self.columns[0]), above=above)]
        return [F.max_pool2d(rows, self.kernel, self.stride, (0, self.columns[0]), self.dilation)]


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
