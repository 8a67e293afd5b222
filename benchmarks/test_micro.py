"""Every op and its plain PyTorch twin, as pytest-benchmark tests: ``make bench``."""

from __future__ import annotations

import pytest
import torch

from stadfast import ops
from stadfast.ops import reference

SHAPES = ((64, 64, 64), (128, 32, 32), (256, 16, 16))  # resnet18, layer1 to layer3, at 256x256
SIZE, GRID = (256, 256), (64, 64)
COMBINATION = ([0, 1, 2], [1.0] * 3, list(GRID), list(SIZE), "product")
EPS = 1e-12

layouts = pytest.mark.parametrize("layout", ["channels_last", "contiguous_format"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
implementations = pytest.mark.parametrize("implementation", ["compiled", "reference"])


def pyramid(seed, batch=1, layout="channels_last", dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(batch, *shape, generator=generator) for shape in SHAPES]
    return [level.to(dtype).contiguous(memory_format=getattr(torch, layout)) for level in levels]


@implementations
@layouts
@dtypes
def test_anomaly_map(benchmark, layout, dtype, implementation):
    benchmark.group = f"anomaly_map {layout} {dtype}"
    student, teacher = pyramid(0, 1, layout, dtype), pyramid(1, 1, layout, dtype)
    if implementation == "compiled":
        benchmark(ops.anomaly_map, student, teacher, SIZE, GRID)
    else:
        benchmark(reference.anomaly_map, student, teacher, *COMBINATION, EPS)


@implementations
@layouts
@dtypes
def test_pyramid_distance(benchmark, layout, dtype, implementation):
    benchmark.group = f"pyramid_distance {layout} {dtype}"
    student, teacher = pyramid(0, 1, layout, dtype), pyramid(1, 1, layout, dtype)
    if implementation == "compiled":
        benchmark(ops.pyramid_distance, student, teacher)
    else:
        benchmark(reference.pyramid_distance, student, teacher, EPS)


@implementations
def test_pyramid_distance_backward(benchmark, implementation):
    benchmark.group = "pyramid_distance with backward, batch 8"
    student, teacher = pyramid(0, 8), pyramid(1, 8)
    for level in student:
        level.requires_grad_()
    distance = ops.pyramid_distance if implementation == "compiled" else reference.pyramid_distance
    extra = () if implementation == "compiled" else (EPS,)

    def step():
        torch.autograd.grad(sum(level.mean() for level in distance(student, teacher, *extra)), student)

    benchmark(step)


@implementations
def test_upsample_combine(benchmark, implementation):
    benchmark.group = "upsample_combine"
    maps = reference.pyramid_distance(pyramid(0), pyramid(1), EPS)
    if implementation == "compiled":
        benchmark(ops.upsample_combine, maps, SIZE, GRID)
    else:
        benchmark(reference.upsample_combine, maps, *COMBINATION)
