"""Reconstruction Student with Attention for Student-Teacher Pyramid Matching (Yamada, Hotta; arXiv 2111.15376)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..backbones import BACKBONES, create_backbone, layer_names
from .base import Detector
from .graph import Preprocess, ScoringGraph
from .hardware import Precision
from .imitation import Imitation, Pyramid, feature_stores
from .reconstruction import (
    BOTTLENECK,
    GATES,
    LEVELS,
    Decoder,
    GatedPyramid,
    Reconstruction,
    Teachers,
    joint_map,
)  # fmt: skip
from .sources import Images
from .training import EpochRecord, TrainingOptions, train

_RESNETS = [name for name in BACKBONES if BOTTLENECK in layer_names(name)]


class ReconstructionSTPM(Detector):
    """Two teachers and two students: one imitates the first teacher, the other is a decoder that reconstructs the
    second teacher's features from the first one's deepest (which a defect does not get through unchanged).

    Both students see their teacher's attention, one channel at each level that feeds the next. Loss of each:
    ``sum_l mean_p 1/2 ||t^ - s^||^2`` over levels l and positions p, features normalised along the channels (the
    paper's eq. 3). Map: the two students' upsampled distances summed level by level, the product over the levels.
    Image score: the map's maximum.

    Args:
        backbone: of the first teacher and of its student; a ResNet, like ``backbone2``.
        backbone2: of the second teacher. The paper's pair is resnet18 and resnet50.
        weights: of the first teacher, see :class:`Detector`. The decoder starts from its layer4: where a file has
            none, that stays random with the seed, and the detector's ``notes_`` say so.
        weights2: of the second teacher; None: its own ImageNet weights, or, if ``backbone2`` is ``backbone``, those of
            the first, which is then computed only once for both.
        gate: how attention a weighs the students' features x: ``"residual"``, x (1 + a); ``"mul"``, x a; ``"none"``.
        decoder_blocks: residual blocks of the decoder after each upsampling. With gates 2 cost 38 GMAC an image at
            256 x 256 and have 100 M parameters, 1 24 GMAC and 75 M. The paper leaves the sizes of decoder and
            attention unit open; these are an unofficial implementation's.
        epochs: of the first student; the paper trains both 100.
        decoder_epochs: of the decoder, which learns faster and whose epochs cost six to nine times as much; None: a
            third of ``epochs``.
        image_size, batch_size, validation_fraction, patience, seed, device, precision, deterministic, cache_gb: see
            :class:`Detector`. Each student keeps its own best epoch.
        learning_rate, momentum, weight_decay: of SGD.
    """

    method: ClassVar[str] = "rstpm"
    _counts: ClassVar[tuple[str, ...]] = (*Detector._counts, "decoder_blocks", "decoder_epochs")
    _run_arguments: ClassVar[tuple[str, ...]] = (*Detector._run_arguments, "decoder_epochs")
    _choices: ClassVar[Mapping[str, Sequence[str]]] = {
        **Detector._choices, "backbone": _RESNETS, "backbone2": _RESNETS, "gate": GATES,
    }  # fmt: skip
    _file_arguments: ClassVar[tuple[str, ...]] = ("weights", "weights2")

    def __init__(
        self,
        backbone: str = "resnet18",
        backbone2: str = "resnet50",
        *,
        weights: Any = "default",
        weights2: Any = None,
        gate: str = "residual",
        decoder_blocks: int = 2,
        image_size: int | tuple[int, int] = 256,
        epochs: int = 30,
        decoder_epochs: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 0.4,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        validation_fraction: float = 0.2,
        patience: int | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
        deterministic: bool = False,
        cache_gb: float | None = None,
    ) -> None:
        super().__init__(
            backbone, weights=weights, image_size=image_size, epochs=epochs, batch_size=batch_size,
            validation_fraction=validation_fraction, patience=patience, seed=seed, device=device,
            precision=precision, deterministic=deterministic, cache_gb=cache_gb,
        )  # fmt: skip
        self.backbone2 = backbone2
        self.weights2 = weights2
        self.gate = gate
        self.decoder_blocks = decoder_blocks
        self.decoder_epochs = decoder_epochs
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay

    def level_maps(self, data: Any, *, batch_size: int | None = None, skip_broken: bool = False) -> Tensor:
        """What the map is made of: (N, 2, 3, H, W) float32, the distance of each student (imitator, decoder) at each
        level (strides 4, 8, 16), upsampled to ``image_size``. The paper's table of levels sums over the students."""
        graph = self._fitted()
        network: Reconstruction = graph.network  # type: ignore[assignment]
        with torch.no_grad():
            batches = self._batches(data, batch_size, skip_broken)
            return torch.cat([network.level_maps(graph.preprocess(images)).cpu() for _, images in batches])

    # ---------------------------------------------------------------- the method

    def _build(self, pretrained: bool) -> tuple[Preprocess, nn.Module]:
        first = self._teacher(self.backbone, [*LEVELS, BOTTLENECK], self.weights, pretrained, BOTTLENECK)
        second = None
        if self.weights2 is not None or self.backbone2 != self.backbone:
            weights2 = "default" if self.weights2 is None else self.weights2
            second = self._teacher(self.backbone2, LEVELS, weights2, pretrained)
        pyramid = create_backbone(self.backbone, LEVELS, seed=self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            imitator = GatedPyramid(pyramid, self.gate)
            decoder = Decoder(
                first.channels[-1], (second or first).channels[:3], self.decoder_blocks, self.gate
            )
        network = Reconstruction(Teachers(first, second), imitator, decoder, self._size)
        return Preprocess(self._size, first.mean, first.std), network

    def _train(
        self, graph: ScoringGraph, train_images: Images, held_out: Images, precision: Precision,
        options: TrainingOptions, skip_broken: bool,
    ) -> list[EpochRecord]:  # fmt: skip
        network: Reconstruction = graph.network  # type: ignore[assignment]
        if network.teachers.first.random_layers:
            self.notes_.append(
                f"{BOTTLENECK} of {self.backbone}, which the decoder starts from, is random: its weights file has none"
            )
        stores = feature_stores(
            self, graph.preprocess, network.teachers, train_images, held_out, precision, options, skip_broken
        )
        imitator = _Imitator(self, network.imitator, *stores, precision, self.weight_decay)
        history = train(imitator, options.phase("imitator"))
        decoder = _Reconstructor(self, network.decoder, *stores, precision, self.weight_decay)
        epochs = self.decoder_epochs or math.ceil(self.epochs / 3)
        return history + train(decoder, options.phase("decoder", epochs=epochs))


class _Imitator(Imitation):
    """The first student's training."""

    def _pyramids(self, images: Tensor, stored: Pyramid) -> tuple[Pyramid, Pyramid]:
        return self.module(images, stored[:3]), stored[:3]

    def _loss(self, student: Pyramid, teacher: Pyramid) -> Tensor:
        return 0.5 * torch.stack([d.mean() for d in ops.pyramid_distance(student, teacher)]).sum()

    def _maps(self, student: Pyramid, teacher: Pyramid) -> Tensor:
        height, width = teacher[0].shape[-2:]
        return joint_map(student, teacher, (height, width))


class _Reconstructor(_Imitator):
    """The decoder's training: the same, on the second teacher's levels."""

    def _pyramids(self, images: Tensor, stored: Pyramid) -> tuple[Pyramid, Pyramid]:
        return self.module(stored[3], stored[4:]), stored[4:]
