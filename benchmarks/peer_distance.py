"""Distances among seven networks' descriptors: one pass, and small heads, against plain PyTorch pair by pair.

    python benchmarks/peer_distance.py [--quick] [--device cpu|cuda]

Stereotype Deepening's tree: a doctor, two masters, four bachelors; 13 pairs in three maps. Contenders:

* ``stadfast``: ``sf.ops.peer_distance`` on seven descriptors of 512 channels
* ``pytorch``: ``torch.linalg.vector_norm(a - b, dim=1)`` for each pair
* ``read``: ``torch.sum`` of every descriptor, the time of the way through memory
* end to end, from the networks' codes of k channels to the maps: ``pytorch heads`` makes the 512-channel descriptors
  (1x1 convolutions) and compares them pair by pair; ``stadfast heads`` is ``sf.ops.code_distance`` with the heads of
  ``sf.ops.reduce_heads``

``peak_mb`` is by how much the memory of a process of its own grows at its peak while it computes; the codes or
descriptors that it is given are there before. Reducing the heads belongs to the making of a detector and is timed
on its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import grown, interleave, print_table, ratio, write_result
from torch import Tensor

import stadfast as sf

NETWORKS, CHANNELS = 7, 512
PAIRS = [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6), (1, 2), *itertools.combinations(range(3, 7), 2)]
GROUPS = [0] * 2 + [1] * 4 + [2] * 7
LAYOUTS = {"planar": torch.contiguous_format, "channels_last": torch.channels_last}


def pair_by_pair(x: list[Tensor]) -> Tensor:
    maps: list[Any] = [0, 0, 0]
    for (i, j), group in zip(PAIRS, GROUPS, strict=True):
        maps[group] = maps[group] + torch.linalg.vector_norm(x[i] - x[j], dim=1)
    return torch.stack(maps, dim=1)


def apply(heads: list[tuple[Tensor, Tensor]], codes: list[Tensor]) -> list[Tensor]:
    return [F.conv2d(z, w[:, :, None, None], b) for (w, b), z in zip(heads, codes, strict=True)]


def contenders(kind: str, code: int, size: int, layout: str, device: str) -> dict[str, Callable[[], Any]]:
    """From descriptors (``kind`` "descriptors"), or from codes through heads ("heads")."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(device)  # noqa: E731
    heads = [(draw(CHANNELS, code), draw(CHANNELS)) for _ in range(NETWORKS)]
    codes = [draw(1, code, size, size).to(memory_format=LAYOUTS[layout]) for _ in range(NETWORKS)]
    if kind == "descriptors":
        x = [y.contiguous(memory_format=LAYOUTS[layout]) for y in apply(heads, codes)]
        return {
            "stadfast": lambda: sf.ops.peer_distance(x, PAIRS, GROUPS),
            "pytorch": lambda: pair_by_pair(x),
            "read": lambda: [y.sum() for y in x],
        }
    weights, biases = zip(*heads, strict=True)
    small = sf.ops.reduce_heads(weights, biases)
    return {
        "stadfast": lambda: sf.ops.code_distance(codes, *small, PAIRS, GROUPS),
        "pytorch": lambda: pair_by_pair(apply(heads, codes)),
        "reduce_heads": lambda: sf.ops.reduce_heads(weights, biases),
    }


def case(kind: str, code: int, size: int, layout: str, device: str, repeats: int) -> dict[str, Any]:
    functions = contenders(kind, code, size, layout, device)
    with torch.inference_mode():
        torch.testing.assert_close(functions["stadfast"](), functions["pytorch"](), rtol=1e-4, atol=1e-4)
        timings = interleave(functions, repeats, 1, sync=torch.cuda.synchronize if device != "cpu" else None)
    result: dict[str, Any] = {
        "case": {"from": kind, "code": code, "size": size, "layout": layout},
        "timings": {name: timing.summary() for name, timing in timings.items()},
        "ratios": {"pytorch / stadfast": ratio(timings["pytorch"], timings["stadfast"])},
    }
    if device == "cpu":
        result["peak_mb"] = {name: peak(kind, code, size, layout, name) for name in ("stadfast", "pytorch")}
    return result


def peak(kind: str, code: int, size: int, layout: str, name: str) -> float:
    """Megabytes that one contender's peak adds to a fresh process."""
    command = [sys.executable, __file__, "--peak", json.dumps([kind, code, size, layout, name])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(kind: str, code: int, size: int, layout: str, name: str) -> None:
    contenders(kind, code, 32, layout, "cpu")[name]()  # libraries loaded and warm
    function = contenders(kind, code, size, layout, "cpu")[name]
    with torch.inference_mode():
        print(grown(function) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="64 x 64, nothing written")
    parser.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # the heads are convolutions: in fp32 for both
    if options.peak:
        print_peak(*options.peak)
        return
    size, repeats = (64, 5) if options.quick else (256, 15)
    kinds = [("descriptors", 4), ("heads", 1), ("heads", 4)]
    cases = [
        case(kind, code, size, layout, options.device, repeats)
        for (kind, code), layout in itertools.product(kinds, LAYOUTS)
    ]
    rows = [
        [*c["case"].values(), *(f"{c['timings'][n]['median_ms']:.1f}" for n in ("stadfast", "pytorch")),
         f"{c['ratios']['pytorch / stadfast']['median']:.1f}", *c.get("peak_mb", {}).values()]
        for c in cases
    ]  # fmt: skip
    memory = ["stadfast MB", "pytorch MB"] if options.device == "cpu" else []
    print_table(["from", "code", "size", "layout", "stadfast ms", "pytorch ms", "ratio", *memory], rows)
    if not options.quick:
        name = "peer_distance" if options.device == "cpu" else "peer_distance_cuda"
        print(write_result(name, cases, {"networks": NETWORKS, "channels": CHANNELS}, device=options.device))


if __name__ == "__main__":
    main()
