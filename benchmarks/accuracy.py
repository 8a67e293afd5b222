"""Fit STPM on the good images of MVTec-layout categories, score their test images, and write the figures.

    python benchmarks/accuracy.py bottle/ --weights resnet18.pth --epochs 60 --name stpm_resnet18
    python benchmarks/accuracy.py bottle/ --backbone efficientnet_lite0 --image-size 128 --epochs 15 --name lite0

Results go to ``results/accuracy_NAME.json``. Beside bottle's figures stand the published ones: PRO there is the
paper's own form (integrated to a false positive rate of 0.3, both axes rescaled), ours is MVTec's official AUPRO.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from common import print_table, write_result

import stadfast as sf

# Wang et al. 2021 (arXiv 2103.04257), tables 1 to 3: resnet18, 256 x 256.
PUBLISHED = {"bottle": {"pro": 0.951, "source": "arXiv 2103.04257"}}


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cases = [run(path, options) for path in options.categories]
    names = ["image.auroc", "image.ap", "image.f1_max", "pixel.auroc", "pixel.ap", "pixel.f1_max"]
    rows = [
        [c["case"]["category"], *(f"{figure(c, name):.4f}" for name in names)]
        + [f"{c['figures']['aupro'][limit]:.4f}" for limit in ("0.3", "0.05")]
        + [f"{c['fit_s']:.0f} s"]
        for c in cases
    ]
    print_table(["", *names, "aupro@0.3", "aupro@0.05", "fit"], rows)
    parameters = {"weights": Path(options.weights).name if options.weights else "default"}
    print(write_result(f"accuracy_{options.name}", cases, parameters))


def figure(case: dict[str, Any], name: str) -> float:
    level, key = name.split(".")
    return case["figures"][level][key]


def run(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    dataset = sf.MVTecLayout(path)
    arguments: dict[str, Any] = {
        "backbone": options.backbone, "image_size": options.image_size, "epochs": options.epochs,
        "seed": options.seed, "variant": options.variant, "precision": options.precision,
        "background_quantile": options.background_quantile,
    }  # fmt: skip
    detector = sf.STPM(**arguments, weights=options.weights or "default")
    start = time.perf_counter()
    detector.fit(dataset)
    seconds = time.perf_counter() - start
    figures, _ = sf.evaluate(detector, dataset.test)
    published = next((value for name, value in PUBLISHED.items() if name in path.name), None)
    return {
        "case": {"category": path.name, **arguments},
        "figures": figures,
        "published": published,
        "fit_s": round(seconds, 1),
        "training": detector.metadata_["training"],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy of STPM on MVTec-layout categories.")
    parser.add_argument("categories", nargs="+", type=Path)
    parser.add_argument("--name", required=True, help="of the result: results/accuracy_NAME.json")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", default="official")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--background-quantile", type=float)
    return parser.parse_args()


if __name__ == "__main__":
    main()
