"""What each size of a trained msfi detector's inputs brings, and what is left of it when it is pruned.

    python benchmarks/reproduce.py msfi bottle/ --weights resnet18.pth --work runs/
    python benchmarks/msfi_ablation.py runs/msfi_bottle.safetensors bottle/ --name bottle

Nothing is trained again: modules are removed from copies. The weights are searched on 10 % of the defective images of
each kind, and all figures of a run, those of the whole detector among them, are on the other images.
Results go to ``results/msfi_ablation_NAME.json``.
"""

from __future__ import annotations

import statistics
import time
from copy import deepcopy
from typing import Any

import torch
from ablations import HEADER, kept, parse, row
from common import print_table, write_result

import stadfast as sf
from stadfast.methods.weight_search import draw_search_set

KEPT = (4, 5, 6)
_CALLS = 20


def main() -> None:
    options = parse("Sizes, weights and pruning of a trained msfi detector.", "msfi_ablation")
    whole = sf.load(options.model, device="cpu")
    assert isinstance(whole, sf.FeatureImitation)
    test = sf.MVTecLayout(options.data).test
    drawn = {sample.image for sample in draw_search_set(test)}
    rest = [sample for sample in test if sample.image not in drawn]
    cases = [run("all modules", whole, rest)]
    for size in dict.fromkeys(name.partition("@")[2] for name in whole.modules_):
        names = [name for name in whole.modules_ if name.endswith(f"@{size}")]
        cases.append(run(f"size {size} alone", deepcopy(whole).prune(names), rest))
    for objective in ("ce", "rank"):
        weighed = deepcopy(whole)
        start = time.perf_counter()
        weighed.search_weights(options.data, objective)
        seconds = round(time.perf_counter() - start, 2)
        cases.append(run(f"weighed by {objective}", weighed, rest) | {"search_s": seconds})
        for keep in KEPT:
            cases.append(run(f"{keep} modules by {objective}", deepcopy(weighed).prune(keep), rest))
    parameters = {"search_images": len(drawn), "test_images": len(rest)}
    path = write_result(f"msfi_ablation_{options.name}", cases, parameters)
    print_table(
        [*HEADER, "parameters", "ms"],
        [[*row(c), str(c["parameters"]), f"{c['graph_ms']:.0f}"] for c in cases],
    )
    print(path)


def run(name: str, detector: sf.FeatureImitation, samples: list[Any]) -> dict[str, Any]:
    """The figures of one form of the detector, its size, and the time of an image."""
    figures, _ = sf.evaluate(detector, samples)
    return {
        "case": name,
        "modules": {module: round(weight, 4) for module, weight in detector.modules_.items()},
        "figures": kept(figures),
        "parameters": sum(p.numel() for p in detector.graph_.parameters()),
        "graph_ms": round(1e3 * seconds_per_image(detector), 2),
    }


@torch.no_grad()
def seconds_per_image(detector: sf.FeatureImitation) -> float:
    """Median of single images through the graph, in float32."""
    image = torch.rand(1, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    samples = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        detector.graph_(image)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


if __name__ == "__main__":
    main()
