"""The drop-in scorer: images in, prediction out, as fast as the machine allows."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .. import ops
from ..errors import BundleError, DataError, UsageError
from ..methods.bundle import is_bundle
from ..methods.graph import Prediction
from ..methods.hardware import choose_device, choose_precision, deterministic_algorithms
from .archive import format_of, load_exported, load_torchscript, read_metadata
from .export import describe, example_images, record, record_on_cpu, unlike_inputs
from .fusion import fuse
from .images import batches, to_unit
from .lowering import UnsupportedGraphError, lower, lower_exported, propagate
from .memory import keep_freed_memory
from .precision import DTYPES, narrow
from .preparation import fuse_preparation
from .siblings import join

if TYPE_CHECKING:
    from ..methods import Detector

logger = logging.getLogger("stadfast")

Engine = Callable[[Tensor], tuple[Tensor, ...]]


class Scorer:
    """Runs an archive or a fitted detector without the training code; thread-safe.

    On a CPU, convolutions run with what follows them as one operator (stadfast's own or oneDNN's), weights laid out
    ahead, in bf16 where the processor has it, and freed memory stays with the process (up to 1 GiB). On a GPU a CUDA
    graph runs per shape.

    Args:
        source: an archive of :func:`stadfast.export`, a detector's bundle, or a fitted detector.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``; ONNX and OpenVINO archives run on the CPU alone.
        precision: of the networks. ``"auto"``: the archive's, if less than fp32; else bf16 where the hardware
            multiplies it natively, fp32 elsewhere. Maps and scores are float32. (A GPU's fp32 convolutions are TF32
            unless ``torch.backends.cudnn.allow_tf32`` is False.)
        batch_size: images computed at once.
        threads: of torch's pool for one call, set for the whole process; None leaves it alone.
        deterministic: deterministic algorithms only.
        warm_up: run once now, so that the first call is as fast as the next.

    Attributes:
        method, threshold, pixel_threshold, image_size, precision, device, metadata.
        path: how the graph runs: ``"fused"`` (such operators), ``"cuda graph"``, ``"plain"``, ``"openvino"``.

    Raises:
        BundleError: the archive is missing, damaged or refused. UsageError: an argument does not fit.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Detector,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 8,
        threads: int | None = None,
        deterministic: bool = False,
        warm_up: bool = True,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("threads", threads)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UsageError(f"{name}: expected a number from 1 on, got {value!r}")
        if precision not in ("auto", *DTYPES):
            raise UsageError(f"precision: expected auto, {', '.join(DTYPES)}, got {precision!r}")
        self.device = choose_device(device)
        self.batch_size, self.deterministic = batch_size, deterministic
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        with deterministic_algorithms(deterministic):  # some operators are recorded as others
            module, self.metadata, kind = open_recorded(source)
        through_openvino = kind in ("onnx", "openvino")
        if through_openvino and device != "auto" and self.device.type != "cpu":
            raise UsageError(f"device: expected auto or cpu, where OpenVINO runs {source}, got {device!r}")
        if through_openvino:
            self.device = torch.device("cpu")
        if self.metadata.get("native_scale"):
            logger.warning("%s was fitted at native scale; a Scorer resizes images all the same", source)
        self.method: str = self.metadata["method"]
        self.threshold: float = self.metadata["threshold"]
        self.pixel_threshold: float = self.metadata["pixel_threshold"]
        self.image_size: tuple[int, int] = tuple(self.metadata["network_size"])  # type: ignore[assignment]
        fixed = self.metadata["image_size"]
        self._fixed: tuple[int, int] | None = None if fixed is None else tuple(fixed)  # type: ignore[assignment]
        # OpenVINO widens fp16 weights, and computes as it is told.
        archived = "fp32" if through_openvino else self.metadata["precision"]
        self.precision = _choose(precision, archived, self.device)
        self._engine: Engine
        if through_openvino:
            from .openvino import compile_model

            self._engine, self.path = compile_model(Path(str(source)), self.precision, threads), "openvino"
        else:
            with _running(self.deterministic):
                example = example_images(self._fixed or self.image_size).to(self.device)
                self._engine, self.path = optimise_recorded(module, example[:1], self.precision)
        if warm_up:
            self(torch.zeros(1, 3, *(self._fixed or self.image_size), dtype=torch.uint8))

    def __call__(self, images: Any) -> Prediction:
        """Scores, labels, maps and masks.

        Args:
            images: a path, folder, Pillow image, array or tensor, or a list of these: (H, W), (H, W, C), (C, H, W)
                or a batch, uint8 or uint16 or float in [0, 1], C = 1, 3 or 4 (RGB), any size, any device.

        Returns:
            Prediction on the device of the tensors that came, else on the CPU.

        Raises:
            DataError: the images cannot be used.
        """
        found = [prediction for _, prediction in self.stream(images)]
        if len(found) == 1:
            return found[0]
        return Prediction(*(torch.cat(field) for field in zip(*found, strict=True)))

    def stream(
        self, images: Any, *, skip_broken: bool = False
    ) -> Iterator[tuple[list[Path | int], Prediction]]:
        """Predict batch by batch, in constant memory: ``(paths or indices, Prediction)``, as ``Detector.stream``.

        Args:
            images: as for a call; paths are read as they are needed.
            skip_broken: leave out unreadable files. Calls share no state, so there is no ``broken_``: after the last
                batch the log (``stadfast``) names them with the reasons.
        """
        for sources, batch in batches(images, self.batch_size, skip_broken=skip_broken):
            if self._fixed is not None and tuple(batch.shape[2:]) != self._fixed:
                raise DataError(
                    f"images are {batch.shape[2]} x {batch.shape[3]}; this archive was exported for "
                    f"{self._fixed[0]} x {self._fixed[1]} (export with size='dynamic' takes any)"
                )
            with _running(self.deterministic):
                outputs = self._engine(
                    self._as_read(batch.to(self.device, non_blocking=self.device.type == "cuda"))
                )
            yield sources, Prediction(*(x.to(batch.device) for x in outputs))

    def _as_read(self, batch: Tensor) -> Tensor:
        """uint8 where the engine converts it itself, else float32 in [0, 1]."""
        as_it_is = batch.dtype == torch.uint8 and getattr(self._engine, "reads_bytes", False)
        return batch if as_it_is else to_unit(batch)

    def predict(self, images: Any) -> Prediction:
        """The same as calling, under the detectors' name for it."""
        return self(images)

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"Scorer({self.method}, {height} x {width}, {self.precision} on {self.device}, {self.path})"


