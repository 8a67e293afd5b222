"""``stadfast bench``: how long an image takes, here, now, and beside others."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import Detector, __version__, load
from .._files import atomic_write
from ..data import list_images, read_image
from ..errors import StadfastError, UsageError
from ..methods.bundle import is_bundle
from ..runtime import Scorer, export
from ..runtime.bench import Contender, machine, measure, peak_memory
from ..runtime.scorer import AGREE
from ._guard import printable
from ._output import check_writable, write_json

PEERS = ("eager", "compile", "aot", "openvino", "openvino-dynamic", "anomalib")


def bench(
    model: Path, *, images: Path | None, batches: Sequence[int], against: Sequence[str], precision: str, device: str,
    threads: int | None, rounds: int, json: str | None, plot: Path | None,
) -> None:  # fmt: skip
    """Measure, print the table, and write what is asked for."""
    unknown = [name for name in against if name not in PEERS]
    if unknown:
        raise UsageError(f"--against: expected some of {', '.join(PEERS)}, got {', '.join(unknown)}")
    check_writable("--json", json)
    check_writable("--plot", plot)
    started = time.perf_counter()
    scorer = Scorer(model, device=device, precision=precision, batch_size=max(batches), threads=threads)
    ready = time.perf_counter() - started
    paths = list_images(images)[: max(batches)] if images is not None else []
    pictures = _pictures(paths, scorer)
    with tempfile.TemporaryDirectory() as folder:
        memory = _memory(scorer, pictures, batches)  # before the peers take theirs
        contenders = _contenders(model, scorer, against, Path(folder))
        agreement = _agreement(contenders, pictures)
        cases = measure(contenders, pictures, batches, rounds, scorer.device)
    if paths:
        cases += _with_decoding(scorer, paths, batches, rounds)
    if scorer.device.type == "cuda":
        there = {"stadfast, images on the GPU": scorer}
        cases += measure(there, pictures.to(scorer.device), batches, rounds, scorer.device)
    height, width = pictures.shape[1:3]
    result = {
        "model": model.name, "method": scorer.method, "path": scorer.path, "precision": scorer.precision,
        "network_size": scorer.image_size, "image_size": (height, width), "ready_s": round(ready, 3),
        "stadfast": __version__, "machine": machine(scorer.device), "memory_mb": memory, "agreement": agreement,
        "cases": cases,
    }  # fmt: skip
    if json != "-":
        most = max(memory.values())
        print(
            f"{printable(scorer)}, images {height} x {width}, ready after {ready:.2f} s, at most {most:.0f} MB"
        )
        _print(cases)
    write_json(json, result)
    if plot is not None:
        _plot(plot, cases, str(scorer))


def parse_batches(text: str) -> list[int]:
    """``"1,8"``: batch sizes."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= 1 for part in parts):
        raise UsageError(f"--batch: expected numbers from 1 on, such as 1,8; got {text!r}")
    return [int(part) for part in parts]


