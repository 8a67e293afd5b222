"""The HTML report: one self-contained file that opens offline, prints well and runs no script."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from .._files import atomic_write
from ..data import read_image
from ..errors import UsageError
from . import figures
from .embed import data_uri, jpeg, png, shrink
from .heatmap import DECADES, MASK_COLOUR, check_threshold, colour_bar, draw_contour, overlay
from .records import Record, choose_examples


def write_report(
    path: str | os.PathLike[str],
    evaluation: Mapping[str, Any],
    records: Sequence[Record],
    detector_info: Mapping[str, Any],
    *,
    title: str = "",
    warnings: Sequence[str] = (),
) -> None:
    """Write the report of one evaluation to ``path``, whole or not at all.

    Args:
        path: the HTML file.
        evaluation: what ``stadfast.metrics.evaluate`` returned, plus ``"threshold"``.
        records: the images behind it.
        detector_info: facts of the model, shown in this order.
        title: what was inspected, such as the folder's name.
        warnings: shown at the top, one paragraph each.

    Raises:
        UsageError: there are no records, or the evaluation has no threshold, or one that is not positive.
        StadfastError: the file cannot be written.
    """
    if not records:
        raise UsageError("records must hold at least one evaluated image, got none")
    if "threshold" not in evaluation:
        raise UsageError("evaluation must hold the detector's 'threshold'")
    for name in ("threshold", "pixel_threshold"):
        check_threshold(float(evaluation.get(name, evaluation["threshold"])), name)
    text = _template().render(_context(evaluation, records, detector_info, title, warnings))
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # File names and folder names are foreign text: escape everything.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("template.html.j2")


def _context(
    evaluation: Mapping[str, Any],
    records: Sequence[Record],
    detector_info: Mapping[str, Any],
    title: str,
    warnings: Sequence[str],
) -> dict[str, Any]:
    from .. import __version__

    threshold = float(evaluation["threshold"])
    good = [record for record in records if not record.label]
    bad = [record for record in records if record.label]
    return {
        "title": title or "Evaluation",
        "date": datetime.now().strftime("%d %B %Y, %H:%M"),
        "version": __version__,
        "subtitle": _subtitle(detector_info),
        "tiles": _tiles(evaluation, good, bad, threshold),
        "warnings": [*warnings, *evaluation.get("notes", []), *_own_warnings(good, bad)],
        "curves": _curves(evaluation, records, threshold),
        "limit": _limits(evaluation)[0],
        "rows": _type_rows(evaluation, good, bad, threshold),
        "sections": _sections(records, threshold, float(evaluation.get("pixel_threshold", threshold))),
        "scale": {
            "image": png(colour_bar(512, 12)),
            "ticks": [_tick(step * DECADES / 2) for step in range(-2, 3)],
        },
        "mask_colour": "#{:02x}{:02x}{:02x}".format(*MASK_COLOUR),
        "threshold": number(threshold),
        "model": [(_label(key), _fact(value)) for key, value in detector_info.items()],
        "protocol": [(_label(key), _fact(value)) for key, value in evaluation.get("protocol", {}).items()],
    }


def _subtitle(info: Mapping[str, Any]) -> str:
    parts = [str(info[key]) for key in ("method", "backbone") if info.get(key)]
    if info.get("image_size"):
        parts.append(_fact(info["image_size"]) + " px")
    return " · ".join(parts)


def _tiles(
    evaluation: Mapping[str, Any], good: Sequence[Record], bad: Sequence[Record], threshold: float
) -> list[dict[str, str]]:
    image, pixel, aupro = (evaluation.get(key, {}) for key in ("image", "pixel", "aupro"))
    limit, *others = _limits(evaluation)
    found = sum(record.score > threshold for record in bad)
    alarms = sum(record.score > threshold for record in good)
    return [
        {"name": "Defects found", "value": f"{found} of {len(bad)}", "note": _share(found, len(bad))},
        {"name": "False alarms", "value": f"{alarms} of {len(good)}", "note": _share(alarms, len(good))},
        {"name": "Image AUROC", "value": figure(image.get("auroc")), "note": f"AP {figure(image.get('ap'))}"},
        {"name": "Pixel AUROC", "value": figure(pixel.get("auroc")), "note": f"AP {figure(pixel.get('ap'))}"},
        {
            "name": f"AUPRO@{limit}",
            "value": figure(aupro.get(limit)),
            "note": ", ".join(f"@{other} {figure(aupro[other])}" for other in others)
            or "regions weigh the same",
        },
        {"name": "Image F1-max", "value": figure(image.get("f1_max")), "note": "at the best threshold"},
    ]


def _limits(evaluation: Mapping[str, Any]) -> list[str]:
    """AUPRO's limits, the first of which is the one of the curve and of the defect types."""
    return list(evaluation.get("aupro", {})) or ["0.3"]


def _own_warnings(good: Sequence[Record], bad: Sequence[Record]) -> list[str]:
    found = []
    for name, records in (("good", good), ("defective", bad)):
        if 0 < len(records) < 10:
            found.append(f"Only {len(records)} {name} test images: the figures are rough.")
        elif not records:
            found.append(f"No {name} test images: good and defective cannot be compared.")
    return found


