"""``stadfast evaluate``: a detector against labelled images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .. import load, metrics
from ..data import open_dataset
from ..errors import DataError
from ..report import evaluate as evaluate_detector
from ..report import write_report
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
    native_scale: bool | None,
    **protocol: Any,
) -> None:
    """Score the test images of ``data``; print the figures, and write JSON and the report where asked."""
    check_writable("--json", json)
    check_writable("--report", report)
    detector = load(model, device=device)
    dataset = open_dataset(data)
    if not dataset.test:
        raise DataError(f"{data} has no test images; wanted the folders test/good and test/<defect> in it")
    figures, records = evaluate_detector(
        detector, dataset, batch_size=batch_size, skip_broken=skip_broken, native_scale=native_scale, **protocol
    )  # fmt: skip
    warn_broken(detector.broken_)
    if json != "-":
        print_figures(figures, dataset.name)
    if json is not None:
        skipped = [{"path": path, "reason": reason} for path, reason in detector.broken_]
        write_json(json, {"model": model, "data": data, **figures, "skipped": skipped})
    if report is not None:
        skipped_words = [f"Left out, as it cannot be read: {path} ({why})" for path, why in detector.broken_]
        write_report(report, figures, records, model_facts(model), title=dataset.name, warnings=skipped_words)


def evaluate_maps(maps: Path, masks: Path, *, streaming: bool, json: str | None, **protocol: Any) -> None:
    """Print the figures of maps and masks in files, whoever made the maps, and write JSON where asked."""
    check_writable("--json", json)
    figures = metrics.evaluate_folders(maps, masks, exact=not streaming, show_progress=True, **protocol)
    if json != "-":
        print_figures(figures, str(maps))
    if json is not None:
        write_json(json, {"maps": maps, "masks": masks, **figures})


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


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.4f}"


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f} %"
