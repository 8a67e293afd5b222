"""What all benchmarks share: the machine's description, paired timing, one JSON form (see README.md)."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from stadfast.methods.hardware import cpu_name
from stadfast.runtime.memory import resident_memory

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = [
    "stadfast",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "anomalib",
    "openvino",
    "adeval",
]
_SAMPLE_S = 2e-3  # shorter calls are repeated within a sample, as clock and first call would disturb it


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender, one sample a round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def summary(self, scale: float = 1e3) -> dict[str, float]:
        """Median and quartiles in milliseconds."""
        low, middle, high = _quartiles(self.samples)
        return {
            "median_ms": round(middle * scale, 6), "q1_ms": round(low * scale, 6),
            "q3_ms": round(high * scale, 6), "n": len(self.samples),
        }  # fmt: skip


def interleave(
    contenders: Mapping[str, Callable[[], Any]],
    repeats: int = 30,
    warmup: int = 3,
    sync: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time the contenders in turn, round after round, so that what disturbs the machine disturbs all of them.

    Each round starts with another contender. Within its turn a short contender runs many times in a row, so
    that all of them find their data in the caches.

    Args:
        contenders: name -> function without arguments.
        repeats: rounds, one sample of each contender per round.
        warmup: calls before the first round.
        sync: waits for the device, such as ``torch.cuda.synchronize``.
    """
    wait = sync or (lambda: None)

    def measure(function: Callable[[], Any], calls: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        wait()
        return (time.perf_counter() - start) / calls

    calls = {}
    for name, function in contenders.items():
        for _ in range(warmup):
            function()
        calls[name] = max(1, round(_SAMPLE_S / measure(function, 1)))
    names = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            samples[name].append(measure(contenders[name], calls[name]))
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def ratio(slow: Timing, fast: Timing) -> dict[str, float]:
    """How many times faster ``fast`` is: median and quartiles of the rounds' own ratios."""
    low, middle, high = _quartiles([a / b for a, b in zip(slow.samples, fast.samples, strict=True)])
    return {"median": round(middle, 4), "q1": round(low, 4), "q3": round(high, 4), "n": len(slow.samples)}


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures depend on: processor, threads, packages, commit, device."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": _packages(),
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
    }


def grown(run: Callable[[], Any]) -> int:
    """By how many bytes the peak of this process, which starts from here, grows while ``run`` runs."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_memory()
    run()
    return resident_memory(peak=True) - before


def write_result(
    name: str,
    cases: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any] | None = None,
    *,
    device: str = "cpu",
) -> Path:
    """Write ``results/<name>.json``: ``{benchmark, command, date, machine, parameters, cases}``.

    With the environment's ``STADFAST_MACHINE=zen4`` the file is ``<name>_zen4.json``, beside that of another machine.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{'_'.join(filter(None, (name, os.environ.get('STADFAST_MACHINE'))))}.json"
    document = {
        "benchmark": name,
        "command": " ".join(
            ["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(no_folder, sys.argv[1:])]
        ),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(device),
        "parameters": dict(parameters or {}),
        "cases": list(cases),
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def no_folder(argument: str) -> str:
    """Where somebody keeps a file is nobody's business: ``/folder/name=/folder/file`` becomes ``name=file``."""
    return "=".join(Path(part).name if os.sep in part else part for part in argument.split("="))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table, as wide as it must be."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "stadfast" not in found:  # run from the source tree
        import stadfast

        found["stadfast"] = stadfast.__version__
    return found


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", "stadfast", "csrc", "benchmarks/*.py"
        )
        return git("rev-parse", "--short", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
