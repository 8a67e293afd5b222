"""What test_distributed.py runs in one process and, by ``torchrun``, in several: the loss of every step.

In float64, as in float32 a rounding that throws one ReLU moves all losses that follow; and, without what can be thrown,
in float32.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stadfast as sf
from stadfast.backbones import create_backbone
from stadfast.methods import distributed, training
from stadfast.methods.hardware import Precision

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from losses import losses_of, smooth  # type: ignore[import-not-found]


def images() -> Tensor:
    """(8, 3, 40, 40) uint8: batches of 3, 3 and 2, which two processes share unequally."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (8, 3, 40, 40), generator=generator, dtype=torch.uint8)


def detectors() -> dict[str, sf.Detector]:
    resnet = create_backbone("resnet18", seed=7).state_dict()
    vgg = create_backbone("vgg16", ["pool3"], seed=7).state_dict()
    common: dict[str, Any] = {
        "image_size": 32, "precision": "fp32", "device": "cpu", "batch_size": 3, "validation_fraction": 0.0,
    }  # fmt: skip
    students: dict[str, Any] = {**common, "weights": resnet, "learning_rate": 0.1}
    two = {**students, "layers": ["layer1", "layer2"]}
    return {
        "stpm": sf.STPM(**two, epochs=17),  # 51 steps
        "a sum over the batch": sf.STPM(**{**two, "learning_rate": 0.01}, variant="anomalib", epochs=1),
        "et-stpm": sf.EnhancedTeacherSTPM(**two, epochs=1),
        "rstpm": sf.ReconstructionSTPM(
            **students | {"image_size": 64},
            backbone2="resnet18",
            decoder_blocks=1,
            epochs=1,
            decoder_epochs=1,
        ),
        "msfi": sf.FeatureImitation(**two, scales=[32], epochs=1),
        "mkd": sf.MultiresolutionKD(**common, weights=vgg, layers=["pool2", "pool3"], epochs=1),
    }


class Toy:
    """A convolution and two batch norms; the last of 4 images is alone in its batch: fewer images than processes."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(4, 3, 5, 5, generator=generator) + 3
        self.module: nn.Module = nn.Sequential(
            nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2, momentum=None)
        )
        for parameter in self.module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.01)

    def __len__(self) -> int:
        return len(self.pixels)

    def loss(self, indices: Tensor) -> Tensor:
        return (self.module(self.pixels[indices]) - 1).square().mean()

    def validate(self) -> None:
        return None


def trained(toy: Toy, epochs: int, **options: Any) -> list[float]:
    """All numbers of its state after training."""
    training.train(toy, training.TrainingOptions(epochs, batch_size=3, show_progress=False, **options))
    return [value for tensor in toy.module.state_dict().values() for value in tensor.flatten().tolist()]


@contextmanager
def double_precision() -> Iterator[None]:
    """Of the training; what comes after it is as usual."""
    dtype, adopt = Precision.dtype, sf.Detector._adopt
    sf.Detector._adopt = lambda self, graph: adopt(self, graph.float())
    torch.set_default_dtype(torch.float64)
    Precision.dtype = property(lambda self: torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        Precision.dtype, sf.Detector._adopt = dtype, adopt


@double_precision()
def run(folder: Path) -> dict[str, Any]:
    """The losses of every step and the threshold of each method; the state of the toy."""
    found: dict[str, Any] = {"toy": trained(Toy(), 4)}
    checkpoint = folder / "toy.checkpoint"
    trained(Toy(), 2, checkpoint=checkpoint)
    found["toy resumed"] = trained(Toy(), 4, checkpoint=checkpoint, resume=True)
    for name, detector in detectors().items():
        losses = losses_of(fit_of(detector))
        found[name] = [*losses, detector.threshold_]
    return found


@double_precision()
def taken_over(checkpoint: Path) -> tuple[list[int], list[float]]:
    """The epochs that are left of a toy's training, and its state after them."""
    epochs: list[int] = []
    resume: dict[str, Any] = {"checkpoint": checkpoint, "resume": True}
    values = trained(Toy(), 4, callbacks=[lambda record: epochs.append(record.epoch)], **resume)
    return epochs, values


def fit_of(detector: sf.Detector) -> Callable[[], Any]:
    return lambda: detector.fit(images(), show_progress=False)


def smooth_losses() -> list[float]:
    """In float32, of a student that has nothing a rounding could throw."""
    return losses_of(fit_of(detectors()["stpm"]), smooth)


def refusals() -> dict[str, str]:
    refused = {}
    for name, detector in {
        "stereotype": sf.StereotypeDeepening(device="cpu"), "batch_size": sf.STPM(batch_size=1, device="cpu"),
    }.items():  # fmt: skip
        try:
            detector.fit(images())
        except sf.StadfastError as error:
            refused[name] = str(error)
    return refused


def main() -> None:
    with distributed.joined("cpu"):
        output = Path(sys.argv[1])
        found = run(output.parent) | {"processes": distributed.size(), "refused": refusals()}
        found["float32"] = smooth_losses()
        found["of one process"] = taken_over(output.with_name("alone.checkpoint"))
        main = distributed.is_main()
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    found["threads left"] = [name for name in threads if "gloo" in name]  # may abort an interpreter that ends
    if main:
        output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