def optimise_recorded(
    module: torch.jit.ScriptModule | fx.GraphModule, example: Tensor, precision: str
) -> tuple[Engine, str]:
    """The fastest engine for a recorded graph, and how it runs; the graph itself where that is unusual."""
    device = example.device
    try:
        graph = (
            lower_exported(module, device) if isinstance(module, fx.GraphModule) else lower(module, device)
        )
    except UnsupportedGraphError as error:
        logger.warning("the graph runs as it is, more slowly: %s", error)
        return module.to(device), "plain"
    propagate(graph, example)
    narrow(graph, DTYPES[precision])
    propagate(graph, example)
    if device.type == "cuda":
        from .cuda import CudaGraphs

        return CudaGraphs(graph), "cuda graph"
    reads_bytes = fuse_preparation(graph)
    if precision != "fp32":
        join(graph)
    fused = copy.deepcopy(graph)
    path = "fused" if fuse(fused) else "plain"
    try:
        fused(example)
    except RuntimeError:  # torch's way around an addition that oneDNN does not fuse knows no half types
        fused = graph
        fuse(fused, residuals=False)
    engine: Engine = fused if keep_freed_memory() else one_by_one(fused)
    engine.reads_bytes = reads_bytes  # type: ignore[attr-defined]
    return engine, path


def optimise(module: nn.Module, example: Tensor, precision: str = "auto") -> tuple[Engine, str, str]:
    """Any module from images to a tuple of tensors, rewritten for this CPU as a :class:`Scorer` would.

    Args:
        module: in evaluation mode, on the CPU.
        example: images (2, 3, H, W) as they will come.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.

    Returns:
        the function, how it runs, and its precision.
    """
    chosen = _choose(precision, "fp32", torch.device("cpu"))
    with torch.inference_mode():
        engine, path = optimise_recorded(record(module, example), example, chosen)
    return engine, path, chosen


