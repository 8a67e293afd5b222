"""The contract of all detectors: fit, calibrate, save; what predicts is :mod:`~stadfast.methods.prediction`'s."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..backbones import DEFAULT_WEIGHTS, FeaturePyramid, create_backbone, freeze
from ..errors import StadfastError, UsageError
from . import distributed
from .arguments import argument_names, as_python, both_sides, check_arguments, check_known
from .bundle import write_tensors
from .calibration import threshold_of
from .graph import Preprocess, ScoringGraph
from .hardware import PRECISIONS, Precision, choose_device, choose_precision, deterministic_algorithms
from .native_scale import cropped_parts
from .prediction import Predictor
from .sources import (
    Images,
    calibration_images,
    fingerprint,
    split,
    training_images,
    without,
)
from .training import Callback, EpochRecord, TrainingOptions, summary

logger = logging.getLogger("stadfast")

BUNDLE_FORMAT = 1


class Detector(Predictor):
    """Base of the methods. ``__init__`` only stores arguments; attributes that ``fit`` learns end in ``_``.

    Args:
        backbone: name of a feature pyramid (:func:`stadfast.backbones.create_backbone`).
        weights: the teacher's: ``"default"`` (torchvision's ImageNet weights; the packaged file for
            efficientnet_lite0), a file (.pth, .safetensors), or a state dict.
        layers: names of the pyramid's levels; None: the backbone's default.
        image_size: the network's input (H, W); a number means a square.
        epochs, batch_size: of the training.
        validation_fraction: share of the training images held out to select the epoch and to calibrate.
        patience: stop after so many epochs without improvement on the held-out images; None: never.
        seed: of weights, split and order; the same seed on the same machine gives the same detector.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        precision: of the training: ``"auto"``, ``"fp32"`` or ``"bf16"``. Predictions are float32.
        deterministic: use deterministic algorithms only (bit-equal results, slower on a GPU).
        cache_gb: memory for the teacher's features during training; None: half of what is free.

    Attributes:
        threshold_, pixel_threshold_: images and pixels above them are anomalous; the same number where the image
            score is the map's maximum.
        graph_: the module behind ``predict``: (B, 3, h, w) float in [0, 1] -> Prediction.
        native_scale_: fitted at native scale, and predicting at it unless told otherwise.
        history_: one record per epoch.
        broken_: (path, reason) of images left out by the latest fit or prediction.
        metadata_: what the bundle says about the detector's making.
        notes_: what whoever reads its figures must know, such as test images seen in training.
    """

    method: ClassVar[str]
    data_parallel: ClassVar[bool] = True  # whether the mean of the images' losses is the batch's loss
    _file_arguments: ClassVar[tuple[str, ...]] = ("weights",)  # a bundle names their files, not their folders
    # May differ when a run is resumed.
    _run_arguments: ClassVar[tuple[str, ...]] = ("device", "deterministic", "cache_gb", "epochs", "patience")
    _counts: ClassVar[tuple[str, ...]] = ("epochs", "batch_size", "patience")  # whole numbers from 1
    _choices: ClassVar[Mapping[str, Sequence[str]]] = {"precision": PRECISIONS}  # one of these words

    def __init__(
        self,
        backbone: str = "resnet18",
        *,
        weights: Any = "default",
        layers: Sequence[str] | None = None,
        image_size: int | tuple[int, int] = 256,
        epochs: int = 100,
        batch_size: int = 32,
        validation_fraction: float = 0.2,
        patience: int | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
        deterministic: bool = False,
        cache_gb: float | None = None,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.layers = layers
        self.image_size = image_size
        self.epochs = epochs
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.seed = seed
        self.device = device
        self.precision = precision
        self.deterministic = deterministic
        self.cache_gb = cache_gb

    # ---------------------------------------------------------------- what a method adds

    def _build(self, pretrained: bool) -> tuple[Preprocess, nn.Module]:
        """The preprocessing and the untrained network: normalised images -> maps, or (maps, image scores).

        Args:
            pretrained: load the teachers' weights; False when a bundle's will follow.
        """
        raise NotImplementedError

    def _teacher(
        self, backbone: str, layers: Sequence[str] | None, weights: Any, pretrained: bool,
        optional: str | None = None,
    ) -> FeaturePyramid:  # fmt: skip
        """A frozen pyramid with its weights, ``"default"`` being the backbone's own."""
        chosen = (DEFAULT_WEIGHTS.get(backbone) if weights == "default" else weights) if pretrained else None
        return freeze(create_backbone(backbone, layers, chosen, seed=self.seed, optional=optional))

    def _train(
        self, graph: ScoringGraph, train: Images, held_out: Images, precision: Precision,
        options: TrainingOptions, skip_broken: bool,
    ) -> list[EpochRecord]:  # fmt: skip
        """Train ``graph.network`` in place."""
        raise NotImplementedError

    def _held_out_fraction(self) -> float:
        return self.validation_fraction

    # ---------------------------------------------------------------- fitting

    def fit(
        self,
        data: Any,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        skip_broken: bool = False,
        native_scale: bool = False,
        callbacks: Sequence[Callback] = (),
        show_progress: bool = True,
    ) -> Self:
        """Learn what good images look like; anomalous images are not needed.

        Args:
            data: good images: a folder (of an MVTec-like category, its ``train/good``), a data set, paths, or images
                in memory as :func:`stadfast.data.as_images` takes them.
            checkpoint: file for the training state, so that a stopped run can go on.
            resume: continue from ``checkpoint`` if it is there (it must belong to the same arguments and images).
            skip_broken: leave out unreadable files and list them in ``broken_``.
            native_scale: train on crops of ``image_size`` out of the images as they are, instead of resizing these
                (:func:`~stadfast.methods.native_scale.native_crops`); the detector then predicts at native scale, too.
            callbacks: called with an EpochRecord after each epoch.
            show_progress: the bar with the time left, on standard error.

        Returns:
            self, calibrated on the held-out images (on the training images where none are held out).

        Raises:
            UsageError: an argument is out of range, or does not go with another. DataError: images cannot be used.
            WeightsError: the teacher's weights cannot be had. BundleError: the checkpoint belongs to another run. A
            detector that was fitted before is then as it was.
        """
        self._check_arguments()
        distributed.check_processes(self.method, self.data_parallel, self._batch_size)
        if native_scale:
            self._check_native_scale()
        if resume and checkpoint is None:
            raise UsageError("resume: goes with checkpoint, the file to continue from")
        if checkpoint is not None and Path(checkpoint).is_dir():
            raise UsageError(f"checkpoint: {os.fspath(checkpoint)} is a folder; wanted the name of a file")
        before = dict(vars(self))
        try:
            vars(self).update({name: as_python(value) for name, value in self.get_params().items()})
            self._fit(data, checkpoint, resume, skip_broken, native_scale, callbacks, show_progress)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        return self

    def _fit(
        self, data: Any, checkpoint: str | os.PathLike[str] | None, resume: bool, skip_broken: bool,
        native_scale: bool, callbacks: Sequence[Callback], show_progress: bool,
    ) -> None:  # fmt: skip
        images = training_images(data)
        self.broken_: list[tuple[Path, str]] = []
        self.notes_: list[str] = (
            ["fitted at native scale; an exported archive resizes images to image_size all the same"]
            if native_scale else []
        )  # fmt: skip
        self.native_scale_ = native_scale
        device = choose_device(self.device)
        precision = choose_precision(self.precision, device)
        logger.info("training on %s in %s (%s)", device, precision.name, precision.reason)
        train, held_out = split(images, self._held_out_fraction(), self.seed)
        identity = {"arguments": self._identity(), "images": fingerprint(images), "precision": precision.name}
        if native_scale:
            identity["native_scale"] = "crops"
        options = TrainingOptions(
            epochs=self.epochs, batch_size=self._batch_size, seed=self.seed, patience=self.patience,
            checkpoint=Path(checkpoint) if checkpoint else None, resume=resume, identity=identity,
            callbacks=callbacks, show_progress=show_progress and distributed.is_main(),
        )  # fmt: skip
        with deterministic_algorithms(self.deterministic):
            graph = ScoringGraph(*self._build(pretrained=True)).to(device)
            seen = train, held_out
            if native_scale:
                seen = cropped_parts(*seen, self._size, self.seed, self.broken_ if skip_broken else None)
            uncropped = list(self.broken_)
            self.history_ = self._train(graph, *seen, precision, options, skip_broken)
            self._adopt(graph)
            broken = [*uncropped, *self.broken_]
            train, held_out = (without(images, broken) for images in (train, held_out))
            self._calibrate_after_fit(train, held_out)
            self.broken_ = broken
        self.metadata_ = {
            "data": {"fingerprint": identity["images"], "train": len(train), "held_out": len(held_out)},
            "training": {
                **summary(self.history_), "precision": precision.name,
                **({"native_scale": True, "crops": len(seen[0])} if native_scale else {}),
            },
        }  # fmt: skip

    def calibrate(
        self,
        data: Any,
        *,
        quantile: float | None = None,
        target_fpr: float | None = None,
        skip_broken: bool = False,
    ) -> Self:
        """Set the threshold from good images that the detector has not been trained on.

        Args:
            data: good images, as for :meth:`predict`.
            quantile: of their image scores, 0 to 1; default 0.995.
            target_fpr: instead of a quantile, the share of good images that may be called anomalous, see
                :func:`~stadfast.methods.calibration.threshold_of`.
            skip_broken: leave out unreadable files.

        Raises:
            UsageError: both are given, out of range, or too few images for ``target_fpr``.
        """
        self._calibrate(calibration_images(data), quantile, target_fpr, "given images", skip_broken)
        return self

    def _calibrate(
        self, data: Any, quantile: float | None, target_fpr: float | None, source: str, skip_broken: bool
    ) -> None:
        """Image threshold from the image scores, pixel threshold by the same rule from the maps' maxima."""
        batches = [found for _, found in self.stream(data, skip_broken=skip_broken)]
        scores = torch.cat([found.pred_score for found in batches])
        peaks = torch.cat([found.anomaly_map.flatten(1).amax(1) for found in batches])
        if not (scores.isfinite().all() and peaks.isfinite().all()):
            raise StadfastError(
                "the scores of good images are not finite, as after a training that has diverged; a lower learning "
                "rate may help"
            )
        value, rule = threshold_of(scores, quantile, target_fpr)
        self.calibration_ = {**rule, "images": len(scores), "source": source}
        self._set_thresholds(value.item(), threshold_of(peaks, quantile, target_fpr)[0].item())

    def _set_thresholds(self, image: float, pixel: float) -> None:
        if not (math.isfinite(image) and math.isfinite(pixel)):
            raise ValueError(f"the thresholds are {image} and {pixel}")
        self.threshold_, self.pixel_threshold_ = image, pixel
        self.graph_.threshold.fill_(image)
        self.graph_.pixel_threshold.fill_(pixel)

    def _calibrate_after_fit(self, train: Images, held_out: Images) -> None:
        source = "held-out images" if held_out else "training images"
        if not held_out:
            logger.warning(
                "no images were held out: the threshold comes from the training images and is likely too low; "
                "calibrate() on other good images, or set validation_fraction"
            )
        self._calibrate(held_out or train, None, None, source, False)

    # ---------------------------------------------------------------- saving

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bundle: one safetensors file with all weights (the teacher's, too) and a JSON header.

        The same detector gives the same bytes. Read it with :func:`stadfast.load`.
        """
        graph = self._fitted()
        write_tensors(path, graph.state_dict(), self.header())

    def header(self) -> dict[str, Any]:
        """All that the bundle says beside the weights."""
        from .. import __version__

        graph = self._fitted()
        return {
            "format": BUNDLE_FORMAT,
            "method": self.method,
            "arguments": self._made_with,
            "threshold": self.threshold_,
            "pixel_threshold": self.pixel_threshold_,
            "notes": self.notes_,
            "calibration": self.calibration_,
            "preprocessing": {
                "size": list(graph.preprocess.size), "mean": graph.preprocess.mean.flatten().tolist(),
                "std": graph.preprocess.std.flatten().tolist(),
            },
            "versions": {"stadfast": __version__, "torch": torch.__version__},
            **self.metadata_,
        }  # fmt: skip

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn's estimators give them; none is an estimator (``deep``)."""
        return {name: getattr(self, name) for name in argument_names(type(self))}

    def set_params(self, **arguments: Any) -> Self:
        """Change constructor's arguments before the next ``fit``, as scikit-learn's estimators do; returns self.

        Raises:
            UsageError: an argument that the method does not have.
        """
        check_known(self.method, type(self), arguments)
        vars(self).update(arguments)
        return self

    def _restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over a bundle's contents; KeyError, RuntimeError, TypeError, ValueError if they do not fit."""
        graph = ScoringGraph(*self._build(pretrained=False))
        graph.load_state_dict(dict(tensors))
        bad = [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
        if bad:
            raise ValueError(f"the weights {bad[0]} hold NaN or infinity")
        self.calibration_ = dict(header["calibration"])
        self.metadata_ = {key: dict(header[key]) for key in ("data", "training")}
        self.native_scale_ = bool(self.metadata_["training"].get("native_scale", False))
        self.history_, self.broken_ = [], []
        self.notes_ = [str(note) for note in header["notes"]]
        self._adopt(graph)
        self._set_thresholds(float(header["threshold"]), float(header["pixel_threshold"]))

    # ---------------------------------------------------------------- details

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{name}={value!r}" for name, value in self.get_params().items() if name != "weights"
        )
        return f"{type(self).__name__}({arguments})"

    @property
    def _size(self) -> tuple[int, int]:
        height, width = both_sides(self.image_size)
        return height, width

    def _adopt(self, graph: ScoringGraph) -> None:
        self._made_with = self._described_arguments()
        graph.eval().requires_grad_(False)
        self.graph_ = graph.to(memory_format=torch.channels_last)

    def saw(self, image: Path | Tensor) -> bool:
        """Whether a choice of the detector's was made on this labelled image, so that no figure may count it."""
        return False

    def _described_arguments(self) -> dict[str, Any]:
        files = {name: _described(getattr(self, name)) for name in self._file_arguments}
        arguments = {name: as_python(value) for name, value in self.get_params().items()}
        return arguments | files | {"device": str(self.device)}

    def _identity(self) -> dict[str, Any]:
        arguments = self._described_arguments()
        return {name: value for name, value in arguments.items() if name not in self._run_arguments}

    def _check_arguments(self) -> None:
        check_arguments(type(self), self.get_params(), self._counts, self._choices)
        if not 0 <= self._held_out_fraction() < 1:
            raise UsageError(f"validation_fraction: expected 0 to below 1, got {self.validation_fraction!r}")


def _described(given: Any) -> Any:
    """Files as a bundle names them: a keyword, a name without folders, or what kind of object was given."""
    if isinstance(given, Mapping):
        return "state dict"
    if isinstance(given, (str, os.PathLike)):
        return Path(given).name
    return None if given is None else type(given).__name__
