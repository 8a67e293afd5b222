"""Defect events: the connected components of an endless anomaly map, reported as they close."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from . import _extension
from .arguments import check_whole, is_whole

_MOST = 2**31 - 1  # csrc/linescan counts in int32


@dataclass(frozen=True)
class DefectEvent:
    """One defect. Rows count from the start of the strip, columns from the left; ranges exclude their end.

    Attributes:
        id: 0, 1, ... in the order of the first reports; a growing event keeps it.
        rows: (first, end), the bounding box in map rows.
        columns: (first, end), the bounding box in map columns.
        rows_mm: the same along the web, in mm; None without a pixel pitch.
        columns_mm: the same across the web.
        area: pixels.
        area_mm2: the same in mm^2; None without a pixel pitch.
        peak: highest score.
        mean: mean score of its pixels.
        peak_position: (row, column) of the peak, the first in reading order.
        growing: whether it goes on: reported because of its length, and to be reported again, for all of it.
        absorbed: growing events, reported before, that turned out to be part of this one.
    """

    id: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    rows_mm: tuple[float, float] | None
    columns_mm: tuple[float, float] | None
    area: int
    area_mm2: float | None
    peak: float
    mean: float
    peak_position: tuple[int, int]
    growing: bool
    absorbed: tuple[int, ...] = ()


class DefectTracker:
    """Turns the rows of an anomaly map into defect events, in memory that does not grow with the strip.

    1. Components: 8-connected pixels above ``low``, as ``scipy.ndimage.label`` with a 3 x 3 structure finds them on
       the whole strip.
    2. A component counts if any of its pixels is above ``high`` (hysteresis, as Canny's of 1986) and it has
       ``min_area`` pixels.
    3. Components that count are one event if pixels of theirs lie at most ``merge_distance`` rows and at most
       ``merge_distance`` columns apart (neighbours are 1 apart, so that 0 and 1 merge nothing).
    4. An event is reported by the row that closes it: the first after which nothing can join it. An event longer
       than ``max_length`` rows is reported meanwhile as growing, every ``max_length`` rows. Where an event's fate
       hangs on a neighbour that is still open and does not count yet, it is waited for ``max_length`` rows.

    Union-find over runs (maximal stretches of pixels in a row): work is that of reading the map plus a little per
    run; labels are reused. How rows come together in pushes changes nothing but when results are handed out.

    Args:
        width: columns of the map.
        low: threshold of a defect's pixels.
        high: threshold of its peak; None: ``low``.
        min_area: pixels.
        merge_distance: pixels.
        max_length: rows.
        pixel_pitch: mm of a map pixel, or (along the web, across it).
        margin: columns at both edges, or (left, right), that are not looked at.

    Raises:
        UsageError: an argument out of range.
        ExtensionError: the compiled part is not available.
    """

    def __init__(
        self,
        width: int,
        low: float,
        high: float | None = None,
        min_area: int = 1,
        merge_distance: int = 0,
        max_length: int = 10_000,
        pixel_pitch: float | tuple[float, float] | None = None,
        margin: int | tuple[int, int] = 0,
    ) -> None:
        high = low if high is None else high
        width, min_area = check_whole("width", width, 1, _MOST), check_whole("min_area", min_area, 1, _MOST)
        merge_distance = check_whole("merge_distance", merge_distance, 0, _MOST)
        max_length = check_whole("max_length", max_length, 1, _MOST)
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise UsageError(f"low, high: expected finite thresholds, low <= high, got {low!r}, {high!r}")
        left, right = checked_margin(margin)
        if left + right >= width:
            raise UsageError(f"margin: expected less than the map's {width} columns, got {left} and {right}")
        self.width = width
        self._seen = slice(left, self.width - right)
        self._pitch = checked_pitch(pixel_pitch)
        tracker = _extension.load().Tracker
        # Thresholds are compared with float32 scores: rounded down, score > threshold is decided as in float64.
        self._tracker = tracker(
            self.width - left - right,
            _round_down(low),
            _round_down(high),
            min_area,
            merge_distance,
            max_length,
        )
        self._finished = False

    def push(self, rows: Any) -> list[DefectEvent]:
        """Add map rows; one thread.

        Args:
            rows: (m, width) float32, a NumPy array or a tensor in main memory; m >= 0.

        Returns:
            The events that these rows close, or that outgrow ``max_length`` in them, in the order of the rows.

        Raises:
            UsageError: wrong shape or dtype, after ``finish``, or while another thread is pushing.
            DataError: a score is NaN or infinite. None of the rows was added; the tracker can go on.
        """
        if self._finished:
            raise UsageError("push: the tracker has finished; make a new one for a new strip")
        scores = np.ascontiguousarray(self._checked_rows(rows)[:, self._seen])
        try:
            found = self._tracker.push(scores)
        except ValueError as error:
            row, column = error.args
            raise DataError(
                f"rows: expected finite scores, got {scores[row, column]} in map row {self.rows + row}, "
                f"column {self._seen.start + column}"
            ) from None
        except RuntimeError as error:  # a second thread
            raise UsageError(f"push: {error}; a tracker has one user") from None
        return [self._event(*event) for event in found]

    def finish(self) -> list[DefectEvent]:
        """The strip ends: every event that is still open closes. Later calls return nothing."""
        if self._finished:
            return []
        self._finished = True
        return [self._event(*event) for event in self._tracker.finish()]

    @property
    def rows(self) -> int:
        """Map rows so far."""
        return int(self._tracker.rows)

    @property
    def first_open_row(self) -> int:
        """The first row of all that is not reported as closed; ``rows`` if nothing is open.

        No later event begins before it: who keeps the image from here on can cut out every event.
        """
        return int(self._tracker.first_open_row)

    @property
    def state_bytes(self) -> int:
        """Memory of the tracker's state."""
        return int(self._tracker.bytes)

    def _checked_rows(self, rows: Any) -> np.ndarray:
        if getattr(getattr(rows, "device", None), "type", "cpu") != "cpu":
            raise UsageError(f"rows: expected a map in main memory, got one on {rows.device}")
        try:
            scores = np.asarray(rows)
        except (TypeError, RuntimeError) as error:  # such as a bfloat16 tensor, or one that needs gradients
            raise UsageError(f"rows: expected a float32 array or tensor, got {error}") from error
        if scores.dtype != np.float32 or scores.ndim != 2 or scores.shape[1] != self.width:
            raise UsageError(f"rows: expected float32 (m, {self.width}), got {scores.dtype} {scores.shape}")
        return scores

    def _event(
        self,
        number: int,
        growing: bool,
        rows: tuple[int, int],
        columns: tuple[int, int],
        area: int,
        total: float,
        peak: float,
        peak_position: tuple[int, int],
        absorbed: tuple[int, ...],
    ) -> DefectEvent:
        along, across = self._pitch or (None, None)
        left = self._seen.start
        columns = (left + columns[0], left + columns[1])
        return DefectEvent(
            id=number,
            rows=rows,
            columns=columns,
            rows_mm=None if along is None else (rows[0] * along, rows[1] * along),
            columns_mm=None if across is None else (columns[0] * across, columns[1] * across),
            area=area,
            area_mm2=None if along is None or across is None else area * along * across,
            peak=peak,
            mean=total / area,
            peak_position=(peak_position[0], left + peak_position[1]),
            growing=growing,
            absorbed=absorbed,
        )


def checked_margin(margin: Any) -> tuple[int, int]:
    """(left, right).

    Raises:
        UsageError: not one or two whole numbers from 0.
    """
    sides = tuple(margin) if isinstance(margin, tuple | list) else (margin, margin)
    if len(sides) != 2 or not all(is_whole(n) and n >= 0 for n in sides):
        raise UsageError(f"margin: expected columns, or (left, right), from 0, got {margin!r}")
    return int(sides[0]), int(sides[1])


def checked_pitch(pitch: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if pitch is None:
        return None
    values: tuple[Any, ...] = (pitch, pitch) if isinstance(pitch, Real) else tuple(pitch)  # type: ignore[arg-type]
    if len(values) != 2 or not all(isinstance(v, Real) and math.isfinite(v) and float(v) > 0 for v in values):
        raise UsageError(f"pixel_pitch: expected mm, or (along, across) in mm, above 0, got {pitch!r}")
    return float(values[0]), float(values[1])


def _round_down(threshold: float) -> float:
    """The largest float32 that is not above ``threshold``."""
    nearest = np.float32(threshold)
    return float(np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > threshold else nearest)
