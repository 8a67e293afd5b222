"""The detectors: one contract, one file per method.

Importing this package loads none of its modules: what only runs a graph (:mod:`stadfast.runtime`) does without the
methods and their training.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .. import _loader
from ..errors import BundleError, UsageError

if TYPE_CHECKING:
    from .base import Detector
    from .et_stpm import EnhancedTeacherSTPM
    from .graph import Prediction, ScoringGraph
    from .mkd import MultiresolutionKD
    from .msfi import FeatureImitation
    from .peers import PeerEnsemble
    from .rstpm import ReconstructionSTPM
    from .stereotype import StereotypeDeepening
    from .stpm import STPM
    from .training import EpochRecord

    METHODS: dict[str, type[Detector]]

_CLASSES = {
    "STPM": "stpm",
    "EnhancedTeacherSTPM": "et_stpm",
    "MultiresolutionKD": "mkd",
    "ReconstructionSTPM": "rstpm",
    "StereotypeDeepening": "stereotype",
    "FeatureImitation": "msfi",
}  # of the methods: name -> module
_HOME = {
    **_CLASSES,
    "Detector": "base",
    "EpochRecord": "training",
    "PeerEnsemble": "peers",
    "Prediction": "graph",
    "ScoringGraph": "graph",
}

_load = _loader(__name__, _HOME)

__all__ = [
    "METHODS",
    "STPM",
    "Detector",
    "EnhancedTeacherSTPM",
    "EpochRecord",
    "FeatureImitation",
    "MultiresolutionKD",
    "PeerEnsemble",
    "Prediction",
    "ReconstructionSTPM",
    "ScoringGraph",
    "StereotypeDeepening",
    "create",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "METHODS":
        classes = [_load(method) for method in _CLASSES]
        globals()["METHODS"] = {found.method: found for found in classes}
        return globals()["METHODS"]
    return _load(name)


def __dir__() -> list[str]:
    return sorted(__all__)


def create(method: str, **arguments: Any) -> Detector:
    """An unfitted detector by its method's identifier (the command line's ``--method``).

    Raises:
        UsageError: unknown method, or an argument that it does not have.
    """
    from . import METHODS  # asks __getattr__
    from .arguments import check_known

    if method not in METHODS:
        raise UsageError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    check_known(method, METHODS[method], arguments)
    return METHODS[method](**arguments)


def load(path: str | os.PathLike[str], device: str = "auto") -> Detector:
    """Read a detector that :meth:`Detector.save` wrote.

    Raises:
        BundleError: no such file, damaged, not a detector, or written by a newer stadfast. UsageError: no path.
    """
    from .base import BUNDLE_FORMAT
    from .bundle import read_tensors

    if not isinstance(path, (str, os.PathLike)):
        raise UsageError(f"path: expected a detector's file, got {path!r}")
    tensors, header = read_tensors(path)
    format_ = header.get("format")
    if isinstance(format_, int) and format_ > BUNDLE_FORMAT:
        raise BundleError(
            f"{path} has bundle format {format_}; this stadfast reads up to {BUNDLE_FORMAT}: upgrade stadfast"
        )
    if format_ != BUNDLE_FORMAT:
        raise BundleError(f"{path} is not a detector (its format is {format_!r})")
    try:
        arguments = dict(header["arguments"]) | {"device": device}
        detector = create(header["method"], **arguments)
        detector._check_arguments()
        detector._restore(header, tensors)
    except KeyError as error:
        raise BundleError(f"{path} is damaged: its header has no {error}") from error
    except (UsageError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is damaged: {' '.join(str(error).split())[:300]}") from error
    return detector.to(device)
