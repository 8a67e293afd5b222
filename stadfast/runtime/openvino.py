"""ONNX and OpenVINO archives, run by OpenVINO."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BundleError, StadfastError


def compile_model(path: Path, precision: str, threads: int | None) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function from (B, 3, h, w) float32 on the CPU to the archive's four outputs.

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
        model = openvino.Core().compile_model(os.fspath(path), "CPU", settings)
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
