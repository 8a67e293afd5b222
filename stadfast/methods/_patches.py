"""Random patches for the doctor: what a pretrained network sees in them, and their classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import FeatureStore
from .hardware import Precision

_SHARE = (0.02, 0.5)  # of a patch that is damaged
_CONTRAST, _SHIFT, _TINT, _GRAIN = (
    0.6,
    1.0,
    0.5,
    0.3,
)  # how much values may change, in units of the normalised image
_SAMPLES = 256  # images from which the features' mean and deviation are taken


class Patches:
    """Patches at random places, mirrored and turned, with their features and classes.

    Without classes of the images, half of the patches are damaged (see :func:`_damage`), and there are two classes:
    good and damaged.

    Args:
        images: the source, by index.
        labels: the class of each image; None: good and damaged patches.
        classes: how many.
        teacher: the pretrained network, normalised (n, 3, p, p) -> list of maps; the last one's mean is learnt.
        patch: side of a patch in pixels; images of that size are patches themselves.
        per_image: patches drawn from each image of a batch.
    """

    def __init__(
        self, images: FeatureStore, labels: Sequence[int] | None, classes: int, teacher: nn.Module, patch: int,
        per_image: int, precision: Precision, device: torch.device,
    ) -> None:  # fmt: skip
        self._images, self._teacher, self._patch, self._per_image = images, teacher, patch, per_image
        self._labels = None if labels is None else torch.tensor(labels)
        self._precision, self.device, self.classes = precision, device, classes
        self._mean, self._std = torch.zeros((), device=device), torch.ones((), device=device)
        self.channels = 0

    def __len__(self) -> int:
        return len(self._images)

    def standardise(self, like: Patches | None = None) -> Patches:
        """Bring the features to mean 0 and deviation 1, or as those of ``like`` were brought there."""
        if like is None:
            chosen = torch.arange(len(self)).repeat(-(-_SAMPLES // (len(self) * self._per_image)))[:_SAMPLES]
            features = self.draw(chosen, torch.Generator().manual_seed(0))[2]
            self._mean, self._std = features.mean(0), features.std(0).clamp_min(1e-6)
            self.channels = features.shape[1]
        else:
            self._mean, self._std, self.channels = like._mean, like._std, like.channels
        return self

    def autocast(self) -> torch.autocast:
        return self._precision.autocast(self.device)

    @torch.no_grad()
    def draw(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(patches (n, 3, p, p), classes (n,), standardised features (n, C) float32) of some images."""
        images = self._images.batch(indices)[0].float()
        patches = torch.stack(
            [self._cut(image, generator) for image in images for _ in range(self._per_image)]
        )
        if self._labels is None:
            labels = (torch.rand(len(patches), generator=generator) < 0.5).long()
            sources = torch.randperm(len(patches), generator=generator).tolist()
            for i in labels.nonzero().flatten().tolist():
                patches[i] = _damage(patches[i], patches[sources[i]], generator)
        else:
            labels = self._labels[indices].repeat_interleave(self._per_image)
        patches = patches.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            features = self._teacher(patches)[-1].float().mean((2, 3))
        return patches, labels.to(self.device), (features - self._mean) / self._std

    def _cut(self, image: Tensor, generator: torch.Generator) -> Tensor:
        draw = [
            int(torch.randint(side - self._patch + 1, (1,), generator=generator)) for side in image.shape[1:]
        ]
        patch = image[:, draw[0] : draw[0] + self._patch, draw[1] : draw[1] + self._patch]
        turns, mirrored = torch.randint(4, (2,), generator=generator).tolist()
        patch = patch.rot90(turns, (1, 2))
        return patch.flip(2) if mirrored % 2 else patch


def _damage(patch: Tensor, source: Tensor, generator: torch.Generator) -> Tensor:
    """The patch with something else where a smooth random field is high: of any shape, from specks to half of it.

    What is there instead is, at random, a part of ``source`` with other values, one colour with some noise, or the
    patch itself brighter or darker (as Zavrtanik et al. 2021, DRAEM, but without textures of other data sets).
    """

    def draw(low: float, high: float, count: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    side = patch.shape[-1]
    shape = _smooth(side, generator)
    share = float(draw(*_SHARE))
    damaged = (shape > shape.flatten().quantile(1 - share)).to(patch)
    gain = 1 + float(draw(-_CONTRAST, _CONTRAST))
    shift = (draw(-_SHIFT, _SHIFT) + draw(-_TINT, _TINT, 3)).to(patch.device).view(3, 1, 1)
    kind = int(torch.randint(3, (1,), generator=generator))
    if kind == 0:
        y, x = torch.randint(side, (2,), generator=generator).tolist()
        content = gain * source.roll((y, x), (1, 2)) + shift
    elif kind == 1:
        content = 1.5 * shift + _GRAIN * _smooth(side, generator).to(patch)
    else:
        content = gain * patch + shift
    return patch + damaged * (content - patch)


def _smooth(side: int, generator: torch.Generator) -> Tensor:
    """(side, side): normal noise on a grid of 3 to 17 points a side, interpolated."""
    points = 1 + 2 ** int(torch.randint(1, 5, (1,), generator=generator))
    noise = torch.randn(1, 1, points, points, generator=generator)
    return F.interpolate(noise, (side, side), mode="bicubic", align_corners=True)[0, 0]
