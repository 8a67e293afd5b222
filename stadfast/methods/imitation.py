"""A student that learns to imitate a frozen teacher whose features are stored: what several methods train."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .features import FeatureStore
from .graph import Preprocess
from .hardware import Precision
from .sources import Images
from .training import TrainingOptions

if TYPE_CHECKING:
    from .base import Detector

Pyramid = list[Tensor]  # L x (B, C_l, H_l, W_l)


class Imitation:
    """One student's training, as the loop wants it; a method says what its loss and its maps are.

    Args:
        detector: with ``learning_rate``, ``momentum`` and ``batch_size``.
        student: what is trained; becomes ``module``, channels_last.
        images, held_out: for training and for the selection of the epoch (None or empty: keep the last).
        precision: of the student's arithmetic.
        weight_decay: of SGD.
    """

    def __init__(
        self, detector: Any, student: nn.Module, images: FeatureStore | None, held_out: FeatureStore | None,
        precision: Precision, weight_decay: float,
    ) -> None:  # fmt: skip
        assert images is not None
        self.module: nn.Module = student.to(memory_format=torch.channels_last)
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            self.module.parameters(),
            lr=detector.learning_rate,
            momentum=detector.momentum,
            weight_decay=weight_decay,
            fused=True,  # one pass over the weights instead of four
        )
        self._images, self._held_out = images, held_out
        self._precision, self._batch_size = precision, detector._batch_size

    # ---------------------------------------------------------------- what a method says

    def _pyramids(self, images: Tensor, stored: Pyramid) -> tuple[Pyramid, Pyramid]:
        """The student's features and the teacher's, from normalised images and all stored features."""
        return self.module(images), stored

    def _loss(self, student: Pyramid, teacher: Pyramid) -> Tensor:
        raise NotImplementedError

    def _maps(self, student: Pyramid, teacher: Pyramid) -> Tensor:
        """Anomaly maps (B, 1, H, W), whose mean over the held-out images selects the epoch."""
        raise NotImplementedError

    # ---------------------------------------------------------------- what the loop calls

    def __len__(self) -> int:
        return len(self._images)

    def loss(self, indices: Tensor) -> Tensor:
        return self._loss(*self._pair(self._images, indices))

    def validate(self) -> float | None:
        """Mean of the held-out images' maps: the criterion of STPM's official code."""
        if self._held_out is None or len(self._held_out) == 0:
            return None
        total = 0.0
        for indices in torch.arange(len(self._held_out)).split(self._batch_size):
            maps = self._maps(*self._pair(self._held_out, indices))
            total += maps.mean(dtype=torch.float64).item() * len(indices)
        return total / len(self._held_out)

    def _pair(self, store: FeatureStore, indices: Tensor) -> tuple[Pyramid, Pyramid]:
        images, stored = store.batch(indices)
        with self._precision.autocast(images.device):
            student, teacher = self._pyramids(images, stored)
        return student, [t.to(s.dtype) for s, t in zip(student, teacher, strict=True)]


def feature_stores(
    detector: Detector, preprocess: Preprocess, teacher: Callable[[Tensor], list[Tensor]], train: Images,
    held_out: Images, precision: Precision, options: TrainingOptions, skip_broken: bool,
) -> tuple[FeatureStore | None, FeatureStore | None]:  # fmt: skip
    """The teacher's features of the training and of the held-out images; None where there are no images.

    Unreadable files that were left out are then in ``detector.broken_``.
    """
    stores = [
        FeatureStore(
            images, preprocess, teacher, precision=precision, device=preprocess.mean.device,
            budget_gb=detector.cache_gb, batch_size=options.batch_size, skip_broken=skip_broken,
            show_progress=options.show_progress,
        ) if images else None
        for images in (train, held_out)
    ]  # fmt: skip
    detector.broken_ = [entry for store in stores if store is not None for entry in store.broken]
    return stores[0], stores[1]
