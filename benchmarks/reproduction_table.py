"""Write the tables of docs/reproduction.md from ``results/reproduce_*.json``.

    python benchmarks/reproduction_table.py [--check]

``--check`` writes nothing and fails if the tables are not those of the results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from common import RESULTS, ROOT

PAGE = ROOT / "docs" / "reproduction.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
METHODS = {
    "stpm": "STPM", "et-stpm": "ET-STPM", "rstpm": "RSTPM", "msfi": "Multi-scale Feature Imitation",
    "mkd": "Multiresolution Knowledge Distillation", "stereotype": "Stereotype Deepening",
}  # fmt: skip
HEADER = [
    "run", "category", "image AUROC", "pixel AUROC", "AUPRO@0.3", "AUPRO@0.05", "found / false alarms", "published",
    "epochs", "fit (shared machine)",
]  # fmt: skip
_PLAIN = ("method", "weights", "seed")


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    made = f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"
    if "--check" in sys.argv:
        if made != text:
            raise SystemExit(f"{PAGE.name} does not show the results: run benchmarks/reproduction_table.py")
        return
    PAGE.write_text(made, encoding="utf-8")


def tables() -> str:
    """One table for each method that has results."""
    documents = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("reproduce_*.json"))]
    parts = []
    for method, title in METHODS.items():
        rows = [row for d in documents for row in rows_of(d, method)]
        if rows:
            lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ["---"] * len(HEADER), *rows)]
            parts += [f"### {title}\n", *lines, ""]
    return "\n".join(parts)


def rows_of(document: Mapping[str, Any], method: str) -> Iterator[list[str]]:
    parameters = document["parameters"]
    options = [f"{name}={value}" for name, value in parameters.items() if name not in _PLAIN]
    weights = str(parameters.get("weights", "default")).removesuffix(".pth")
    for case in document["cases"]:
        if case["case"]["method"] != method:
            continue
        figures, training = case["figures"], case["training"]
        phases = training.get("phases", {"": training})
        known, rates = case["published"] or {}, figures["at_threshold"]
        yield [
            f"`{document['benchmark'].removeprefix('reproduce_')}`: {', '.join([weights, *options])}",
            case["case"]["category"] + (f", seed {case['case']['seed']}" if "seed" in case["case"] else ""),
            f"{figures['image']['auroc']:.3f}", f"{figures['pixel']['auroc']:.3f}",
            f"{figures['aupro']['0.3']:.3f}", f"{figures['aupro']['0.05']:.3f}",
            f"{100 * rates['true_positive_rate']:.0f} / {100 * rates['false_positive_rate']:.0f} %",
            ", ".join(f"{name.replace('_auroc', '').replace('_', ' ')} {value:.3f}" for name, value in known.items()),
            " + ".join(str(phase["epochs"]) for phase in phases.values()),
            f"{case['time']['fit_s']:.0f} s",
        ]  # fmt: skip


if __name__ == "__main__":
    main()
