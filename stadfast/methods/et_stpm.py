"""Unsupervised Anomaly Detection with an Enhanced Teacher for Student-Teacher Feature Pyramid Matching (ET-STPM;
Zolfaghari, Sajedi: MVIP 2022, arXiv 2512.18219)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..backbones import DEFAULT_WEIGHTS, create_backbone, layer_names
from ..errors import UsageError
from .arguments import is_count
from .base import Detector
from .features import FeatureStore
from .finetuning import Categories, Classification, Classifier, NoFeatures, read_categories
from .graph import Preprocess, ScoringGraph
from .hardware import Precision
from .imitation import Imitation, Pyramid, feature_stores
from .losses import unit_l1_cosine
from .sources import Images, fingerprint
from .stpm import StudentTeacher
from .training import EpochRecord, TrainingOptions, train

logger = logging.getLogger("stadfast")


class EnhancedTeacherSTPM(Detector):
    """STPM with a teacher that was first fine-tuned to tell categories of products apart, and another loss.

    The teacher: the whole backbone and a linear head learn which category an image belongs to, the head alone for one
    epoch, then everything for two; head and deepest layers are then dropped, the rest is frozen. The student: as in
    STPM, with the loss ``sum_l mean_p (||t^ - s^||_1 + 1 - cos(t, s))``. Map: product over the levels of the upsampled
    ``||t^ - s^||^2``, as in STPM's official code. Image score: the map's maximum.

    Without ``finetune_data`` the teacher stays as it is, and only the loss differs from STPM.

    Args:
        backbone, weights, layers, image_size, epochs, batch_size, validation_fraction, patience, seed, device,
        precision, deterministic, cache_gb: see :class:`Detector`. Where a weights file lacks the backbone's deepest
            layer, the fine-tuning starts with a random one (the log says so).
        finetune_data: a folder with one folder for each category, in MVTec AD's layout or with good images only; at
            least two. The category to be inspected should be among them.
        finetune_images: ``"train_good"``: the categories' good training images; ``"paper"``: anomalous test images,
            too. Figures on those are then not leak-free: the detector's ``notes_`` say so, ``evaluate`` prints it.
        finetune_anomalies: the share of each category's anomalous test images that ``"paper"`` adds (the paper: some).
        head_epochs, finetune_epochs: of the head alone, then of everything.
        finetune_learning_rate: of SGD with momentum 0.9; the paper names no optimiser.
        finetune_batch_norm: ``"train"``: its statistics move to the categories' (in the head's epochs, too);
            ``"frozen"``: they stay the weights' own. Afterwards they are frozen either way.
        loss: of the student, ``"l1_cosine"`` or STPM's ``"stfpm"``: ``sum_l mean_p ||t^ - s^||^2``.
        l1_weight, cosine_weight: of the two terms; the paper names none.
        l1_features: ``"normalised"`` along the channels, or ``"raw"``.
        learning_rate, momentum, weight_decay: of the student's SGD.
    """

    method: ClassVar[str] = "et-stpm"
    _choices: ClassVar[Mapping[str, Sequence[str]]] = {
        **Detector._choices,
        "finetune_images": ("train_good", "paper"),
        "finetune_batch_norm": ("train", "frozen"),
        "loss": ("l1_cosine", "stfpm"),
        "l1_features": ("normalised", "raw"),
    }
    _file_arguments: ClassVar[tuple[str, ...]] = ("weights", "finetune_data")

    def __init__(
        self,
        backbone: str = "resnet18",
        *,
        weights: Any = "default",
        layers: Sequence[str] | None = None,
        finetune_data: Any = None,
        finetune_images: str = "train_good",
        finetune_anomalies: float = 0.5,
        head_epochs: int = 1,
        finetune_epochs: int = 2,
        finetune_learning_rate: float = 1e-3,
        finetune_batch_norm: str = "train",
        loss: str = "l1_cosine",
        l1_weight: float = 1.0,
        cosine_weight: float = 1.0,
        l1_features: str = "normalised",
        image_size: int | tuple[int, int] = 256,
        epochs: int = 100,
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
            backbone, weights=weights, layers=layers, image_size=image_size, epochs=epochs, batch_size=batch_size,
            validation_fraction=validation_fraction, patience=patience, seed=seed, device=device,
            precision=precision, deterministic=deterministic, cache_gb=cache_gb,
        )  # fmt: skip
        self.finetune_data = finetune_data
        self.finetune_images = finetune_images
        self.finetune_anomalies = finetune_anomalies
        self.head_epochs = head_epochs
        self.finetune_epochs = finetune_epochs
        self.finetune_learning_rate = finetune_learning_rate
        self.finetune_batch_norm = finetune_batch_norm
        self.loss = loss
        self.l1_weight = l1_weight
        self.cosine_weight = cosine_weight
        self.l1_features = l1_features
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not isinstance(self.finetune_data, (str, os.PathLike, NoneType)):
            raise UsageError(f"finetune_data: expected a folder or None, got {self.finetune_data!r}")
        for name in ("head_epochs", "finetune_epochs"):
            if not is_count(getattr(self, name), 0):
                raise UsageError(f"{name}: expected a whole number from 0, got {getattr(self, name)!r}")
        if not 0 < self.finetune_anomalies <= 1:
            raise UsageError(
                f"finetune_anomalies: expected a number above 0 and up to 1, got {self.finetune_anomalies!r}"
            )

    def _build(self, pretrained: bool) -> tuple[Preprocess, nn.Module]:
        teacher = self._teacher(self.backbone, self.layers, self.weights, pretrained)
        student = create_backbone(self.backbone, self.layers, seed=self.seed)
        network = StudentTeacher(
            teacher, student, self._size, at_level_size=True, factor=1.0, combine="product"
        )
        return Preprocess(self._size, teacher.mean, teacher.std), network

    def _train(
        self, graph: ScoringGraph, train_images: Images, held_out: Images, precision: Precision,
        options: TrainingOptions, skip_broken: bool,
    ) -> list[EpochRecord]:  # fmt: skip
        network: StudentTeacher = graph.network  # type: ignore[assignment]
        broken: list[tuple[Path, str]] = []
        history: list[EpochRecord] = []
        if self.finetune_data is None:
            logger.warning(
                "et-stpm without finetune_data: the teacher is not fine-tuned, and only the loss differs from stpm; "
                "finetune_data takes a folder with one folder for each of several categories"
            )
            self.notes_.append("the teacher was not fine-tuned (no finetune_data)")
        else:
            found = self._categories()
            options = replace(
                options, identity={**options.identity, "finetune_images": fingerprint(found.images)}
            )
            history = self._finetune(graph, found, precision, options, skip_broken)
            broken = self.broken_
        stores = feature_stores(  # of the teacher as it is now
            self, graph.preprocess, network.teacher, train_images, held_out, precision, options, skip_broken
        )
        self.broken_ = [*broken, *self.broken_]
        return history + train(_Imitation(self, network, *stores, precision), options.phase("student"))

    def _categories(self) -> Categories:
        """The images to fine-tune on; a note where test images are among them."""
        anomalies = self.finetune_anomalies if self.finetune_images == "paper" else 0.0
        found = read_categories(self.finetune_data, anomalies, self.seed)
        logger.info("fine-tuning on %d images of %s", len(found.images), ", ".join(found.names))
        if found.anomalous:
            self.notes_.append(
                f"LEAK: the teacher was fine-tuned on {found.anomalous} anomalous test images "
                f"({self.finetune_anomalies:.0%} of each of {', '.join(found.names)}); "
                "figures on these images are not those of an unsupervised method"
            )
            logger.warning(self.notes_[-1])
        return found

    def _finetune(
        self, graph: ScoringGraph, found: Categories, precision: Precision, options: TrainingOptions,
        skip_broken: bool,
    ) -> list[EpochRecord]:  # fmt: skip
        """Teach the teacher in place which category an image belongs to."""
        device = graph.threshold.device
        store = FeatureStore(
            found.images, graph.preprocess, NoFeatures(), precision=precision, device=device,
            budget_gb=self.cache_gb, batch_size=options.batch_size, skip_broken=skip_broken,
            show_progress=options.show_progress,
        )  # fmt: skip
        self.broken_ = store.broken
        labels = found.labels_without(store.broken)
        classifier = self._classifier(len(found.names)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        history: list[EpochRecord] = []
        for name, trained, epochs in (
            ("teacher head", classifier.head, self.head_epochs),
            ("teacher", classifier, self.finetune_epochs),
        ):
            rate = self.finetune_learning_rate
            trainee = Classification(classifier, trained, store, labels, precision, rate)
            if epochs:
                history += train(trainee, options.phase(name, epochs=epochs, patience=None))
        teacher: nn.Module = graph.network.teacher  # type: ignore[assignment]
        tuned = classifier.backbone.state_dict()
        teacher.load_state_dict({name: tuned[name] for name in teacher.state_dict()})
        return history

    def _classifier(self, categories: int) -> Classifier:
        deepest = layer_names(self.backbone)[-1]
        weights = DEFAULT_WEIGHTS[self.backbone] if self.weights == "default" else self.weights
        backbone = create_backbone(self.backbone, [deepest], weights, seed=self.seed, optional=deepest)
        return Classifier(backbone, categories, self.seed, self.finetune_batch_norm == "frozen")


class _Imitation(Imitation):
    """The student's training."""

    def __init__(
        self, detector: EnhancedTeacherSTPM, network: StudentTeacher, images: FeatureStore | None,
        held_out: FeatureStore | None, precision: Precision,
    ) -> None:  # fmt: skip
        super().__init__(detector, network.student, images, held_out, precision, detector.weight_decay)
        self._detector, self._network = detector, network

    def _loss(self, student: Pyramid, teacher: Pyramid) -> Tensor:
        method = self._detector
        if method.loss == "stfpm":
            return torch.stack([d.mean() for d in ops.pyramid_distance(student, teacher)]).sum()
        raw = method.l1_features == "raw"
        pairs = list(zip(student, teacher, strict=True))
        terms = [
            unit_l1_cosine(s, t, 0.0 if raw else method.l1_weight, method.cosine_weight) for s, t in pairs
        ]
        if raw:
            terms += [method.l1_weight * (s.float() - t.float()).abs().sum(1).mean() for s, t in pairs]
        return torch.stack(terms).sum()

    def _maps(self, student: Pyramid, teacher: Pyramid) -> Tensor:
        return self._network.maps(student, teacher)
