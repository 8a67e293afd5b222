"""A large archive in this process and on Ray, with the same cores; and one training by one and by two processes.

    python benchmarks/scale.py [--images 20000] [--folder DIR]

Makes the images first. Needs ``stadfast[ray]``. Results go to ``results/scale.json``; docs/scale.md makes a cost model
of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import ray
import torch
from common import print_table, write_result
from PIL import Image

import stadfast as sf
from stadfast import scale
from stadfast.backbones import create_backbone
from stadfast.methods import distributed, training
from stadfast.scale import Cluster, Summary

SIZE = 128
PART = 512
STEPS = 50
LEARNING_RATES = (0.4, 0.02)  # the method's own, and a small one


def main() -> None:
    options = parse()
    if options.losses is not None:
        write_losses(options.losses)
        return
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        images, model = folder / "images", folder / "model.safetensors"
        make_images(images, options.images)
        random_detector().fit(sorted((images / "000").glob("*.png"))[:32], show_progress=False).save(model)
        cases = [*training_cases(folder, cores), *archive_cases(images, model, folder, cores)]
    parameters = {"images": options.images, "size": [SIZE, SIZE], "part_size": PART, "batch_size": 16}
    print_table(
        ["", "images/s", "steady", "MB at 1/4, 1/1"],
        [
            [c["case"]["engine"], c["images_per_s"], c["steady_images_per_s"], c["memory_mb"]]
            for c in cases
            if "engine" in c["case"]
        ],
    )
    print(write_result("scale", cases, parameters))


def make_images(folder: Path, count: int) -> None:
    """Stripes with noise, shifted at random; PNG, a thousand a folder."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    for i in range(count):
        place = folder / f"{i // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        stripes = 128 + 60 * np.sin((x + 0.3 * y + random.uniform(0, 16)) * (2 * np.pi / 16))
        noise = random.integers(-6, 7, (SIZE, SIZE, 3), dtype=np.int16)
        pixels = (stripes[..., None] + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i:06d}.png", compress_level=1)


def random_detector(**arguments: Any) -> sf.STPM:
    """The time does not depend on what the teacher has learnt."""
    weights = create_backbone("resnet18", seed=0).state_dict()
    common = {"image_size": SIZE, "epochs": 1, "batch_size": 16, "device": "cpu", "precision": "fp32"}
    return sf.STPM(weights=weights, **(common | arguments))


# -------------------------------------------------------------------------------------------- archives


def archive_cases(images: Path, model: Path, folder: Path, cores: int) -> list[dict[str, Any]]:
    """The same job by one thread on a part of the images, by one process, and by an actor for each core."""
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    runs: list[tuple[str, dict[str, Any], list[str]]] = [
        ("one thread", {"threads": 1, "readers": 1}, [str(images / f"{i:03d}") for i in range(2)]),
        ("ray", {"engine": "ray", "cluster": Cluster(actors=cores)}, [str(images)]),
        ("local", {"threads": cores}, [str(images)]),
    ]
    cases = []
    for name, arguments, sources in runs:
        first = time.time()
        summary = scale.score(
            model, sources, str(folder / name), part_size=PART, show_progress=True, **arguments
        )
        written = sorted(path.stat().st_mtime for path in (folder / name).glob("part-*"))
        cases.append(archive_case(name, summary, cores, first, written))
    ray.shutdown()
    there, here = (parquet.read_table(folder / name) for name in ("ray", "local"))
    cases[1]["equal_to_local"] = there.equals(here)
    cases[1]["ratio_to_local"] = round(cases[1]["images_per_s"] / cases[2]["images_per_s"], 4)
    cases[1]["steady_ratio_to_local"] = round(
        cases[1]["steady_images_per_s"] / cases[2]["steady_images_per_s"], 4
    )
    return cases


def archive_case(
    name: str, summary: Summary, cores: int, began: float, written: list[float]
) -> dict[str, Any]:
    """``steady`` leaves out what comes before the first part is written: start of the workers, and that part."""
    workers = cores if name == "ray" else 1
    cores = 1 if name == "one thread" else cores
    steady = (len(written) - workers) * PART / (written[-1] - written[workers - 1])
    quarter = len(summary.memory_mb) // 4
    busy = summary.read_s + summary.score_s + summary.other_s
    return {
        "case": {"engine": name, "workers": workers, "cores": cores},
        "images": summary.images,
        "seconds": round(summary.seconds, 2),
        "images_per_s": round(summary.images / summary.seconds, 1),
        "steady_images_per_s": round(steady, 1),
        "steady_images_per_s_and_core": round(steady / cores, 1),
        "start_s": round(written[0] - began, 2),
        "bytes_read_per_image": round(summary.bytes_read / summary.images),
        "ms_per_image_waiting_computing_other": [
            round(1e3 * s / summary.images, 4) for s in (summary.read_s, summary.score_s, summary.other_s)
        ],
        "ms_per_part_outside_workers": round(1e3 * (workers * summary.seconds - busy) / summary.parts, 1),
        "memory_mb": [round(statistics.median(summary.memory_mb[q * quarter :][:quarter])) for q in (1, 3)],
    }


# -------------------------------------------------------------------------------------------- training


def training_cases(folder: Path, cores: int) -> list[dict[str, Any]]:
    """The loss of every step in float32: by two processes, and by one with another number of threads, against one.

    Rounding alone, which threads change, moves the losses apart: rounding.py has why.
    """
    one, other, two = (losses(folder, *run) for run in ((1, cores), (1, 1), (2, max(1, cores // 2))))
    return [
        {
            "case": {"training": "stpm", "learning_rate": float(rate), "precision": "fp32", "batch_size": 16},
            "steps": len(steps),
            "first_and_last_loss": [steps[0], steps[-1]],
            "largest_difference_two_processes": farthest(steps, two["losses"][rate]),
            "largest_difference_one_thread": farthest(steps, other["losses"][rate]),
            "seconds": {
                f"one process, {cores} threads": one["seconds"][rate],
                "two processes, the threads shared": two["seconds"][rate],
            },
        }
        for rate, steps in one["losses"].items()
    ]


def losses(folder: Path, processes: int, threads: int) -> dict[str, Any]:
    output = folder / f"losses-{processes}-{threads}.json"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), __file__]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, *launch, "--losses", str(output)], env=environment, check=True)
    return json.loads(output.read_text())


def farthest(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def write_losses(output: Path) -> None:
    """By learning rate: the loss of every step, and the seconds."""
    steps: list[float] = []
    step = training._step

    def recorded(trainee: training.Trainee, indices: torch.Tensor) -> float:
        steps.append(step(trainee, indices))
        return steps[-1]

    training._step = recorded
    images = sorted((output.parent / "images" / "000").glob("*.png"))[:80]
    found: dict[str, dict[float, Any]] = {"losses": {}, "seconds": {}}
    with distributed.joined("cpu"):
        for rate in LEARNING_RATES:
            began = time.perf_counter()
            options = {
                "epochs": STEPS // 5,
                "validation_fraction": 0.0,
                "learning_rate": rate,
                "image_size": 64,
            }
            random_detector(**options).fit(images, show_progress=False)
            found["losses"][rate] = list(steps)
            found["seconds"][rate] = round(time.perf_counter() - began, 2)
            steps.clear()
        if distributed.is_main():
            output.write_text(json.dumps(found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Archives on Ray, and training by several processes.")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="where to make the images; default the system's")
    parser.add_argument("--losses", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
