"""RSTPM's networks: a student that imitates, a decoder that reconstructs, and the teachers' attention on both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..backbones import FeaturePyramid

GATES = ("residual", "mul", "none")
LEVELS = ("layer1", "layer2", "layer3")  # what is compared
BOTTLENECK = "layer4"  # what the decoder starts from


class Gate(nn.Module):
    """One channel of attention, seen in the teacher's features, that weighs the student's positions.

    ``x (1 + a)`` or ``x a`` with ``a = sigmoid(conv1x1(ReLU(BN(conv3x3(teacher)))))``; no gradient to the teacher.

    Shape: x, teacher (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.attention = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
            nn.Conv2d(channels, 1, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor, teacher: Tensor) -> Tensor:
        attention = self.attention(teacher.detach())
        return x * attention if self.kind == "mul" else x * (1 + attention)


def _gates(channels: Sequence[int], kind: str) -> nn.ModuleList:
    """Those behind all levels but the last: there a gate would scale a vector that is then normalised, which
    changes neither loss nor map, while the gates before it change what the student's next level sees."""
    return nn.ModuleList(Gate(c, kind) for c in channels[:-1] if kind != "none")


class GatedPyramid(nn.Module):
    """The first student: the first teacher's architecture; (B, 3, H, W), 3 teacher levels -> 3 levels."""

    def __init__(self, pyramid: FeaturePyramid, gate: str) -> None:
        super().__init__()
        stem, first, *others = (pyramid.stage(name) for name, _ in pyramid.steps)
        self.stages = nn.ModuleList([nn.Sequential(*stem, *first), *others])
        self.gates = _gates(pyramid.channels, gate)

    def forward(self, images: Tensor, teacher: list[Tensor]) -> list[Tensor]:
        x, levels = images, []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i < len(self.gates):
                x = self.gates[i](x, teacher[i])
            levels.append(x)
        return levels


class Decoder(nn.Module):
    """The second student: the second teacher's levels out of the first teacher's bottleneck, coarse to fine.

    Args:
        bottleneck: channels of the input, (B, C, H / 32, W / 32).
        channels: of the second teacher's levels, fine to coarse, at strides 4, 8, 16.
        blocks: residual blocks after each upsampling.
        gate: see :class:`Gate`.

    Shape: bottleneck, 3 teacher levels -> 3 levels, both fine to coarse.
    """

    def __init__(self, bottleneck: int, channels: Sequence[int], blocks: int, gate: str) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.stem = nn.Sequential(
            nn.Conv2d(bottleneck, coarse, 3, padding=1, bias=False), nn.BatchNorm2d(coarse), nn.ReLU(inplace=True),
            ResidualBlock(coarse),
        )  # fmt: skip
        self.stages = nn.ModuleList([
            UpStage(coarse, coarse, blocks), UpStage(coarse, middle, blocks), UpStage(middle, fine, blocks, relu=False)
        ])  # fmt: skip
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.gates = _gates((coarse, middle, fine), gate)

    def forward(self, bottleneck: Tensor, teacher: list[Tensor]) -> list[Tensor]:
        x, levels = self.stem(bottleneck), []
        for i, (stage, wanted) in enumerate(zip(self.stages, reversed(teacher), strict=True)):
            x = stage(x, [int(side) for side in wanted.shape[-2:]])
            if i < len(self.gates):
                x = self.gates[i](x, wanted)
            levels.append(x)
        return levels[::-1]


class UpStage(nn.Module):
    """A transposed convolution to twice the size (exactly: to ``size``, for odd ones), and residual blocks."""

    def __init__(self, inputs: int, outputs: int, blocks: int, relu: bool = True) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(outputs), *([nn.ReLU(inplace=True)] if relu else []),
            *(ResidualBlock(outputs) for _ in range(blocks)),
        )  # fmt: skip

    def forward(self, x: Tensor, size: list[int]) -> Tensor:
        return self.blocks(self.up(x, output_size=size))


class ResidualBlock(nn.Module):
    """ResNet's basic block: ``ReLU(x + BN(conv(ReLU(BN(conv(x))))))``, 3 x 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.residual(x))


class Teachers(nn.Module):
    """Two frozen pyramids; one and the same where ``second`` is None.

    Shape: (B, 3, H, W) -> 3 levels and the bottleneck of the first, 3 levels of the second.
    """

    def __init__(self, first: FeaturePyramid, second: FeaturePyramid | None) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.first(images)
        return [*first, *(first[:3] if self.second is None else self.second(images))]


class Reconstruction(nn.Module):
    """Both teachers and both students: (B, 3, H, W) normalised -> maps (B, 1, H, W)."""

    def __init__(
        self, teachers: Teachers, imitator: GatedPyramid, decoder: Decoder, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.teachers, self.imitator, self.decoder, self.size = teachers, imitator, decoder, size

    def pyramids(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The students' six levels and the teachers': three of the imitator, three of the decoder, fine to coarse."""
        stored = self.teachers(images)
        first, bottleneck, second = stored[:3], stored[3], stored[4:]
        return [*self.imitator(images, first), *self.decoder(bottleneck, second)], [*first, *second]

    def forward(self, images: Tensor) -> Tensor:
        return joint_map(*self.pyramids(images), self.size)

    def level_maps(self, images: Tensor) -> Tensor:
        """(B, 2, 3, H, W): each student's distance at each level, fine to coarse, upsampled to the image."""
        distances = ops.pyramid_distance(*self.pyramids(images))
        maps = [ops.upsample_combine([d], self.size, weights=[0.5]) for d in distances]
        return torch.cat(maps, dim=1).unflatten(1, (2, 3))


def joint_map(student: list[Tensor], teacher: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Product over the levels of the sum over the students of ``1/2 ||t^ - s^||^2``, at the finest level's size."""
    height, width = (int(side) for side in teacher[0].shape[-2:])
    groups = [i % 3 for i in range(len(student))]
    return ops.anomaly_map(
        student, teacher, size, grid=(height, width), groups=groups, weights=[0.5] * len(student)
    )
