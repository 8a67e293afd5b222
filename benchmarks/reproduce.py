"""Fit a method on categories in MVTec's layout, evaluate it, and write our figures beside the published ones.

    python benchmarks/reproduce.py stpm bottle/ tile/ --weights resnet18.pth --epochs 60
    python benchmarks/reproduce.py rstpm bottle/ --set gate=none --name rstpm_no_gate
    python benchmarks/reproduce.py msfi mvtec/ --work runs/ --resume        (all 15 categories of MVTec AD)

DATA is a category or a folder of categories. Results go to ``results/reproduce_NAME.json``, category by category;
with ``--resume`` a stopped run goes on, within a category, too, from the checkpoints in ``--work``.
``--profile`` also says where the time goes: the operators of a fit of one epoch.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, no_folder, print_table, write_result
from published import published

import stadfast as sf
from stadfast.cli.evaluate import evaluate_detector
from stadfast.cli.fit import parse_setting, parse_size
from stadfast.methods import EpochRecord, create

LEVELS = {"image": ("auroc", "ap"), "pixel": ("auroc", "ap"), "aupro": ("0.3", "0.05")}
FIGURES = [(level, key) for level, keys in LEVELS.items() for key in keys]
_RANKED_OPERATORS = 12


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name = f"reproduce_{options.name or options.method}"
    arguments = chosen_arguments(options)
    named = {key: no_folder(value) if isinstance(value, str) else value for key, value in arguments.items()}
    parameters = {"method": options.method, **named}
    cases = finished(name, parameters) if options.resume else []
    for category in categories(options.data):
        if any(case["case"]["category"] == category.name for case in cases):
            print(f"{category.name}: done before")
            continue
        cases.append(run(category, options, arguments))
        write_result(name, cases, parameters)
    print_cases(cases)


def categories(folders: Sequence[Path]) -> list[Path]:
    """The categories themselves, or those inside a folder of categories."""
    found: list[Path] = []
    for folder in folders:
        inside = sorted(path for path in folder.iterdir() if (path / "train" / "good").is_dir())
        found += [folder] if (folder / "train" / "good").is_dir() else inside
        if not inside and not (folder / "train" / "good").is_dir():
            raise SystemExit(f"{folder}: no train/good in it, nor in a folder of it")
    return found


def chosen_arguments(options: argparse.Namespace) -> dict[str, Any]:
    size = options.image_size and parse_size(options.image_size)
    named = {
        "backbone": options.backbone, "weights": options.weights, "image_size": size, "epochs": options.epochs,
        "batch_size": options.batch_size, "seed": options.seed,
    }  # fmt: skip
    return {k: v for k, v in named.items() if v is not None} | dict(map(parse_setting, options.set))


def finished(name: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases that an earlier run with the same parameters has written."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    document = json.loads(path.read_text())
    if document["parameters"] != json.loads(json.dumps(parameters)):
        raise SystemExit(f"{path} holds another run: {document['parameters']}; choose another --name")
    return document["cases"]


def run(path: Path, options: argparse.Namespace, arguments: dict[str, Any]) -> dict[str, Any]:
    """One category: fit, evaluate, and where the time went."""
    dataset = sf.MVTecLayout(path)
    detector = create(options.method, **arguments)
    checkpoint = None
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
        checkpoint = options.work / f"{options.name or options.method}_{path.name}.checkpoint"
    start, worked = time.perf_counter(), time.process_time()
    detector.fit(dataset, checkpoint=checkpoint, resume=options.resume)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    if options.work is not None:
        detector.save(options.work / f"{options.name or options.method}_{path.name}.safetensors")
    figures, _ = evaluate_detector(detector, dataset.test)
    return {
        "case": {"category": path.name, "method": options.method},
        "figures": figures,
        "published": published(options.method, path.name),
        "training": detector.metadata_["training"],
        "time": {
            "fit_s": round(seconds, 1),
            "cpu_s": round(worked, 1),
            **training_seconds(detector.history_),
        },
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **({"profile": profile(options.method, arguments, dataset)} if options.profile else {}),
    }


def training_seconds(history: Sequence[EpochRecord]) -> dict[str, Any]:
    """Seconds of all epochs, phase by phase; the rest of a fit is reading, teacher features and calibration."""
    phases: dict[str, float] = {}
    for record in history:
        phases[record.phase or "training"] = phases.get(record.phase or "training", 0.0) + record.seconds
    return {"epochs_s": {name: round(seconds, 1) for name, seconds in phases.items()}}


def profile(method: str, arguments: dict[str, Any], dataset: sf.MVTecLayout) -> list[dict[str, Any]]:
    """The operators that take most of a fit of one epoch, reading and features included."""
    detector = create(method, **(arguments | {"epochs": 1}))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        detector.fit(dataset, show_progress=False)
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    ranked = sorted(events, key=lambda event: -event.self_cpu_time_total)[:_RANKED_OPERATORS]
    return [
        {"operator": event.key, "share": round(event.self_cpu_time_total / total, 4), "calls": event.count}
        for event in ranked
    ]


def print_cases(cases: Sequence[dict[str, Any]]) -> None:
    rows = []
    for case in cases:
        figures, known = case["figures"], case["published"] or {}
        values = [f"{figures[level][key]:.4f}" for level, key in FIGURES]
        rows.append([
            case["case"]["category"], *values, f"{case['time']['fit_s']:.0f} s",
            " ".join(f"{key} {value}" for key, value in known.items()) or "-",
        ])  # fmt: skip
    if len(cases) > 1:
        means = [sum(c["figures"][level][key] for c in cases) / len(cases) for level, key in FIGURES]
        rows.append(["mean", *(f"{value:.4f}" for value in means), "", ""])
    print_table(["", *(" ".join(pair) for pair in FIGURES), "fit", "published"], rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A method's figures on MVTec-layout categories.")
    parser.add_argument("method", choices=sorted(sf.methods.METHODS))
    parser.add_argument("data", nargs="+", type=Path, help="categories, or folders of categories")
    parser.add_argument("--name", help="of the result: results/reproduce_NAME.json; default the method")
    parser.add_argument("--backbone")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", metavar="N|HxW")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an argument of the method"
    )
    parser.add_argument("--work", type=Path, help="folder for checkpoints and detectors")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
