"""Exact metrics of anomaly maps, for NumPy arrays and torch tensors: other libraries' maps too."""

from .evaluation import evaluate
from .functional import (
    F1Max,
    PROCurve,
    ROCCurve,
    UndefinedMetricWarning,
    aupro,
    auroc,
    average_precision,
    f1_max,
    pro_curve,
    roc_curve,
)

__all__ = [
    "F1Max",
    "PROCurve",
    "ROCCurve",
    "UndefinedMetricWarning",
    "aupro",
    "auroc",
    "average_precision",
    "evaluate",
    "f1_max",
    "pro_curve",
    "roc_curve",
]