def _pictures(paths: Sequence[Path], scorer: Scorer) -> Tensor:
    """(N, H, W, 3) uint8: the files at the first one's size, or noise at the network's."""
    if not paths:
        size = scorer.metadata["image_size"] or scorer.image_size
        return torch.randint(
            0, 256, (1, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    found = [read_image(path).permute(1, 2, 0) for path in paths]
    same = [image for image in found if image.shape == found[0].shape]
    stacked = torch.stack(same)
    return stacked if stacked.dtype == torch.uint8 else (stacked * 255).to(torch.uint8)


def _memory(scorer: Scorer, images: Tensor, batches: Sequence[int]) -> dict[str, float]:
    """Batch size -> the most memory in MB until then; see :func:`stadfast.runtime.bench.peak_memory`."""
    found = {}
    for batch in sorted(batches):
        scorer(images[torch.arange(batch) % len(images)])
        found[str(batch)] = round(peak_memory(scorer.device), 1)
    return found


def _agreement(contenders: dict[str, Contender], images: Tensor) -> dict[str, float]:
    """Peer -> the largest difference of its map from ours, over our map's largest value.

    anomalib's map is another product of the same distances, and left out.

    Raises:
        StadfastError: a peer computes something else.
    """
    ours = contenders["stadfast"](images[:1])[2].float()
    found = {}
    for name, run in contenders.items():
        if name not in ("stadfast", "anomalib"):
            difference = (run(images[:1])[2].to(ours.device) - ours).abs().max() / ours.abs().max()
            found[name] = round(float(difference), 6)
            if not difference <= AGREE:
                raise StadfastError(
                    f"{name} gives other maps: they differ by {found[name]} of the largest value"
                )
    return found


def _with_decoding(
    scorer: Scorer, paths: Sequence[Path], batches: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """The same with the files read and decoded at every call."""
    cases = []
    for batch in batches:
        chosen = [paths[i % len(paths)] for i in range(batch)]
        whole: dict[str, Contender] = {"stadfast, with decoding": lambda _, chosen=chosen: scorer(chosen)}  # type: ignore[misc]
        cases += measure(
            whole, torch.zeros(batch, 1, 1, 3, dtype=torch.uint8), [batch], rounds, scorer.device
        )
    return cases


def _contenders(model: Path, scorer: Scorer, against: Sequence[str], folder: Path) -> dict[str, Contender]:
    contenders: dict[str, Contender] = {"stadfast": scorer}
    if against:
        if not is_bundle(model):
            raise UsageError(
                "--against needs the detector's bundle (.safetensors): the peers take its weights"
            )
        detector = load(model, device=str(scorer.device))
        for name in against:
            contenders[name] = _BUILDERS[name](detector, scorer, folder)
    return contenders


def _eager(detector: Detector, scorer: Scorer, folder: Path) -> Contender:
    """The detector's graph in PyTorch, float32 planar images as anybody would write it."""
    device = scorer.device

    @torch.inference_mode()
    def run(images: Tensor) -> Any:
        return detector.graph_(images.to(device).permute(0, 3, 1, 2).float() / 255)

    return run


def _compile(detector: Detector, scorer: Scorer, folder: Path) -> Contender:
    """torch.compile with freezing, in the scorer's precision."""
    torch._inductor.config.freezing = True
    mode = "max-autotune" if scorer.device.type == "cuda" else "default"
    compiled = torch.compile(detector.graph_, mode=mode, dynamic=False)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[scorer.precision]

    @torch.no_grad()
    def run(images: Tensor) -> Any:
        planar = images.to(scorer.device).permute(0, 3, 1, 2).float() / 255
        with torch.autocast(scorer.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return compiled(planar)

    return run


def _aot(detector: Detector, scorer: Scorer, folder: Path) -> Contender:
    """What ``export(aot=True)`` writes, in the scorer's precision: AOTInductor's machine code, for any batch size."""
    compiled: dict[tuple[int, int], Any] = {}

    @torch.no_grad()
    def run(images: Tensor) -> Any:
        size = (images.shape[1], images.shape[2])
        if size not in compiled:
            path = folder / "aot.pt2"
            export(detector, path, "export", precision=scorer.precision, size=size, aot=True)
            compiled[size] = torch._inductor.aoti_load_package(str(path))
        return compiled[size](images.permute(0, 3, 1, 2).float() / 255)

    return run


def _openvino(detector: Detector, scorer: Scorer, folder: Path) -> Contender:
    """The same graph and outputs in OpenVINO, in the scorer's precision, compiled for each shape, fed with bytes."""
    from ..runtime.openvino import compile_model

    compiled: dict[tuple[int, ...], Callable[[Tensor], Any]] = {}

    def run(images: Tensor) -> Any:
        shape = tuple(images.shape)
        if shape not in compiled:
            path = export(detector, folder / "model.xml", "openvino", size=(shape[1], shape[2]))
            compiled[shape] = compile_model(path, scorer.precision, torch.get_num_threads(), shape)
        return compiled[shape](images)

    return run


def _openvino_dynamic(detector: Detector, scorer: Scorer, folder: Path) -> Contender:
    """The same for any batch and image size, as our archive is: floats in, converted by PyTorch."""
    from ..runtime.openvino import compile_model

    path = export(detector, folder / "dynamic.xml", "openvino")
    run = compile_model(path, scorer.precision, torch.get_num_threads())
    return lambda images: run(images.permute(0, 3, 1, 2).float() / 255)


def _anomalib(detector: Detector, scorer: Scorer, folder: Path) -> Contender:
    """anomalib's TorchInferencer on its own Stfpm with the same weights, image by image as it works."""
    from ..integrations.anomalib import torch_inferencer

    if detector.method != "stpm" or not detector.backbone.startswith("resnet"):
        raise UsageError(
            f"--against anomalib: it has no counterpart of {detector.method} on {detector.backbone}; wanted stpm on a "
            "resnet"
        )
    graph = detector.graph_
    inferencer = torch_inferencer(graph.network, detector.backbone, graph.preprocess.size, scorer.device)

    @torch.no_grad()
    def run(images: Tensor) -> Any:
        return [inferencer.predict(image) for image in images.cpu().numpy()]

    return run


_BUILDERS: dict[str, Callable[[Detector, Scorer, Path], Contender]] = {
    "eager": _eager, "compile": _compile, "aot": _aot, "openvino": _openvino,
    "openvino-dynamic": _openvino_dynamic, "anomalib": _anomalib,
}  # fmt: skip


def _print(cases: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'batch':>5}  {'contender':<28} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9} {'images/s':>9}  times ours"
    )
    for case in cases:
        for name, timing in case["timings"].items():
            ratio = next((v for key, v in case["ratios"].items() if key.startswith(f"{name} / ")), None)
            print(
                f"{case['batch']:>5}  {name:<28} {timing['p50_ms']:>9.3f} {timing['p95_ms']:>9.3f} "
                f"{timing['p99_ms']:>9.3f} {timing['images_per_s']:>9.1f}  "
                + ("" if ratio is None else f"{ratio:.2f}")
            )


def _plot(path: Path, cases: Sequence[dict[str, Any]], title: str) -> None:
    """Images per second over the batch size, one line a contender."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name in dict.fromkeys(name for case in cases for name in case["timings"]):
        points = [(c["batch"], c["timings"][name]["images_per_s"]) for c in cases if name in c["timings"]]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="batch", ylabel="images per second", title=title, xscale="log", ylim=(0, None))
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=150)
    pyplot.close(figure)
