"""Stereotype Deepening: a doctor, its masters and their bachelors (a reconstruction: docs/stereotype.md)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..backbones import FeaturePyramid
from ..data import list_images
from ..data.folders import subfolders
from ..errors import DataError, UsageError
from ._deepening import (
    COMPACTNESS,
    DoctorTraining,
    LevelTraining,
    Recipe,
    scale_terms,
    standardise_level,
    whiten_level,
)
from ._descriptors import ARCHITECTURES, Architecture, choose_architecture
from ._doctor import PretrainedDoctor
from ._patches import Patches
from ._tree import TERMS, DescriptorTree, Family
from .arguments import both_sides, is_count
from .base import Detector
from .features import FeatureStore
from .graph import Preprocess, ScoringGraph
from .hardware import Precision
from .sources import Images
from .training import EpochRecord, TrainingOptions, train

_DISTILLED_STRIDE = 4  # of a distilled doctor's maps; its networks may have less
_PATCHES = 64  # of a step, where images are patches
_STEPS = 600  # of a level's training
_LEVEL_NAMES = ("doctor", "masters", "bachelors")
_RECONSTRUCTION = "stereotype is a reconstruction from the paper's text, see docs/stereotype.md"


class StereotypeDeepening(Detector):
    """Small patch networks learn from each other in generations; where generations or peers disagree is anomalous.

    The doctor is a pretrained network, or a patch network that has learnt from one; its masters learn the doctor's
    descriptors of good images, their bachelors the masters'. Maps, at every position (eqs. 7 to 9): *inference*, the
    distances between doctor and masters; *delivery*, between masters and bachelors; *peer*, among the networks of a
    level; the score map is their sum (eq. 10), and the image score its maximum. The paper leaves much unsaid and some
    of it is inconsistent: **this is a reconstruction**; docs/stereotype.md lists every guess.

    Args:
        backbone, weights, layers: the pretrained network, and the layers whose features are the doctor's descriptors
            (None: those of the backbone's default that are no finer than the patch networks, such as ``layer2`` and
            ``layer3``); a distilled doctor learns those of the last one, averaged over a patch.
        doctor: ``"pretrained"``, that network itself; ``"distilled"``, a patch network as its masters are.
        arch: ``"paper"``, the table as printed, whose descriptors are affine in one number; ``"wide"``, the same
            without that bottleneck; ``"stad"``, the networks of Uninformed Students (Bergmann et al. 2020).
        patch_size: 64; of ``"stad"`` 65, 33 or 17. None: the first.
        widths: children of each network, level by level: (2, 2) is two masters with two bachelors each.
        doctor_data: folder with one sub-folder of images a class, from which the doctor learns features and classes;
            None: the good images, with damaged patches as a second class. Of a distilled doctor only, as the next
            three are.
        doctor_epochs: of the doctor's training.
        patches_per_image: patches that the doctor sees of an image in an epoch.
        class_weight: of the doctor's cross entropy.
        mu: weight of the regression error, 1 - mu of the compactness loss (eq. 6), for those named by
            ``compactness_on``; the others learn by the error alone. 1 is the gradient of the paper's equations as
            printed, since eq. 5 is a constant.
        compactness: ``"pairs"``, ``"abs"``, ``"dims"`` or ``"literal"``, see
            :func:`~stadfast.methods._deepening.compactness_loss`.
        compactness_on: ``"students"``, or with a distilled doctor ``"doctor"`` or ``"both"``; the paper says both.
        compactness_batch: descriptors that are compared with each other at a step.
        error_over_channels: whether the regression error is a mean over the 512 channels, too.
        standardise: what children learn has mean 0 in every component, and deviation 1 over all of them
            (``"whole"``) or in each (``"components"``).
        window: positions a side that a step of the students' training looks at, of each image of the batch.
        distance: ``"euclidean"``, as in eqs. 7 to 9, or ``"mahalanobis"``, by each level's errors on held-out good
            images.
        terms: the maps that are summed: out of ``"inference"``, ``"delivery"``, ``"peer"``.
        all_pairs: delivery between every network of a level and every one of the next, as eq. 8 is printed; otherwise
            between parents and children, as figure 3 is drawn.
        unordered: count two peers once; eq. 9 counts them twice.
        zscore_terms: divide each map by its deviation over good images before the sum (a z-score without its shift).
        map_stride: pixels between the positions at which maps are computed; 1, 2, 4 or 8, at most the product of the
            network's poolings, and at most the strides of a pretrained doctor's layers. None: the largest such; 4 with
            a distilled doctor.
        one_patch: each image is one patch, resized to it, and its score one number: for small images such as MNIST.
        image_size: None: 256; with ``one_patch`` the patch.
        epochs: of each level of students, which keeps its own best; None: as many as make 600 steps.
        batch_size: images of a step; None: 1, and 64 with ``one_patch``.
        validation_fraction, patience, seed, device, precision, deterministic, cache_gb: see
            :class:`Detector`.
        learning_rate, weight_decay: of Adam.
    """

    method: ClassVar[str] = "stereotype"
    data_parallel: ClassVar[bool] = False
    _file_arguments: ClassVar[tuple[str, ...]] = ("weights", "doctor_data")
    _counts: ClassVar[tuple[str, ...]] = (
        *Detector._counts, "doctor_epochs", "patches_per_image", "window",
    )  # fmt: skip
    _choices: ClassVar[Mapping[str, Sequence[str]]] = {
        **Detector._choices,
        "doctor": ("pretrained", "distilled"),
        "arch": tuple(ARCHITECTURES),
        "compactness": COMPACTNESS,
        "compactness_on": ("students", "doctor", "both"),
        "standardise": ("whole", "components"),
        "distance": ("mahalanobis", "euclidean"),
    }

    def __init__(
        self,
        backbone: str = "resnet18",
        *,
        weights: Any = "default",
        layers: Sequence[str] | None = None,
        doctor: str = "pretrained",
        arch: str = "stad",
        patch_size: int | None = None,
        widths: Sequence[int] = (2, 2),
        doctor_data: str | os.PathLike[str] | None = None,
        doctor_epochs: int = 40,
        patches_per_image: int = 16,
        class_weight: float = 1.0,
        mu: float = 1.0,
        compactness: str = "pairs",
        compactness_on: str = "students",
        compactness_batch: int = 64,
        error_over_channels: bool = True,
        standardise: str = "whole",
        window: int = 32,
        distance: str = "mahalanobis",
        terms: Sequence[str] = TERMS,
        all_pairs: bool = False,
        unordered: bool = False,
        zscore_terms: bool = True,
        map_stride: int | None = None,
        one_patch: bool = False,
        image_size: int | tuple[int, int] | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        validation_fraction: float = 0.2,
        patience: int | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
        deterministic: bool = False,
        cache_gb: float | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
    ) -> None:
        super().__init__(
            backbone, weights=weights, layers=layers, image_size=image_size, epochs=epochs,  # type: ignore[arg-type]
            batch_size=batch_size,  # type: ignore[arg-type]
            validation_fraction=validation_fraction, patience=patience, seed=seed,
            device=device, precision=precision, deterministic=deterministic, cache_gb=cache_gb,
        )  # fmt: skip
        self.doctor = doctor
        self.arch = arch
        self.patch_size = patch_size
        self.widths = widths
        self.doctor_data = doctor_data
        self.doctor_epochs = doctor_epochs
        self.patches_per_image = patches_per_image
        self.class_weight = class_weight
        self.mu = mu
        self.compactness = compactness
        self.compactness_on = compactness_on
        self.compactness_batch = compactness_batch
        self.error_over_channels = error_over_channels
        self.standardise = standardise
        self.window = window
        self.distance = distance
        self.terms = terms
        self.all_pairs = all_pairs
        self.unordered = unordered
        self.zscore_terms = zscore_terms
        self.map_stride = map_stride
        self.one_patch = one_patch
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay

    # ---------------------------------------------------------------- the contract's parts

    def _build(self, pretrained: bool) -> tuple[Preprocess, DescriptorTree]:
        source = self._teacher(self.backbone, self.layers, self.weights, pretrained and not self._distilled)
        doctor = (
            None if self._distilled else PretrainedDoctor(source, self._doctor_layers(source), self.one_patch)
        )
        tree = DescriptorTree(
            self._architecture, Family(tuple(self.widths)), self._size, self._stride(doctor), doctor=doctor,
            one_patch=self.one_patch, terms=self.terms, all_pairs=self.all_pairs, ordered=not self.unordered,
            whitened=self._whitened, seed=self.seed,
        )  # fmt: skip
        return Preprocess(self._size, source.mean, source.std), tree

    def _train(
        self, graph: ScoringGraph, train_images: Images, held_out: Images, precision: Precision,
        options: TrainingOptions, skip_broken: bool,
    ) -> list[EpochRecord]:  # fmt: skip
        tree: DescriptorTree = graph.network.to(memory_format=torch.channels_last)  # type: ignore[assignment]
        device = graph.threshold.device

        def known(images: Tensor) -> list[Tensor]:
            return [] if self._distilled else [tree.doctor.codes(images, tree.stride)]

        def store(images: Images, skip: bool) -> FeatureStore:
            return FeatureStore(
                images, graph.preprocess, known, precision=precision, device=device, budget_gb=self.cache_gb,
                batch_size=options.batch_size, skip_broken=skip, show_progress=options.show_progress,
            )  # fmt: skip

        good = store(train_images, skip_broken)
        unseen = store(held_out, skip_broken) if held_out else None
        self.broken_ = [entry for s in (good, unseen) if s is not None for entry in s.broken]
        self.notes_.append(_RECONSTRUCTION)

        steps = math.ceil(len(good) / options.batch_size)  # an epoch
        epochs = self.epochs or math.ceil(_STEPS / steps)
        recipe, history = self._recipe(), []
        if self._distilled:
            learnt, checked = self._doctor_sources(good, unseen, store, precision, device)
            training = DoctorTraining(
                tree.doctor, learnt, checked, recipe, self.class_weight, options.batch_size,  # type: ignore[arg-type]
                self.doctor_epochs * math.ceil(len(learnt) / options.batch_size),
            )  # fmt: skip
            history += train(training, options.phase("doctor", epochs=self.doctor_epochs))
            tree.doctor.settle()  # type: ignore[operator,union-attr]
        for level in range(1, len(self.widths) + 1):
            standardise_level(tree, level - 1, good, options.batch_size, recipe.by_component)
            students = LevelTraining(tree, level, good, unseen, recipe, options.batch_size, steps * epochs)
            name = _LEVEL_NAMES[level] if level < len(_LEVEL_NAMES) else f"level {level}"
            history += train(students, options.phase(name, epochs=epochs))
            students.settle()
            if self._whitened:
                whiten_level(tree, level, unseen or good, options.batch_size)
        tree.reduce()
        if self.zscore_terms:
            scale_terms(tree, unseen or good, options.batch_size)
        return history

    # ---------------------------------------------------------------- the three maps

    def term_maps(
        self, data: Any, *, batch_size: int | None = None, skip_broken: bool = False
    ) -> dict[str, Tensor]:
        """Each of the maps whose sum is the anomaly map: name -> (N, 1, H, W), float32.

        Args:
            data: images, as for :meth:`predict`.
            batch_size: images computed at once; None: the training's.
            skip_broken: leave out unreadable files; ``broken_`` lists them.
        """
        graph = self._fitted()
        tree: DescriptorTree = graph.network  # type: ignore[assignment]
        with torch.no_grad():
            batches = self._batches(data, batch_size, skip_broken)
            found = [tree.term_maps(graph.preprocess(images)).cpu() for _, images in batches]
        return dict(zip(tree.terms, torch.cat(found).split(1, dim=1), strict=True))

    # ---------------------------------------------------------------- details

    def _recipe(self) -> Recipe:
        return Recipe(
            mu=self.mu, compactness=self.compactness, compact_doctor=self.compactness_on != "students",
            compact_students=self.compactness_on != "doctor", compact_batch=self.compactness_batch,
            over_channels=self.error_over_channels, learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, seed=self.seed, window=self.window,
            by_component=self.standardise == "components",
        )  # fmt: skip

    def _doctor_sources(
        self,
        good: FeatureStore,
        unseen: FeatureStore | None,
        store: Any,
        precision: Precision,
        device: torch.device,
    ) -> tuple[Patches, Patches | None]:
        """The doctor's patches, and held-out ones where it learns from the good images."""
        source = self._teacher(self.backbone, self.layers, self.weights, pretrained=True).to(device)
        source = source.to(memory_format=torch.channels_last)
        count = 1 if self.one_patch else self.patches_per_image

        def patches(images: FeatureStore, labels: list[int] | None, classes: int) -> Patches:
            patch = self._architecture.patch
            return Patches(images, labels, classes, source, patch, count, precision, device)

        if self.doctor_data is None:
            learnt = patches(good, None, 2).standardise()
            return learnt, None if unseen is None else patches(unseen, None, 2).standardise(like=learnt)
        images, labels, classes = labelled_images(self.doctor_data)
        self.notes_.append(f"the doctor learnt the classes {', '.join(classes)}")
        return patches(store(images, False), labels, len(classes)).standardise(), None

    @property
    def _distilled(self) -> bool:
        return self.doctor == "distilled"

    @property
    def _whitened(self) -> bool:
        return self.distance == "mahalanobis"

    def _doctor_layers(self, source: FeaturePyramid) -> list[str]:
        """The given ones, or those of the default that are no finer than patch networks with all their poolings."""
        if self.layers is not None:
            return list(source.layers)
        pairs = zip(source.layers, source.strides, strict=True)
        return [layer for layer, stride in pairs if stride >= self._architecture.stride]

    def _stride(self, doctor: PretrainedDoctor | None) -> int:
        """Pixels between positions of the maps."""
        if self.one_patch:
            return self._architecture.stride
        if doctor is None:
            largest, kind = self._architecture.stride, f"arch {self.arch}"
        else:
            largest = math.gcd(self._architecture.stride, *doctor.strides)
            kind = f"arch {self.arch} and layers of strides {list(doctor.strides)}"
        stride = self.map_stride or min(largest, _DISTILLED_STRIDE if doctor is None else largest)
        if stride > largest:
            strides = [s for s in (1, 2, 4, 8) if s <= largest]
            raise UsageError(f"map_stride: expected one of {strides} for {kind}, got {stride}")
        return stride

    @property
    def _architecture(self) -> Architecture:
        return choose_architecture(self.arch, self.patch_size)

    @property
    def _size(self) -> tuple[int, int]:
        if self.one_patch:
            patch = self._architecture.patch
            return (patch, patch)
        height, width = both_sides(256 if self.image_size is None else self.image_size)
        return height, width

    @property
    def _batch_size(self) -> int:
        if self.batch_size is None:
            return _PATCHES if self.one_patch else 1
        return self.batch_size

    def _check_native_scale(self) -> None:
        if self.one_patch:
            raise UsageError("native_scale: with one_patch an image has one number, and no native scale")

    def _check_arguments(self) -> None:
        super()._check_arguments()
        architecture = self._architecture
        patch = architecture.patch
        if self.one_patch and self.image_size not in (None, patch, (patch, patch), [patch, patch]):
            raise UsageError(f"image_size: with one_patch it is the patch ({patch}), got {self.image_size!r}")
        if min(self._size) < patch:
            raise UsageError(f"image_size: expected at least the patch ({patch}), got {self.image_size!r}")
        if self.map_stride not in (None, 1, 2, 4, 8):
            raise UsageError(f"map_stride: expected 1, 2, 4, 8 or None, got {self.map_stride!r}")
        if isinstance(self.widths, (str, int)) or not self.widths or not all(map(is_count, self.widths)):
            raise UsageError(f"widths: expected whole numbers from 1, one a level, got {self.widths!r}")
        if not is_count(self.compactness_batch, 2):
            raise UsageError(
                f"compactness_batch: expected a whole number from 2, got {self.compactness_batch!r}"
            )
        if self.mu > 1:
            raise UsageError(f"mu: expected a number from 0 to 1, got {self.mu!r}")
        if not self._distilled:
            if self.doctor_data is not None:
                raise UsageError(
                    "doctor_data: only a distilled doctor learns from it; set doctor='distilled'"
                )
            if self.compactness_on != "students":
                raise UsageError(
                    f"compactness_on: only a distilled doctor learns, got {self.compactness_on!r}; set "
                    "doctor='distilled'"
                )
        if isinstance(self.terms, str) or not self.terms or not set(self.terms) <= set(TERMS):
            raise UsageError(f"terms: expected some of {', '.join(TERMS)}, got {self.terms!r}")


def labelled_images(folder: str | os.PathLike[str]) -> tuple[list[Path], list[int], list[str]]:
    """The images below each sub-folder, the number of their class, and the classes' names.

    Raises:
        DataError: fewer than two sub-folders with images.
    """
    root = Path(folder)
    classes = subfolders(root) if root.is_dir() else []
    if len(classes) < 2:
        raise DataError(
            f"doctor_data: expected a folder with a sub-folder for each of two or more classes: {root}"
        )
    images, labels = [], []
    for number, path in enumerate(classes):
        found = list_images(path)
        images += found
        labels += [number] * len(found)
    return images, labels, [path.name for path in classes]
