"""Layers whose rows take some neighbouring rows each: convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import Layer, Rows, Step


class Sliding(Layer):
    """A layer whose row j takes the rows ``stride * j - top`` and the ``reach - 1`` after it.

    Args:
        padding: (left, right, top, bottom).
    """

    def __init__(self, source: Rows, reach: int, stride: int, padding: tuple[int, int, int, int]) -> None:
        top, bottom = padding[2:]
        delay = -(-(source.delay + reach - top) // stride) - 1  # the first row that cannot be computed yet
        extra = (source.extra + top + bottom - reach) // stride + 1
        # Below zero: a kernel smaller than its stride skips rows of the step, which count all the same.
        carried = stride * delay + top - source.delay
        super().__init__([source], [Rows(source.rate / stride, delay, extra)], [carried])
        self.columns = padding[:2]

    def compute(self, windows: list[Tensor], step: Step) -> list[Tensor]:
        window, carried = windows[0], self.carried[0]
        before, behind = step.virtual(self.sources[0], max(carried, 0), window.shape[2])
        if before or behind:
            window = window.clone()
            window[:, :, :before] = self.fill
            window[:, :, window.shape[2] - behind :] = self.fill
        return [self.slide(window[:, :, -carried:] if carried < 0 else window)]

    def slide(self, window: Tensor) -> Tensor:
        """The layer without padding of the rows."""
        raise NotImplementedError


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
    """A convolution (with the batch norm behind it in its weights) and its activation.

    On a CPU oneDNN does both in one operator, with the weights laid out once: blocks of a few rows are so small that
    laying them out for each would cost as much as the convolution. Recorded steps have PyTorch's operators.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, source: Rows, weight: Tensor, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int],
        groups: int, padding: tuple[int, int, int, int], activation: Activation | None = None,
    ) -> None:  # fmt: skip
        super().__init__(source, dilation[0] * (weight.shape[2] - 1) + 1, stride[0], padding)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride, self.dilation, self.groups = list(stride), list(dilation), groups
        self.activation = activation
        self._laid_out: Tensor | None = None

    def slide(self, window: Tensor) -> Tensor:
        left, right = self.columns
        if left != right:
            window, left = F.pad(window, (left, right)), 0
        window = window.to(self.weight.dtype)
        if window.device.type == "cpu" and not _recorded() and torch.backends.mkldnn.is_available():
            return self._fused(window, [0, left])
        x = F.conv2d(window, self.weight, self.bias, self.stride, (0, left), self.dilation, self.groups)
        return x if self.activation is None else self.activation.function(x)

    def _fused(self, window: Tensor, padding: list[int]) -> Tensor:
        rest = (padding, self.stride, self.dilation, self.groups)
        if self._laid_out is None:
            operator = torch.ops.mkldnn._reorder_convolution_weight
            self._laid_out = operator(self.weight, *rest, list(window.shape))
        name, numbers = ("none", ()) if self.activation is None else self.activation[1:]
        return torch.ops.mkldnn._convolution_pointwise(
            window, self._laid_out, self.bias, *rest, name, list(numbers), ""
        )


def _recorded() -> bool:
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


class MaxPool(Sliding):
    fill = -math.inf

    def __init__(
        self, source: Rows, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
        padding: Sequence[int],
    ) -> None:  # fmt: skip
        rows, columns = padding
        super().__init__(source, dilation[0] * (kernel[0] - 1) + 1, stride[0], (columns, columns, rows, rows))
        self.kernel, self.stride, self.dilation = list(kernel), list(stride), list(dilation)

    def slide(self, window: Tensor) -> Tensor:
        return F.max_pool2d(window, self.kernel, self.stride, (0, self.columns[0]), self.dilation)


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

    def compute(self, windows: list[Tensor], step: Step) -> list[Tensor]:
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
