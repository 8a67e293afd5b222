"""One graph for evaluation and deployment: the module behind ``predict``, written to a file."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import ops
from .._files import atomic_write
from ..errors import StadfastError, UsageError
from .aot import add_member, compile_package
from .archive import ARCHIVE_FORMAT, MEMBER, SUFFIXES
from .lowering import lower, propagate, quiet
from .precision import DTYPES, narrow

if TYPE_CHECKING:
    from ..methods import Detector

OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
_PRECISIONS = {
    "torchscript": ("fp32", "bf16", "fp16"),
    "export": ("fp32", "bf16", "fp16"),
    "onnx": ("fp32", "fp16"),
    "openvino": ("fp32", "fp16"),
}
_BATCH = 2  # of the example: a batch of one would be taken for a constant
_OFF = 29  # pixels beyond a network's own size
_MAX_BATCH, _MAX_SIDE = 65536, 65536


def export(
    detector: Detector,
    path: str | os.PathLike[str],
    format: str = "torchscript",
    *,
    precision: str = "fp32",
    size: str | int | tuple[int, int] = "dynamic",
    portable: bool = False,
    aot: bool = False,
) -> Path:
    """Write a fitted detector's whole graph: resizing, normalisation, networks, map, score and thresholds.

    The archive takes (B, 3, h, w) float32 in [0, 1], for any B, and gives the four tensors of
    :class:`~stadfast.methods.Prediction`. :class:`~stadfast.runtime.Scorer` runs it; so do ``torch.jit.load``,
    libtorch, ``torch.export.load``, ONNX Runtime and OpenVINO.

    Args:
        detector: a fitted one.
        path: the file to write. OpenVINO adds a second one, ``.bin``, beside it.
        format: ``"torchscript"``, ``"export"`` (``torch.export``, .pt2), ``"onnx"`` or ``"openvino"`` (these two
            need the extras of the same names).
        precision: of the networks: ``"fp32"``, ``"bf16"`` or ``"fp16"``; maps and scores are float32 always. A
            Scorer may run an fp32 archive in less. ONNX and OpenVINO keep fp16 weights, and compute as they choose.
        size: (h, w) of the images that will come, a number for a square, or ``"dynamic"`` for any. ONNX: the
            network's own.
        portable: record plain PyTorch operators, so that the archive runs where stadfast's library is not loaded;
            ONNX and OpenVINO always are.
        aot: compile an ``"export"`` archive to machine code for this kind of processor (AOTInductor; needs a C++
            compiler, and minutes). ``torch._inductor.aoti_load_package`` and libtorch's ``AOTIModelPackageLoader``
            run it; Scorer is faster with the graph itself, and refuses machine code.

    Returns:
        the path.

    Raises:
        UsageError: an argument does not fit; StadfastError: not fitted, an extra is missing, or the file cannot be
        written.
    """
    height, width = _check(format, precision, size)
    if aot and format != "export":
        raise UsageError(f"aot: goes with format 'export' only, got {format!r}")
    path = Path(path)
    _check_suffix(path, format)
    graph = detector._fitted()
    plain = portable or format in ("onnx", "openvino")
    network_size = tuple(graph.preprocess.size)
    if format == "onnx" and (height, width) != network_size:
        raise UsageError(
            f"size: an ONNX archive takes the network's {network_size[0]} x {network_size[1]} only, as its exporter "
            f"loses the antialiasing of the resizing; got {size!r}"
        )
    dynamic = (height, width) == (0, 0)
    sides = None if dynamic else (height, width)
    example = example_images(sides or unlike_inputs(graph.preprocess))
    dtype = torch.float32 if format in ("onnx", "openvino") else DTYPES[precision]
    metadata = describe(detector, format, precision, sides, plain) | {"aot": aot}
    with ops.plain_pytorch(plain):
        module = _plain_graph(graph, example, dtype)
        with atomic_write(path) as temporary:
            _WRITERS[format](module, example, temporary, path, metadata, dynamic)
    return path


def _check_suffix(path: Path, format: str) -> None:
    """A Scorer tells some formats by it, and a detector's own bundle must not be written over."""
    wanted = _SUFFIXES.get(format)
    if wanted is not None and path.suffix != wanted:
        raise UsageError(f"path: expected a name that ends with {wanted} for format {format!r}, got {path}")
    if wanted is None and path.suffix in (*_SUFFIXES.values(), ".safetensors"):
        raise UsageError(f"path: expected a name such as {path.stem}.pt for format {format!r}, got {path}")


def unlike_inputs(preprocess: Any) -> tuple[int, int]:
    """An image size that every input of the network needs resized, so that a graph for any size can be recorded."""
    taken = {tuple(preprocess.size), *getattr(preprocess, "sizes", ())}
    height, width = preprocess.size
    while (height, width) in taken:
        height, width = height + _OFF, width + _OFF
    return height, width


def example_images(size: Sequence[int]) -> Tensor:
    """(2, 3, h, w) to record a graph with."""
    height, width = size
    return torch.rand(_BATCH, 3, height, width, generator=torch.Generator().manual_seed(0))


