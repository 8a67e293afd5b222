"""Fit a method on categories in MVTec's layout, evaluate it, and write our figures beside the published ones.

    python benchmarks/reproduce.py stpm bottle/ tile/ --weights resnet18.pth --epochs 60
    python benchmarks/reproduce.py rstpm bottle/ --set gate=none --name rstpm_no_gate
    python benchmarks/reproduce.py msfi mvtec/ --work runs/ --resume        (all 15 categories of MVTec AD)
    python benchmarks/reproduce.py stpm,rstpm mvtec/ --seed 0,1,2 --name seeds --engine ray --work runs/ --resume

DATA is a category or a folder of categories. ``--engine ray`` fits and evaluates all methods, categories and seeds
side by side, with ``--cpus`` cores and ``--gpus`` each, on this machine or on a cluster (``--address``; data and
``--work`` then lie on a file system that all nodes share).

Results go to ``results/reproduce_NAME.json``, category by category; with ``--resume`` a stopped run goes on, within a
category, too, from the checkpoints in ``--work``.
``--profile`` also says where the time goes: the operators of a fit of one epoch.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from common import RESULTS, no_folder, print_table, write_result
from published import published

import stadfast as sf
from stadfast.cli.fit import parse_setting, parse_size
from stadfast.methods import EpochRecord, create
from stadfast.runtime.memory import resident_memory

LEVELS = {"image": ("auroc", "ap"), "pixel": ("auroc", "ap"), "aupro": ("0.3", "0.05")}
FIGURES = [(level, key) for level, keys in LEVELS.items() for key in keys]
_RANKED_OPERATORS = 12


class Case(NamedTuple):
    """One detector to fit; ``seed`` is None where all have the same."""

    method: str
    path: Path
    seed: int | None

    @property
    def key(self) -> dict[str, Any]:
        """As the result names it."""
        return {"category": self.path.name, "method": self.method} | (
            {} if self.seed is None else {"seed": self.seed}
        )


def main() -> None:
    options = parse()
    for name in ("weights", "work"):  # another process has another working folder
        if (given := getattr(options, name)) is not None:
            setattr(options, name, type(given)(Path(given).absolute()))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name = f"reproduce_{options.name or options.method}"
    arguments = chosen_arguments(options)
    named = {key: no_folder(value) if isinstance(value, str) else value for key, value in arguments.items()}
    seeds = options.seed if len(options.seed) > 1 else options.seed[0]
    parameters = {"method": options.method, **named, "seed": seeds}
    wanted = [
        Case(method, path, seed if len(options.seed) > 1 else None)
        for method in options.method.split(",")
        for path in categories(options.data)
        for seed in options.seed
    ]
    cases = finished(name, parameters) if options.resume else []
    done = [case["case"] for case in cases]
    missing = [case for case in wanted if case.key not in done]
    for case in wanted:
        if case not in missing:
            print(f"{' '.join(map(str, case.key.values()))}: done before")
    order = [case.key for case in wanted]
    for result in (side_by_side if options.engine == "ray" else one_by_one)(missing, options, arguments):
        cases.append(result)
        cases.sort(key=lambda case: order.index(case["case"]) if case["case"] in order else -1)
        write_result(name, cases, parameters)
    print_cases(cases)


def one_by_one(
    cases: Sequence[Case], options: argparse.Namespace, arguments: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    for case in cases:
        yield run(case, options, arguments)


def side_by_side(
    cases: Sequence[Case], options: argparse.Namespace, arguments: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """As Ray has room for them, and as they get finished; those that fail are reported at the end."""
    try:
        import ray
    except ImportError:
        raise SystemExit(
            "--engine ray needs ray, which is not installed: pip install 'stadfast[ray]'"
        ) from None
    if not cases:
        return
    ray.init(address=options.address, log_to_driver=False)
    remote = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=3)(run)
    waiting = {remote.remote(case, options, arguments): case for case in cases}
    failed = []
    while waiting:
        (ready,), _ = ray.wait(list(waiting))
        case = waiting.pop(ready)
        try:
            yield ray.get(ready)
        except ray.exceptions.RayError as error:
            failed.append(f"{' '.join(map(str, case.key.values()))}: {error}")
    ray.shutdown()
    if failed:
        raise SystemExit("\n".join([*failed, f"{len(failed)} failed; --resume tries these again"]))


def categories(folders: Sequence[Path]) -> list[Path]:
    """The categories themselves, or those inside a folder of categories."""
    found: list[Path] = []
    for folder in (folder.absolute() for folder in folders):
        inside = sorted(path for path in folder.iterdir() if (path / "train" / "good").is_dir())
        found += [folder] if (folder / "train" / "good").is_dir() else inside
        if not inside and not (folder / "train" / "good").is_dir():
            raise SystemExit(f"{folder}: no train/good in it, nor in a folder of it")
    return found


def chosen_arguments(options: argparse.Namespace) -> dict[str, Any]:
    size = options.image_size and parse_size(options.image_size)
    named = {
        "backbone": options.backbone, "weights": options.weights, "image_size": size, "epochs": options.epochs,
        "batch_size": options.batch_size, "seed": options.seed[0],
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


def run(case: Case, options: argparse.Namespace, arguments: dict[str, Any]) -> dict[str, Any]:
    """One detector: fit, evaluate, and where the time went."""
    dataset = sf.MVTecLayout(case.path)
    arguments = arguments | ({} if case.seed is None else {"seed": case.seed})
    detector = create(case.method, **arguments)
    several = [] if case.method == options.method else [case.method]
    seed = [] if case.seed is None else [str(case.seed)]
    stem = "_".join([options.name or options.method, *several, case.path.name, *seed])
    checkpoint = None
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
        checkpoint = options.work / f"{stem}.checkpoint"
    start, worked = time.perf_counter(), time.process_time()
    detector.fit(dataset, checkpoint=checkpoint, resume=options.resume)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    if options.work is not None:
        detector.save(options.work / f"{stem}.safetensors")
    figures, _ = sf.evaluate(detector, dataset.test)
    return {
        "case": case.key,
        "figures": figures,
        "published": published(case.method, case.path.name),
        "training": detector.metadata_["training"],
        "time": {
            "fit_s": round(seconds, 1),
            "cpu_s": round(worked, 1),
            **training_seconds(detector.history_),
        },
        "peak_memory_mb": resident_memory(peak=True) // 2**20,
        **({"profile": profile(case.method, arguments, dataset)} if options.profile else {}),
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
    """Case by case, and for each method the means of each category's seeds, and of its categories."""
    rows = []
    for method, ours in grouped(cases, "method").items():
        by_category = grouped(ours, "category")
        for case in ours:
            figures, known = case["figures"], case["published"] or {}
            rows.append([
                " ".join(map(str, case["case"].values())), *(f"{figures[level][key]:.4f}" for level, key in FIGURES),
                f"{case['time']['fit_s']:.0f} s", " ".join(f"{key} {value}" for key, value in known.items()) or "-",
            ])  # fmt: skip
        for category, some in by_category.items():
            if len(some) > 1:
                rows.append([f"{category} {method}: mean of seeds", *means(some), "", ""])
        if len(by_category) > 1:
            rows.append([f"{method}: mean of categories", *means(ours), "", ""])
    print_table(["", *(" ".join(pair) for pair in FIGURES), "fit", "published"], rows)


