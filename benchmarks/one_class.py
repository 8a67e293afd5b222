"""One-class detection on Fashion-MNIST: fit on the good images of one class, score all test images.

    python benchmarks/one_class.py mkd --weights vgg16.pth --classes 0 1 2 --epochs 50 --set lam=0.01

Needs the data set's four files (Debian: ``apt install dataset-fashion-mnist``). Grey images become three equal
channels; the method resizes them. One class is good, the other nine are anomalous; the figure is the image AUROC.
Results go to ``results/one_class_NAME.json``, class by class.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import no_folder, print_table, write_result
from torch import Tensor

import stadfast as sf
from stadfast.cli.fit import parse_setting, parse_size
from stadfast.methods import create

FOLDER = Path("/usr/share/datasets/fashion-mnist")
NAMES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
# Means over the ten classes that the papers print.
PUBLISHED = {"mkd": 0.9449}
_HEADER = {"images": 16, "labels": 8}  # bytes before the data in the IDX format


def read(folder: Path, part: str, kind: str) -> Tensor:
    """Images (N, 28, 28) or labels (N,), uint8."""
    dimensions = 3 if kind == "images" else 1
    with gzip.open(folder / f"{part}-{kind}-idx{dimensions}-ubyte.gz") as file:
        values = torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=_HEADER[kind]).copy())
    return values.view(-1, 28, 28) if kind == "images" else values


def load(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 28, 28) and labels (N,), uint8."""
    images = read(folder, part, "images")
    return images[:, None].repeat(1, 3, 1, 1), read(folder, part, "labels")


def run(number: int, options: argparse.Namespace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Fit on one class and score the test images."""
    images, labels = load(options.folder, "train")
    detector = create(options.method, **arguments)
    start = time.perf_counter()
    detector.fit(images[labels == number][: options.train_images])
    seconds = time.perf_counter() - start
    images, labels = load(options.folder, "t10k")
    step = max(1, len(images) // options.test_images) if options.test_images else 1
    scores = detector.score(images[::step])
    return {
        "case": {"class": NAMES[number], "train": detector.metadata_["data"]["train"], "test": len(scores)},
        "image_auroc": sf.metrics.auroc(scores, labels[::step] != number),
        "training": detector.metadata_["training"],
        "fit_s": round(seconds, 1),
    }


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    named = {
        "weights": options.weights, "epochs": options.epochs, "seed": options.seed,
        "image_size": options.image_size and parse_size(options.image_size),
    }  # fmt: skip
    arguments = {k: v for k, v in named.items() if v is not None} | dict(map(parse_setting, options.set))
    described = {k: no_folder(v) if isinstance(v, str) else v for k, v in arguments.items()}
    parameters = {
        "method": options.method, **described, "published_mean_of_ten": PUBLISHED.get(options.method),
    }  # fmt: skip
    cases = []
    for number in options.classes:
        cases.append(run(number, options, arguments))
        write_result(f"one_class_{options.name or options.method}", cases, parameters)
        print(f"{NAMES[number]}: {cases[-1]['image_auroc']:.4f}", flush=True)
    rows = [[c["case"]["class"], f"{c['image_auroc']:.4f}", f"{c['fit_s']:.0f} s"] for c in cases]
    rows.append(["mean", f"{sum(c['image_auroc'] for c in cases) / len(cases):.4f}", ""])
    print_table(["class", "image auroc", "fit"], rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One-class detection on Fashion-MNIST.")
    parser.add_argument("method", choices=sorted(sf.methods.METHODS))
    parser.add_argument("--classes", type=int, nargs="+", default=[0, 1, 2], choices=range(10), metavar="0-9")
    parser.add_argument("--name", help="of the result: results/one_class_NAME.json; default the method")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--weights")
    parser.add_argument("--image-size", metavar="N|HxW", default="32")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--train-images", type=int, help="of the class; default all 6000")
    parser.add_argument("--test-images", type=int, help="evenly out of the 10000; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an argument of the method"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
