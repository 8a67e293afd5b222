"""A detector against labelled images: the figures, and the images behind them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from .. import metrics
from .._progress import progress
from ..data import Sample, UnreadableImageError, image_size, open_dataset, read_mask, resize_mask
from ..errors import DataError, UsageError
from .records import Record

MASKS_RESIZED = "resized to the maps with antialiasing, above one half"  # as the protocol says it


class Evaluated(NamedTuple):
    """What :func:`evaluate` found.

    Attributes:
        figures: a dict that ``json`` can write: what :func:`stadfast.metrics.evaluate` gives, with the detector's
            ``threshold``, ``pixel_threshold`` and ``notes``, and its decisions ``at_threshold``.
        records: one for each image, with its map and mask.
    """

    figures: dict[str, Any]
    records: list[Record]


def evaluate(
    detector: Any,
    data: Any,
    *,
    resize: str = "masks",
    smoothing: float = 0.0,
    images: str = "all",
    batch_size: int = 16,
    skip_broken: bool = False,
    native_scale: bool | None = None,
    show_progress: bool = True,
) -> Evaluated:
    """Measure a fitted detector on labelled test images, leaving out those that it was made with.

    Args:
        detector: fitted.
        data: a data set (:class:`~stadfast.data.MVTecLayout`, :class:`~stadfast.data.Folder`), the folder of a
            category in MVTec's layout, or a list of its samples.
        resize: ``"masks"`` to the size of the maps (the share of a pixel's area that is defective, by antialiased
            bilinear interpolation, above one half); ``"maps"`` to the size of their images, as MVTec's evaluation
            tool has them: slower, and with as much memory as the images have pixels (4 bytes each).
        smoothing: standard deviation in pixels of a Gaussian that blurs the maps for the figures; 0 for none.
        images: ``"all"``, or ``"anomalous"``: the pixels' figures leave the good images out.
        batch_size: images computed at once.
        skip_broken: leave out images and masks that cannot be read; ``detector.broken_`` lists them.
        native_scale: see :meth:`stadfast.Detector.predict`.
        show_progress: on standard error.

    Returns:
        the figures and the records.

    Raises:
        DataError: no test images, none that the detector has not seen, or one that cannot be read. UsageError: an
            argument does not fit.
    """
    if resize not in ("masks", "maps"):
        raise UsageError(f"resize: expected masks or maps, got {resize!r}")
    evaluation = metrics.Evaluation(copy=False, smoothing=smoothing, images=images)
    if isinstance(data, (str, os.PathLike)):
        data = open_dataset(data)
    samples: Sequence[Sample] = getattr(data, "test", data)
    if not samples:
        raise DataError("no test images; wanted the folders test/good and test/<defect>")
    unseen = [sample for sample in samples if not detector.saw(sample.image)]
    if not unseen:
        raise DataError(
            f"all {len(samples)} images were used to make the detector: there is nothing to evaluate"
        )
    by_path = {sample.image: sample for sample in unseen}
    records: list[Record] = []
    unreadable: list[tuple[Path, str]] = []
    batches = detector.stream(
        unseen, batch_size=batch_size, skip_broken=skip_broken, native_scale=native_scale
    )
    with progress("evaluating", len(unseen), show=show_progress) as job:
        for files, out in batches:
            for index, path in enumerate(files):
                sample = by_path[Path(str(path))]
                try:
                    plane, mask = _aligned(out.anomaly_map[index, 0], sample, resize)
                except UnreadableImageError as error:
                    if not skip_broken:
                        raise
                    unreadable.append((error.path, error.reason))
                    continue
                score = float(out.pred_score[index])
                records.append(Record(sample.image, sample.label or 0, sample.defect, score, plane, mask))
            job.advance(len(files))
    detector.broken_ += unreadable
    if not records:
        raise DataError("none of the masks can be read")
    seen = len(samples) - len(unseen)
    left_out = [f"left out {seen} images that were used to make the detector"] if seen else []
    return Evaluated(_figures(evaluation, records, detector, resize, left_out), records)


def with_decisions(
    figures: Mapping[str, Any], header: Mapping[str, Any], decisions: np.ndarray, **protocol: Any
) -> dict[str, Any]:
    """The figures, with the detector's thresholds, its notes, and what it decides ``at_threshold``.

    Args:
        figures: what :func:`stadfast.metrics.evaluate` gives.
        header: the detector's, see :meth:`stadfast.Detector.header`.
        decisions: (2, 2) numbers of images, by label and by decision.
        protocol: what there is to add to the figures' own.
    """
    rates = {
        name: float(decisions[label, 1] / decisions[label].sum()) if decisions[label].any() else math.nan
        for name, label in (("true_positive_rate", 1), ("false_positive_rate", 0))
    }
    return {
        **figures,
        "protocol": {**figures["protocol"], **protocol},
        "notes": [*header.get("notes", ()), *figures["notes"]],
        "threshold": header["threshold"],
        "pixel_threshold": header["pixel_threshold"],
        "at_threshold": rates,
    }


def _figures(
    evaluation: metrics.Evaluation,
    records: Sequence[Record],
    detector: Any,
    resize: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    figures = evaluation.update(
        [record.map for record in records],
        [record.mask for record in records],
        labels=[record.label for record in records],
        image_scores=[record.score for record in records],
        types=[record.defect for record in records],
    ).compute()
    figures["notes"] = [*notes, *figures["notes"]]
    decisions = np.zeros((2, 2), np.int64)
    for record in records:
        decisions[int(record.label), int(record.score > detector.threshold_)] += 1
    return with_decisions(
        figures, detector.header(), decisions, image_score=detector.image_score,
        map_size=list(records[0].map.shape) if resize == "masks" else "the images' own",
        masks=MASKS_RESIZED if resize == "masks" else "as they are",
    )  # fmt: skip


def _aligned(plane: Tensor, sample: Sample, resize: str) -> tuple[Tensor, Tensor | None]:
    """The map and the mask at one size."""
    if sample.mask is None and resize == "masks":
        return plane, None
    size = image_size(sample.image)
    mask = None if sample.mask is None else _mask_of(sample, size)
    if resize == "masks":
        return plane, None if mask is None else resize_mask(mask, plane.shape)
    if tuple(plane.shape) != size:
        plane = interpolate(plane[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return plane, mask


def _mask_of(sample: Sample, size: tuple[int, int]) -> Tensor:
    assert sample.mask is not None
    mask = read_mask(sample.mask)
    if tuple(mask.shape) != size:
        rows, columns = mask.shape
        raise DataError(
            f"{sample.mask} is {rows} x {columns}, but its image {sample.image} is {size[0]} x {size[1]}"
        )
    return mask
