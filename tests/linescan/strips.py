"""Detectors, strips and their whole maps for the streamers' tests."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stadfast.linescan import RowStreamer, TiledStreamer
from stadfast.methods import Detector, ScoringGraph, create

# the deepest stride, the method and its arguments
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "resnet18": (16, "stpm", {}),
    "resnet18-paper": (8, "stpm", {"layers": ["stem", "layer2"], "variant": "paper", "combine": "sum"}),
    "resnet34": (8, "stpm", {"backbone": "resnet34", "layers": ["layer1", "layer2"], "image_size": (48, 64)}),
    "resnet50": (8, "stpm", {"backbone": "resnet50", "layers": ["layer1", "layer2"], "combine": "mean"}),
    "wide_resnet50_2": (4, "stpm", {"backbone": "wide_resnet50_2", "layers": ["layer1"]}),
    "vgg16": (8, "stpm", {"backbone": "vgg16", "layers": ["pool2", "pool3"]}),
    "efficientnet_lite0": (16, "stpm", {"backbone": "efficientnet_lite0"}),
    "stem": (4, "stpm", {"layers": ["stem"]}),
    "et-stpm": (8, "et-stpm", {"layers": ["layer2"]}),
    "msfi": (8, "msfi", {"scales": [64], "layers": ["layer1", "layer2"]}),
    "stereotype": (
        8, "stereotype", {"arch": "stad", "patch_size": 33, "widths": (2,), "layers": ["layer1", "layer2"]},
    ),
    "stereotype-distilled": (
        1, "stereotype",
        {"doctor": "distilled", "arch": "stad", "patch_size": 17, "widths": (1, 1), "distance": "euclidean"},
    ),
    "stereotype-stride": (
        2, "stereotype",
        {"doctor": "distilled", "arch": "stad", "patch_size": 33, "widths": (2,), "map_stride": 2},
    ),
    "msfi-sizes": (8, "msfi", {"scales": [32, 64, 96], "image_size": 64, "layers": ["layer1"]}),
    "msfi-third": (12, "msfi", {"scales": [32, 128], "image_size": 96, "layers": ["layer1"]}),
    "rstpm": (32, "rstpm", {"backbone2": "resnet18", "decoder_blocks": 1}),
}  # fmt: skip
TINY = (
    "resnet34",
    "et-stpm",
    "rstpm",
    "msfi",
    "msfi-sizes",
    "stereotype",
    "stereotype-distilled",
    "stereotype-stride",
)  # every method
SMALL = "resnet34"  # the shortest reach: what is not about networks is tested on it


@functools.cache
def detector(case: str) -> Detector:
    """Not trained, but no two channels alike, and student unlike teacher."""
    _, method, arguments = CASES[case]
    return untrained(create(method, weights=None, device="cpu", **arguments))


def untrained(made: Detector) -> Detector:
    """Not trained, but no two channels alike, and student unlike teacher."""
    graph = ScoringGraph(*made._build(pretrained=False))
    generator = torch.Generator().manual_seed(3)
    for name, tensor in graph.state_dict().items():
        if "running_mean" in name:
            tensor.uniform_(-0.2, 0.2, generator=generator)
        elif "running_var" in name:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.mul_(1 + 0.2 * torch.randn(tensor.shape, generator=generator))
    made._adopt(graph)
    return made


@functools.cache
def streamer(case: str, width: int, rows_per_push: int | None = None) -> RowStreamer:
    return RowStreamer(detector(case), width, rows_per_push)


def strip(height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Coarse structure with noise, so that levels of all scales have something to see."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
    return 0.8 * smooth + 0.2 * torch.rand(batch, 3, height, width, generator=generator)


@torch.no_grad()
def whole(case: str, image: Tensor, downscale: int = 1) -> Tensor:
    """The detector's own network on the whole strip, extended to a multiple of the stride."""
    graph, unit = detector(case).graph_, CASES[case][0] * downscale
    height, width = image.shape[2:]
    extended = F.pad(image, (0, -width % unit, 0, -height % unit), mode="replicate")
    normalised = (extended - graph.preprocess.mean) / graph.preprocess.std
    network = copy.copy(graph.network)
    network.size = tuple(extended.shape[2:])
    inputs = F.avg_pool2d(normalised, downscale)
    if not hasattr(network, "sizes"):
        return network(inputs)[:, :, :height, :width]
    sides = [size[0] for size in network.sizes]
    native = [1.0] if len(sides) == 1 else [side / graph.network.size[0] for side in sides]
    copies = [[round(n * ratio) for n in inputs.shape[2:]] for ratio in native]
    scaled = [F.interpolate(inputs, size, mode="bilinear", antialias=True) for size in copies]
    return network(scaled)[:, :, :height, :width]


def stream(streamer: RowStreamer | TiledStreamer, image: Tensor, pushes: list[int]) -> list[Tensor]:
    """The maps of all pushes and of the end; ``pushes`` is repeated as often as needed."""
    streamer.reset()
    maps, taken, turn = [], 0, 0
    while taken < image.shape[2]:
        n = pushes[turn % len(pushes)]
        maps.append(streamer.push(image[:, :, taken : taken + n]))
        taken, turn = taken + n, turn + 1
    return [*maps, streamer.finish()]


def assert_equal(maps: Tensor, expected: Tensor) -> None:
    assert maps.shape == expected.shape
    assert maps.dtype == torch.float32
    assert expected.max() > 1e-4  # maps that have something to say
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5 * expected.max().item())