def grouped(cases: Sequence[dict[str, Any]], name: str) -> dict[Any, list[dict[str, Any]]]:
    found: dict[Any, list[dict[str, Any]]] = {}
    for case in cases:
        found.setdefault(case["case"].get(name), []).append(case)
    return found


def means(cases: Sequence[dict[str, Any]]) -> list[str]:
    """Each figure's mean, ± the standard deviation over the seeds where there are several."""
    found = []
    for level, key in FIGURES:
        by_seed = [fmean(c["figures"][level][key] for c in some) for some in grouped(cases, "seed").values()]
        found.append(f"{fmean(by_seed):.4f}" + (f" ± {stdev(by_seed):.4f}" if len(by_seed) > 1 else ""))
    return found


def methods(text: str) -> str:
    unknown = [name for name in text.split(",") if name not in sf.methods.METHODS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(sf.methods.METHODS)}")
    return text


def seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A method's figures on MVTec-layout categories.")
    parser.add_argument("method", type=methods, help="one or several, with commas between them")
    parser.add_argument("data", nargs="+", type=Path, help="categories, or folders of categories")
    parser.add_argument("--name", help="of the result: results/reproduce_NAME.json; default the method")
    parser.add_argument("--backbone")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", metavar="N|HxW")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seed", type=seeds, default=[0], help="one or several, with commas between them")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an argument of the method"
    )
    parser.add_argument("--work", type=Path, help="folder for checkpoints and detectors")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--address", help="of the Ray cluster; default one on this machine")
    parser.add_argument("--cpus", type=int, default=1, help="with Ray: cores of each fit")
    parser.add_argument(
        "--gpus", type=float, default=0.0, help="with Ray: GPUs of each fit, also a part of one"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
