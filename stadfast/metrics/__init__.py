"""Exact metrics of anomaly maps, for NumPy arrays and torch tensors: other libraries' maps too."""

from .classes import AUPRO, AUROC, AveragePrecision, Estimate, F1Estimate, F1Max, Metric, add_states
from .evaluation import Evaluation, evaluate
from .functional import (
    F1Score,
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
from .protocol import Protocol

__all__ = [
    "AUPRO",
    "AUROC",
    "AveragePrecision",
    "Estimate",
    "Evaluation",
    "F1Estimate",
    "F1Max",
    "F1Score",
    "Metric",
    "PROCurve",
    "Protocol",
    "ROCCurve",
    "UndefinedMetricWarning",
    "add_states",
    "aupro",
    "auroc",
    "average_precision",
    "evaluate",
    "f1_max",
    "pro_curve",
    "roc_curve",
]
