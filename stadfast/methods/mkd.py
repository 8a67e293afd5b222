"""Multiresolution Knowledge Distillation (Salehi et al.: CVPR 2021, arXiv 2011.11108)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .base import Detector
from .distributed import on_main
from .features import FeatureStore
from .graph import Preprocess, ScoringGraph
from .hardware import Precision
from .imitation import feature_stores
from .mkd_network import (
    Localisation,
    SourceCloner,
    TrainingLoss,
    create_cloner,
    distillation_loss,
    layer_losses,
)
from .sources import Images
from .training import EpochRecord, TrainingOptions, train

LAYERS = ("pool2", "pool3", "pool4", "pool5")  # where the cloner has the source's channels

_OFFICIAL_LAMBDA = 0.5


class MultiresolutionKD(Detector):
    """A small cloner learns a VGG-16's features on good images, in value and in direction; its loss is the score.

    Loss of an image, over the layers l: direction ``sum_l 1 - cos(vec(c_l), vec(s_l))`` and value
    ``sum_l mean((c_l - s_l)^2)`` (section 3.1 of the paper). Map: magnitude of the loss' gradient with respect to
    the image, summed over the colours, blurred (Gaussian, 4 pixels) and opened (3 x 3 cross; section 3.2, eq. 5
    and 6). Image score: the loss.

    Args:
        weights, image_size, epochs, batch_size, validation_fraction, patience, seed, device, precision,
        deterministic, cache_gb: see :class:`Detector`. The backbone is VGG-16. The official code holds no images
            out and trains with batches of 64, 601 epochs on MVTec AD, 51 on MNIST-like and 201 on CIFAR-10; the
            defaults make about as many steps on a small data set with fewer passes over it.
        variant: ``"official"`` (the authors' code: direction + lambda x value; trained on four layers, scored and
            localised on the last three) or ``"paper"`` (value + lambda x direction; the same layers for both).
        lam: lambda; None: 0.5 in the official variant (its authors take 0.01 for MNIST and CIFAR-10), in the paper's
            the ratio of the two losses of the untrained cloner, which starts them at equal weight.
        layers: to train on, out of pool2 to pool5; None: all four.
        detection_layers: out of ``layers``, for score and map; None: the variant's.
        localisation: ``"gradient"``, ``"smoothgrad"`` (mean over noisy copies of the image) or ``"gbp"`` (guided
            backpropagation through the cloner).
        through: networks that the gradient is taken through, ``"both"`` (the authors' code) or ``"cloner"`` (the
            paper's text: the source's features as constants; half the time).
        protocol: ``"raw"``, or ``"paper"``: each map stretched to its own minimum and 99 % quantile, so that every
            image has bright spots. Only to reproduce the paper's pixel figures.
        samples: noisy copies of smoothgrad.
        noise: of smoothgrad; the standard deviation is ``(noise / range)^2`` with the image's range of values.
        normalise: subtract ImageNet's mean and divide by its deviation. The authors do so for CIFAR-10 alone.
        learning_rate: of Adam.
    """

    method: ClassVar[str] = "mkd"
    _counts: ClassVar[tuple[str, ...]] = (*Detector._counts, "samples")
    _choices: ClassVar[Mapping[str, Sequence[str]]] = {
        **Detector._choices,
        "variant": ("official", "paper"),
        "localisation": ("gradient", "smoothgrad", "gbp"),
        "through": ("both", "cloner"),
        "protocol": ("raw", "paper"),
    }
    image_score: ClassVar[str] = "loss between the two networks: direction and value"

    def __init__(
        self,
        *,
        weights: Any = "default",
        variant: str = "official",
        lam: float | None = None,
        layers: Sequence[str] | None = None,
        detection_layers: Sequence[str] | None = None,
        localisation: str = "gradient",
        through: str = "both",
        protocol: str = "raw",
        samples: int = 50,
        noise: float = 0.05,
        normalise: bool = False,
        image_size: int | tuple[int, int] = 128,
        epochs: int = 200,
        batch_size: int = 16,
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.2,
        patience: int | None = 50,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
        deterministic: bool = False,
        cache_gb: float | None = None,
    ) -> None:
        super().__init__(
            "vgg16", weights=weights, layers=layers, image_size=image_size, epochs=epochs, batch_size=batch_size,
            validation_fraction=validation_fraction, patience=patience, seed=seed, device=device,
            precision=precision, deterministic=deterministic, cache_gb=cache_gb,
        )  # fmt: skip
        self.variant = variant
        self.lam = lam
        self.detection_layers = detection_layers
        self.localisation = localisation
        self.through = through
        self.protocol = protocol
        self.samples = samples
        self.noise = noise
        self.normalise = normalise
        self.learning_rate = learning_rate

    def _build(self, pretrained: bool) -> tuple[Preprocess, nn.Module]:
        layers = self._training_layers()
        source = self._teacher("vgg16", layers, self.weights, pretrained)
        network = SourceCloner(
            source, create_cloner(layers, self.seed), self._size,
            layers=self._detection_layers(), loss_weights=self._loss_weights(),
            localisation=Localisation(
                self.localisation, self.through, self.protocol, self.samples, self.noise, self.seed
            ),
        )  # fmt: skip
        mean, std = (source.mean, source.std) if self.normalise else ((0.0,) * 3, (1.0,) * 3)
        return Preprocess(self._size, mean, std), network

    def _train(
        self, graph: ScoringGraph, train_images: Images, held_out: Images, precision: Precision,
        options: TrainingOptions, skip_broken: bool,
    ) -> list[EpochRecord]:  # fmt: skip
        network: SourceCloner = graph.network  # type: ignore[assignment]
        if self.protocol == "paper":
            self.notes_.append(
                "each map is stretched to its own range: maps of different images differ in scale"
            )
        stores = feature_stores(
            self, graph.preprocess, network.source, train_images, held_out, precision, options, skip_broken
        )
        return train(_Cloning(self, network, *stores, precision), options)

    def _training_layers(self) -> list[str]:
        return [layer for layer in LAYERS if self.layers is None or layer in self.layers]

    def _detection_layers(self) -> list[str]:
        layers = self._training_layers()
        if self.detection_layers is not None:
            return list(self.detection_layers)
        return layers[-3:] if self.variant == "official" else layers

    def _loss_weights(self) -> tuple[float, float]:
        """Of direction and value; the paper's lambda is not known before training starts."""
        if self.variant == "official":
            return 1.0, _OFFICIAL_LAMBDA if self.lam is None else self.lam
        return math.nan if self.lam is None else self.lam, 1.0

    def _check_arguments(self) -> None:
        super()._check_arguments()
        _check_layers("layers", self.layers, LAYERS)
        _check_layers("detection_layers", self.detection_layers, self._training_layers())


