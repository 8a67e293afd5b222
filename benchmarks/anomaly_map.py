"""The fused anomaly map against anomalib's AnomalyMapGenerator and plain PyTorch, on the same features.

    python benchmarks/anomaly_map.py [--quick] [--device cpu|cuda]

Needs the extra ``bench``. Contenders, each given the same tensors and giving a (B, 1, 256, 256) map:

* ``stadfast``: ``sf.ops.anomaly_map(student, teacher, size)``, levels upsampled to the image as in anomalib
* ``stadfast official``: the same with ``grid`` = the largest level, as STPM's authors do
* ``anomalib``: ``AnomalyMapGenerator`` (its maps are 1/8 of ours: a factor 1/2 for each of three levels)
* ``pytorch``: F.normalize, difference, square, sum, F.interpolate, product

and two yardsticks of the time that the features' way through memory takes: ``read`` sums every tensor
(``torch.sum``, a reduction that only reads), ``copy`` copies every tensor into memory that is already there.
"""

from __future__ import annotations

import argparse
import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from anomalib.models.image.stfpm.anomaly_map import AnomalyMapGenerator
from common import interleave, print_table, ratio, write_result
from torch import Tensor

import stadfast as sf

SIZE = (256, 256)
LAYERS = ("layer1", "layer2", "layer3")
SHAPES = {  # channels and stride of layer1 to layer3
    "resnet18": ((64, 4), (128, 8), (256, 16)),
    "wide_resnet50_2": ((256, 4), (512, 8), (1024, 16)),
}


def features(network: str, batch: int, layout: torch.memory_format, device: str, seed: int) -> list[Tensor]:
    """What the network's last ReLUs give, in shape and sign; the time does not depend on the values."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, channels, SIZE[0] // stride, SIZE[1] // stride) for channels, stride in SHAPES[network]]
    levels = [torch.randn(shape, generator=generator).relu().to(device) for shape in shapes]
    return [level.contiguous(memory_format=layout) for level in levels]


def pytorch_map(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The same map in eager PyTorch."""
    maps = []
    for s, t in zip(student, teacher, strict=True):
        distance = (F.normalize(s) - F.normalize(t)).square().sum(1, keepdim=True)
        maps.append(F.interpolate(distance, SIZE, mode="bilinear", align_corners=False))
    return math.prod(maps[1:], start=maps[0])


def case(network: str, batch: int, layout_name: str, device: str, repeats: int) -> dict[str, Any]:
    """Time all contenders on one set of features; they must agree first."""
    layout = getattr(torch, {"planar": "contiguous_format"}.get(layout_name, layout_name))
    student, teacher = (features(network, batch, layout, device, seed) for seed in (0, 1))
    generator = AnomalyMapGenerator()
    named = [dict(zip(LAYERS, levels, strict=True)) for levels in (teacher, student)]
    targets = [torch.empty_like(level) for level in student]
    grid = (student[0].shape[-2], student[0].shape[-1])

    contenders = {
        "stadfast": lambda: sf.ops.anomaly_map(student, teacher, SIZE),
        "stadfast official": lambda: sf.ops.anomaly_map(student, teacher, SIZE, grid),
        "anomalib": lambda: generator(teacher_features=named[0], student_features=named[1], image_size=SIZE),
        "pytorch": lambda: pytorch_map(student, teacher),
        "read": lambda: [level.sum() for level in (*student, *teacher)],
        "copy": lambda: [target.copy_(level) for levels in (student, teacher)
                         for target, level in zip(targets, levels, strict=True)],
    }  # fmt: skip
    with torch.inference_mode():
        ours = contenders["stadfast"]()
        torch.testing.assert_close(contenders["anomalib"]() * 8, ours, rtol=1e-4, atol=1e-12)
        torch.testing.assert_close(contenders["pytorch"](), ours, rtol=1e-4, atol=1e-12)
        timings = interleave(contenders, repeats, sync=torch.cuda.synchronize if device != "cpu" else None)
    return {
        "case": {"network": network, "batch": batch, "layout": layout_name,
                 "megabytes": round(2 * sum(level.nbytes for level in student) / 1e6, 3)},
        "timings": {name: timing.summary() for name, timing in timings.items()},
        "ratios": {
            "anomalib / stadfast": ratio(timings["anomalib"], timings["stadfast"]),
            "pytorch / stadfast": ratio(timings["pytorch"], timings["stadfast"]),
            "stadfast / read": ratio(timings["stadfast"], timings["read"]),
            "stadfast / copy": ratio(timings["stadfast"], timings["copy"]),
            "anomalib / stadfast official": ratio(timings["anomalib"], timings["stadfast official"]),
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="resnet18, batch 1 only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    networks, batches = (("resnet18",), (1,)) if options.quick else (tuple(SHAPES), (1, 8, 16))
    cases, rows = [], []
    for network, batch, layout in itertools.product(networks, batches, ("channels_last", "planar")):
        result = case(network, batch, layout, options.device, repeats=60 if batch == 1 else 25)
        cases.append(result)
        milliseconds = [f"{result['timings'][name]['median_ms']:.3f}" for name in result["timings"]]
        ratios = [f"{value['median']:.2f}" for value in result["ratios"].values()]
        rows.append([network, batch, layout, *milliseconds, *ratios])
        print(f"{network} batch {batch} {layout}: anomalib / stadfast {ratios[0]}", flush=True)
    times = [f"{name} ms" for name in cases[0]["timings"]]
    print_table(["network", "batch", "layout", *times, *cases[0]["ratios"]], rows)
    if not options.quick:
        name = "anomaly_map" if options.device == "cpu" else "anomaly_map_cuda"
        print(write_result(name, cases, {"size": SIZE}, device=options.device))


if __name__ == "__main__":
    main()
