"""``stadfast demo``: the whole line on a generated material, offline."""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import STPM, ops
from ..data import MVTecLayout, read_image, to_float, write_material
from ..data.synthetic import DEFECTS
from ..errors import UsageError
from ..methods import Detector
from ..report import Record, evaluate, write_overview, write_report
from ._guard import say
from ._output import picture_names, write_json
from .demo_stream import demo_stream
from .evaluate import print_figures
from .info import model_facts
from .score import write_heatmap

_SIZE = (128, 128)
_BATCH_SIZE = 8  # small, so that few images make enough steps
_PICTURES_PER_TYPE = 3
_LINE_RATE = 1000.0  # of the web, lines a second


class Plan(NamedTuple):
    """Numbers of images, of epochs, and of seconds and defects of the web."""

    train: int
    test_good: int
    test_per_defect: int
    epochs: int
    web_seconds: float
    web_defects: int


FULL, QUICK = Plan(120, 24, 12, 20, 20, 20), Plan(40, 10, 4, 6, 10, 10)


def demo(output: Path, *, quick: bool) -> None:
    """Write the material, the model, ``figures.json``, ``overview.png``, heat maps and ``report.html`` to a folder.

    Then inspect a web of the same material: ``stream.json``, ``stream.png``, ``events.jsonl`` and ``defects``.

    Raises:
        UsageError: the folder's material or heat maps are not an earlier demo's.
    """
    start = time.monotonic()
    _clear(output)
    say("generating a woven material with slubs, scratches, stains and holes")
    plan = QUICK if quick else FULL
    folder = output / "material"
    write_material(
        folder, "woven", (256, 256), train=plan.train, test_good=plan.test_good,
        test_per_defect=plan.test_per_defect,
    )  # fmt: skip
    dataset = MVTecLayout(folder)

    detector = STPM(
        "efficientnet_lite0", image_size=_SIZE, epochs=plan.epochs, batch_size=_BATCH_SIZE, seed=0
    )
    detector.fit(dataset)
    model = output / "model.safetensors"
    detector.save(model)

    figures, records = evaluate(detector, dataset)
    write_json(str(output / "figures.json"), figures)
    write_report(
        output / "report.html", figures, records, model_facts(model), title="Generated woven material"
    )
    write_overview(output / "overview.png", records, figures["pixel_threshold"])
    _write_heatmaps(output / "heatmaps", records, figures["pixel_threshold"])

    print_figures(figures, "Generated woven material")
    fused, plain = map_latency(detector, read_image(dataset.test[0].image))
    print(
        f"anomaly map from {detector.backbone}'s features, one image, {torch.get_num_threads()} threads: "
        f"{fused * 1e6:.0f} us fused ({ops.backend().name}), {plain * 1e6:.0f} us in plain PyTorch, "
        f"{plain / fused:.1f} times as fast"
    )
    demo_stream(detector, output, line_rate=_LINE_RATE, seconds=plan.web_seconds, defects=plan.web_defects)
    print(
        f"\nreport: {output / 'report.html'}\nheat maps: {output / 'heatmaps'}\n"
        f"the web's defects: {output / 'stream.png'}, {output / 'events.jsonl'}, {output / 'defects'}"
    )
    say(f"done in {time.monotonic() - start:.0f} s")


def _clear(output: Path) -> None:
    """Remove an earlier demo's images, which may be more than this one's, and would be learned from."""
    kinds = "|".join(DEFECTS["woven"])
    names = {
        "material": rf"(train/good|test/(good|{kinds}))/\d+\.png|ground_truth/({kinds})/\d+_mask\.png",
        "heatmaps": rf"(good|{kinds})/\d+\.png\.png",
    }
    old = []
    for name, ours in names.items():
        found = (output / name).rglob("*")
        files = [path for path in found if not (path.is_dir() or path.name.startswith("."))]
        for path in files:
            if not re.fullmatch(ours, path.relative_to(output / name).as_posix()):
                raise UsageError(f"--output: {path} is not of an earlier demo; wanted another folder")
        old += files
    for path in old:
        path.unlink()


def _write_heatmaps(folder: Path, records: Sequence[Record], threshold: float) -> None:
    """Heat maps of the first images of each defect type."""
    seen: Counter[str | None] = Counter()
    for record, name in zip(records, picture_names([r.image for r in records]), strict=True):
        seen[record.defect] += 1
        if record.label and seen[record.defect] <= _PICTURES_PER_TYPE:
            write_heatmap(folder / name, record.image, record.map, threshold)


def map_latency(detector: Detector, image: Tensor, rounds: int = 50) -> tuple[float, float]:
    """Median seconds of one image's map from its features: (fused op, plain PyTorch), taking turns."""
    graph = detector._fitted()
    network: Any = graph.network
    device = graph.threshold.device
    with torch.inference_mode():
        pixels = graph.preprocess(to_float(image.to(device))[None]).contiguous(
            memory_format=torch.channels_last
        )
        student, teacher = network.student(pixels), network.teacher(pixels)
        contenders = (
            lambda: network.maps(student, teacher),
            lambda: plain_map(student, teacher, network.size),
        )
        torch.testing.assert_close(contenders[0](), contenders[1](), rtol=1e-4, atol=1e-9)
        samples: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for contender, times in zip(contenders, samples, strict=True):
                _wait(device)
                start = time.perf_counter()
                contender()
                _wait(device)
                times.append(time.perf_counter() - start)
    return statistics.median(samples[0]), statistics.median(samples[1])


def plain_map(student: Sequence[Tensor], teacher: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """What ``sf.ops.anomaly_map`` computes for STPM's official variant, line by line in PyTorch."""
    grid, product = student[0].shape[-2:], torch.ones(())
    for s, t in zip(student, teacher, strict=True):
        distance = (F.normalize(s) - F.normalize(t)).square().sum(1, keepdim=True)
        product = F.interpolate(distance, grid, mode="bilinear") * product
    return F.interpolate(product, size, mode="bilinear")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
