"""Where the Scorer's time goes: every operator of the graph that it runs, one by one.

    python benchmarks/operators.py MODEL.safetensors [--precision bf16]

The operators run in a loop of Python with a clock around each, so that their sum is a few percent above a call's time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import Timing, print_table, write_result
from torch import fx

import stadfast as sf

ROUNDS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    scorer = sf.Scorer(options.model, device="cpu", precision=options.precision, threads=options.threads)
    with torch.inference_mode():
        cases = [profile(scorer, batch) for batch in (1, 8)]
    print(write_result("operators", cases, {"rounds": ROUNDS}))


class Clock(fx.Interpreter):
    """Runs the graph and notes how long each node took."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seconds: dict[str, list[float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        start = time.perf_counter()
        result = super().run_node(n)
        if n.op == "call_function":
            shape = "x".join(map(str, result.shape)) if isinstance(result, torch.Tensor) else ""
            self.seconds.setdefault(f"{n.name} {shape}".strip(), []).append(time.perf_counter() - start)
        return result


def profile(scorer: sf.Scorer, batch: int) -> dict[str, Any]:
    assert isinstance(scorer._engine, fx.GraphModule), "only the fused path has operators to look at"
    images = torch.randint(0, 256, (batch, *scorer.image_size, 3), dtype=torch.uint8)
    planar = images.permute(0, 3, 1, 2)
    clock = Clock(scorer._engine)
    calls = []
    for _ in range(ROUNDS):
        clock.run(planar)
        scorer(images)  # not timed: settles what the loop above disturbed
        start = time.perf_counter()
        scorer(images)
        calls.append(time.perf_counter() - start)
    timings = {name: Timing(tuple(seconds)) for name, seconds in clock.seconds.items()}
    total = sum(timing.median for timing in timings.values())
    rows = [[name, f"{1e3 * t.median:.3f}", f"{100 * t.median / total:.1f} %"] for name, t in timings.items()]
    print_table([f"batch {batch}", "ms", "share"], rows)
    whole = Timing(tuple(calls))
    print(f"sum {1e3 * total:.2f} ms, a call {1e3 * whole.median:.2f} ms")
    return {
        "case": {"method": scorer.method, "precision": scorer.precision, "batch": batch},
        "timings": {"call": whole.summary(), **{name: t.summary() for name, t in timings.items()}},
        "sum_ms": round(1e3 * total, 4),
    }


if __name__ == "__main__":
    main()
