"""Reports for people: heat maps on a scale fixed by the model, curves, one self-contained HTML file."""

from .heatmap import heatmap, overlay, scale_position
from .html import write_report
from .overview import write_overview
from .records import Record

__all__ = ["Record", "heatmap", "overlay", "scale_position", "write_overview", "write_report"]
