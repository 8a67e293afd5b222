"""A fitted Multiresolution KD under both protocols and all its localisations; nothing is trained.

    python benchmarks/mkd_protocols.py mkd_bottle.safetensors bottle/ --name bottle

Pixel AUROC of raw and of stretched maps (``protocol="paper"``), over all test images, and, as the paper counts, over
the anomalous ones alone. Results go to ``results/mkd_protocols_NAME.json``. With ``--layers`` instead the paper's
protocol for single detection layers and for other lambdas, to ``results/mkd_layers_NAME.json``: which part of the
source limits.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch
from common import print_table, write_result

import stadfast as sf

CHOICES = [
    {"localisation": localisation, "through": through, "protocol": protocol}
    for (localisation, through), protocol in itertools.product(
        (("gradient", "both"), ("gradient", "cloner"), ("gbp", "both"), ("smoothgrad", "both")), ("raw", "paper")
    )
]  # fmt: skip

LAYERS = [
    {"detection_layers": layers, "lam": lam, "protocol": "paper"}
    for layers, lam in (
        (["pool3", "pool4", "pool5"], 0.0),
        *(([layer], lam) for layer in ("pool2", "pool3", "pool4", "pool5") for lam in (0.0, 0.5)),
        (["pool3", "pool4"], 0.0),
    )
]


def with_arguments(detector: sf.MultiresolutionKD, **changes: Any) -> sf.MultiresolutionKD:
    """The same networks behind another map."""
    twin = sf.MultiresolutionKD(**(detector.get_params() | changes))
    twin._check_arguments()
    _, network = twin._build(pretrained=False)
    network.load_state_dict(detector.graph_.network.state_dict())
    if "lam" in changes:
        network.loss_weights.copy_(torch.tensor(twin._loss_weights()))
    graph = sf.methods.ScoringGraph(detector.graph_.preprocess, network).to(detector.graph_.threshold.device)
    twin.threshold_ = twin.pixel_threshold_ = float("inf")
    twin.broken_, twin.notes_ = [], []
    twin._adopt(graph)
    return twin


def case(detector: sf.MultiresolutionKD, dataset: sf.MVTecLayout, choice: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    figures, records = sf.evaluate(with_arguments(detector, **choice), dataset.test)
    seconds = time.perf_counter() - start
    maps, masks = [r.map for r in records], [r.mask for r in records]
    anomalous = sf.metrics.evaluate(maps, masks, labels=[r.label for r in records], images="anomalous")
    return {
        "case": choice,
        "image_auroc": figures["image"]["auroc"],
        "pixel_auroc": figures["pixel"]["auroc"],
        "pixel_auroc_anomalous": anomalous["pixel"]["auroc"],
        "aupro_0.3": figures["aupro"]["0.3"],
        "evaluation_s": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("category", type=Path)
    parser.add_argument("--name", required=True, help="of the result: results/mkd_protocols_NAME.json")
    parser.add_argument(
        "--samples", type=int, default=10, help="of smoothgrad; the paper's 50 take five times as long"
    )
    parser.add_argument("--layers", action="store_true", help="single layers and lambdas instead")
    options = parser.parse_args()
    detector, dataset = sf.load(options.model), sf.MVTecLayout(options.category)
    assert isinstance(detector, sf.MultiresolutionKD)
    choices = LAYERS if options.layers else [choice | {"samples": options.samples} for choice in CHOICES]
    cases = [case(detector, dataset, choice) for choice in choices]
    keys = [key for key in cases[0] if key != "case"]
    rows = [[" ".join(map(str, c["case"].values())), *(f"{c[key]:.4f}" for key in keys)] for c in cases]
    print_table(["", *keys], rows)
    parameters = {
        "method": "mkd",
        "category": options.category.name,
        "training": detector.metadata_["training"],
    }
    kind = "layers" if options.layers else "protocols"
    print(write_result(f"mkd_{kind}_{options.name}", cases, parameters))


if __name__ == "__main__":
    main()
