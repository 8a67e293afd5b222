"""Rows per second of exact streaming against overlapped tiles at equal delay, and against the whole strip at once.

    python benchmarks/linescan.py [--quick] [--only main|rates|images|seams] [--device cuda]

``main``: STPM with resnet18, random weights, as they do not change the time. All three run the same network on the same
rows, with batch norm folded and the same fused convolutions, and agree before the clock starts. They take turns, each
with 4096 rows in a go, as a web has no end: what one finds of another's in the caches is gone by then. The times are
for one row of the map.

* ``exact``: ``RowStreamer.push`` of ``rows`` rows in the steady state.
* ``tiled``: tiles of ``rows`` rows with 112 more on both sides, of which nothing is kept, for the delay of ``exact``:
  the ``Scorer``'s graph for this size. The network reaches 130 rows up, so that seams of about 1e-4 are left.
* ``whole``: 1024 rows at once, without overlap: the ``Scorer``'s graph for that size.
* ``whole_pytorch``: the same before the graph's convolutions are replaced: PyTorch's own, with batch norm folded.
* ``long_pushes``: as ``exact`` in pushes of 256 rows, for those who can wait: weights are read for as much work.

``rates``: rows per second of ``exact`` in the steady state over width, rows per push, precision, method and threads;
with ``--device cuda`` on a GPU, from rows in the host's memory to maps there.
``images``: images of several sizes through ``NativeMaps`` row block by row block (``depth_first``) and at once; one of
20000 x 4096 row block by row block, in a process of its own, with the peak of its memory.
``seams``: MKD in tiles, random weights: its map is the gradient of a loss of the whole tile. The difference of
neighbouring tiles' maps over the map's maximum, in all rows that both have, and in the two rows at the seam.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from common import Timing, grown, interleave, print_table, ratio, write_result
from torch import Tensor, fx

from stadfast.linescan import NativeMaps, RowStreamer, native_maps
from stadfast.methods import ScoringGraph, create
from stadfast.methods.graph import Preprocess
from stadfast.runtime.export import record
from stadfast.runtime.fusion import fuse
from stadfast.runtime.lowering import lower, propagate
from stadfast.runtime.memory import keep_freed_memory
from stadfast.runtime.precision import DTYPES, narrow
from stadfast.runtime.preparation import fuse_preparation
from stadfast.runtime.siblings import join

OVERLAP, LONG, WHOLE, SAMPLE = 112, 256, 1024, 4096
ROUNDS = 9
WIDTHS, PUSHES, PRECISIONS, THREADS = (512, 1024, 2048, 4096), (16, 64, 256), ("fp32", "bf16"), (2, 1)
METHODS: dict[str, dict[str, Any]] = {
    "stpm": {}, "et-stpm": {}, "rstpm": {}, "msfi": {"scales": [256]}, "mkd": {},
}  # fmt: skip
SIDES, LARGE = (256, 512, 724, 1024, 2048), (20000, 4096)


def untrained(method: str = "stpm") -> Any:
    detector = create(method, weights=None, device="cpu", **METHODS[method])
    graph = ScoringGraph(*detector._build(pretrained=False))
    generator = torch.Generator().manual_seed(0)
    for tensor in graph.network.state_dict().values():  # else student and teacher are the same
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.2 * torch.randn(tensor.shape, generator=generator))
    detector._adopt(graph)
    return detector


@torch.no_grad()
def folded(detector: Any, height: int, width: int, precision: str) -> fx.GraphModule:
    """The detector's graph for one native size, with batch norm folded."""
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
    return graph


@torch.no_grad()
def fused(detector: Any, height: int, width: int, precision: str) -> fx.GraphModule:
    """The same as the Scorer runs it."""
    graph = folded(detector, height, width, precision)
    if precision != "fp32":
        join(graph)
    fuse_preparation(graph)
    fuse(graph)
    return graph


def differences(
    streamer: RowStreamer, tile: fx.GraphModule, whole: fx.GraphModule, pytorch: fx.GraphModule, strip: Tensor,
    rows: int,
) -> dict[str, float]:  # fmt: skip
    """The largest difference to the whole strip's map, over this map's maximum."""
    expected = whole(strip)[2]
    maps = torch.cat([*(streamer.push(part) for part in strip.split(rows, dim=2)), streamer.finish()], dim=2)
    start = WHOLE // 2 - rows
    kept = tile(strip[:, :, start - OVERLAP : start + rows + OVERLAP])[2][:, :, OVERLAP : OVERLAP + rows]
    found = {
        "exact": maps - expected,
        "tiled": kept - expected[:, :, start : start + rows],
        "whole_pytorch": pytorch(strip)[2] - expected,
    }
    return {name: (difference.abs().max() / expected.max()).item() for name, difference in found.items()}


