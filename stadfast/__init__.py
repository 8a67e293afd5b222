"""Fast student-teacher anomaly detection for industrial images.

Importing the package costs no more than importing torch: everything below is loaded at first use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    "evaluate": "report",
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


def _loader(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of ``package``: each name of ``home`` from the module in it, imported at first use."""

    def load(name: str) -> Any:
        if name in home:
            return getattr(import_module(f".{home[name]}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load


_load = _loader(__name__, _HOME)

__all__ = [*_HOME, *_ROOMS, "__version__"]


def __getattr__(name: str) -> Any:
    return import_module(f".{name}", __name__) if name in _ROOMS else _load(name)


def __dir__() -> list[str]:
    return sorted(__all__)