def one_by_one(engine: Engine) -> Engine:
    """A batch image by image, where large blocks of memory are slow to come by."""

    def run(images: Tensor) -> tuple[Tensor, ...]:
        found = [engine(image) for image in images.split(1)]
        return found[0] if len(found) == 1 else tuple(torch.cat(field) for field in zip(*found, strict=True))

    return run


@contextmanager
def _running(deterministic: bool) -> Iterator[None]:
    with torch.inference_mode(), deterministic_algorithms(deterministic):
        yield


def open_recorded(source: str | os.PathLike[str] | Detector) -> tuple[Any, dict[str, Any], str]:
    """The module of an archive, a bundle or a detector (None for ONNX and OpenVINO), its metadata and its format.

    Raises:
        BundleError: the archive is missing, damaged or refused. UsageError: neither.
    """
    if not isinstance(source, (str, os.PathLike)):
        if not hasattr(source, "graph_"):
            raise UsageError(f"source: expected an archive or a fitted detector, got {type(source).__name__}")
        graph = source.graph_
        recorded = record_on_cpu(graph, example_images(unlike_inputs(graph.preprocess)))
        return recorded, describe(source, "torchscript", "fp32", None, False), "torchscript"
    if is_bundle(source):
        from ..methods import load

        return open_recorded(load(source, device="cpu"))
    metadata = read_metadata(source)
    if metadata.get("aot"):
        raise BundleError(
            f"{source} is refused: it holds machine code; torch._inductor.aoti_load_package runs it, if you trust it"
        )
    kind = format_of(source)
    if kind == "onnx" and metadata["method"] == "mkd":
        raise UsageError(
            f"{source}: OpenVINO, which runs ONNX archives here, computes wrong maps for mkd; ONNX Runtime computes "
            "them right, or export TorchScript"
        )
    if kind in ("onnx", "openvino"):
        return None, metadata, kind
    if not metadata["portable"]:
        ops.backend()  # the archive calls our operators: they must be there before it is read
    if kind == "torchscript":
        return load_torchscript(source), metadata, kind
    return load_exported(source), metadata, kind


def _choose(wanted: str, archived: str, device: torch.device) -> str:
    if wanted == "auto":
        return archived if archived != "fp32" else choose_precision("auto", device).name
    if archived != "fp32" and wanted != archived:
        raise UsageError(f"precision: the archive was exported in {archived}; it cannot run in {wanted}")
    if wanted == "fp16" and device.type == "cpu":
        raise UsageError("precision: fp16 is for GPUs; on a CPU choose bf16 or fp32")
    return wanted


AGREE = 0.1  # bf16 against fp32, of the map's largest value; more is another detector


class Agreement(NamedTuple):
    """The largest differences between a detector and a scorer over ``images`` images.

    Attributes:
        score, map: absolute.
        relative_score, relative_map: the same over the detector's largest value.
        verdicts: images that only one of them calls defective.
    """

    images: int
    score: float
    map: float
    relative_score: float
    relative_map: float
    verdicts: int


def compare(detector: Detector, scorer: Scorer, images: Any) -> Agreement:
    """Score images through both, batch by batch: what ``stadfast export --verify`` prints.

    Args:
        detector: fitted.
        scorer: of the same detector's archive.
        images: as :meth:`Scorer.__call__` takes them.
    """
    count = verdicts = 0
    score, map_ = _Difference(), _Difference()
    for _, batch in batches(images, scorer.batch_size):
        ours, theirs = detector.predict(batch), scorer(batch)
        count += len(batch)
        verdicts += int((ours.pred_label != theirs.pred_label.cpu()).sum())
        score.add(ours.pred_score, theirs.pred_score.cpu())
        map_.add(ours.anomaly_map, theirs.anomaly_map.cpu())
    return Agreement(count, score.largest, map_.largest, score.relative, map_.relative, verdicts)


class _Difference:
    """The largest difference so far, and the largest value to relate it to."""

    def __init__(self) -> None:
        self.largest = self.scale = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        self.largest = max(self.largest, float((ours - theirs).abs().max()))
        self.scale = max(self.scale, float(ours.abs().max()))

    @property
    def relative(self) -> float:
        return self.largest / self.scale if self.scale else (math.inf if self.largest else 0.0)
