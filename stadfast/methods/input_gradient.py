"""Gradients with respect to the input of plain convolutional networks, written out: no autograd, no graph kept.

So they run under ``inference_mode``, and ``torch.jit.trace`` and ``torch.export`` see ordinary operators. A VGG-like
network is a chain of stages, each of them convolutions with ReLUs and one 2 x 2 pooling; what its backward pass
needs is the ReLUs' outputs and the poolings' indices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import FeaturePyramid

_POOL = 2
_CHAIN = re.compile("(cb?r)*cb?(rp|pr)")  # of a stage's modules


class ExplicitBackward:
    """The forward pass of a pyramid in evaluation mode, and the backward pass from its features to its input.

    Batch norm is folded into the convolutions at each call, which costs far less than applying it.

    Args:
        pyramid: a chain of stages of 3 x 3 convolutions of stride 1 (with or without batch norm), each followed by
            a ReLU, and a 2 x 2 max pooling at the end of the stage (before or after its last ReLU).
        layers: those of the pyramid's steps whose features are wanted; what lies beyond them is not computed.

    Raises:
        TypeError: the pyramid is not such a chain.
    """

    def __init__(self, pyramid: FeaturePyramid, layers: Sequence[str]) -> None:
        self.layers = tuple(layers)
        names = [layer for layer, _ in pyramid.steps]
        deepest = max(names.index(layer) for layer in layers)
        self.stages = [(layer, _convolutions(pyramid.stage(layer))) for layer in names[: deepest + 1]]

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tape]:
        """The layers' features, as the pyramid itself gives them, and what :meth:`backward` needs.

        Args:
            images: (B, 3, H, W) float, planar or channels_last.
        """
        x, found, tape = images, {}, Tape()
        for layer, convolutions in self.stages:
            for i, (convolution, norm) in enumerate(convolutions):
                weight, bias = _folded(convolution, norm)
                x = F.conv2d(x, weight, bias, padding=1)
                if i < len(convolutions) - 1:
                    x = F.relu(x)
                    tape.convolved(weight, x)
            size = x.shape[-2:]
            x, indices = F.max_pool2d(x, _POOL, return_indices=True)
            x = F.relu(x)  # after the pooling, with which it commutes: a quarter of the work
            tape.pooled(layer, weight, indices, size, x)
            found[layer] = x
        return [found[layer] for layer in self.layers], tape

    def backward(self, tape: Tape, gradients: Sequence[Tensor], *, guided: bool = False) -> Tensor:
        """The gradient with respect to the images.

        Args:
            tape: of the forward pass.
            gradients: with respect to each of the features, in their shapes.
            guided: let only positive gradients pass the ReLUs (guided backpropagation, Springenberg et al. 2015,
                arXiv 1412.6806).

        Returns:
            (B, 3, H, W).
        """
        given = dict(zip(self.layers, gradients, strict=True))
        gradient: Tensor | None = None
        for layer, weight, output, pooling in reversed(tape.entries):
            if layer in given:
                gradient = given[layer] if gradient is None else gradient + given[layer]
            assert gradient is not None  # the last stage is the deepest layer
            gradient = _through_relu(gradient, output, guided)
            if pooling is not None:
                gradient = _unpool(gradient, *pooling)
            gradient = F.conv_transpose2d(gradient, weight, padding=1)
        assert gradient is not None
        return gradient


class Tape:
    """What the backward pass needs, in the order of the forward pass.

    ``entries`` holds (layer or None, weight, the ReLU's output, (indices, size before pooling) or None).
    """

    def __init__(self) -> None:
        self.entries: list[tuple[str | None, Tensor, Tensor, tuple[Tensor, Sequence[int]] | None]] = []

    def convolved(self, weight: Tensor, output: Tensor) -> None:
        self.entries.append((None, weight, output, None))

    def pooled(
        self, layer: str, weight: Tensor, indices: Tensor, size: Sequence[int], output: Tensor
    ) -> None:
        self.entries.append((layer, weight, output, (indices, size)))


def _convolutions(stage: nn.Sequential) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """The stage's convolutions, each with its batch norm."""
    kinds = "".join(map(_kind, stage))
    if not _CHAIN.fullmatch(kinds):
        raise TypeError(
            f"wanted 3x3 convolutions, each with batch norm or none and a ReLU, then a 2x2 pooling; found {stage}"
        )
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d | None]] = []
    for module in stage:
        if isinstance(module, nn.Conv2d):
            found.append((module, None))
        elif isinstance(module, nn.BatchNorm2d):
            found[-1] = (found[-1][0], module)
    return found


def _kind(module: nn.Module) -> str:
    """c(onvolution), b(atch norm), r(eLU), p(ooling), or ? for anything else."""
    if isinstance(module, nn.Conv2d):
        plain = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups)
        return "c" if plain == ((3, 3), (1, 1), (1, 1), (1, 1), 1) else "?"
    if isinstance(module, nn.MaxPool2d):
        return "p" if (module.kernel_size, module.stride, module.padding) == (_POOL, _POOL, 0) else "?"
    return "b" if isinstance(module, nn.BatchNorm2d) else "r" if isinstance(module, nn.ReLU) else "?"


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the convolution with its batch norm's running statistics."""
    weight, bias = convolution.weight, convolution.bias
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    return weight * scale.view(-1, 1, 1, 1), norm.bias - mean * scale


def _through_relu(gradient: Tensor, output: Tensor, guided: bool) -> Tensor:
    if guided:
        gradient = F.relu(gradient)
    return torch.ops.aten.threshold_backward(
        gradient, output, 0
    )  # one pass, where a product with a mask is two


def _unpool(gradient: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    """Each pooled pixel's gradient to the pixel that it came from."""
    if (
        torch.are_deterministic_algorithms_enabled()
    ):  # torch cannot know that no index comes twice, and refuses
        flat = gradient.new_zeros(*gradient.shape[:2], size[0] * size[1])
        return flat.scatter(2, indices.flatten(2), gradient.flatten(2)).unflatten(2, list(size))
    return torch.ops.aten.max_unpool2d(gradient, indices, size)  # F.max_unpool2d's checks cannot be traced
