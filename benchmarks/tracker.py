"""Lines per second of the acquisition ring, and map rows per second of the defect tracker.

    python benchmarks/tracker.py [--quick]

Nobody in this field offers a peer, so the contenders are what one would write otherwise:

* ring, one thread: lines pushed in parts of 64 (or one by one) and taken in views of 64, against a ``queue.Queue`` of
  copied arrays. ``two threads`` has the camera's thread beside the consumer's, which looks at one value of each view.
* tracker: pushes of 64 rows, width 4096, against ``scipy.ndimage.label`` with bounding boxes, areas, sums and peaks on
  the same rows, all at once (which would leave the seams to be joined).

Masks: ``empty``; ``sparse``, a web with a defect of some 30 x 30 pixels every 200 rows; ``dense``, smooth noise that is
above the threshold at every twentieth pixel; ``noise``, single pixels, as many (the hard case: every one is a run).
"""

from __future__ import annotations

import argparse
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import interleave, print_table, ratio, write_result
from scipy import ndimage

from stadfast.linescan import DefectTracker, RowRing

WIDTH, PART = 4096, 64
LOW, HIGH, MIN_AREA = 0.5, 0.7, 9


def draw(kind: str, rows: int) -> np.ndarray:
    """(rows, WIDTH) float32 scores from 0 to 1."""
    rng = np.random.default_rng(0)
    scores = 0.4 * rng.random((rows, WIDTH), dtype=np.float32)
    if kind == "sparse":
        y, x = np.ogrid[-20:20, -20:20]
        bump = np.clip(1.2 - (y * y + x * x) / 300, 0, 1).astype(np.float32)
        for row in range(0, rows - 40, 200):
            column = int(rng.integers(0, WIDTH - 40))
            scores[row : row + 40, column : column + 40] += bump
    if kind == "dense":
        smooth = ndimage.gaussian_filter(rng.standard_normal((rows, WIDTH), dtype=np.float32), 4)
        scores += smooth / np.quantile(smooth, 0.95) - 0.5
    if kind == "noise":
        scores[rng.random((rows, WIDTH)) < 0.05] = 1.0
    return np.clip(scores, 0, 1)


def track(scores: np.ndarray, **settings: Any) -> int:
    tracker = DefectTracker(WIDTH, LOW, HIGH, MIN_AREA, **settings)
    found = sum(len(tracker.push(scores[row : row + PART])) for row in range(0, len(scores), PART))
    return found + len(tracker.finish())


def label(scores: np.ndarray) -> int:
    labels, count = ndimage.label(scores > LOW, np.ones((3, 3)))
    if count == 0:
        return 0
    numbers = np.arange(1, count + 1)
    ndimage.find_objects(labels)
    areas = np.bincount(labels.ravel())[1:]
    ndimage.sum_labels(scores, labels, numbers)
    peaks = np.asarray(ndimage.maximum(scores, labels, numbers))
    return int(((peaks > HIGH) & (areas >= MIN_AREA)).sum())


def tracker_case(kind: str, rows: int, repeats: int) -> dict[str, Any]:
    scores = draw(kind, rows)
    found = track(scores)
    assert found == label(scores)
    timings = interleave(
        {"stadfast": lambda: track(scores), "stadfast merging 8": lambda: track(scores, merge_distance=8),
         "scipy": lambda: label(scores)}, repeats, 1,
    )  # fmt: skip
    return {
        "case": {"what": "tracker", "mask": kind, "rows": rows, "events": found},
        "rows_per_second": {name: round(rows / t.median) for name, t in timings.items()},
        "timings": {name: t.summary() for name, t in timings.items()},
        "ratios": {"scipy / stadfast": ratio(timings["scipy"], timings["stadfast"])},
    }


def through_ring(lines: np.ndarray, part: int) -> Callable[[], None]:
    ring = RowRing(WIDTH, 1024)

    def pass_all() -> None:
        for row in range(0, len(lines), PART):
            for first in range(row, row + PART, part):
                ring.push(lines[first : first + part])
            view = ring.take(PART)
            assert view is not None
            int(view.rows[0, 0, 0])

    return pass_all


def through_queue(lines: np.ndarray) -> None:
    waiting: queue.Queue[np.ndarray] = queue.Queue(16)
    for row in range(0, len(lines), PART):
        waiting.put(lines[row : row + PART].copy())
        int(waiting.get()[0, 0])


def ring_case(rows: int, repeats: int) -> dict[str, Any]:
    lines = np.random.default_rng(0).integers(0, 256, (rows, WIDTH), dtype=np.uint8)
    timings = interleave(
        {"stadfast": through_ring(lines, PART), "stadfast, line by line": through_ring(lines, 1),
         "queue of copies": lambda: through_queue(lines)}, repeats, 1,
    )  # fmt: skip
    return {
        "case": {"what": "ring", "lines": rows},
        "lines_per_second": {name: round(rows / t.median) for name, t in timings.items()},
        "timings": {name: t.summary() for name, t in timings.items()},
        "ratios": {"queue of copies / stadfast": ratio(timings["queue of copies"], timings["stadfast"])},
    }


def two_threads(seconds: float) -> dict[str, Any]:
    """Producer and consumer as fast as they can, for a while; no line is lost."""
    lines = np.random.default_rng(0).integers(0, 256, (PART, WIDTH), dtype=np.uint8)
    ring, end = RowRing(WIDTH, 4096), time.perf_counter() + seconds

    def camera() -> None:
        while time.perf_counter() < end:
            ring.push(lines)
        ring.close()

    start = time.perf_counter()
    thread = threading.Thread(target=camera)
    thread.start()
    while (view := ring.take(PART)) is not None:
        int(view.rows[0, 0, 0])
        view.release()
    thread.join()
    rate = ring.counts().taken / (time.perf_counter() - start)
    assert ring.counts().lost == 0
    return {"case": {"what": "ring, two threads"}, "lines_per_second": {"stadfast": round(rate)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case, nothing written")
    quick = parser.parse_args().quick
    rows, repeats = (256, 3) if quick else (2048, 5)
    cases = [tracker_case(kind, rows, repeats) for kind in ("empty", "sparse", "dense", "noise")]
    print_table(
        ["mask", "events", *cases[0]["rows_per_second"], "scipy / stadfast"],
        [[c["case"]["mask"], c["case"]["events"], *c["rows_per_second"].values(),
          c["ratios"]["scipy / stadfast"]["median"]] for c in cases],
    )  # fmt: skip
    rings = [ring_case(rows, repeats), two_threads(0.2 if quick else 2.0)]
    for case in rings:
        print(case["case"]["what"], case["lines_per_second"])
    if not quick:
        print(
            write_result(
                "tracker",
                cases + rings,
                {"width": WIDTH, "part": PART, "low": LOW, "high": HIGH, "min_area": MIN_AREA},
            )
        )


if __name__ == "__main__":
    main()
