"""Training images per second: STPM's student here and in anomalib's STFPM, same images, network and machine.

    python benchmarks/training.py [--quick] [--device cpu|cuda]

Needs the extra ``bench``. resnet18 at 256x256, batches of 32, anomalib's loss and optimiser on both sides,
random teacher weights, as they do not change the time. The two take turns epoch by epoch in one process.

* ``anomalib``: ``Stfpm``'s own model, loss and SGD: float32, planar, the teacher run every step, as anomalib
  trains on this device. It gets normalised tensors in memory; reading and transforming images cost nothing.
* ``stadfast``: ``STPM.fit`` with ``variant="anomalib"``: an epoch of its training loop, once the teacher's
  features are in the cache. What networks and cache take, once a run, is the case's ``setup_s``, which is
  counted in ``run_of_100_epochs``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any
from unittest import mock

import timm
import torch
from anomalib.models import Stfpm
from common import Timing, print_table, ratio, write_result
from torch import Tensor

import stadfast as sf
from stadfast.data import Material

SIZE, BATCH, LEARNING_RATE = 256, 32, 0.01
EPOCHS_OF_A_RUN = 100  # STPM's paper


class Anomalib:
    """Epochs of anomalib's STFPM without Lightning's loop around them."""

    def __init__(self, images: Tensor, device: str) -> None:
        create = timm.create_model
        with mock.patch("timm.create_model", lambda *a, **k: create(*a, **{**k, "pretrained": False})):
            lightning = Stfpm(backbone="resnet18", layers=["layer1", "layer2", "layer3"])
        self._model = lightning.model.to(device).train()
        self._loss = lightning.loss
        self._optimizer = lightning.configure_optimizers()
        for group in self._optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        self._batches = ((images / 255 - mean) / std).to(device).split(BATCH)

    def epoch(self) -> None:
        for batch in self._batches:
            teacher, student = self._model(batch)
            loss = self._loss(teacher, student)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            loss.item()  # its training_step logs the value

    def check_loss(self) -> None:
        """The two minimise the same number."""
        shapes = ((2, 64, 64, 64), (2, 128, 32, 32), (2, 256, 16, 16))
        teacher, student = ({str(i): torch.randn(s) for i, s in enumerate(shapes)} for _ in range(2))
        distances = sf.ops.pyramid_distance(list(student.values()), list(teacher.values()))
        ours = 0.5 * 2 * sum(d.mean() for d in distances)
        torch.testing.assert_close(self._loss(teacher, student), ours, rtol=1e-4, atol=0.0)


def case(images: Tensor, precision: str, rounds: int, device: str) -> dict[str, Any]:
    """Alternate epochs of both; the first round warms up."""
    peer = Anomalib(images, device)
    peer.check_loss()
    ours, theirs, setup = [], [], []
    start = time.perf_counter()

    def turn(record: sf.methods.EpochRecord) -> None:
        if not setup:
            setup.append(time.perf_counter() - start - record.seconds)
        began = time.perf_counter()
        peer.epoch()
        theirs.append((time.perf_counter() - began) / len(images))
        ours.append(record.seconds / len(images))

    detector = sf.STPM(
        "resnet18", weights=None, variant="anomalib", image_size=SIZE, epochs=rounds + 1, batch_size=BATCH,
        learning_rate=LEARNING_RATE, precision=precision, device=device,
    )  # fmt: skip
    detector.fit(images, callbacks=[turn], show_progress=False)
    timings = {"anomalib": Timing(tuple(theirs[1:])), "stadfast": Timing(tuple(ours[1:]))}
    per_second = {name: round(1 / timing.median, 2) for name, timing in timings.items()}
    run = {name: EPOCHS_OF_A_RUN * len(images) * timing.median for name, timing in timings.items()}
    run["stadfast"] += setup[0]
    return {
        "case": {"network": "resnet18", "images": len(images), "size": SIZE, "batch": BATCH,
                 "anomalib": "fp32", "stadfast": detector.metadata_["training"]["precision"]},
        "timings": {name: timing.summary() for name, timing in timings.items()},
        "images_per_second": per_second,
        "setup_s": round(setup[0], 2),
        "ratios": {
            "anomalib / stadfast": ratio(timings["anomalib"], timings["stadfast"]),
            "anomalib / stadfast, run_of_100_epochs": {"median": round(run["anomalib"] / run["stadfast"], 3)},
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one round in the device's own precision")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    count, rounds = (BATCH, 1) if options.quick else (2 * BATCH, 5)
    web = Material("woven", SIZE, seed=0)
    images = torch.stack([web_image(web, index) for index in range(count)])
    cases = []
    for precision in ("auto",) if options.quick else ("auto", "fp32"):
        cases.append(case(images, precision, rounds, options.device))
    rows = []
    for result in cases:
        speed, ratios = result["images_per_second"], result["ratios"]["anomalib / stadfast"]
        spread = f"{ratios['median']:.2f} ({ratios['q1']:.2f} to {ratios['q3']:.2f})"
        rows.append(
            [result["case"]["stadfast"], speed["anomalib"], speed["stadfast"], spread, result["setup_s"]]
        )
    print_table(["stadfast in", "anomalib images/s", "stadfast images/s", "ratio", "setup s"], rows)
    if not options.quick:
        name = "training" if options.device == "cpu" else "training_cuda"
        print(write_result(name, cases, {"learning_rate": LEARNING_RATE}, device=options.device))


def web_image(web: Material, index: int) -> Tensor:
    """(3, 256, 256) uint8 of the generated material."""
    rows, _ = web.rows(index * SIZE, SIZE)
    pixels = torch.as_tensor(rows)
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels.expand(3, -1, -1)


if __name__ == "__main__":
    main()