def record(module: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    """Trace ``module`` on the CPU; any batch size."""
    with torch.no_grad(), quiet():
        return torch.jit.trace(module, example, check_trace=False)


def record_on_cpu(graph: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    """Trace a detector's graph, wherever it lives."""
    device = next(graph.parameters()).device
    try:
        return record(graph.eval().to("cpu"), example)
    finally:
        graph.to(device)


def _plain_graph(graph: nn.Module, example: Tensor, dtype: torch.dtype) -> nn.Module:
    """The detector's graph as a flat list of operators with batch norm folded, in the wanted precision."""
    recorded = record_on_cpu(graph, example)
    module = lower(recorded, torch.device("cpu"), keep_resize=True)
    propagate(module, example)
    return narrow(module, dtype)


def describe(
    detector: Detector, format: str, precision: str, image_size: tuple[int, int] | None, portable: bool
) -> dict[str, Any]:
    """An archive's metadata."""
    from .. import __version__

    return {
        "format": ARCHIVE_FORMAT,
        "kind": format,
        "method": detector.method,
        "threshold": detector.threshold_,
        "pixel_threshold": detector.pixel_threshold_,
        "image_score": detector.image_score,
        "network_size": list(detector.graph_.preprocess.size),
        "image_size": None if image_size is None else list(image_size),
        "precision": precision,
        "portable": portable,
        "native_scale": detector.native_scale_,
        "outputs": list(OUTPUTS),
        "notes": list(detector.notes_),
        "versions": {"stadfast": __version__, "torch": torch.__version__},
    }


# ------------------------------------------------------------------------------------------- formats


def _write_torchscript(
    module: nn.Module, example: Tensor, temporary: Path, path: Path, metadata: dict[str, Any], dynamic: bool
) -> None:
    recorded = record(module, example)
    with quiet():  # in memory first: a full disk would end the process
        temporary.write_bytes(recorded.save_to_buffer(_extra_files={MEMBER: json.dumps(metadata)}))


def _write_exported(
    module: nn.Module, example: Tensor, temporary: Path, path: Path, metadata: dict[str, Any], dynamic: bool
) -> None:
    program = _program(module, example, dynamic)
    if metadata["aot"]:
        temporary.write_bytes(compile_package(program))
        add_member(temporary, MEMBER, json.dumps(metadata))
        return
    whole = io.BytesIO()  # in memory first: a full disk would end the process
    with quiet():
        torch.export.save(program, whole, extra_files={MEMBER: json.dumps(metadata)})
    temporary.write_bytes(whole.getbuffer())


def _program(module: nn.Module, example: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=_MAX_BATCH)}
    if dynamic:
        free |= {i: torch.export.Dim(n, min=16, max=_MAX_SIDE) for i, n in ((2, "height"), (3, "width"))}
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=(free,), strict=False)


def _write_onnx(
    module: nn.Module, example: Tensor, temporary: Path, path: Path, metadata: dict[str, Any], dynamic: bool
) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise StadfastError(f"format 'onnx' needs {error.name}: pip install 'stadfast[onnx]'") from error
    program = torch.onnx.export(
        _program(module, example, dynamic), dynamo=True, input_names=["images"], output_names=list(OUTPUTS),
        verbose=False,
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    if metadata["precision"] == "fp16":
        model = _half_weights(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = MEMBER, json.dumps(metadata)
    onnx.save(model, os.fspath(temporary))


def _half_weights(model: Any) -> Any:
    """Keep large weights in half precision, each widened where it is used."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) > 1024:
            half = numpy_helper.to_array(weight).astype(np.float16)
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(half, f"{name}_fp16"))
            casts.append(helper.make_node("Cast", [f"{name}_fp16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _write_openvino(
    module: nn.Module, example: Tensor, temporary: Path, path: Path, metadata: dict[str, Any], dynamic: bool
) -> None:
    try:
        import openvino
    except ImportError as error:
        raise StadfastError("format 'openvino' needs openvino: pip install 'stadfast[openvino]'") from error
    sides = (-1, -1) if dynamic else tuple(example.shape[2:])
    try:
        model = openvino.convert_model(record(module, example), input=[("images", [-1, 3, *sides])])
    except Exception as error:
        raise StadfastError(
            f"OpenVINO cannot convert this {metadata['method']} detector: {str(error).strip().splitlines()[0][:300]}; "
            "the other formats take it"
        ) from error
    for output, name in zip(model.outputs, OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    model.set_rt_info(json.dumps(metadata), [MEMBER])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "archive.xml"
        openvino.save_model(model, file, compress_to_fp16=metadata["precision"] == "fp16")
        temporary.write_bytes(file.read_bytes())
        with atomic_write(path.with_suffix(".bin")) as weights:
            weights.write_bytes(file.with_suffix(".bin").read_bytes())


_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
_WRITERS: dict[str, Callable[..., None]] = {
    "torchscript": _write_torchscript,
    "export": _write_exported,
    "onnx": _write_onnx,
    "openvino": _write_openvino,
}


def _check(format: str, precision: str, size: str | int | Sequence[int]) -> tuple[int, int]:
    """(h, w) of the images, (0, 0) for any."""
    if format not in SUFFIXES:
        raise UsageError(f"format: expected one of {', '.join(SUFFIXES)}, got {format!r}")
    if precision not in _PRECISIONS[format]:
        raise UsageError(
            f"precision: expected one of {', '.join(_PRECISIONS[format])} for {format}, got {precision!r}"
        )
    if size == "dynamic":
        return 0, 0
    sides = (size, size) if isinstance(size, int) else size
    if isinstance(sides, str) or len(sides) != 2 or not all(isinstance(n, int) and n >= 16 for n in sides):
        raise UsageError(f"size: expected 'dynamic' or (height, width) from 16 on, got {size!r}")
    return sides[0], sides[1]
