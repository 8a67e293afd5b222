"""How far rounding moves a training in float32: the losses of 50 steps, computed in several ways.

    python benchmarks/rounding.py GOOD_IMAGES --weights resnet18.pth --work DIR [--methods stpm,smooth] [--size 64]

Each method trains at its default learning rate in one process with one thread, and again with two threads, in two
processes, and with one weight of the student moved by the smallest step of float32 before it starts. ``smooth`` is STPM
whose student has Softplus for ReLU and averages for maxima: no switch that rounding could throw. Results go to
``results/rounding.json``, and docs/scale.md has them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import print_table, write_result
from losses import losses_of, smooth
from torch import nn

import stadfast as sf
from stadfast.data import list_images
from stadfast.methods import distributed

STEPS = 50
SHOWN = (1, 2, 5, 10, 20, 30, 40, 50)
METHODS: dict[str, tuple[type[sf.Detector], dict[str, Any]]] = {
    "stpm": (sf.STPM, {}),
    "smooth": (sf.STPM, {}),
    "rstpm": (sf.ReconstructionSTPM, {"backbone2": "resnet18"}),
    "msfi": (sf.FeatureImitation, {}),
}
# processes, threads of each, whether a weight is moved
RUNS = {"two threads": (1, 2, False), "two processes": (2, 1, False), "one weight moved": (1, 1, True)}


def main() -> None:
    options = parse()
    if options.losses is not None:
        write_losses(options)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    cases = []
    for method in options.methods.split(","):
        one = losses(options.work, method, 1, 1, False)
        cases += [case(method, run, one, losses(options.work, method, *how)) for run, how in RUNS.items()]
    print_table(
        ["", "changed", *(f"after {step}" for step in SHOWN)],
        [[c["case"]["method"], c["case"]["changed"], *c["largest_relative_difference"]] for c in cases],
    )
    parameters = {
        "image_size": options.size, "batch_size": options.batch_size, "steps": STEPS, "precision": "fp32",
        "compared_with": "one process, one thread", "differences_after_steps": SHOWN,
    }  # fmt: skip
    print(write_result(options.name, cases, parameters))


def case(method: str, changed: str, one: list[float], other: list[float]) -> dict[str, Any]:
    """The largest difference of a step's loss up to some steps, as a share of the loss."""
    differences = [abs(a - b) / abs(a) for a, b in zip(one, other, strict=True)]
    above = next((step for step, d in enumerate(differences, start=1) if d > 1e-4), None)
    return {
        "case": {"method": method, "changed": changed},
        "first_and_last_loss": [one[0], one[-1]],
        "largest_relative_difference": [float(f"{max(differences[:step]):.2g}") for step in SHOWN],
        "first_step_above_1e-4": above,
    }


def losses(work: Path, method: str, processes: int, threads: int, moved: bool) -> list[float]:
    """The loss of every step of one run, which ``torchrun`` starts unless an earlier call has left them."""
    output = work / f"{method}-{processes}-{threads}-{moved}.json"
    if not output.exists():
        launch = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            *sys.argv,
        ]
        run = ["--methods", method, "--losses", str(output), *(["--move"] if moved else [])]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, *launch, *run], env=environment, check=True)
    return json.loads(output.read_text())


def write_losses(options: argparse.Namespace) -> None:
    """The part of one process of one run: the losses of the first training of its method."""

    def changed(module: nn.Module) -> None:
        if options.methods == "smooth":
            smooth(module)
        if options.move:
            weight = next(module.parameters()).data
            weight[0, 0, 0, 0] = weight[0, 0, 0, 0].nextafter(torch.tensor(torch.inf))

    make, arguments = METHODS[options.methods]
    if options.methods == "msfi":
        size = options.size
        arguments = {"scales": [size // 2, size, size * 3 // 2]}  # in the default's proportions
    detector = make(
        image_size=options.size, batch_size=options.batch_size, epochs=STEPS // 5, validation_fraction=0.0,
        weights=options.weights, device="cpu", precision="fp32", **arguments,
    )  # fmt: skip
    images = list_images(options.images)[: 5 * options.batch_size]
    with distributed.joined("cpu"):
        found = losses_of(lambda: detector.fit(images, show_progress=False), changed, STEPS)
        if distributed.is_main():
            options.losses.write_text(json.dumps(found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How far rounding moves a training in float32.")
    parser.add_argument("images", help="folder of good images")
    parser.add_argument("--weights", required=True, help="the teacher's")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the losses; what is there is not run"
    )
    parser.add_argument("--name", default="rounding", help="of the result")
    parser.add_argument("--losses", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--move", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
