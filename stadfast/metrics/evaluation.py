"""All of a detector's figures from its maps and the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, UsageError
from . import counts as _counts
from ._inputs import as_labels, as_scores, paired_images, split_images
from .counts import Counts
from .functional import check_limit
from .ranking import rank_counts, region_counts


def evaluate(
    maps: Any,
    masks: Any,
    labels: Any = None,
    image_scores: Any = None,
    types: Sequence[str | None] | None = None,
    limits: Sequence[float] = (0.3, 0.05),
) -> dict[str, Any]:
    """Image and pixel AUROC, AP and F1-max, AUPRO at each limit, overall and per defect type.

    The protocol is that of MVTec's evaluation tool: 8-connected regions of all masks together, all normal
    pixels of good and defective images, raw scores, no resizing and no smoothing.

    Args:
        maps: (N,1,H,W), (N,H,W) or a list of (H,W), NumPy or torch.
        masks: the same shapes, or a list in which None means: good, if the image's label is 0; else unknown,
            and the image is left out of the pixels' figures. None: no masks at all.
        labels: (N,) 1 for anomalous; by default an image is anomalous if its mask has a pixel set.
        image_scores: (N,); by default each map's maximum.
        types: N names of defects; normal images' names are not read. Each type is scored against all the
            normal images.
        limits: false positive rates to integrate the per-region overlap to.

    Returns:
        A dict that ``json`` can write: ``image`` and ``pixel`` {auroc, ap, f1_max}, ``aupro`` {limit: value},
        ``per_type`` {type: {n, image_auroc, pixel_auroc, aupro}} (AUPRO at the first limit), ``n`` {images,
        normal, anomalous, regions}, ``protocol``, and ``notes``: why a value is NaN, what was left out.

    Raises:
        UsageError: numbers or sizes of the arguments do not match.
        DataError: a score is NaN or infinite, a mask or the labels are not binary, or a normal image has a
            mask that is not empty.
    """
    for limit in limits:
        check_limit(limit)
    raw_maps = split_images(maps, "maps")
    raw_masks = [None] * len(raw_maps) if masks is None else masks
    pixels, truths = paired_images(raw_maps, raw_masks)
    anomalous = _image_labels(labels, truths, masks is None)
    scores = _image_scores(image_scores, pixels)
    names = _type_names(types, anomalous)
    notes: list[str] = []

    known = [
        i for i, mask in enumerate(truths) if mask is not None or (masks is not None and not anomalous[i])
    ]
    if len(known) < len(truths):
        notes.append(f"pixel metrics leave out {len(truths) - len(known)} images without a mask")
    every = list(range(len(truths)))
    image = rank_counts([scores], [anomalous])
    pixel = region_counts([pixels[i] for i in known], [truths[i] for i in known])
    per_type = {}
    for name in sorted(set(filter(None, names))):
        chosen = [i for i in every if not anomalous[i] or names[i] == name]
        seen = [i for i in chosen if i in set(known)]
        kind = region_counts([pixels[i] for i in seen], [truths[i] for i in seen])
        per_type[name] = {
            "n": names.count(name),
            "image_auroc": _counts.auroc(rank_counts([scores[chosen]], [anomalous[chosen]])),
            "pixel_auroc": _counts.auroc(kind),
            "aupro": _counts.aupro(kind, limits[0]) if limits else float("nan"),
        }
    for level, counted in (("image", image), ("pixel", pixel)):
        if counted.undefined:
            notes.append(f"{level} metrics are undefined: {counted.undefined}")
    return {
        "image": _ranking(image),
        "pixel": _ranking(pixel),
        "aupro": {f"{limit:g}": _counts.aupro(pixel, limit) for limit in limits},
        "per_type": per_type,
        "n": {
            "images": len(every),
            "normal": int((~anomalous).sum()),
            "anomalous": int(anomalous.sum()),
            "regions": pixel.regions,
        },
        "protocol": {
            "image_score": "maximum of the map" if image_scores is None else "given",
            "connectivity": 8,
            "limits": [float(limit) for limit in limits],
        },
        "notes": notes,
    }


def _ranking(counts: Counts) -> dict[str, float]:
    return {
        "auroc": _counts.auroc(counts),
        "ap": _counts.average_precision(counts),
        "f1_max": _counts.f1_max(counts)[0],
    }


def _image_labels(labels: Any, masks: Sequence[Tensor | None], no_masks: bool) -> Tensor:
    filled = torch.tensor([mask is not None and bool(mask.any()) for mask in masks], dtype=torch.bool)
    if labels is None:
        if no_masks:
            raise UsageError("evaluate needs masks or labels, got neither")
        return filled
    given = as_labels(labels).reshape(-1).cpu()
    if len(given) != len(masks):
        raise UsageError(f"labels must be one per map, {len(masks)}, got {len(given)}")
    wrong = (filled & ~given).nonzero().flatten().tolist()
    if wrong:
        raise DataError(f"labels[{wrong[0]}] says normal, but masks[{wrong[0]}] has pixels set")
    return given


def _image_scores(image_scores: Any, maps: Sequence[Tensor]) -> Tensor:
    if image_scores is None:
        return torch.stack([image.max().cpu() for image in maps]) if maps else torch.empty(0)
    scores = as_scores(image_scores, "image_scores").reshape(-1).cpu()
    if len(scores) != len(maps):
        raise UsageError(f"image_scores must be one per map, {len(maps)}, got {len(scores)}")
    return scores


def _type_names(types: Sequence[str | None] | None, anomalous: Tensor) -> list[str | None]:
    if types is None:
        return [None] * len(anomalous)
    if len(types) != len(anomalous):
        raise UsageError(f"types must be one per map, {len(anomalous)}, got {len(types)}")
    return [
        str(name) if name is not None and bad else None for name, bad in zip(types, anomalous, strict=True)
    ]
