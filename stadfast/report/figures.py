"""The report's curves as SVG text, drawn with matplotlib's objects (no pyplot, no global state)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREY = "#2f6690", "#c8553d", "#6b7280"
_SIZE_IN = (4.0, 3.1)
_CURVE_POINTS = 400
_LOG_FROM = 30.0  # ratio of scores from which the axis is logarithmic

Curve = tuple[np.ndarray, np.ndarray]


def roc_svg(image: Curve | None, pixel: Curve | None) -> str:
    """ROC curves (false-positive rate, true-positive rate) of images and pixels."""
    figure, axes = _new("False-positive rate", "True-positive rate")
    axes.plot([0, 1], [0, 1], color="#d1d5db", linewidth=1, linestyle=(0, (4, 3)))
    if pixel is not None:
        axes.plot(*thin(*pixel), color=BLUE, linewidth=1.8, label="pixels")
    if image is not None:
        axes.plot(*thin(*image), color=RED, linewidth=1.8, label="images")
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.02))
    axes.legend(loc="lower right", frameon=False)
    return _svg(figure)


def pro_svg(curve: Curve, limit: float = 0.3) -> str:
    """Per-region overlap against the false-positive rate of pixels, the integrated part shaded."""
    figure, axes = _new("False-positive rate of pixels", "Per-region overlap")
    rate, overlap = np.asarray(curve[0], dtype=float), np.asarray(curve[1], dtype=float)
    inside = rate <= limit
    at_limit = np.interp(limit, rate, overlap)
    rate, overlap = thin(np.append(rate[inside], limit), np.append(overlap[inside], at_limit))
    axes.fill_between(rate, overlap, color=BLUE, alpha=0.12, linewidth=0)
    axes.plot(rate, overlap, color=BLUE, linewidth=1.8)
    axes.set(xlim=(0, limit), ylim=(0, 1.02))
    return _svg(figure)


def histogram_svg(scores: Sequence[float], labels: Sequence[int], threshold: float, bins: int = 36) -> str:
    """Image scores of good and defective images, and the threshold; logarithmic where they span much."""
    from matplotlib.ticker import MaxNLocator

    values, defective = np.asarray(scores, dtype=float), np.asarray(labels).astype(bool)
    figure, axes = _new("Image score", "Images")
    finite = values[np.isfinite(values)]
    low, high = min(finite.min(initial=threshold), threshold), max(finite.max(initial=threshold), threshold)
    if 0 < low < high / _LOG_FROM:
        edges = np.geomspace(low / 1.1, high * 1.1, bins + 1)
        axes.set_xscale("log")
    else:
        pad = 0.05 * (high - low) or 1.0
        edges = np.linspace(low - pad, high + pad, bins + 1)
    for name, chosen, colour in (("good", ~defective, BLUE), ("defective", defective, RED)):
        if chosen.any():
            style: dict[str, Any] = {"color": colour, "alpha": 0.6, "edgecolor": "white", "linewidth": 0.4}
            axes.hist(values[chosen], edges.tolist(), label=name, **style)
    axes.axvline(threshold, color="#111827", linewidth=1.4, linestyle=(0, (4, 2)), label="threshold")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper right", frameon=False, ncols=3, fontsize=9)
    return _svg(figure)


def thin(x: Any, y: Any, points: int = _CURVE_POINTS) -> Curve:
    """At most ``points`` of a curve's points, evenly spread along its length; the ends stay."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) <= points:
        return x, y
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    chosen = np.unique(np.searchsorted(length, np.linspace(0, length[-1], points)).clip(max=len(x) - 1))
    return x[chosen], y[chosen]


def _new(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel, color=GREY)
    axes.set_ylabel(ylabel, color=GREY)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9ca3af")
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return text.getvalue()
