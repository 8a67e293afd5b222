"""Fine-tuning a teacher to tell categories of products apart (ET-STPM's first step)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import FeaturePyramid, freeze
from ..data import open_dataset
from ..data.folders import subfolders
from ..errors import DataError
from .features import FeatureStore
from .hardware import Precision

_MOMENTUM = 0.9


@dataclass(frozen=True)
class Categories:
    """Images with the category of each.

    Attributes:
        names: of the categories.
        images: the files.
        labels: for each, the index of its category.
        anomalous: how many of them are anomalous test images.
    """

    names: list[str]
    images: list[Path]
    labels: list[int]
    anomalous: int

    def labels_without(self, broken: Sequence[tuple[Path, str]]) -> Tensor:
        """(N,) int64, of the images that could be read."""
        unreadable = {path for path, _ in broken}
        pairs = zip(self.images, self.labels, strict=True)
        return torch.tensor([label for path, label in pairs if path not in unreadable])


def read_categories(folder: str | os.PathLike[str], anomalies: float, seed: int) -> Categories:
    """The good training images of each category in ``folder``, and a part of its anomalous test images.

    Args:
        folder: one folder a category, in MVTec AD's layout or with images only.
        anomalies: the share of each category's anomalous test images to add.
        seed: of their choice.

    Raises:
        DataError: no such folder, fewer than two categories, or anomalies asked for where there are none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"finetune_data: {root} is not a folder; wanted one with a folder for each category")
    folders = subfolders(root)
    if len(folders) < 2 or (root / "train").is_dir():
        names = ", ".join(path.name for path in folders) or "none"
        raise DataError(
            f"finetune_data: wanted at least two category folders in {root}, got {names}; with images of one "
            "category only there is nothing to tell apart: leave finetune_data out, or put other products beside it"
        )
    generator = torch.Generator().manual_seed(seed)
    all_images: list[Path] = []
    labels: list[int] = []
    anomalous = 0
    for label, path in enumerate(folders):
        dataset = open_dataset(path)
        images = [sample.image for sample in dataset.train]
        if anomalies:
            bad = [sample.image for sample in dataset.test if sample.label == 1]
            chosen = torch.randperm(len(bad), generator=generator)[: round(anomalies * len(bad))].tolist()
            images += [bad[i] for i in sorted(chosen)]
            anomalous += len(chosen)
        all_images += images
        labels += [label] * len(images)
    if anomalies and not anomalous:
        raise DataError(f"finetune_images: no anomalous test images in {root} to add")
    return Categories([path.name for path in folders], all_images, labels, anomalous)


class Classifier(nn.Module):
    """A backbone to its deepest layer, the mean over positions, and a linear head: (B, 3, H, W) -> (B, categories).

    Args:
        backbone: with one layer.
        categories: how many.
        seed: of the head.
        frozen_statistics: batch norm normalises by its running statistics, which stay.
    """

    def __init__(self, backbone: FeaturePyramid, categories: int, seed: int, frozen_statistics: bool) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(backbone.channels[-1], categories)
        for module in backbone.modules():
            if frozen_statistics and isinstance(module, nn.BatchNorm2d):
                freeze(module)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images)[-1].mean((2, 3)))


class NoFeatures(nn.Module):
    """For a store that keeps preprocessed images only."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return []


class Classification:
    """The training of a classifier, as the loop wants it; the last epoch is kept.

    Args:
        classifier: all of it is in the checkpoint, as its batch norm learns even where its weights do not.
        trained: the part whose parameters move.
        store: the preprocessed images.
        labels: (N,) int64, of the store's images.
        learning_rate: of SGD.
    """

    def __init__(
        self, classifier: Classifier, trained: nn.Module, store: FeatureStore, labels: Tensor,
        precision: Precision, learning_rate: float,
    ) -> None:  # fmt: skip
        self.module: nn.Module = classifier
        classifier.requires_grad_(False)
        trained.requires_grad_(True)
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            trained.parameters(), lr=learning_rate, momentum=_MOMENTUM, fused=True
        )
        self._store, self._labels, self._precision = store, labels, precision

    def __len__(self) -> int:
        return len(self._store)

    def loss(self, indices: Tensor) -> Tensor:
        images, _ = self._store.batch(indices)
        with self._precision.autocast(images.device):
            logits = self.module(images)
        return F.cross_entropy(logits.float(), self._labels[indices].to(logits.device))

    def validate(self) -> float | None:
        return None
