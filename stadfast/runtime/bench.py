"""Honest latency: contenders in turn, warmed up, synchronised, with percentiles and the machine described."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..methods.hardware import cpu_name
from .memory import resident_memory

Contender = Callable[[Tensor], Any]
_WARM_UP = 3


class Timing(NamedTuple):
    """Seconds per call, one sample a round."""

    samples: tuple[float, ...]

    def percentile(self, share: float) -> float:
        return float(torch.quantile(torch.tensor(self.samples, dtype=torch.float64), share))

    def summary(self, images: int) -> dict[str, float]:
        """Percentiles in milliseconds per call, and images per second at the median."""
        return {
            **{f"p{n}_ms": round(1e3 * self.percentile(n / 100), 4) for n in (50, 95, 99)},
            "images_per_s": round(images / self.percentile(0.5), 2),
            "n": len(self.samples),
        }


def interleave(
    contenders: Mapping[str, Callable[[], Any]], rounds: int, sync: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Time the contenders in turn, each round starting with another, so that what disturbs one disturbs all.

    Each turn is a call that is not timed and one that is: threads of the contender before, which still wait for work
    in a loop (OpenMP's and TBB's do, for milliseconds), would slow down the first.
    """
    names = list(contenders)
    for name in names:
        for _ in range(_WARM_UP):
            contenders[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            contenders[name]()
            sync()
            start = time.perf_counter()
            contenders[name]()
            sync()
            samples[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def measure(
    contenders: Mapping[str, Contender],
    images: Tensor,
    batches: Sequence[int],
    rounds: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """One case per batch size: timings of all contenders on the same images, and their ratios to the first.

    Args:
        contenders: name -> function of images (B, H, W, 3) uint8 on the CPU; the first is ours.
        images: (N, H, W, 3) uint8, repeated where a batch is larger.
        batches: sizes.
        rounds: samples per contender; a third of them for batches of 8 and more.
        device: to wait for.
    """
    cases = []
    sync = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    ours = next(iter(contenders))
    for batch in batches:
        chosen = images[torch.arange(batch) % len(images)].contiguous()
        calls = {name: _bind(function, chosen) for name, function in contenders.items()}
        timings = interleave(calls, rounds if batch < 8 else max(5, rounds // 3), sync)
        case = {
            "batch": batch,
            "timings": {name: timing.summary(batch) for name, timing in timings.items()},
            "ratios": {
                f"{name} / {ours}": _ratio(timings[name], timings[ours]) for name in timings if name != ours
            },
        }
        cases.append(case)
    return cases


def peak_memory(device: torch.device) -> float:
    """The most memory so far in MB: the GPU's, or the process's with all of Python and torch in it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resident_memory(peak=True) / 1e6


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _bind(function: Contender, images: Tensor) -> Callable[[], Any]:
    return lambda: function(images)


def _ratio(theirs: Timing, ours: Timing) -> float:
    """How many times faster we are: the median of the rounds' own ratios."""
    return round(statistics.median(a / b for a, b in zip(theirs.samples, ours.samples, strict=True)), 4)
