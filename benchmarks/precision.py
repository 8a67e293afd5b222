"""What less precision costs: a fitted model's figures in fp32 and in bf16, through the Scorer, on labelled images.

    stadfast fit bottle/ --backbone resnet18 --epochs 60 -o bottle.safetensors
    python benchmarks/precision.py bottle/=bottle.safetensors magnetic_tile/=tile.safetensors

Every test image is read from its file, scored alone, and evaluated as ``stadfast evaluate`` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import print_table, write_result

import stadfast as sf

ALLOWED = 0.003


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="+", metavar="DATA=MODEL", help="a folder in MVTec's layout and its model"
    )
    cases = [compare(*map(Path, pair.split("=", 1))) for pair in parser.parse_args().models]
    rows = [
        [case["case"]["category"], precision, *(f"{value:.5f}" for value in figures.values())]
        for case in cases
        for precision, figures in case["figures"].items()
    ]
    print_table(["", "", *cases[0]["figures"]["fp32"]], rows)
    for case in cases:
        print(case["case"]["category"], "largest difference", case["largest_difference"])
    print(write_result("precision", cases, {"allowed": ALLOWED}))


def compare(data: Path, model: Path) -> dict[str, Any]:
    detector = sf.load(model, device="cpu")
    dataset = sf.MVTecLayout(data)
    found, scores = {}, {}
    for precision in ("fp32", "bf16"):
        scorer = sf.Scorer(detector, device="cpu", precision=precision)
        figures, records = sf.evaluate(ThroughScorer(detector, scorer), dataset.test)  # type: ignore[arg-type]
        found[precision] = {
            "image_auroc": figures["image"]["auroc"], "pixel_auroc": figures["pixel"]["auroc"],
            "aupro_0.3": figures["aupro"]["0.3"], "aupro_0.05": figures["aupro"]["0.05"],
        }  # fmt: skip
        scores[precision] = torch.tensor([record.score for record in records])
    change = {name: abs(value - found["fp32"][name]) for name, value in found["bf16"].items()}
    verdicts = {name: values > detector.threshold_ for name, values in scores.items()}
    return {
        "case": {"category": data.name, "method": detector.method, "images": len(dataset.test)},
        "figures": found,
        "largest_difference": round(max(change.values()), 6),
        "other_verdicts": int((verdicts["fp32"] != verdicts["bf16"]).sum()),
        "training": detector.metadata_["training"],
    }


class ThroughScorer:
    """The detector, but that its images go through a Scorer."""

    def __init__(self, detector: sf.Detector, scorer: sf.Scorer) -> None:
        self.detector, self.scorer = detector, scorer

    def stream(self, samples: Sequence[Any], **_: Any) -> Iterator[tuple[list[Path], sf.Prediction]]:
        for sample in samples:
            yield [sample.image], self.scorer(sample.image)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.detector, name)


if __name__ == "__main__":
    main()
