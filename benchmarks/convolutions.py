"""Our convolutions against oneDNN's, as the Scorer would run either: weights laid out ahead, bias and relu in one call.

    python benchmarks/convolutions.py [--quick]

3 x 3 without stride, the shapes of resnet18's first three stages on images of 256 x 256, two networks side by side in
bfloat16 and one in float32. The contenders agree before the clock starts and take turns. ``error`` is each one's
largest distance from sums in float64, over the largest value.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from common import interleave, print_table, ratio, write_result
from torch import Tensor

from stadfast import ops

SHAPES = [(64, 64), (128, 32), (256, 16)]  # channels, side
DTYPES = {"bf16": (torch.bfloat16, 2, 2e-2), "fp32": (torch.float32, 1, 1e-5)}  # groups, error allowed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        cases = [
            case(precision, *shape, batch, 3 if options.quick else 40)
            for precision in DTYPES for shape in SHAPES for batch in (1, 8)
        ]  # fmt: skip
    rows = [
        [
            found["case"]["precision"], "x".join(map(str, found["case"]["input"])),
            *(timing["median_ms"] for timing in found["timings"].values()),
            *(ratio["median"] for ratio in found["ratios"].values()),
        ]
        for found in cases
    ]  # fmt: skip
    print_table(["precision", "input", "stadfast ms", "oneDNN ms", "oneDNN / stadfast"], rows)
    if not options.quick:
        print(write_result("convolutions", cases))


def case(precision: str, channels: int, side: int, batch: int, rounds: int) -> dict[str, Any]:
    dtype, groups, allowed = DTYPES[precision]
    generator = torch.Generator().manual_seed(0)
    shape = [batch, groups * channels, side, side]
    x = torch.randn(shape, generator=generator).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(groups * channels, channels, 3, 3, generator=generator).to(dtype) / (
        3 * channels**0.5
    )
    bias = torch.randn(groups * channels, generator=generator)
    if not ops.convolve_takes(weight, [1, 1], [1, 1], groups):
        raise SystemExit(f"convolutions: this processor has no kernel of ours for {precision}")
    winograd = ops.winograd_takes(weight, [1, 1], [1, 1], groups)
    filters, output = ops.pack_filters(weight, winograd=winograd), torch.empty_like(x)
    square = ([1, 1], [1, 1], [1, 1], groups)
    laid_out = torch.ops.mkldnn._reorder_convolution_weight(weight, *square, shape)

    def ours() -> Tensor:
        return ops.convolve_(output, x, filters, bias, None, [3, 3], 1, [1, 1], groups, True)

    def onednn() -> Tensor:
        rest: tuple[Any, ...] = (*square, "relu", [], "")
        return torch.ops.mkldnn._convolution_pointwise(x, laid_out, bias.to(dtype), *rest)  # type: ignore[no-any-return]

    contenders = {"stadfast": ours, "oneDNN": onednn}
    exact = F.conv2d(x.double(), weight.double(), bias.double(), 1, 1, 1, groups).relu()
    errors = {name: ((run() - exact).abs().max() / exact.max()).item() for name, run in contenders.items()}
    assert max(errors.values()) < allowed, errors
    timings = interleave(contenders, repeats=rounds)
    return {
        "case": {
            "precision": precision,
            "input": shape,
            "groups": groups,
            "algorithm": "winograd" if winograd else "sums",
            "threads": torch.get_num_threads(),
        },
        "error": errors,
        "timings": {name: timing.summary() for name, timing in timings.items()},
        "ratios": {"oneDNN / stadfast": ratio(timings["oneDNN"], timings["stadfast"])},
    }


if __name__ == "__main__":
    main()
