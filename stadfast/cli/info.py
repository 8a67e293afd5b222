"""``stadfast info``: what this machine runs on, or what a saved detector says of itself."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__, load, ops
from ..methods.bundle import read_tensors
from ..methods.hardware import choose_device, choose_precision, cpu_flags, cpu_name
from ._guard import printable

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "scikit-learn")
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # as Linux names those that decide the speed here


def info(model: Path | None) -> None:
    """Print the facts of a bundle, or of the installation."""
    facts = model_facts(model) if model is not None else machine_facts()
    rows = list(_rows(facts))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {printable(value)}")


def machine_facts() -> dict[str, Any]:
    """Backend in use, why, and how to get a better one; versions, processor, GPU, folders."""
    backend = ops.backend()
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    return {
        "stadfast": __version__,
        "backend": f"{backend.name} ({backend.reason})",
        **({"better backend": backend.advice} if backend.advice else {}),
        **{f"{name} library": str(path) for name, path in backend.libraries.items()},
        "cache folder": str(ops.cache_folder()),
        "device": str(device),
        "training precision": f"{precision.name} ({precision.reason})",
        "processor": f"{cpu_name()}, {torch.get_num_threads()} threads",
        "CPU features": ", ".join(f for f in _FEATURES if f in cpu_flags())
        or "none of " + ", ".join(_FEATURES),
        "GPU": _gpus(),
        "Python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) for name in _PACKAGES},
    }


def model_facts(model: Path) -> dict[str, Any]:
    """What a bundle says of itself, once it has proved to be a detector.

    Raises:
        BundleError: it is none.
    """
    load(model, device="cpu")
    header = read_tensors(model)[1]
    arguments = {name: value for name, value in header["arguments"].items() if value is not None}
    leave_out = ("device", "deterministic", "show_progress")
    return {
        "method": header["method"],
        **{name: value for name, value in arguments.items() if name not in leave_out},
        "threshold": header["threshold"],
        **({"notes": "; ".join(header["notes"])} if header["notes"] else {}),
        **{
            name: header[name]
            for name in ("modules", "calibration", "data", "training", "versions")
            if name in header
        },
    }


def _rows(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{name} ")
        else:
            label = f"{prefix}{name}".replace("_", " ")
            yield (
                label,
                " x ".join(map(str, value)) if name.endswith("size") and isinstance(value, list) else value,
            )


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
