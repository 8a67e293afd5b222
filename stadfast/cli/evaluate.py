"""``stadfast evaluate``: a detector against labelled images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import load, metrics
from .._progress import progress
from ..data import Sample, UnreadableImageError, open_dataset, read_mask, resize_mask
from ..errors import DataError
from ..methods import Detector
from ..report import Record, write_report
from ._guard import printable
from ._output import check_writable, write_json
from .info import model_facts
from .score import warn_broken


def evaluate(
    model: Path,
    data: Path,
    *,
    json: str | None,
    report: Path | None,
    device: str,
    batch_size: int,
    skip_broken: bool,
    native_scale: bool | None = None,
) -> None:
    """Score the test images of ``data``; print the figures, and write JSON and the report where asked."""
    check_writable("--json", json)
    check_writable("--report", report)
    detector = load(model, device=device)
    dataset = open_dataset(data)
    if not dataset.test:
        raise DataError(f"{data} has no test images; wanted the folders test/good and test/<defect> in it")
    figures, records = evaluate_detector(
        detector, dataset.test, batch_size=batch_size, skip_broken=skip_broken, native_scale=native_scale
    )
    warn_broken(detector.broken_)
    if json != "-":
        print_figures(figures, dataset.name)
    if json is not None:
        skipped = [{"path": path, "reason": reason} for path, reason in detector.broken_]
        write_json(json, {"model": model, "data": data, **figures, "skipped": skipped})
    if report is not None:
        skipped_words = [f"Left out, as it cannot be read: {path} ({why})" for path, why in detector.broken_]
        write_report(report, figures, records, model_facts(model), title=dataset.name, warnings=skipped_words)


def evaluate_maps(maps: Path, masks: Path, *, resize: str | None, streaming: bool, json: str | None) -> None:
    """Print the figures of maps and masks in files, whoever made the maps, and write JSON where asked."""
    check_writable("--json", json)
    options: dict[str, Any] = {} if resize is None else {"resize": resize}
    figures = metrics.evaluate_folders(maps, masks, exact=not streaming, progress=True, **options)
    if json != "-":
        print_figures(figures, str(maps))
    if json is not None:
        write_json(json, {"maps": maps, "masks": masks, **figures})


def evaluate_detector(
    detector: Detector, samples: Sequence[Sample], *, batch_size: int = 16, skip_broken: bool = False,
    native_scale: bool | None = None,
) -> tuple[dict[str, Any], list[Record]]:  # fmt: skip
    """The figures of a detector on labelled images that it was not made with, and the images behind them.

    Masks are brought to the maps' size as the share of defective area of each pixel, cut at one half.

    Returns:
        What ``metrics.evaluate`` gives, with the detector's ``threshold``, ``pixel_threshold`` and ``notes``, and its
        decisions ``at_threshold``.
        Files left out are in ``detector.broken_``.
    """
    unseen = [sample for sample in samples if not detector.saw(sample.image)]
    if not unseen:
        raise DataError(
            f"all {len(samples)} images were used to make the detector: there is nothing to evaluate"
        )
    by_path = {sample.image: sample for sample in unseen}
    records: list[Record] = []
    unreadable: list[tuple[Path, str]] = []
    with progress("evaluating", len(unseen)) as job:
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "skip_broken": skip_broken,
            "native_scale": native_scale,
        }
        for files, out in detector.stream(unseen, **options):
            for index, path in enumerate(files):
                sample, plane = by_path[Path(str(path))], out.anomaly_map[index, 0]
                try:
                    mask = None if sample.mask is None else resize_mask(_mask_of(sample), plane.shape)
                except UnreadableImageError as error:
                    if not skip_broken:
                        raise
                    unreadable.append((error.path, error.reason))
                    continue
                value = float(out.pred_score[index])
                records.append(Record(sample.image, sample.label or 0, sample.defect, value, plane, mask))
            job.advance(len(files))
    detector.broken_ += unreadable
    if not records:
        raise DataError("none of the masks can be read")
    figures = metrics.evaluate(
        [record.map for record in records],
        [record.mask for record in records],
        labels=[record.label for record in records],
        image_scores=[record.score for record in records],
        types=[record.defect for record in records],
    )
    figures["protocol"] |= {
        "image_score": detector.image_score,
        "map_size": list(records[0].map.shape),
        "masks": "resized to the maps with antialiasing, cut at one half",
    }
    seen = len(samples) - len(unseen)
    left_out = [f"left out {seen} images that were used to make the detector"] if seen else []
    figures["notes"] = [*detector.notes_, *left_out, *figures["notes"]]
    figures["pixel_threshold"] = detector.pixel_threshold_
    return figures | _decisions(records, detector.threshold_), records


def _decisions(records: Sequence[Record], threshold: float) -> dict[str, Any]:
    def share(label: int) -> float:
        called = [record.score > threshold for record in records if record.label == label]
        return sum(called) / len(called) if called else math.nan

    rates = {"true_positive_rate": share(1), "false_positive_rate": share(0)}
    return {"threshold": threshold, "at_threshold": rates}


def print_figures(figures: dict[str, Any], title: str) -> None:
    """The figures as a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", *("images", "image AUROC", "pixel AUROC", "AUPRO@0.3"), title=printable(title))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in figures["per_type"].items():
        values = (row["image_auroc"], row["pixel_auroc"], row["aupro"])
        table.add_row(printable(name), str(row["n"]), *map(_number, values))
    table.add_section()
    overall = (figures["image"]["auroc"], figures["pixel"]["auroc"], figures["aupro"]["0.3"])
    table.add_row("all", str(figures["n"]["images"]), *map(_number, overall))
    console = Console(highlight=False, markup=False, soft_wrap=False)
    console.print(table)
    if "at_threshold" in figures:  # maps alone have no threshold
        rates = figures["at_threshold"]
        console.print(
            f"at the threshold {figures['threshold']:.4g}: "
            f"{_percent(rates['true_positive_rate'])} of the defective images are found, "
            f"{_percent(rates['false_positive_rate'])} of the good ones called defective"
        )
    for note in figures["notes"]:
        console.print(f"note: {printable(note)}")


def _mask_of(sample: Sample) -> Tensor:
    from PIL import Image

    assert sample.mask is not None
    mask = read_mask(sample.mask)
    with Image.open(sample.image) as image:  # the header only; EXIF may have turned the picture
        width, height = image.size
    if tuple(mask.shape) not in ((height, width), (width, height)):
        rows, columns = mask.shape
        raise DataError(
            f"{sample.mask} is {rows} x {columns}, but its image {sample.image} is {height} x {width}"
        )
    return mask


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.4f}"


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f} %"
