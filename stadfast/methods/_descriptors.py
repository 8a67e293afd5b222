"""Patch networks: a descriptor of the surroundings of a pixel, for every pixel at the cost of a few."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError

DESCRIPTOR = 512  # channels, of the paper
_SLOPE = 5e-3  # of the LeakyReLU after every convolution


@dataclass(frozen=True)
class Architecture:
    """The layers of a patch network.

    Attributes:
        patch: pixels (a square) that one descriptor sees, as the papers count.
        layers: ``(channels, kernel)`` of a convolution, or None for a 2 x 2 maximum pooling with stride 2.
        scalar: whether one linear unit stands between the last convolution and the descriptor.
    """

    patch: int
    layers: tuple[tuple[int, int] | None, ...]
    scalar: bool = False

    @property
    def code(self) -> int:
        """Channels before the last linear layer."""
        return 1 if self.scalar else next(layer for layer in reversed(self.layers) if layer)[0]

    @property
    def stride(self) -> int:
        """Pixels from one position to the next where every pooling keeps its stride."""
        return 2 ** sum(layer is None for layer in self.layers)

    @property
    def field(self) -> int:
        """Pixels that are seen indeed: where a pooling drops a last odd row, fewer than ``patch``."""
        field, step = 1, 1
        for layer in self.layers:
            field += step * ((2 if layer is None else layer[1]) - 1)
            step *= 2 if layer is None else 1
        return field


_PRINTED = ((64, 4), None, (32, 4), None, (16, 4), None, (8, 4), (4, 2))  # the paper's table

# "stad": Bergmann et al. 2020, whose patch may be 65, 33 or 17 pixels.
ARCHITECTURES: dict[str, tuple[Architecture, ...]] = {
    "paper": (Architecture(64, _PRINTED, scalar=True),),
    "wide": (Architecture(64, _PRINTED),),
    "stad": (
        Architecture(65, ((128, 5), None, (128, 5), None, (256, 5), None, (256, 4), (128, 1))),
        Architecture(33, ((128, 5), None, (256, 5), None, (256, 2), (128, 4))),
        Architecture(17, ((128, 5), (256, 5), (256, 5), (128, 5))),
    ),
}


def choose_architecture(arch: str, patch_size: int | None) -> Architecture:
    """The architecture of a name, of the given patch size; None: its first.

    Raises:
        UsageError: unknown name, or a patch size that it does not have.
    """
    if arch not in ARCHITECTURES:
        raise UsageError(f"arch: expected one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    by_patch = {found.patch: found for found in ARCHITECTURES[arch]}
    if patch_size is None:
        return ARCHITECTURES[arch][0]
    if patch_size not in by_patch:
        sizes = ", ".join(map(str, by_patch))
        raise UsageError(f"patch_size: arch {arch} has {sizes}, got {patch_size!r}")
    return by_patch[patch_size]


class PatchNetwork(nn.Module):
    """A patch's code by convolutions, and its descriptor by one linear layer, which nothing follows.

    ``x = W z + b``, so that distances between descriptors are those between few numbers (``ops.reduce_heads``).

    Args:
        architecture: see :class:`Architecture`.
        seed: of the weights (He et al. 2015, normal, fan-in), which depend on nothing else.
        outputs: channels of the descriptor.
    """

    def __init__(self, architecture: Architecture, seed: int, outputs: int = DESCRIPTOR) -> None:
        super().__init__()
        self.architecture = architecture
        sizes = [layer for layer in architecture.layers if layer]
        inputs = [3, *(channels for channels, _ in sizes)]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, channels, kernel)
            for before, (channels, kernel) in zip(inputs, sizes, strict=False)
        )
        self.scalar = nn.Conv2d(inputs[-1], 1, 1) if architecture.scalar else nn.Identity()
        self.head = nn.Conv2d(architecture.code, outputs, 1)
        self.norms = nn.ModuleList()  # one a convolution, between learn() and settle()
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                gain = 1.0 if module in (self.scalar, self.head) else 2 / (1 + _SLOPE**2)
                scale = math.sqrt(gain / module.weight[0].numel())
                nn.init.normal_(module.weight, 0.0, scale, generator=generator)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def codes(self, images: Tensor, stride: int) -> Tensor:
        """The codes of the patches whose first pixels are ``stride`` apart.

        While the distance may grow, poolings keep their stride; the later ones lose it, and the convolutions behind
        them are spread (a-trous) instead: at any stride the very values that the network gives patch by patch.

        Args:
            images: (B, 3, H, W) normalised; H and W at least ``architecture.field``.
            stride: 1, 2, 4 ... up to ``architecture.stride``.

        Returns:
            (B, k, (H - field) // stride + 1, (W - field) // stride + 1).
        """
        x, step, spread = images, 1, 1
        convs, norms = iter(self.convs), iter(self.norms)
        layers = self.architecture.layers
        for layer, following in zip(layers, (*layers[1:], (0, 0)), strict=True):
            if layer is not None:
                conv: nn.Conv2d = next(convs)  # type: ignore[assignment]
                x = F.conv2d(x, conv.weight, conv.bias, dilation=spread)
                if self.norms:
                    x = next(norms)(x)
            elif step < stride:
                x, step = F.max_pool2d(x, 2), step * 2
            else:
                x, spread = F.max_pool2d(x, 2, stride=1, dilation=spread), spread * 2
            if following is not None:  # the rising LeakyReLU and a maximum may change places: fewer pixels
                x = F.leaky_relu(x, _SLOPE, inplace=True)
        return self.scalar(x)

    def learn(self) -> None:
        """Put a batch norm behind every convolution, for training: with the few channels of the last layers, a network
        without any stands still for thousands of steps where all of them begin on the flat side of the LeakyReLU.
        """
        self.norms = nn.ModuleList(_BatchNorm(conv.out_channels) for conv in self.convs)  # type: ignore[arg-type]
        self.norms.to(self.head.weight.device)

    @torch.no_grad()
    def settle(self) -> None:
        """Take the batch norms, with the mean and variance that they have seen, into the convolutions."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            fused = nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())  # type: ignore[type-var,arg-type]
            conv.load_state_dict(fused.state_dict())
        self.norms = nn.ModuleList()

    def forward(self, images: Tensor, stride: int) -> Tensor:
        """Descriptors (B, C, h, w), see :meth:`codes`."""
        return self.head(self.codes(images, stride))


class _BatchNorm(nn.BatchNorm2d):
    """A batch of a single value has no variance; it is normalised with those seen so far."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def padding(side: int, field: int, stride: int) -> tuple[int, int, int]:
    """(positions, pixels before, pixels after) for ``side`` pixels to be covered by positions ``stride`` apart.

    Position i is the centre of the pixels from ``stride * i`` to ``stride * (i + 1)``, as bilinear upsampling takes it.
    """
    positions = -(-side // stride)
    before = max(0, (field - stride) // 2)
    return positions, before, max(0, (positions - 1) * stride + field - side - before)


def pad_images(images: Tensor, field: int, stride: int) -> Tensor:
    """Mirror the borders, so that there is a patch for every position of the image."""
    _, top, bottom = padding(int(images.shape[-2]), field, stride)
    _, left, right = padding(int(images.shape[-1]), field, stride)
    return F.pad(images, (left, right, top, bottom), mode="reflect")
