"""Fast student-teacher anomaly detection for industrial images.

Importing the package costs no more than importing torch: everything below is loaded at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "STPM": "methods",
    "EnhancedTeacherSTPM": "methods",
    "MultiresolutionKD": "methods",
    "ReconstructionSTPM": "methods",
    "StereotypeDeepening": "methods",
    "PeerEnsemble": "methods",
    "Detector": "methods",
    "FeatureImitation": "methods",
    "Prediction": "methods",
    "load": "methods",
    "Folder": "data",
    "MVTecLayout": "data",
    "Scorer": "runtime",
    "export": "runtime",
    "StadfastError": "errors",
}
_ROOMS = (
    "backbones",
    "data",
    "errors",
    "linescan",
    "methods",
    "metrics",
    "ops",
    "report",
    "runtime",
    "scale",
)

__all__ = [*_HOME, *_ROOMS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'stadfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
