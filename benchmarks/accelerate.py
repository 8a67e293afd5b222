"""anomalib's models as they are and accelerated (``stadfast.integrations.anomalib.accelerate``), same images, in turn.

    python benchmarks/accelerate.py [--quick] [--threads 2]

Needs the extra ``bench``. The torch models of anomalib with random weights, as they do not change the time: Stfpm
(resnet18, layer1 to layer3), ReverseDistillation (resnet18) and EfficientAd (small), 256 x 256, float32 images in
[0, 1] in memory, batches of 1 and 8. Contenders: anomalib's model in PyTorch, eager, under ``inference_mode``; the same
by ``torch.compile`` (its default mode); ours in fp32, and in bf16 where the processor has it. ``accelerate`` itself
checks that its maps are the model's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import timm
import torch
from common import interleave, print_table, ratio, write_result
from torch import Tensor, nn

from stadfast.integrations.anomalib import accelerate
from stadfast.methods.hardware import choose_precision

SIZE = 256
LAYERS = ["layer1", "layer2", "layer3"]


def stfpm() -> nn.Module:
    from anomalib.models.image.stfpm.torch_model import STFPMModel

    return STFPMModel(layers=LAYERS, backbone="resnet18")


def reverse_distillation() -> nn.Module:
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
    from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel

    return ReverseDistillationModel(
        backbone="resnet18", input_size=(SIZE, SIZE), layers=LAYERS, pre_trained=False,
        anomaly_map_mode=AnomalyMapGenerationMode.ADD,
    )  # fmt: skip


def efficient_ad() -> nn.Module:
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel

    return EfficientAdModel(teacher_out_channels=384)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "Stfpm": stfpm, "ReverseDistillation": reverse_distillation, "EfficientAd": efficient_ad,
}  # fmt: skip


def build(name: str) -> nn.Module:
    """Weights that make every feature move, so that there is a map to agree on."""
    create = timm.create_model
    with mock.patch("timm.create_model", lambda *a, **k: create(*a, **{**k, "pretrained": False})):
        model = MODELS[name]()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.3 * parameter.data.std(correction=0) * noise
    return model.eval()


def cases(name: str, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    model = build(name)
    compiled = torch.compile(model)
    precisions = dict.fromkeys(["fp32", choose_precision("auto", torch.device("cpu")).name])
    ours = {
        precision: accelerate(model, image_size=(SIZE, SIZE), precision=precision) for precision in precisions
    }
    found = []
    for batch in batches:
        images = torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))

        def run(function: Callable[[Tensor], Any], images: Tensor = images) -> Callable[[], Any]:
            return lambda: function(images)

        contenders = {"eager": run(model), "compile": run(compiled)}
        contenders |= {precision: run(function) for precision, function in ours.items()}
        with torch.inference_mode():
            timings = interleave(contenders, rounds)
        found.append({
            "case": {"model": name, "batch": batch, "size": SIZE},
            "timings": {key: timing.summary() for key, timing in timings.items()},
            "ratios": {
                f"{peer} / stadfast {precision}": ratio(timings[peer], timings[precision])
                for precision in ours for peer in ("eager", "compile")
            },
        })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="Stfpm, batch 1, few rounds; writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names, batches, rounds = (["Stfpm"], [1], 3) if options.quick else (list(MODELS), [1, 8], 20)
    results = [case for name in names for case in cases(name, batches, rounds)]
    header = ["model", "batch", *results[0]["timings"], *results[0]["ratios"]]
    rows = [
        [case["case"]["model"], str(case["case"]["batch"])]
        + [f"{timing['median_ms']:.1f} ms" for timing in case["timings"].values()]
        + [f"{found['median']:.2f}" for found in case["ratios"].values()]
        for case in results
    ]
    print_table(header, rows)
    if not options.quick:
        write_result("accelerate", results)


if __name__ == "__main__":
    main()