def _curves(
    evaluation: Mapping[str, Any], records: Sequence[Record], threshold: float
) -> list[dict[str, str]]:
    labels = torch.tensor([record.label for record in records])
    scores = torch.tensor([record.score for record in records], dtype=torch.float64)
    mixed = 0 < int(labels.sum()) < len(labels)
    image_roc = _points(metrics.roc_curve(scores, labels)) if mixed else None
    pixel_roc = pro = None
    # Only images whose pixels are known: good ones, and defective ones with a mask.
    known = [record for record in records if record.mask is not None or not record.label]
    masks = [_mask_of(record) for record in known]
    if any(bool(mask.any()) for mask in masks):
        maps = [_plane(record.map) for record in known]
        pixel_roc = _points(metrics.roc_curve(_flat(maps), _flat(masks)))
        pro = _points(metrics.pro_curve(maps, masks))
    curves = []
    if image_roc or pixel_roc:
        note = "How many defects are found (up) for how many false alarms (right)."
        curves.append(_curve("ROC curve", figures.roc_svg(image_roc, pixel_roc), note))
    if pro:
        limit = _limits(evaluation)[0]
        note = f"Share of each defect's area found; all defects weigh the same. Shaded: AUPRO@{limit}."
        curves.append(_curve("PRO curve", figures.pro_svg(pro, float(limit)), note))
    histogram = figures.histogram_svg(scores.tolist(), labels.tolist(), threshold)
    curves.append(_curve("Image scores", histogram, "Right of the threshold, an image is called defective."))
    return curves


def _curve(name: str, svg: str, note: str) -> dict[str, str]:
    return {"name": name, "note": note, "image": data_uri(svg.encode(), "image/svg+xml")}


def _points(curve: Any) -> figures.Curve:
    return np.asarray(curve[0], dtype=float), np.asarray(curve[1], dtype=float)


def _type_rows(
    evaluation: Mapping[str, Any], good: Sequence[Record], bad: Sequence[Record], threshold: float
) -> list[dict[str, str]]:
    rows = []
    for defect in sorted({record.defect or "defective" for record in bad}):
        of_type = [record for record in bad if (record.defect or "defective") == defect]
        found = sum(record.score > threshold for record in of_type)
        values = evaluation.get("per_type", {}).get(defect, {})
        rows.append({
            "defect": defect, "n": str(len(of_type)), "found": f"{found} ({_share(found, len(of_type))})",
            **{key: figure(values.get(key)) for key in ("image_auroc", "pixel_auroc", "aupro")},
        })  # fmt: skip
    return rows


def _sections(records: Sequence[Record], threshold: float, pixel_threshold: float) -> list[dict[str, Any]]:
    notes = {
        "worst": ("Worst", "Missed defects and false alarms first, then the least certain decisions."),
        "borderline": ("Borderline", "Scores closest to the threshold: a small change of it decides."),
        "best": ("Best", "The clearest decision of each defect type, and of the good images."),
    }
    chosen = choose_examples(records, threshold)
    return [
        {
            "name": name,
            "note": note,
            "examples": [_example(record, threshold, pixel_threshold) for record in chosen[key]],
        }
        for key, (name, note) in notes.items()
        if chosen[key]
    ]


def _example(record: Record, threshold: float, pixel_threshold: float) -> dict[str, Any]:
    picture = shrink(read_image(record.image))
    truth = picture.copy()
    if record.mask is not None:
        draw_contour(truth, record.mask, MASK_COLOUR)
    called_bad = record.score > threshold
    verdict, tone = {
        (1, True): ("defect found", "right"),
        (0, False): ("good, accepted", "right"),
        (1, False): ("defect missed", "wrong"),
        (0, True): ("false alarm", "wrong"),
    }[int(bool(record.label)), called_bad]
    return {
        "name": record.image.name,
        "folder": record.image.parent.name,
        "truth": (record.defect or "defective") if record.label else "good",
        "score": number(record.score),
        "ratio": f"{_times(record.score / threshold)} × threshold",
        "verdict": verdict,
        "tone": tone,
        "panels": [
            ("Image", jpeg(picture)),
            ("Heat map", jpeg(overlay(picture, record.map, pixel_threshold))),
            ("Ground truth", jpeg(truth)),
        ],
    }


def _plane(values: Any) -> Tensor:
    return torch.as_tensor(values).reshape(values.shape[-2:])


def _tick(decades: float) -> str:
    factor = f"{10 ** abs(decades):.2g}"
    return "threshold" if decades == 0 else f"×{factor}" if decades > 0 else f"÷{factor}"


def _flat(planes: Sequence[Tensor]) -> Tensor:
    return torch.cat([plane.flatten() for plane in planes])


def _mask_of(record: Record) -> Tensor:
    plane = _plane(record.map)
    return torch.zeros(plane.shape, dtype=torch.bool) if record.mask is None else _plane(record.mask).bool()


def figure(value: float | None) -> str:
    """A figure of merit with four decimals, cut and not rounded up: 0.99996 must not read as 1."""
    if value is None or not math.isfinite(value):
        return "n/a"
    return f"{math.floor(value * 1e4 + 1e-6) / 1e4:.4f}"


def number(value: float) -> str:
    """A score with three significant digits."""
    return f"{value:.3g}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "n/a"


def _label(key: str) -> str:
    return key.replace("_", " ")


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        pair = len(value) == 2 and all(isinstance(item, int) for item in value)
        return ("×" if pair else ", ").join(_fact(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, float) else str(value)
