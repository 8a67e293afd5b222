"""Which modules of Multi-scale Feature Imitation weigh how much, by a few labelled images, and which to keep."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Dataset, Sample, open_dataset, read_mask
from ..errors import DataError, UsageError

_STEPS = 300
_LEARNING_RATE = 0.05  # of Adam; the paper leaves its gradient descent open
_POSITIVES, _NEGATIVES = 512, 2048  # pixels that the rank objective draws


def search_samples(data: Any, fraction: float, seed: int) -> tuple[list[Sample], Dataset | None]:
    """Labelled samples as they are; or a part of a data set's test images, and the data set (or that of its folder).

    Raises:
        UsageError: something else, or ``fraction`` is not in (0, 1]. DataError: no defective images.
    """
    if isinstance(data, (list, tuple)) and data and all(isinstance(sample, Sample) for sample in data):
        return list(data), None
    if not isinstance(data, (str, os.PathLike, Dataset)):
        raise UsageError(
            f"data: expected labelled samples, a data set or its folder, got {type(data).__name__}"
        )
    dataset = open_dataset(data)
    return draw_search_set(dataset.test, fraction, seed), dataset


def draw_search_set(samples: Sequence[Sample], fraction: float = 0.1, seed: int = 0) -> list[Sample]:
    """A share of the defective images of each kind, at least one, drawn with the seed.

    Raises:
        UsageError: ``fraction`` is not in (0, 1]. DataError: no defective images.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"fraction: expected a number above 0 and up to 1, got {fraction!r}")
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.label == 1:
            kinds.setdefault(sample.defect or "", []).append(sample)
    if not kinds:
        raise DataError("the weight search needs defective images, got none")
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for kind in sorted(kinds):
        order = torch.randperm(len(kinds[kind]), generator=generator)
        drawn += [kinds[kind][i] for i in order[: max(1, round(fraction * len(order)))].tolist()]
    return drawn


def defect_share(sample: Sample, grid: tuple[int, int]) -> Tensor:
    """(h, w) float32: how much of each cell of a grid over the image is defective.

    Raises:
        DataError: nobody knows, as there is no mask.
    """
    if sample.label == 0:
        return torch.zeros(grid)
    if sample.mask is None:
        raise DataError(f"{sample.image}: the weight search needs a mask, and it has none")
    return F.adaptive_avg_pool2d(read_mask(sample.mask)[None].float(), grid)[0]


def search(maps: Tensor, share: Tensor, objective: str = "ce", seed: int = 0) -> Tensor:
    """Softmax weights ``w`` for which the map ``sum_l w_l phi_l`` fits the ground truth best, by gradient descent.

    ``"ce"`` is the paper's: the cross entropy of the map as a probability. Maps are small numbers, so that it
    favours those with the largest values, whether or not they rank pixels well. ``"rank"`` asks for the order only:
    ``mean softplus(-(s_p - s_n) / sigma)`` over pairs of a defective and a normal pixel, with sigma the standard
    deviation of the normal pixels' scores.

    Args:
        maps: (N, L, h, w) float32 in [0, 1], one of each of L modules.
        share: (N, h, w), how much of each pixel is defective, 0 to 1.
        objective: ``"ce"`` or ``"rank"``.
        seed: of the pixels that ``"rank"`` draws, defective ones by their share.

    Returns:
        (L,) float32, positive, with the sum 1.

    Raises:
        UsageError: another objective. DataError: no defective or no normal pixel.
    """
    if objective not in OBJECTIVES:
        raise UsageError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
    pixels, share = maps.movedim(1, 3).flatten(0, 2), share.flatten()
    for name, found in (("defective", share.max() > 0), ("normal", share.min() < 1)):
        if not found:
            raise DataError(f"the weight search needs {name} pixels, and its images have none")
    loss = OBJECTIVES[objective](pixels, share, torch.Generator().manual_seed(seed))
    logits = torch.zeros(pixels.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=_LEARNING_RATE)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss(logits.softmax(0)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return logits.detach().softmax(0)


def kept_modules(modules: Mapping[str, float], keep: int | Sequence[str] | None) -> list[str]:
    """Names of the modules to keep out of ``modules``, name -> weight; see :meth:`FeatureImitation.prune`.

    Raises:
        UsageError: too many, unknown names, or a number while the weights do not say which.
    """
    weighty = sorted((name for name, weight in modules.items() if weight > 0), key=lambda n: -modules[n])
    if keep is None:
        return weighty
    if isinstance(keep, int):
        if not 1 <= keep <= len(weighty):
            raise UsageError(f"keep: expected a whole number from 1 to {len(weighty)}, got {keep!r}")
        if keep < len(weighty) and modules[weighty[keep - 1]] == modules[weighty[keep]]:
            raise UsageError(
                f"keep: the weights do not say which {keep} modules to keep: search_weights() first, or name them"
            )
        return weighty[:keep]
    if isinstance(keep, str) or not keep or any(name not in weighty for name in keep):
        raise UsageError(f"keep: expected a number, or names out of {', '.join(weighty)}; got {keep!r}")
    return list(keep)


Loss = Callable[[Tensor], Tensor]


def _cross_entropy(pixels: Tensor, share: Tensor, generator: torch.Generator) -> Loss:
    return lambda weights: F.binary_cross_entropy((pixels @ weights).clamp(0, 1), share)


def _rank(pixels: Tensor, share: Tensor, generator: torch.Generator) -> Loss:
    defective = pixels[_drawn(share, _POSITIVES, generator)]
    normal = pixels[_drawn(1 - share, _NEGATIVES, generator)]

    def loss(weights: Tensor) -> Tensor:
        high, low = defective @ weights, normal @ weights
        return F.softplus((low - high[:, None]) / low.std().clamp_min(1e-12)).mean()

    return loss


def _drawn(share: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices drawn with replacement, in proportion to ``share``."""
    total = share.double().cumsum(0)
    return torch.searchsorted(
        total, total[-1] * torch.rand(count, generator=generator, dtype=torch.float64), right=True
    ).clamp_max(len(share) - 1)


OBJECTIVES = {"ce": _cross_entropy, "rank": _rank}
