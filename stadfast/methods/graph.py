"""The one graph: what ``predict`` and ``evaluate`` run is the module that an export writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prediction(NamedTuple):
    """What a detector says about N images; the fields and shapes of anomalib's ``InferenceBatch``.

    Attributes:
        pred_score: (N,) float32, the image score: the maximum of the map, or what the method defines.
        pred_label: (N,) bool, ``pred_score > threshold``.
        anomaly_map: (N, 1, H, W) float32 at the detector's image size; raw scores, never rescaled.
        pred_mask: (N, 1, H, W) bool, ``anomaly_map > pixel_threshold``.
    """

    pred_score: Tensor
    pred_label: Tensor
    anomaly_map: Tensor
    pred_mask: Tensor


class Preprocess(nn.Module):
    """Resize to the network's input size and normalise.

    Bilinear with antialiasing, as Pillow resizes (the papers' pipelines); the aspect ratio is not kept.

    Shape: (B, 3, h, w) float32 in [0, 1] -> (B, 3, H, W) float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def resize(self, images: Tensor) -> Tensor:
        return resized(images, self.size)

    def forward(self, images: Tensor) -> Tensor:
        return (self.resize(images) - self.mean) / self.std


class PyramidPreprocess(Preprocess):
    """Resize to several input sizes, each from the original image, and normalise.

    Shape: (B, 3, h, w) float32 in [0, 1], or :meth:`resize`'s form of it -> one (B, 3, H_s, W_s) float32 a size.

    Args:
        sizes: (H_s, W_s) of the inputs.
        size: (H, W) of the maps.
    """

    def __init__(
        self, sizes: Sequence[tuple[int, int]], size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:  # fmt: skip
        super().__init__(size, mean, std)
        self.sizes = tuple(sizes)

    def resize(self, images: Tensor) -> Tensor:
        """(B, P, 3): the pixels of all sizes, one after the other, so that images of any size make one batch."""
        return torch.cat([resized(images, size).flatten(2) for size in self.sizes], dim=2).mT.contiguous()

    def forward(self, images: Tensor) -> list[Tensor]:  # type: ignore[override]
        inputs = self._unpack(images) if images.dim() == 3 else [resized(images, size) for size in self.sizes]
        return [(image - self.mean) / self.std for image in inputs]

    def _unpack(self, packed: Tensor) -> list[Tensor]:
        parts = packed.split([height * width for height, width in self.sizes], dim=1)
        return [
            part.unflatten(1, size).permute(0, 3, 1, 2) for part, size in zip(parts, self.sizes, strict=True)
        ]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, h, w) -> (B, 3, H, W), bilinear with antialiasing."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


class ScoringGraph(nn.Module):
    """Images in, prediction out: preprocessing, networks, map, score and threshold.

    Args:
        preprocess: (B, 3, h, w) in [0, 1] -> the network's input.
        network: the method's networks, from that input to anomaly maps (B, 1, H, W), or to such maps and image
            scores (B,) where the score is not the map's maximum.

    Attributes:
        threshold, pixel_threshold: of image scores and of maps; infinite until calibrated. The same number where
            the score is the map's maximum.
    """

    threshold: Tensor
    pixel_threshold: Tensor

    def __init__(self, preprocess: Preprocess, network: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network
        for name in ("threshold", "pixel_threshold"):
            self.register_buffer(name, torch.tensor(float("inf")), persistent=False)

    def forward(self, images: Tensor) -> Prediction:
        found = self.network(self.preprocess(images))
        maps, scores = found if isinstance(found, tuple) else (found, found.flatten(1).amax(dim=1))
        return Prediction(scores, scores > self.threshold, maps, maps > self.pixel_threshold)
