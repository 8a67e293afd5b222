"""Fast student-teacher anomaly detection for industrial images.

Importing the package costs no more than importing torch: everything below is loaded at first use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import backbones, data, errors, linescan, methods, metrics, ops, report, runtime, scale
    from .data import Folder, MVTecLayout
    from .errors import StadfastError
    from .methods import (
        STPM,
        Detector,
        EnhancedTeacherSTPM,
        FeatureImitation,
        MultiresolutionKD,
        PeerEnsemble,
        Prediction,
        ReconstructionSTPM,
        StereotypeDeepening,
        load,
    )
    from .report import evaluate
    from .runtime import Scorer
    from .runtime.export import export

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
    "evaluate": "report",
    "Scorer": "runtime",
    "export": "runtime.export",
    "StadfastError": "errors",
}


def _loader(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of ``package``: each name of ``home`` from the module in it, imported at first use."""

    def load(name: str) -> Any:
        if name in home:
            return getattr(import_module(f".{home[name]}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load


_load = _loader(__name__, _HOME)

__all__ = [
    "STPM",
    "Detector",
    "EnhancedTeacherSTPM",
    "FeatureImitation",
    "Folder",
    "MVTecLayout",
    "MultiresolutionKD",
    "PeerEnsemble",
    "Prediction",
    "ReconstructionSTPM",
    "Scorer",
    "StadfastError",
    "StereotypeDeepening",
    "__version__",
    "backbones",
    "data",
    "errors",
    "evaluate",
    "export",
    "linescan",
    "load",
    "methods",
    "metrics",
    "ops",
    "report",
    "runtime",
    "scale",
]
_ROOMS = {*__all__} - {*_HOME, "__version__"}


def __getattr__(name: str) -> Any:
    return import_module(f".{name}", __name__) if name in _ROOMS else _load(name)


def __dir__() -> list[str]:
    return sorted(__all__)
