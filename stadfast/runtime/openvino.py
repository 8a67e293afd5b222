"""ONNX and OpenVINO archives, run by OpenVINO."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BundleError, StadfastError


def compile_model(
    path: Path, precision: str, threads: int | None, shape: Sequence[int] | None = None
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function from (B, 3, h, w) float32 on the CPU to the archive's four outputs.

    Args:
        path: of the archive.
        precision: "bf16", or "fp32" for everything else.
        threads: as OpenVINO likes if None.
        shape: take (B, H, W, 3) uint8 of this shape alone, which is OpenVINO's fastest way.

    Raises:
        StadfastError: OpenVINO is not installed. BundleError: it cannot read the file.
    """
    try:
        import openvino
    except ImportError as error:
        raise StadfastError(f"{path} needs openvino: pip install 'stadfast[openvino]'") from error
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        core = openvino.Core()
        network = core.read_model(os.fspath(path))
        if shape is not None:
            network = _for_bytes(network, shape)
        model = core.compile_model(network, "CPU", settings)
    except RuntimeError as error:
        raise BundleError(f"{path} cannot be compiled: {str(error).splitlines()[0]}") from error
    requests = threading.local()  # a request serves one thread at a time

    def run(images: Tensor) -> tuple[Tensor, ...]:
        if not hasattr(requests, "own"):
            requests.own = model.create_infer_request()
        requests.own.infer([images.contiguous().numpy()])
        outputs = (torch.from_numpy(requests.own.get_output_tensor(i).data.copy()) for i in range(4))
        scores, labels, maps, masks = outputs
        return scores, labels.bool(), maps, masks.bool()

    return run


def _for_bytes(network: Any, shape: Sequence[int]) -> Any:
    """The network with conversion from uint8 and layout in its graph, and a fixed shape."""
    from openvino import Layout, Type
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(network)
    steps.input().tensor().set_element_type(Type.u8).set_layout(Layout("NHWC"))
    steps.input().model().set_layout(Layout("NCHW"))
    steps.input().preprocess().convert_element_type(Type.f32).scale(255.0)
    network = steps.build()
    network.reshape(list(shape))
    return network
