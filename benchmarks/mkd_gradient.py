"""The explicit gradient of Multiresolution KD's loss with respect to its images, against autograd.

    python benchmarks/mkd_gradient.py [--quick] [--device cpu|cuda] [--weights vgg16.pth]

The gradient of the loss of pool3 to pool5 through both networks, at 128 x 128. Contenders, on the same networks and
images:

* ``stadfast``: the explicit backward pass, batched, under ``inference_mode``
* ``official``: as the authors' code does it, ``loss.backward()`` image by image, the parameters' gradients included
* ``autograd``: ``loss.backward()`` on the whole batch, the parameters' gradients included
* ``autograd frozen``: ``torch.autograd.grad`` to the images alone, frozen parameters, channels_last: the best that
  autograd can do
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import interleave, print_table, ratio, write_result
from torch import Tensor, nn

import stadfast as sf
from stadfast.backbones import create_backbone

SIZE = (128, 128)
LAMBDA = 0.5
DETECTION = slice(1, None)  # pool3 to pool5
TOLERANCE = 1e-12  # of the largest gradient, in float64


def official_losses(network: nn.Module, images: Tensor) -> Tensor:
    """(B,): the authors' loss in their operators."""
    pairs = list(zip(network.cloner(images), network.source(images), strict=True))[DETECTION]
    direction = [1 - F.cosine_similarity(c.flatten(1), s.flatten(1)) for c, s in pairs]
    value = [(c - s).square().mean((1, 2, 3)) for c, s in pairs]
    return torch.stack(direction).sum(0) + LAMBDA * torch.stack(value).sum(0)


def backward(network: nn.Module, images: Tensor) -> Tensor:
    """``loss.backward()``: to the images and to all parameters that take gradients."""
    x = images.clone(memory_format=torch.preserve_format).requires_grad_()
    network.zero_grad()
    official_losses(network, x).sum().backward()
    assert x.grad is not None
    return x.grad


def case(batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time all contenders on one batch; they must agree first."""
    weights = options.weights or create_backbone("vgg16", ["pool5"], seed=0).state_dict()

    def networks(layout: torch.memory_format) -> nn.Module:
        network = sf.MultiresolutionKD(weights=weights, lam=LAMBDA)._build(pretrained=True)[1]
        return network.to(options.device).eval().requires_grad_(False).to(memory_format=layout)

    ours, planar = networks(torch.channels_last), networks(torch.contiguous_format).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, *SIZE, generator=generator).to(options.device)
    packed = images.contiguous(memory_format=torch.channels_last)

    def stadfast() -> Tensor:
        with torch.inference_mode():
            return torch.cat([ours.input_gradient(chunk)[0] for chunk in packed.split(8)])

    contenders: dict[str, Callable[[], Tensor]] = {
        "stadfast": stadfast,
        "official": lambda: torch.cat([backward(planar, image) for image in images.split(1)]),
        "autograd": lambda: backward(planar, images),
        "autograd frozen": lambda: backward(ours, packed),
    }
    agreement = agreements(contenders, ours, packed[:1])
    sync = torch.cuda.synchronize if options.device != "cpu" else None
    timings = interleave(contenders, options.repeats, warmup=1, sync=sync)
    return {
        "case": {"batch": batch, "differences": agreement},
        "timings": {name: timing.summary() for name, timing in timings.items()},
        "ratios": {
            f"{name} / stadfast": ratio(timings[name], timings["stadfast"])
            for name in contenders if name != "stadfast"
        },
    }  # fmt: skip


def agreements(
    contenders: dict[str, Callable[[], Tensor]], network: nn.Module, image: Tensor
) -> dict[str, float]:
    """Largest differences from ours, relative to the largest gradient.

    Another order of rounding (layout, batch norm folded or not) puts some ReLU's input on the other side of zero, and
    then float32's gradients differ there, autograd's among themselves, too. What has to agree is float64.
    """

    def difference(ours: Tensor, expected: Tensor) -> float:
        return ((ours - expected).abs().max() / expected.abs().max()).item()

    found = contenders["stadfast"]()
    differences = {name: difference(found, run()) for name, run in contenders.items() if name != "stadfast"}
    exact = copy.deepcopy(network).double()
    differences["float64"] = difference(
        exact.input_gradient(image.double())[0], backward(exact, image.double())
    )
    assert differences["float64"] <= TOLERANCE, differences
    return differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--weights", help="of VGG-16; default random, which takes the same time")
    parser.add_argument("--quick", action="store_true", help="batch 2 only; writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases, rows = [], []
    for batch in (2,) if options.quick else (1, 8, 16):
        result = case(batch, options)
        cases.append(result)
        milliseconds = [f"{timing['median_ms']:.0f}" for timing in result["timings"].values()]
        ratios = [f"{value['median']:.2f}" for value in result["ratios"].values()]
        rows.append([batch, *milliseconds, *ratios, f"{result['case']['differences']['float64']:.1e}"])
    print_table(["batch", *(f"{n} ms" for n in cases[0]["timings"]), *cases[0]["ratios"], "float64"], rows)
    if not options.quick:
        name = "mkd_gradient" if options.device == "cpu" else "mkd_gradient_cuda"
        print(write_result(name, cases, {"size": SIZE}, device=options.device))


if __name__ == "__main__":
    main()
