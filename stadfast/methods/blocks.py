"""Student blocks beside a teacher: the network of Multi-scale Feature Imitation, and what trains a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from ..backbones import FeaturePyramid
from .features import FeatureStore
from .hardware import Precision
from .imitation import Imitation, Pyramid

_TO_UNIT = 0.25  # squared distances of normalised vectors lie in [0, 4]


class Block(NamedTuple):
    """Which layer a student block imitates, at which input size (H, W)."""

    size: tuple[int, int]
    layer: str

    @property
    def name(self) -> str:
        """``"layer1@256"``, or ``"layer1@256x192"`` for 256 rows of 192 columns."""
        height, width = self.size
        return f"{self.layer}@{height}" + ("" if height == width else f"x{width}")


class ImitationNetwork(nn.Module):
    """A frozen teacher and independent student blocks; a list of (B, 3, H_s, W_s) normalised -> maps (B, 1, H, W).

    Each block takes the teacher's features of the layer before its own, so that no block needs another one, and the
    teacher runs at a size no deeper than that size's blocks need.

    Args:
        teacher: with all layers that the blocks imitate.
        students: by block, the modules from the layer before to its layer.
        weights: of the blocks' distances, with the sum 1.
        size: (H, W) of the maps.
    """

    def __init__(
        self, teacher: FeaturePyramid, students: Mapping[Block, nn.Module], weights: Sequence[float],
        size: tuple[int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.teacher = teacher
        self.students = nn.ModuleDict({_key(block): student for block, student in students.items()})
        self.blocks = tuple(students)
        self.sizes = tuple(dict.fromkeys(block.size for block in self.blocks))
        self.weights = list(weights)
        self.size = size

    def forward(self, images: list[Tensor]) -> Tensor:
        student, teacher = self.features(images)
        weights = [_TO_UNIT * weight for weight in self.weights]
        return ops.anomaly_map(student, teacher, self.size, weights=weights, combine="sum")

    def features(self, images: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What the blocks make of the teacher's features, and what they should: (B, C_b, H_b, W_b) a block each."""
        found: dict[tuple[tuple[int, int], str | None], Tensor] = {}
        for size, image in zip(self.sizes, images, strict=True):
            layers = self.needed(size)
            found[size, None] = image
            found |= {(size, layer): f for layer, f in zip(layers, self.teacher(image, layers), strict=True)}
        student = [self.student(b)(found[b.size, self.teacher.before(b.layer)]) for b in self.blocks]
        return student, [found[block] for block in self.blocks]

    def maps(self, images: list[Tensor]) -> Tensor:
        """Each block's own map at ``size``, in [0, 1]: (B, blocks, H, W)."""
        distances = ops.pyramid_distance(*self.features(images))
        upsampled = [ops.upsample_combine([d], self.size, weights=[_TO_UNIT]) for d in distances]
        return torch.cat(upsampled, dim=1)

    def student(self, block: Block) -> nn.Module:
        return self.students[_key(block)]

    def needed(self, size: tuple[int, int]) -> list[str]:
        """The teacher's layers that the blocks of one input size take and imitate."""
        layers = [b.layer for b in self.blocks if b.size == size]
        pairs = ((self.teacher.before(layer), layer) for layer in layers)
        return list(dict.fromkeys(layer for pair in pairs for layer in pair if layer is not None))


class BlockImitation(Imitation):
    """The training of one block: ``mean_p ||t^ - s^||^2`` over images and positions p.

    Args:
        images, held_out: with the features of ``network.needed(block.size)``.
    """

    def __init__(
        self, detector: Any, network: ImitationNetwork, block: Block, images: FeatureStore | None,
        held_out: FeatureStore | None, precision: Precision,
    ) -> None:  # fmt: skip
        super().__init__(detector, network.student(block), images, held_out, precision, detector.weight_decay)
        stored = [None, *network.needed(block.size)]  # the image comes first
        self._source = stored.index(network.teacher.before(block.layer))
        self._target = stored.index(block.layer)

    def _pyramids(self, images: Tensor, stored: Pyramid) -> tuple[Pyramid, Pyramid]:
        layers = [images, *stored]
        return [self.module(layers[self._source])], [layers[self._target]]

    def _loss(self, student: Pyramid, teacher: Pyramid) -> Tensor:
        return self._maps(student, teacher).mean()

    def _maps(self, student: Pyramid, teacher: Pyramid) -> Tensor:
        return ops.pyramid_distance(student, teacher)[0]


def _key(block: Block) -> str:
    return block.name.replace(".", "_")  # a module's name has no dots