@torch.inference_mode()
def case(detector: Any, width: int, rows: int, precision: str, rounds: int) -> dict[str, Any]:
    streamer = RowStreamer(detector, width, rows, precision=precision)
    tile = fused(detector, rows + 2 * OVERLAP, width, precision)
    whole = fused(detector, WHOLE, width, precision)
    whole_pytorch = folded(detector, WHOLE, width, precision)
    strip = torch.rand(1, 3, WHOLE, width, generator=torch.Generator().manual_seed(1))
    found = differences(streamer, tile, whole, whole_pytorch, strip, rows)
    for name, limit in (("exact", 1e-5), ("tiled", 1e-3), ("whole_pytorch", 1e-5)):
        assert found[name] < (limit if precision == "fp32" else 0.1), found
    patient = RowStreamer(detector, width, LONG, precision=precision)
    for each in (streamer, patient):
        each.push(strip)  # to the steady state
    long_block = strip[:, :, :LONG].contiguous()
    block, tiled = strip[:, :, :rows].contiguous(), strip[:, :, : rows + 2 * OVERLAP].contiguous()
    contenders: dict[str, Callable[[], Any]] = {
        "exact": lambda: [streamer.push(block) for _ in range(SAMPLE // rows)],
        "tiled": lambda: [tile(tiled) for _ in range(SAMPLE // rows)],
        "whole": lambda: [whole(strip) for _ in range(SAMPLE // WHOLE)],
        "whole_pytorch": lambda: [whole_pytorch(strip) for _ in range(SAMPLE // WHOLE)],
        "long_pushes": lambda: [patient.push(long_block) for _ in range(SAMPLE // LONG)],
    }
    timings = interleave(contenders, repeats=rounds, warmup=1)
    per_row = {name: Timing(tuple(s / SAMPLE for s in timing.samples)) for name, timing in timings.items()}
    return {
        "case": {"method": "stpm", "network": "resnet18", "width": width, "rows_per_push": rows,
                 "precision": precision, "overlap": OVERLAP, "long_push": LONG, "whole_rows": WHOLE,
                 "sample_rows": SAMPLE},
        "delay_rows": {"exact": streamer.delay_rows, "tiled": OVERLAP + rows - 1},
        "state_bytes": streamer.state_bytes,
        "largest_relative_difference": found,
        "timings": {name: timing.summary() for name, timing in per_row.items()},
        "rows_per_second": {name: round(1 / timing.median) for name, timing in per_row.items()},
        "ratios": {
            f"{peer} / {ours}": ratio(per_row[peer], per_row[ours])
            for peer, ours in (
                ("tiled", "exact"), ("whole_pytorch", "exact"), ("whole", "exact"), ("whole", "long_pushes"),
            )
        },
    }  # fmt: skip


@torch.inference_mode()
def rates(
    method: str, widths: Sequence[int], pushes: Sequence[int], samples: int, device: str
) -> list[dict[str, Any]]:
    """The steady state of one method; the median of ``samples``, each of pushes of some 512 rows in a go."""
    detector, found = untrained(method), []
    for precision in PRECISIONS:
        for rows in pushes:
            streamer = RowStreamer(
                detector,
                widths[0],
                max(rows, 32) if method == "rstpm" else rows,
                device=device,
                precision=precision,
            )
            for width in widths:
                streamer.set_width(width)
                block = torch.rand(1, 3, streamer.rows_per_push or rows, width)
                while streamer.rows < streamer.module.settled + rows:
                    streamer.push(block)
                pushes_in_a_go = max(1, 512 // block.shape[2])
                for threads in THREADS if device == "cpu" else THREADS[:1]:
                    torch.set_num_threads(threads)
                    run = partial(push_all, streamer, block, pushes_in_a_go)
                    timing = interleave({"push": run}, samples, 1)["push"]
                    timing = Timing(tuple(s / pushes_in_a_go for s in timing.samples))
                    found.append({
                        "case": {"method": method, "width": width, "rows_per_push": block.shape[2],
                                 "precision": precision, "threads": threads},
                        "delay_rows": streamer.delay_rows, "state_bytes": streamer.state_bytes,
                        "timings": {"push": timing.summary()},
                        "rows_per_second": round(block.shape[2] / timing.median),
                    })  # fmt: skip
                torch.set_num_threads(max(THREADS))
    return found


def push_all(streamer: RowStreamer, block: Tensor, count: int) -> None:
    for _ in range(count):
        streamer.push(block).cpu()


def single_images(sides: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Images of one size after the other, by a network that was converted before."""
    detector, found = untrained(), []
    for precision, side in itertools.product(PRECISIONS, sides):
        image = torch.rand(1, 3, side, side)
        contenders = {
            name: partial(NativeMaps(detector, depth_first=first, precision=precision), image)
            for name, first in (("depth_first", True), ("at_once", False))
        }
        timings = interleave(contenders, repeats=rounds, warmup=2)
        found.append({
            "case": {"method": "stpm", "image": [side, side], "precision": precision},
            "timings": {name: timing.summary() for name, timing in timings.items()},
            "ratios": {"at_once / depth_first": ratio(timings["at_once"], timings["depth_first"])},
        })  # fmt: skip
    return found


def large_image(height: int, width: int) -> dict[str, Any]:
    """In this process: the time, and by how much the peak of the memory grows beyond image and map."""
    detector, maps = untrained(), []
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    native_maps(detector, image[:, :, :256, :256], depth_first=True, precision="bf16")  # libraries
    start = time.perf_counter()
    peak = grown(lambda: maps.append(native_maps(detector, image, precision="bf16")))
    seconds = time.perf_counter() - start
    return {
        "case": {"method": "stpm", "image": [height, width], "precision": "bf16"},
        "seconds": round(seconds, 2), "rows_per_second": round(height / seconds),
        "bytes": {"image": image.nbytes, "map": maps[0].nbytes, "grown_beyond_the_map": peak - maps[0].nbytes},
    }  # fmt: skip


def seam(detector: Any, strip: Tensor, rows: int, overlap: int) -> dict[str, Any]:
    """How far neighbouring tiles' maps are apart, over the largest value of either."""
    found: dict[str, list[float]] = {"shared_rows": [], "seam": []}
    boundaries = range(overlap + rows, strip.shape[2] - overlap - rows + 1, rows)
    for boundary in boundaries:
        first, second = (
            native_maps(detector, strip[:, :, start - overlap : start + rows + overlap], depth_first=False)
            for start in (boundary - rows, boundary)
        )
        top = max(first.max().item(), second.max().item())
        difference = (first[:, :, rows:] - second[:, :, : 2 * overlap]).abs() / top
        found["shared_rows"].append(difference.max().item())
        found["seam"].append(difference[:, :, overlap - 1 : overlap + 1].max().item())
    return {
        "case": {"method": "mkd", "width": strip.shape[3], "rows_per_push": rows, "overlap": overlap,
                 "seams": len(boundaries)},
        "largest_relative_difference": {name: round(max(values), 4) for name, values in found.items()},
    }  # fmt: skip


def print_main(cases: list[dict[str, Any]]) -> None:
    table = []
    for result in cases:
        speed, ratios = result["rows_per_second"], result["ratios"]
        table.append([
            result["case"]["precision"], *speed.values(),
            *(f"{r['median']:.2f} ({r['q1']:.2f} to {r['q3']:.2f})" for r in ratios.values()),
        ])  # fmt: skip
    print_table(["precision", *cases[0]["rows_per_second"], *cases[0]["ratios"]], table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("main", "rates", "images", "large", "seams"), default="main")
    parser.add_argument("--quick", action="store_true", help="a narrow strip, three rounds, nothing written")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the rates")
    options = parser.parse_args()
    if options.device != "cpu" and options.only != "rates":
        parser.error("--device: only --only rates runs on a GPU")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.only == "large":
        print(json.dumps(large_image(*((2000, 256) if options.quick else LARGE))))
        return
    cases: list[dict[str, Any]] = []
    if options.only == "main":
        width, rounds = (128, 3) if options.quick else (1024, ROUNDS)
        cases += [case(untrained(), width, 64, precision, rounds) for precision in PRECISIONS]
        print_main(cases)
    if options.only == "rates":
        for method in (name for name in METHODS if name != "mkd"):
            full = method == "stpm" and not options.quick
            widths = WIDTHS if full else (128 if options.quick else 1024,)
            found = rates(
                method, widths, PUSHES if full else (64,), 3 if options.quick else 5, options.device
            )
            print_table(
                ["method", "width", "rows", "precision", "threads", "rows/s"],
                [[*result["case"].values(), result["rows_per_second"]] for result in found],
            )
            cases += found
    if options.only == "images":
        images = single_images((128,) if options.quick else SIDES, 7)
        command = [sys.executable, __file__, "--only", "large", *(["--quick"] if options.quick else [])]
        images.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(*(json.dumps(result) for result in images), sep="\n")
        cases += images
    if options.only == "seams":
        strip = torch.rand(
            1, 3, 576, 64 if options.quick else 128, generator=torch.Generator().manual_seed(1)
        )
        cases += [seam(untrained("mkd"), strip, 64, overlap) for overlap in (32, 128)]
        print(*(json.dumps(result) for result in cases), sep="\n")
    if not options.quick:
        part = "" if options.only == "main" else f"_{options.only}"
        place = "" if options.device == "cpu" else f"_{options.device}"
        print(write_result(f"linescan{part}{place}", cases, device=options.device))


if __name__ == "__main__":
    main()
