"""AUPRO and related metrics: exact and streaming, against anomalib's exact AUPRO and adeval's binned one.

    python benchmarks/metrics.py [--quick] [--device cpu|cuda]
    python benchmarks/metrics.py --only memory      # or agreement, or long: two billion pixels

Needs the extra ``bench``. Contenders, each given the same maps and masks in memory:

* ``stadfast``: ``metrics.aupro``, exact, labelling included
* ``stadfast evaluate``: everything that ``metrics.evaluate`` gives, exact
* ``stadfast streaming``: ``metrics.AUPRO(exact=False)``, one update and compute
* ``anomalib``: ``AUPRO``'s update and compute, exact
* ``adeval``: ``auroc_aupr_aupro`` (on a GPU its CUDA form): AUROC, AP and AUPRO by 1000 bins between the
  lowest and the highest score

``agreement`` compares all with the definition, by sorting in float64; ``memory`` is the growth of a process's
peak beyond what it held with the inputs loaded; ``long`` streams two billion pixels; ``labelling`` (on a GPU)
compares ``ops.label_regions`` with a copy of as many bytes as it has to move, one a pixel in and four out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import grown, interleave, print_table, ratio, write_result

from stadfast import metrics, ops
from stadfast.runtime.memory import resident_memory

SIZES = {"100 x 256 x 256": (100, 256), "60 x 700 x 700": (60, 700), "60 x 1024 x 1024": (60, 1024)}
CONTENDERS = ("stadfast", "stadfast evaluate", "stadfast streaming", "anomalib", "adeval")
LIMIT = 0.3


def draw(count: int, side: int, kind: str = "found") -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps, a third of the images good, about 2 % of the pixels in one to three regions of the others.

    ``found`` has most defects above the good pixels (AUPRO 0.8, as a usable detector has), ``missed`` most of
    them among the good pixels, which is the hard case for our exact ranking. ``product`` has the order of
    ``missed`` over many powers of ten, as products of maps have; ``8-bit`` has its ties. In ``half`` the upper
    half of every image is one region: exact counts take their memory by the anomalous pixel.
    """
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.gamma(2.0, size=(count, 1, side // 16, side // 16)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")[:, 0].numpy()
    maps = smooth + 0.1 * rng.random((count, side, side), dtype=np.float32)
    masks = np.zeros((count, side, side), bool)
    for mask in masks[count // 3 :]:
        for _ in range(rng.integers(1, 4)):
            height, width = rng.integers(side // 20, side // 6, 2)
            y, x = rng.integers(0, side - height), rng.integers(0, side - width)
            mask[y : y + height, x : x + width] = True
    if kind == "half":
        masks[:, : side // 2] = True
    maps += (8.0 if kind == "found" else 1.5) * masks * rng.random((count, 1, 1), dtype=np.float32)
    if kind == "product":
        maps = np.exp(4.0 * maps - 30.0)
    if kind == "8-bit":
        maps = np.round(maps / maps.max() * 255.0)
    return maps.astype(np.float32), masks


def contender(name: str, maps: Any, masks: Any, device: str = "cpu") -> Callable[[], float]:
    """A function that gives the AUPRO of these maps, which lie on the device before the clock starts."""
    if device != "cpu":
        maps, masks = torch.from_numpy(maps).to(device), torch.from_numpy(masks).to(device)
    if name == "stadfast":
        return lambda: metrics.aupro(maps, masks, LIMIT)
    if name == "stadfast evaluate":
        return lambda: metrics.evaluate(maps, masks)["aupro"][f"{LIMIT:g}"]
    if name == "stadfast streaming":
        return lambda: metrics.AUPRO(LIMIT, exact=False).update(maps, masks).compute().value
    if name == "adeval":
        if not hasattr(np, "trapz"):
            np.trapz = np.trapezoid  # adeval 1.1 was written for NumPy 1
        import adeval

        if device != "cpu":
            labels = masks.to(torch.uint8)
            return lambda: float(adeval.auroc_aupr_aupro_cuda(maps, labels)[2])
        bytes_ = masks.view(np.uint8)
        return lambda: adeval.auroc_aupr_aupro(maps, bytes_)[2]
    from anomalib.metrics.aupro import _AUPRO

    scores, targets = torch.as_tensor(maps), torch.as_tensor(masks).int()

    def anomalib() -> float:
        metric = _AUPRO(fpr_limit=LIMIT).to(device)
        metric.update(scores, targets)
        return float(metric.compute())

    return anomalib


def definition(maps: np.ndarray, masks: np.ndarray, limit: float = LIMIT) -> float:
    """AUPRO by sorting all pixels, in float64."""
    from scipy.ndimage import label

    share, regions = np.zeros(masks.shape), 0
    for i, mask in enumerate(masks):
        labels, count = label(mask, structure=np.ones((3, 3)))
        share[i][mask] = (1.0 / np.bincount(labels.ravel())[1:])[labels[mask] - 1]
        regions += count
    order = np.argsort(-maps.ravel(), kind="stable")
    last = np.append(np.diff(maps.ravel()[order]) != 0, True)
    rate = np.append(0.0, np.cumsum(~masks.ravel()[order])[last] / np.count_nonzero(~masks))
    overlap = np.append(0.0, np.cumsum(share.ravel()[order])[last] / regions)
    x = np.append(rate[rate < limit], limit)
    y = np.append(overlap[rate < limit], np.interp(limit, rate, overlap))
    return float(np.trapezoid(y, x) / limit)


def speed(name: str, kind: str, anomalib_rounds: int, device: str) -> dict[str, Any]:
    """Our contenders and adeval in turn; then anomalib, which takes long, in turn with our exact one."""
    maps, masks = draw(*SIZES[name], kind)
    functions = {c: contender(c, maps, masks, device) for c in CONTENDERS}
    sync = torch.cuda.synchronize if device != "cpu" else None
    quick = {c: f for c, f in functions.items() if c != "anomalib"}
    fast = interleave(quick, repeats=15, warmup=1, sync=sync)
    pair = {c: functions[c] for c in ("stadfast", "anomalib")}
    slow = interleave(pair, anomalib_rounds, warmup=0, sync=sync)
    timings = {**fast, "anomalib": slow["anomalib"]}
    return {
        "case": {"what": "speed", "maps": name, "scores": kind, "aupro": functions["stadfast"]()},
        "timings": {c: timings[c].summary() for c in CONTENDERS},
        "ratios": {
            "anomalib / stadfast": ratio(slow["anomalib"], slow["stadfast"]),
            "adeval / stadfast": ratio(fast["adeval"], fast["stadfast"]),
            "adeval / stadfast streaming": ratio(fast["adeval"], fast["stadfast streaming"]),
            "stadfast / stadfast streaming": ratio(fast["stadfast"], fast["stadfast streaming"]),
        },
    }


def labelling(name: str) -> dict[str, Any]:
    """``label_regions`` on a GPU, and a copy that reads and writes five bytes a pixel in all."""
    masks = torch.from_numpy(draw(*SIZES[name])[1]).cuda()
    source = torch.empty(5 * masks.numel() // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    contenders = {"label_regions": lambda: ops.label_regions(masks), "copy": lambda: target.copy_(source)}
    timings = interleave(contenders, sync=torch.cuda.synchronize)
    return {
        "case": {"what": "labelling", "masks": name},
        "timings": {c: timing.summary() for c, timing in timings.items()},
        "ratios": {"label_regions / copy": ratio(timings["label_regions"], timings["copy"])},
    }


def agreement(kind: str) -> dict[str, Any]:
    """Every contender's AUPRO minus the definition's."""
    maps, masks = draw(*SIZES["100 x 256 x 256"], kind)
    truth = definition(maps, masks)
    errors = {c: contender(c, maps, masks)() - truth for c in CONTENDERS}
    bound = metrics.AUPRO(LIMIT, exact=False).update(maps, masks).compute().bound
    assert abs(errors["stadfast"]) < 1e-10
    assert abs(errors["stadfast streaming"]) <= bound + 1e-12
    return {
        "case": {"what": "agreement", "scores": kind, "aupro": truth},
        "errors": errors,
        "stadfast streaming bound": bound,
    }


def memory(name: str, kind: str) -> dict[str, Any]:
    """Each contender in a process of its own."""
    count, side = SIZES[name]
    bytes_ = {}
    for c in CONTENDERS:
        command = [sys.executable, __file__, "--measure", c, "--size", name, "--kind", kind]
        bytes_[c] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {
        "case": {"what": "memory", "maps": name, "scores": kind},
        "megabytes": {c: round(value / 1e6, 1) for c, value in bytes_.items()},
        "bytes_per_pixel": {c: round(value / (count * side * side), 2) for c, value in bytes_.items()},
    }


def measure(name: str, size: str, kind: str) -> None:
    """Print by how many bytes the peak of this process grows, libraries being loaded and warm."""
    contender(name, *draw(6, 64))()
    print(grown(contender(name, *draw(*SIZES[size], kind))))


def long(passes: int = 32) -> dict[str, Any]:
    """The largest set again and again: exact counts, and memory that does not grow."""
    maps, masks = draw(*SIZES["60 x 1024 x 1024"])
    metric = metrics.AUPRO(LIMIT, exact=False).update(maps, masks)
    once, before = metric.compute(), resident_memory()
    for _ in range(passes - 1):
        metric.update(maps, masks)
    result, state = metric.compute(), metric.state
    assert state["/total"].sum() == passes * maps.size
    assert state["/anomalous"].sum() == passes * np.count_nonzero(masks)
    assert abs(result.value - once.value) < 1e-12
    return {
        "case": {"what": "long", "pixels": passes * maps.size},
        "grown_megabytes": round((resident_memory() - before) / 1e6, 1),
        "state_megabytes": round(sum(array.nbytes for array in state.values()) / 1e6, 2),
        "value": result.value,
        "bound": result.bound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the smallest maps only, nothing written")
    parser.add_argument("--only", choices=("agreement", "memory", "long"), help="one part")
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--size", default="100 x 256 x 256", help=argparse.SUPPRESS)
    parser.add_argument("--kind", default="found", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        measure(options.measure, options.size, options.kind)
        return
    parts = {
        "agreement": lambda: [agreement(kind) for kind in ("found", "missed", "product", "8-bit")],
        "memory": lambda: [memory("60 x 700 x 700", kind) for kind in ("found", "half")],
        "long": lambda: [long()],
    }
    if options.only:
        cases = parts[options.only]()
        print(*map(json.dumps, cases), sep="\n")
        print(write_result(f"metrics_{options.only}", cases, {"limit": LIMIT}))
        return
    names = list(SIZES)[:1] if options.quick else list(SIZES)
    cases = []
    for name, kind in [(name, kind) for kind in ("found", "missed") for name in names]:
        if name == "60 x 700 x 700" and kind == "missed":
            continue
        rounds = 3 if kind == "found" or name == names[0] else 1
        cases.append(speed(name, kind, rounds, options.device))
        print_table(
            [f"{name} {kind}", *CONTENDERS, *cases[-1]["ratios"]],
            [["ms", *(f"{t['median_ms']:.1f}" for t in cases[-1]["timings"].values()),
              *(f"{r['median']:.1f}" for r in cases[-1]["ratios"].values())]],
        )  # fmt: skip
    if options.device != "cpu":
        cases += [labelling(name) for name in names]
    else:
        for part in ("agreement",) if options.quick else parts:
            cases += parts[part]()
    for case in cases:
        if case["case"]["what"] != "speed":
            print(json.dumps(case))
    if not options.quick:
        name = "metrics" if options.device == "cpu" else "metrics_cuda"
        print(write_result(name, cases, {"limit": LIMIT}, device=options.device))


if __name__ == "__main__":
    main()
