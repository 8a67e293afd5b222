"""Student-Teacher Feature Pyramid Matching (Wang, Han, Ding, Huang: BMVC 2021, arXiv 2103.04257)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..backbones import FeaturePyramid, create_backbone
from ..errors import UsageError
from .base import Detector
from .distributed import batch_images
from .features import FeatureStore
from .graph import Preprocess, ScoringGraph
from .hardware import Precision
from .imitation import Imitation, Pyramid, feature_stores
from .sources import Images
from .training import EpochRecord, TrainingOptions, train

_BACKGROUND_STEP = 4


@dataclass(frozen=True)
class Variant:
    """Where the paper, its official code and anomalib differ.

    Attributes:
        loss_factor: of the mean squared distance (the paper's eq. 1 has 1/2).
        sum_over_batch: sum instead of mean over the images of a batch (anomalib), a gradient B times as large.
        map_factor: of each level's distance in the map.
        at_level_size: combine the levels at the largest level's size (the official code) or at the image's.
        weight_decay: of SGD.
        validation_fraction: of the good images, to select the epoch; 0: train on all, keep the last epoch.
    """

    loss_factor: float
    sum_over_batch: bool
    map_factor: float
    at_level_size: bool
    weight_decay: float
    validation_fraction: float


VARIANTS = {
    "official": Variant(1.0, False, 1.0, True, 1e-4, 0.2),
    "paper": Variant(0.5, False, 0.5, False, 1e-4, 0.0),
    "anomalib": Variant(0.5, True, 0.5, False, 1e-3, 0.0),
}


class STPM(Detector):
    """A student learns to reproduce a frozen teacher's feature pyramid on good images; where it fails is anomalous.

    Loss: ``sum_l mean_p ||t^ - s^||^2`` over levels l and positions p, features normalised along the channels
    (section 3.2 of the paper). Map: product over the levels of the upsampled distances (section 3.3).
    Image score: the map's maximum.

    Args:
        backbone, weights, layers, image_size, epochs, batch_size, patience, seed, device, precision,
        deterministic, cache_gb: see :class:`Detector`. The paper trains 100 epochs, the official code's README 200.
        variant: ``"official"`` (the authors' code: 20 % of the images held out to select the epoch, levels combined
            at 1/4 of the input size), ``"paper"`` or ``"anomalib"``; see :data:`VARIANTS`.
        combine: ``"product"`` (the paper), ``"sum"`` or ``"mean"`` of the levels.
        background_quantile: divide each map by this quantile of itself, as the map of the image's background. Helps
            where the light, and with it the whole map, varies from image to image; None (the paper): do not.
        learning_rate, momentum: of SGD.
        weight_decay, validation_fraction: None: the variant's.
    """

    method: ClassVar[str] = "stpm"
    _choices: ClassVar[Mapping[str, Sequence[str]]] = {
        **Detector._choices, "variant": tuple(VARIANTS), "combine": tuple(ops.COMBINATIONS),
    }  # fmt: skip

    def __init__(
        self,
        backbone: str = "resnet18",
        *,
        weights: Any = "default",
        layers: Sequence[str] | None = None,
        variant: str = "official",
        combine: str = "product",
        background_quantile: float | None = None,
        image_size: int | tuple[int, int] = 256,
        epochs: int = 100,
        batch_size: int = 32,
        learning_rate: float = 0.4,
        momentum: float = 0.9,
        weight_decay: float | None = None,
        validation_fraction: float | None = None,
        patience: int | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
        deterministic: bool = False,
        cache_gb: float | None = None,
    ) -> None:
        super().__init__(
            backbone, weights=weights, layers=layers, image_size=image_size, epochs=epochs, batch_size=batch_size,
            patience=patience, seed=seed, device=device, precision=precision, deterministic=deterministic,
            cache_gb=cache_gb,
        )  # fmt: skip
        self.variant = variant
        self.combine = combine
        self.background_quantile = background_quantile
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction  # type: ignore[assignment]

    def _build(self, pretrained: bool) -> tuple[Preprocess, nn.Module]:
        variant = VARIANTS[self.variant]
        teacher = self._teacher(self.backbone, self.layers, self.weights, pretrained)
        student = create_backbone(self.backbone, self.layers, seed=self.seed)
        network = StudentTeacher(
            teacher, student, self._size,
            at_level_size=variant.at_level_size, factor=variant.map_factor, combine=self.combine,
            background_quantile=self.background_quantile,
        )  # fmt: skip
        return Preprocess(self._size, teacher.mean, teacher.std), network

    def _train(
        self, graph: ScoringGraph, train_images: Images, held_out: Images, precision: Precision,
        options: TrainingOptions, skip_broken: bool,
    ) -> list[EpochRecord]:  # fmt: skip
        network: StudentTeacher = graph.network  # type: ignore[assignment]
        stores = feature_stores(
            self, graph.preprocess, network.teacher, train_images, held_out, precision, options, skip_broken
        )
        return train(_Imitation(self, network, *stores, precision), options)

    def _held_out_fraction(self) -> float:
        given = self.validation_fraction
        return VARIANTS[self.variant].validation_fraction if given is None else given

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.background_quantile is not None and self.background_quantile > 1:
            raise UsageError(
                f"background_quantile: expected a number from 0 to 1, got {self.background_quantile!r}"
            )


class StudentTeacher(nn.Module):
    """A frozen teacher and a student of the same architecture; (B, 3, H, W) normalised -> maps (B, 1, H, W)."""

    def __init__(
        self, teacher: FeaturePyramid, student: FeaturePyramid, size: tuple[int, int],
        *, at_level_size: bool, factor: float, combine: str, background_quantile: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.teacher = teacher
        self.student = student
        self.size = size
        self.at_level_size = at_level_size
        self.factor = factor
        self.combine = combine
        self.background_quantile = background_quantile

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maps(self.student(images), self.teacher(images))
        if self.background_quantile is None:
            return maps
        coarse = maps[..., ::_BACKGROUND_STEP, ::_BACKGROUND_STEP].flatten(1)  # smooth maps: a sample will do
        background = torch.quantile(coarse, self.background_quantile, dim=1)
        return maps / background.clamp_min(torch.finfo(maps.dtype).tiny).view(-1, 1, 1, 1)

    @property
    def global_term(self) -> str | None:
        """What of the whole image each pixel of a map depends on."""
        return (
            None if self.background_quantile is None else "a quantile of the whole map (background_quantile)"
        )

    def maps(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """The levels' distances combined and upsampled to ``size``."""
        grid = None
        if self.at_level_size:
            largest = max(student, key=lambda level: level.shape[-2] * level.shape[-1])
            grid = (int(largest.shape[-2]), int(largest.shape[-1]))
        weights = [self.factor] * len(student)
        return ops.anomaly_map(student, teacher, self.size, grid=grid, weights=weights, combine=self.combine)


class _Imitation(Imitation):
    """The student's training by the variant's loss."""

    def __init__(
        self, detector: STPM, network: StudentTeacher, images: FeatureStore | None, held_out: FeatureStore | None,
        precision: Precision,
    ) -> None:  # fmt: skip
        self._variant = VARIANTS[detector.variant]
        decay = self._variant.weight_decay if detector.weight_decay is None else detector.weight_decay
        super().__init__(detector, network.student, images, held_out, precision, decay)
        self._network = network

    def _loss(self, student: Pyramid, teacher: Pyramid) -> Tensor:
        per_level = [d.mean() for d in ops.pyramid_distance(student, teacher)]
        images = batch_images(len(student[0])) if self._variant.sum_over_batch else 1
        return self._variant.loss_factor * images * torch.stack(per_level).sum()

    def _maps(self, student: Pyramid, teacher: Pyramid) -> Tensor:
        return self._network.maps(student, teacher)
