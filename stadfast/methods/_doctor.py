"""The doctor that is a pretrained network itself; its descriptors are that network's features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import FeaturePyramid

_SMALLEST = 1e-12  # norms below count as so much


class PretrainedDoctor(nn.Module):
    """The features of a pretrained network, of several layers side by side, on the grid of the patch networks.

    At every position they are divided by their root mean square, since light changes the length of such vectors more
    than their direction (STPM and others do the same).

    Args:
        source: frozen; normalised (B, 3, H, W) -> list of maps.
        layers: those of its layers whose features are taken.
        one_patch: the image is one patch, and has one descriptor, the mean of its features.
    """

    def __init__(self, source: FeaturePyramid, layers: Sequence[str], one_patch: bool) -> None:
        super().__init__()
        self.source, self.layers, self.one_patch = source, tuple(layers), one_patch
        chosen = [source.layers.index(layer) for layer in layers]
        self.channels = sum(source.channels[i] for i in chosen)
        self.strides = tuple(source.strides[i] for i in chosen)

    def codes(self, images: Tensor, stride: int) -> Tensor:
        """The descriptors at positions ``stride`` apart.

        Args:
            images: (B, 3, H, W) normalised, without the borders that patch networks need.
            stride: pixels, a divisor of the strides of all layers.

        Returns:
            (B, C, H / stride, W / stride), or (B, C, 1, 1) of one patch.
        """
        found = self.source(images, self.layers)
        if self.one_patch:
            features = torch.cat([x.mean((2, 3), keepdim=True) for x in found], dim=1)
        else:
            size = [-(-int(side) // stride) for side in images.shape[-2:]]
            features = torch.cat([_at(x, size) for x in found], dim=1)
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(_SMALLEST)
        return features / length * math.sqrt(self.channels)


def _at(features: Tensor, size: list[int]) -> Tensor:
    if list(features.shape[-2:]) == size:
        return features
    return F.interpolate(features, size, mode="bilinear", align_corners=False)
