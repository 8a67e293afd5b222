"""Exact metrics of anomaly maps, for NumPy arrays and torch tensors: other libraries' maps too."""

from .classes import AUPRO, AUROC, AveragePrecision, Estimate, F1Estimate, F1Max, Metric, add_states
from .evaluation import Evaluation, evaluate
from .folders import evaluate_folders
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
from .segmentation import AUPIMO, aupimo, seg_f1

__all__ = [
    "AUPIMO",
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
    "aupimo",
    "aupro",
    "auroc",
    "average_precision",
    "evaluate",
    "evaluate_folders",
    "f1_max",
    "pro_curve",
    "roc_curve",
    "seg_f1",
]
