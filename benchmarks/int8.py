"""Would int8 pay? The speed of oneDNN's int8 convolutions, and what int8 rounding does to a fitted model's figures.

    python benchmarks/int8.py bottle/=bottle.safetensors

Speed: each of the network's convolutions, joined as the Scorer joins them, in bf16 and in int8 (both oneDNN's, ReLU
inside, weights laid out ahead). Accuracy: fp32 with every convolution's input and weight rounded to int8, the most
favourable form (unsigned inputs where they are, one scale a tensor from the good images' largest value, one a channel
for weights), so that whatever a real int8 graph does beyond that is not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import interleave, print_table, ratio, write_result
from torch import Tensor, fx

import stadfast as sf
from stadfast.data import read_image
from stadfast.runtime.export import example_images, record_on_cpu, unlike_inputs
from stadfast.runtime.fusion import CONVOLUTION, convolution
from stadfast.runtime.lowering import lower, propagate
from stadfast.runtime.memory import keep_freed_memory
from stadfast.runtime.siblings import join

CALIBRATION = 32  # good images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="DATA=MODEL", help="a folder in MVTec's layout and its model")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, model = map(Path, options.model.split("=", 1))
    keep_freed_memory()  # as the Scorer does
    detector, dataset = sf.load(model, device="cpu"), sf.MVTecLayout(data)
    with torch.inference_mode():
        cases = [speed(detector, batch) for batch in (1, 8)] + [accuracy(detector, dataset)]
    print(write_result("int8", cases))


def graph_of(detector: sf.Detector) -> fx.GraphModule:
    graph = detector.graph_
    recorded = record_on_cpu(graph, example_images(unlike_inputs(graph.preprocess)))
    return lower(recorded, torch.device("cpu"))


def speed(detector: sf.Detector, batch: int) -> dict[str, Any]:
    """All convolutions of the joined graph one after the other, on inputs of their own."""
    module = graph_of(detector)
    propagate(module, example_images(tuple(detector.graph_.preprocess.size))[:1].expand(batch, -1, -1, -1))
    join(module)
    nodes = [node for node in module.graph.nodes if node.target is CONVOLUTION]
    calls = {"bf16": [bf16(module, node) for node in nodes], "int8": [int8(module, node) for node in nodes]}
    contenders = {name: (lambda runs=runs: [run() for run in runs]) for name, runs in calls.items()}
    timings = interleave(contenders, 30)
    print_table(
        ["batch", "bf16 ms", "int8 ms"], [[batch, *(f"{1e3 * t.median:.2f}" for t in timings.values())]]
    )
    return {
        "case": {"what": "all convolutions", "batch": batch, "convolutions": len(nodes)},
        "timings": {name: timing.summary() for name, timing in timings.items()},
        "ratios": {"bf16 / int8": ratio(timings["bf16"], timings["int8"])},
    }


def bf16(module: fx.GraphModule, node: fx.Node) -> Any:
    conv, weight = convolution(node), weight_of(module, node).bfloat16()
    shape, ops = list(conv.x.meta["shape"]), torch.ops.mkldnn
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    laid_out = ops._reorder_convolution_weight(weight, *geometry, shape)
    x, bias = (
        torch.rand(shape).bfloat16().contiguous(memory_format=torch.channels_last),
        torch.zeros(len(weight)),
    )
    bias = bias.bfloat16()
    return lambda: ops._convolution_pointwise(x, laid_out, bias, *geometry, "relu", [], "")


def int8(module: fx.GraphModule, node: fx.Node) -> Any:
    conv, weight = convolution(node), weight_of(module, node)
    shape, ops = list(conv.x.meta["shape"]), torch.ops.onednn
    scales = weight.flatten(1).abs().amax(1) / 127
    rounded = (weight / scales.view(-1, 1, 1, 1)).round().to(torch.int8)
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    laid_out = ops.qconv_prepack(rounded, scales, 0.02, 0, *geometry, shape)
    x = torch.randint(0, 255, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    zeros, bias = torch.zeros(len(weight), dtype=torch.int32), torch.zeros(len(weight))
    rest = (scales, zeros, bias, *geometry, 0.05, 0, torch.uint8, "relu", [None], "")
    return lambda: ops.qconv2d_pointwise(x, 0.02, 0, laid_out, *rest)


def weight_of(module: fx.GraphModule, node: fx.Node) -> Tensor:
    return getattr(module, str(convolution(node).weight.target))


class Rounding(fx.Interpreter):
    """Runs the graph with every convolution's input and weight rounded to int8, or, at first, notes their ranges."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.ranges: dict[str, tuple[float, float]] = {}
        self.calibrating = True

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is CONVOLUTION:
            args = (self._input(args[0]), *args[1:]) if self.calibrating else self._rounded(args)
        return super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        self.name = n.name
        return super().run_node(n)

    def _input(self, x: Tensor) -> Tensor:
        low, high = self.ranges.get(self.name, (0.0, 0.0))
        self.ranges[self.name] = min(low, float(x.min())), max(high, float(x.max()))
        return x

    def _rounded(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        low, high = self.ranges[self.name]
        scale = (high - low) / 255
        x = low + ((args[0] - low) / scale).round().clamp(0, 255) * scale
        steps = args[1].flatten(1).abs().amax(1).view(-1, 1, 1, 1) / 127
        return (x, (args[1] / steps).round() * steps, *args[2:])


def accuracy(detector: sf.Detector, dataset: Any) -> dict[str, Any]:
    rounding = Rounding(graph_of(detector))
    for path in dataset.train[:CALIBRATION]:
        rounding.run(read_image(getattr(path, "image", path))[None].float() / 255)
    figures = {}
    for name in ("fp32", "int8"):
        rounding.calibrating = name == "fp32"  # noting ranges changes nothing
        found, _ = sf.evaluate(Through(detector, rounding), dataset.test)  # type: ignore[arg-type]
        image, pixel, aupro = found["image"]["auroc"], found["pixel"]["auroc"], found["aupro"]["0.3"]
        figures[name] = {"image_auroc": image, "pixel_auroc": pixel, "aupro_0.3": aupro}
    change = max(abs(figures["fp32"][name] - value) for name, value in figures["int8"].items())
    print_table(["", *figures["fp32"]], [[k, *(f"{x:.5f}" for x in v.values())] for k, v in figures.items()])
    setting = {"what": "accuracy", "category": dataset.name, "calibration": CALIBRATION}
    return {"case": setting, "figures": figures, "largest_difference": round(change, 6)}


class Through:
    """The detector, but that its images go through another graph."""

    def __init__(self, detector: sf.Detector, graph: Rounding) -> None:
        self.detector, self.graph = detector, graph

    def stream(self, samples: Sequence[Any], **_: Any) -> Iterator[tuple[list[Path], sf.Prediction]]:
        for sample in samples:
            images = read_image(sample.image)[None].float() / 255
            yield [sample.image], sf.Prediction(*self.graph.run(images))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.detector, name)


if __name__ == "__main__":
    main()
