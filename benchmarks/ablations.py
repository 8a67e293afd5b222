"""What the ablations of trained detectors share: their arguments, and the figures of their tables."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEADER = ["", "image AUROC", "pixel AUROC", "AUPRO@0.3"]
_KEPT = ("image", "pixel", "aupro", "per_type", "n")


def parse(description: str, result: str) -> argparse.Namespace:
    """``model``, ``data`` and ``name`` from the command line; results go to ``results/RESULT_NAME.json``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="a category in MVTec's layout")
    parser.add_argument("--name", required=True, help=f"of the result: results/{result}_NAME.json")
    return parser.parse_args()


def kept(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What of an evaluation goes into the result."""
    return {key: figures[key] for key in _KEPT}


def row(case: Mapping[str, Any]) -> list[str]:
    """The case in the columns of :data:`HEADER`."""
    figures = case["figures"]
    values = (figures["image"]["auroc"], figures["pixel"]["auroc"], figures["aupro"]["0.3"])
    return [case["case"], *(f"{value:.4f}" for value in values)]