class _Cloning:
    """The cloner's training, as the loop wants it."""

    def __init__(
        self, detector: MultiresolutionKD, network: SourceCloner, images: FeatureStore | None,
        held_out: FeatureStore | None, precision: Precision,
    ) -> None:  # fmt: skip
        assert images is not None
        self.module: nn.Module = network.cloner.to(memory_format=torch.channels_last)
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            self.module.parameters(), lr=detector.learning_rate, fused=True
        )
        self._images, self._held_out = images, held_out
        self._precision, self._batch_size = precision, detector._batch_size
        self._weights = network.loss_weights
        if self._weights.isnan().any():
            self._weights[0] = on_main(lambda: self._initial_ratio().item())

    def __len__(self) -> int:
        return len(self._images)

    def loss(self, indices: Tensor) -> Tensor:
        cloner, source = self._pair(self._images, indices)
        return TrainingLoss.apply(self._weights, source, *cloner).mean()  # type: ignore[no-untyped-call, no-any-return]

    def validate(self) -> float | None:
        """Mean loss of the held-out images."""
        if self._held_out is None or len(self._held_out) == 0:
            return None
        total = 0.0
        for indices in torch.arange(len(self._held_out)).split(self._batch_size):
            total += distillation_loss(*self._pair(self._held_out, indices), self._weights).sum().item()
        return total / len(self._held_out)

    @torch.no_grad()
    def _initial_ratio(self) -> Tensor:
        """Value over direction of the untrained cloner, on the first batch."""
        self.module.eval()
        pairs = zip(*self._pair(self._images, torch.arange(len(self))[: self._batch_size]), strict=True)
        direction, value = torch.stack([torch.stack(layer_losses(c, s)) for c, s in pairs]).sum((0, 2))
        return value / direction

    def _pair(self, store: FeatureStore, indices: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        images, source = store.batch(indices)
        with self._precision.autocast(images.device):
            return self.module(images), source


def _check_layers(name: str, given: Any, known: Sequence[str]) -> None:
    if given is None:
        return
    fits = isinstance(given, (list, tuple)) and all(layer in known for layer in given)
    if not fits or not given or len(set(given)) != len(given):
        raise UsageError(f"{name}: expected different ones out of {', '.join(known)}, got {given!r}")
