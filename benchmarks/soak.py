"""Eight threads on one Scorer for a minute: every result is the one thread's, and memory stays flat.

    python benchmarks/soak.py MODEL.safetensors [--seconds 60] [--threads 8]

Each thread scores images of its own list over and over, singly and in batches, of the network's size and of another.
What it must give was computed by one thread before. The result: calls, differences, and resident memory over time.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import Any

import torch
from common import print_table, write_result

import stadfast as sf
from stadfast.runtime.memory import resident_memory

SAMPLES = 12  # of resident memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    scorer = sf.Scorer(options.model, device="cpu", precision=options.precision)
    batches = inputs(*scorer.image_size)
    wanted = [scorer(batch) for batch in batches]
    soak = Soak(scorer, batches, wanted)
    memory = soak.run(options.threads, options.seconds)
    settled = memory[len(memory) // 4 :]
    growth = (settled[-1] - settled[0]) / settled[0]
    print_table(
        ["calls", "images", "differences", "MB", "growth after a quarter"],
        [[soak.calls, soak.images, soak.differences, f"{memory[-1]:.0f}", f"{100 * growth:.2f} %"]],
    )
    case = {
        "case": {"method": scorer.method, "precision": scorer.precision, "threads": options.threads},
        "calls": soak.calls, "images": soak.images, "differences": soak.differences,
        "resident_mb": [round(value, 1) for value in memory], "growth": round(growth, 5),
    }  # fmt: skip
    print(write_result("soak", [case], {"seconds": options.seconds}))


def inputs(height: int, width: int) -> list[torch.Tensor]:
    """Batches of 1 to 4 uint8 images, of the network's size and of another."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (batch, *size, 3) for batch in (1, 2, 4) for size in ((height, width), (height + 44, width - 6))
    ]
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]


class Soak:
    """Threads that score, and what they found."""

    def __init__(self, scorer: sf.Scorer, batches: list[torch.Tensor], wanted: list[Any]) -> None:
        self.scorer, self.batches, self.wanted = scorer, batches, wanted
        self.calls = self.images = self.differences = 0
        self.lock = threading.Lock()

    def run(self, threads: int, seconds: float) -> list[float]:
        """Resident megabytes, at equal intervals."""
        end = time.monotonic() + seconds
        workers = [threading.Thread(target=self._work, args=(i, end)) for i in range(threads)]
        for worker in workers:
            worker.start()
        memory = []
        while time.monotonic() < end:
            time.sleep(seconds / SAMPLES)
            memory.append(resident_memory() / 1e6)
        for worker in workers:
            worker.join()
        return memory

    def _work(self, index: int, end: float) -> None:
        while time.monotonic() < end:
            choice = index % len(self.batches)
            found, wanted = self.scorer(self.batches[choice]), self.wanted[choice]
            same = all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
            with self.lock:
                self.calls += 1
                self.images += len(self.batches[choice])
                self.differences += not same
            index += 1


if __name__ == "__main__":
    main()
