"""All of a detector's figures from its maps and the ground truth, in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from ..errors import DataError, UsageError
from . import counts as _counts
from ._inputs import any_set, as_binary, as_scores, check_state, largest, match_masks, split_images
from .classes import add_states
from .counts import NOTHING, Counts
from .protocol import Protocol
from .states import Exact
from .streaming import Streaming

_GOOD = "good"  # the group of the normal images; anomalous ones are "type/NAME" or, without a name, "type/"


def evaluate(
    maps: Any,
    masks: Any,
    labels: Any = None,
    image_scores: Any = None,
    types: Sequence[str | None] | None = None,
    limits: Sequence[float] = (0.3, 0.05),
    *,
    exact: bool = True,
    **protocol: Any,
) -> dict[str, Any]:
    """Image and pixel AUROC, AP and F1-max, AUPRO at each limit, overall and per defect type.

    The protocol is by default that of MVTec's evaluation tool: 8-connected regions of all masks together, all
    normal pixels of good and defective images, raw scores, no resizing and no smoothing.

    Args:
        maps: (N,1,H,W), (N,H,W) or a list of (H,W), NumPy or torch.
        masks: the same shapes, or a list in which None means: good, if the image's label is 0; else unknown,
            and the image is left out of the pixels' figures. None: no masks at all.
        labels: (N,) 1 for anomalous; by default an image is anomalous if its mask has a pixel set.
        image_scores: (N,); by default each map's maximum.
        types: N names of defects; normal images' names are not read. Each type is scored against all the
            normal images.
        limits: false positive rates to integrate the per-region overlap to.
        exact: False counts by 16-bit keys instead, in constant memory, and adds ``bounds``.
        protocol: ``mask_threshold``, ``resize``, ``smoothing``, ``images``: see ``Protocol``.

    Returns:
        A dict that ``json`` can write: ``image`` and ``pixel`` {auroc, ap, f1_max}, ``aupro`` {limit: value},
        ``per_type`` {type: {n, image_auroc, pixel_auroc, aupro}} (AUPRO at the first limit), ``n`` {images,
        normal, anomalous, regions}, ``protocol``, and ``notes``: why a value is NaN, what was left out.
        Unless exact also ``bounds`` {pixel, aupro}: how far these can be from the exact figures.

    Raises:
        UsageError: numbers or sizes of the arguments do not match.
        DataError: a score is NaN or infinite, a mask or the labels are not binary, or a normal image has a
            mask that is not empty.
    """
    evaluation = Evaluation(limits, exact=exact, copy=False, **protocol)
    return evaluation.update(maps, masks, labels, image_scores, types).compute()


class Evaluation:
    """``evaluate`` for a data set that comes in batches; mergeable, as the metrics are.

    Args:
        limits: false positive rates to integrate the per-region overlap to.
        exact: keep all maps until ``compute``; False: count in constant memory, with bounds.
        copy: keep copies of the maps, so that the caller may write to the arrays again.
        protocol: ``mask_threshold``, ``resize``, ``smoothing``, ``images``: see ``Protocol``.
    """

    def __init__(
        self,
        limits: Sequence[float] = (0.3, 0.05),
        *,
        exact: bool = True,
        copy: bool = True,
        **protocol: Any,
    ) -> None:
        self.protocol = Protocol.of(limits, protocol)
        self.exact, self.copy = exact, copy
        self.reset()

    def reset(self) -> Self:
        """Forget everything."""
        self._pixels: Exact | Streaming = Exact(self.copy) if self.exact else Streaming()
        self._images: dict[str, list[float]] = {}  # scores by group
        self._unknown = self._empty = 0
        self._given_scores = False
        return self

    def update(
        self,
        maps: Any,
        masks: Any,
        labels: Any = None,
        image_scores: Any = None,
        types: Sequence[str | None] | None = None,
    ) -> Self:
        """Add a batch; the arguments are those of ``evaluate``."""
        images, truths = self._prepared(maps, masks)
        filled = [truth is not None and any_set(truth) for truth in truths]
        anomalous = _image_labels(labels, filled, masks is None)
        scores = _image_scores(image_scores, images)
        groups = _groups(types, anomalous)
        self._given_scores |= image_scores is not None
        known = [
            masks is not None and (t is not None or not bad) for t, bad in zip(truths, anomalous, strict=True)
        ]
        self._unknown += known.count(False)
        self._empty += sum(
            bad and truth is not None and not marked
            for truth, bad, marked in zip(truths, anomalous, filled, strict=True)
        )
        for group in dict.fromkeys(groups):
            here = [i for i, g in enumerate(groups) if g == group]
            self._images.setdefault(group, []).extend(scores[i] for i in here)
            if group == _GOOD and self.protocol.images == "anomalous":
                continue
            seen = [i for i in here if known[i]]
            self._pixels.add([images[i] for i in seen], [truths[i] for i in seen], group, True)
        return self

    def compute(self) -> dict[str, Any]:
        """The dict that ``evaluate`` returns, of all that was added."""
        pixels = self._pixels.counts()
        images = _image_counts(self._images)
        image, pixel = _sum(images.values()), _sum(pixels.values())
        limits = self.protocol.limits
        notes = [f"pixel metrics leave out {self._unknown} images without a mask"] if self._unknown else []
        if self._empty:
            notes.append(
                f"{self._empty} anomalous images have no anomalous pixel in their masks, perhaps since these were "
                "resized: their pixels count as normal"
            )
        for level, counted in (("image", image), ("pixel", pixel)):
            if counted.undefined:
                notes.append(f"{level} metrics are undefined: {counted.undefined}")
        normal = len(self._images.get(_GOOD, ()))
        total = sum(map(len, self._images.values()))
        result = {
            "image": _ranking(image),
            "pixel": _ranking(pixel),
            "aupro": {f"{limit:g}": _counts.aupro(pixel, limit) for limit in limits},
            "per_type": self._per_type(images, pixels),
            "n": {"images": total, "normal": normal, "anomalous": total - normal, "regions": pixel.regions},
            "protocol": {
                **self.protocol.record(),
                "image_score": "given" if self._given_scores else "maximum of the map",
                "exact": self.exact,
            },
            "notes": notes,
        }
        if not self.exact:
            result["bounds"] = {
                "pixel": {
                    "auroc": _counts.auroc_bound(pixel),
                    "ap": _counts.average_precision_bound(pixel),
                    "f1_max": _counts.f1_max_bound(pixel),
                },
                "aupro": {f"{limit:g}": _counts.aupro_bound(pixel, limit) for limit in limits},
            }
        return result

    def merge(self, *others: Self) -> Self:
        """Add what others hold: the result is that of one evaluation that saw it all.

        Raises:
            UsageError: one is no evaluation, or of another protocol; nothing has been added.
        """
        for other in others:
            if not isinstance(other, Evaluation):
                raise UsageError(f"cannot merge {type(other).__name__} into an Evaluation")
            if other.exact != self.exact or other.protocol != self.protocol:
                raise UsageError("cannot merge evaluations of different protocols")
        self.state = add_states(self.state, *(other.state for other in others))
        return self

    @property
    def state(self) -> dict[str, Any]:
        """What it holds, as values that ``+`` adds up; assigning to it restores it."""
        images = {f"images/{group}": list(scores) for group, scores in self._images.items()}
        pixels = {f"pixels/{key}": value for key, value in self._pixels.state.items()}
        return {
            **images,
            **pixels,
            "unknown": self._unknown,
            "empty": self._empty,
            "given_scores": int(self._given_scores),
        }

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        for key in ("unknown", "given_scores"):
            if key not in check_state(state):
                raise UsageError(f"state must be another evaluation's, but has no {key!r}")
        parts = {
            part: {key.removeprefix(part): value for key, value in state.items() if key.startswith(part)}
            for part in ("images/", "pixels/")
        }
        self._pixels.state = parts["pixels/"]  # first: it may be refused
        self._images = parts["images/"]
        self._unknown, self._empty = state["unknown"], state.get("empty", 0)
        self._given_scores = bool(state["given_scores"])

    def _prepared(self, maps: Any, masks: Any) -> tuple[list[Tensor], list[Tensor | None]]:
        images = split_images(maps, "maps", as_scores)
        truths = (
            [None] * len(images)
            if masks is None
            else split_images(masks, "masks", self.protocol.mask, optional=True)
        )
        if len(truths) == len(images) and (self.protocol.resize is not None or self.protocol.smoothing):
            pairs = [
                self.protocol.apply(m, t, i) for i, (m, t) in enumerate(zip(images, truths, strict=True))
            ]
            images, truths = [m for m, _ in pairs], [t for _, t in pairs]
        return images, match_masks(images, truths)

    def _per_type(
        self, images: Mapping[str, Counts], pixels: Mapping[str, Counts]
    ) -> dict[str, dict[str, Any]]:
        result = {}
        for group in sorted(group for group in images if group not in (_GOOD, "type/")):
            image = _sum(images[g] for g in (_GOOD, group) if g in images)
            pixel = _sum(pixels[g] for g in (_GOOD, group) if g in pixels)
            limits = self.protocol.limits
            result[group.removeprefix("type/")] = {
                "n": len(self._images[group]),
                "image_auroc": _counts.auroc(image),
                "pixel_auroc": _counts.auroc(pixel),
                "aupro": _counts.aupro(pixel, limits[0]) if limits else float("nan"),
            }
        return result


def _ranking(counts: Counts) -> dict[str, float]:
    return {
        "auroc": _counts.auroc(counts),
        "ap": _counts.average_precision(counts),
        "f1_max": _counts.f1_max(counts)[0],
    }


def _sum(parts: Any) -> Counts:
    first, *rest = [*parts] or [NOTHING]
    return sum(rest, start=first)


def _image_counts(scores: Mapping[str, list[float]]) -> dict[str, Counts]:
    held = Exact(copy=False)
    for group, values in scores.items():
        tensor = torch.tensor(values, dtype=torch.float64)
        held.add([tensor], [torch.full(tensor.shape, group != _GOOD)], group, False)
    return held.counts()


def _image_labels(labels: Any, filled: list[bool], no_masks: bool) -> list[bool]:
    if labels is None:
        if no_masks:
            raise UsageError("evaluate needs masks or labels, got neither")
        return filled
    given = as_binary(labels, "labels").flatten().tolist()
    if len(given) != len(filled):
        raise UsageError(f"labels must be one per map, {len(filled)}, got {len(given)}")
    for i, (bad, marked) in enumerate(zip(given, filled, strict=True)):
        if marked and not bad:
            raise DataError(f"labels[{i}] says normal, but masks[{i}] has pixels set")
    return given


def _image_scores(image_scores: Any, maps: Sequence[Tensor]) -> list[float]:
    if image_scores is None:
        return [largest(image) for image in maps]
    scores = as_scores(image_scores, "image_scores").flatten().tolist()
    if len(scores) != len(maps):
        raise UsageError(f"image_scores must be one per map, {len(maps)}, got {len(scores)}")
    return scores


def _groups(types: Sequence[str | None] | None, anomalous: Sequence[bool]) -> list[str]:
    names = [None] * len(anomalous) if types is None else list(types)
    if len(names) != len(anomalous):
        raise UsageError(f"types must be one per map, {len(anomalous)}, got {len(names)}")
    return [f"type/{name or ''}" if bad else _GOOD for name, bad in zip(names, anomalous, strict=True)]
