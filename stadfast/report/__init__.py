"""A detector measured, and what people look at: heat maps on a scale fixed by the model, curves, one HTML file."""

from .evaluation import Evaluated, evaluate
from .heatmap import heatmap, overlay, scale_position
from .html import write_report
from .overview import write_overview
from .records import Record

__all__ = [
    "Evaluated",
    "Record",
    "evaluate",
    "heatmap",
    "overlay",
    "scale_position",
    "write_overview",
    "write_report",
]
