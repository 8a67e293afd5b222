"""Rows per second of exact streaming against overlapped tiles at equal delay, and against the whole strip at once.

    python benchmarks/linescan.py [--quick] [--width 1024] [--rows 64]

STPM with resnet18, random weights, as they do not change the time. All three run the same network on the same rows,
with batch norm folded and oneDNN's fused convolutions, and agree before the clock starts. They take turns. The times
are for one row of the map.

* ``exact``: ``RowStreamer.push`` of ``rows`` rows in the steady state.
* ``tiled``: tiles of ``rows`` rows with 112 more on both sides, of which nothing is kept, for the delay of ``exact``:
  the ``Scorer``'s graph for this size. The network reaches 130 rows up, so that seams of about 1e-4 are left.
* ``whole``: 1024 rows at once, without overlap: the ``Scorer``'s graph for that size.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from common import Timing, interleave, print_table, ratio, write_result
from torch import Tensor, fx

import stadfast as sf
from stadfast.linescan import RowStreamer
from stadfast.methods import ScoringGraph
from stadfast.methods.graph import Preprocess
from stadfast.runtime.export import record
from stadfast.runtime.fusion import fuse
from stadfast.runtime.lowering import lower, propagate
from stadfast.runtime.memory import keep_freed_memory
from stadfast.runtime.precision import DTYPES, narrow
from stadfast.runtime.siblings import join

OVERLAP, WHOLE = 112, 1024
ROUNDS = 15


def untrained() -> sf.STPM:
    detector = sf.STPM("resnet18", weights=None, device="cpu")
    graph = ScoringGraph(*detector._build(pretrained=False))
    generator = torch.Generator().manual_seed(0)
    for tensor in graph.network.student.state_dict().values():  # else student and teacher are the same
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.2 * torch.randn(tensor.shape, generator=generator))
    detector._adopt(graph)
    return detector


@torch.no_grad()
def fused(detector: sf.STPM, height: int, width: int, precision: str) -> fx.GraphModule:
    """The detector's graph for one native size, as the Scorer runs it."""
    network = copy.copy(detector.graph_.network)
    network.size = (height, width)
    preprocess = detector.graph_.preprocess
    resized = Preprocess(
        (height, width), preprocess.mean.flatten().tolist(), preprocess.std.flatten().tolist()
    )
    example = torch.rand(1, 3, height, width)
    graph = lower(record(ScoringGraph(resized, network).eval(), example), torch.device("cpu"))
    propagate(graph, example)
    narrow(graph, DTYPES[precision])
    propagate(graph, example)
    if precision != "fp32":
        join(graph)
    fuse(graph)
    return graph


def differences(
    streamer: RowStreamer, tile: fx.GraphModule, whole: fx.GraphModule, strip: Tensor, rows: int
) -> dict[str, float]:
    """The largest difference to the whole strip's map, over this map's maximum."""
    expected = whole(strip)[2]
    maps = torch.cat([*(streamer.push(part) for part in strip.split(rows, dim=2)), streamer.finish()], dim=2)
    start = WHOLE // 2 - rows
    kept = tile(strip[:, :, start - OVERLAP : start + rows + OVERLAP])[2][:, :, OVERLAP : OVERLAP + rows]
    found = {"exact": maps - expected, "tiled": kept - expected[:, :, start : start + rows]}
    return {name: (difference.abs().max() / expected.max()).item() for name, difference in found.items()}


@torch.inference_mode()
def case(detector: sf.STPM, width: int, rows: int, precision: str, rounds: int) -> dict[str, Any]:
    streamer = RowStreamer(detector, width, rows, precision=precision)
    tile = fused(detector, rows + 2 * OVERLAP, width, precision)
    whole = fused(detector, WHOLE, width, precision)
    strip = torch.rand(1, 3, WHOLE, width, generator=torch.Generator().manual_seed(1))
    found = differences(streamer, tile, whole, strip, rows)
    assert found["exact"] < (1e-5 if precision == "fp32" else 0.1), found
    assert found["tiled"] < (1e-3 if precision == "fp32" else 0.1), found
    streamer.push(strip)  # to the steady state
    block, tiled = strip[:, :, :rows].contiguous(), strip[:, :, : rows + 2 * OVERLAP].contiguous()
    contenders: dict[str, Callable[[], Any]] = {
        "exact": lambda: streamer.push(block),
        "tiled": lambda: tile(tiled),
        "whole": lambda: whole(strip),
    }
    kept = {"exact": rows, "tiled": rows, "whole": WHOLE}
    timings = interleave(contenders, repeats=rounds, warmup=2)
    per_row = {
        name: Timing(tuple(s / kept[name] for s in timing.samples)) for name, timing in timings.items()
    }
    return {
        "case": {"method": "stpm", "network": "resnet18", "width": width, "rows_per_push": rows,
                 "precision": precision, "overlap": OVERLAP, "whole_rows": WHOLE},
        "delay_rows": {"exact": streamer.delay_rows, "tiled": OVERLAP + rows - 1},
        "state_bytes": streamer.state_bytes,
        "largest_relative_difference": found,
        "timings": {name: timing.summary() for name, timing in per_row.items()},
        "rows_per_second": {name: round(1 / timing.median) for name, timing in per_row.items()},
        "ratios": {f"{peer} / exact": ratio(per_row[peer], per_row["exact"]) for peer in ("tiled", "whole")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a narrow strip, three rounds, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    detector = untrained()
    width, rounds = (128, 3) if options.quick else (options.width, ROUNDS)
    cases = [case(detector, width, options.rows, precision, rounds) for precision in ("fp32", "bf16")]
    table = []
    for result in cases:
        speed, ratios = result["rows_per_second"], result["ratios"]
        table.append([
            result["case"]["precision"], *(speed[name] for name in ("exact", "tiled", "whole")),
            *(f"{r['median']:.2f} ({r['q1']:.2f} to {r['q3']:.2f})" for r in ratios.values()),
        ])  # fmt: skip
    print_table(["precision", "exact rows/s", "tiled", "whole", *cases[0]["ratios"]], table)
    if not options.quick:
        print(write_result("linescan", cases))


if __name__ == "__main__":
    main()
