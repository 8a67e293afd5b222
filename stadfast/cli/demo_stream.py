"""The second part of ``stadfast demo``: the same material as an endless web, defects injected at known places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._files import atomic_write
from ..data import Material
from ..linescan import Callback, Event, Inspector, Status, native_maps
from ..linescan.sinks import JsonLines, Thumbnails
from ..linescan.sources import GeneratedWeb, Paced
from ..linescan.trial import Verdict, inject, judge
from ..methods import Detector
from ..report import overlay
from ._guard import say
from ._output import write_json
from .stream import LiveLine, computing

WIDTH, PITCH_MM = 256, 0.25
_DOWNSCALE = 2  # the detector has learned images of 256 pixels at 128
_FIRST = 1 << 29  # a stretch of the web that no image of the first part shows
_ROWS = 128  # computed at once
_MARGIN = 8  # columns at the web's edges, where most of the false events are
_RING = 16_384  # lines that may wait
_GAP = 6


def demo_stream(
    detector: Detector, output: Path, *, line_rate: float, seconds: float, defects: int
) -> dict[str, Any]:
    """Inspect so many seconds of web at a line rate; write events, pictures and ``stream.json``; print the table.

    Returns:
        What ``stream.json`` holds.
    """
    lines = round(line_rate * seconds)
    truths = inject("woven", WIDTH, lines, defects, first=_FIRST)
    web = GeneratedWeb("woven", WIDTH, lines, first=_FIRST, defects=[one.defect for one in truths])
    say(
        f"inspecting {lines} lines of the web at {line_rate:.0f} lines/s "
        f"({lines * PITCH_MM / 1000:.1f} m at {line_rate * PITCH_MM * 0.06:.0f} m/min), {defects} defects injected"
    )
    journal, pictures = output / "events.jsonl", output / "defects"
    for old in (journal, *pictures.glob("*.png")):  # an earlier demo's
        old.unlink(missing_ok=True)
    events: list[Event] = []
    inspector = Inspector(
        detector,
        Paced(web, line_rate),
        [JsonLines(journal), Callback(events.append), Thumbnails(pictures), LiveLine()],
        downscale=_DOWNSCALE,
        rows_per_push=_ROWS,
        pixel_pitch=PITCH_MM,
        margin=_MARGIN,
        overrun="drop_newest",
        capacity=_RING,
    )
    with computing():
        status = inspector.run()
    verdict = judge(truths, events)
    figures = _figures(verdict, status, line_rate)
    write_json(str(output / "stream.json"), figures)
    write_picture(output / "stream.png", detector, verdict, inspector.threshold)
    print_table(verdict, status, figures)
    return figures


def _figures(verdict: Verdict, status: Status, line_rate: float) -> dict[str, Any]:
    (middle, largest), (delay, longest) = verdict.offsets(), verdict.delays()
    return {
        "line_rate": line_rate, "lines": status.lines, "lines_lost": status.lost, "budget": status.budget,
        "delay_rows": status.delay_rows, "injected": len(verdict.outcomes), "found": verdict.found,
        "false_events": len(verdict.false),
        "by_kind": {kind: {"found": found, "of": of} for kind, (found, of) in verdict.by_kind().items()},
        "position_error_pixels": {"median": middle, "largest": largest},
        "delay_s": {"median": delay, "largest": longest},
    }  # fmt: skip


def print_table(verdict: Verdict, status: Status, figures: dict[str, Any]) -> None:
    """Found, missed, false, delay."""
    metres = (status.lines + status.lost) * PITCH_MM / 1000
    print(f"\nGenerated web, {metres:.1f} m at {figures['line_rate']:.0f} lines/s")
    print(f"{'defect':<16}{'found':>7}{'missed':>8}{'delay':>9}")
    for kind, (found, of) in verdict.by_kind().items():
        delays = [o.delay for o in verdict.outcomes if o.injected.defect.kind == kind and o.delay is not None]
        delay = f"{np.median(delays):.2f} s" if delays else "-"
        print(f"{kind:<16}{found:>7}{of - found:>8}{delay:>9}")
    total = len(verdict.outcomes)
    print(f"{'all':<16}{verdict.found:>7}{total - verdict.found:>8}{verdict.delays()[0]:>7.2f} s")
    print(
        f"false events: {len(verdict.false)}; lines lost: {status.lost}; budget used: {100 * status.budget:.0f} %; "
        f"a defect is in the map {status.delay_rows} lines after it, {status.delay_rows / figures['line_rate']:.2f} s"
    )


def write_picture(path: Path, detector: Detector, verdict: Verdict, threshold: float) -> None:
    """The web around one defect of each kind, and its heat map; what was injected is outlined in green."""
    from PIL import Image

    columns: list[np.ndarray] = []
    for kind in verdict.by_kind():
        outcomes = [o for o in verdict.outcomes if o.injected.defect.kind == kind]
        outcome = next((o for o in outcomes if o.events), outcomes[0])
        middle = sum(outcome.injected.lines) // 2
        first = _FIRST + middle - WIDTH // 2
        image, mask = Material("woven", WIDTH, defects=[outcome.injected.defect]).rows(
            first - WIDTH, 3 * WIDTH
        )
        maps = native_maps(detector, _planar(image), downscale=_DOWNSCALE)[0, 0, WIDTH : 2 * WIDTH]
        shown, true = image[WIDTH : 2 * WIDTH], mask[WIDTH : 2 * WIDTH]
        marked = overlay(_planar(shown), maps, threshold, true)
        columns += [np.vstack([shown, _white(_GAP, WIDTH), marked]), _white(2 * WIDTH + _GAP, _GAP)]
    with atomic_write(path) as temporary:
        Image.fromarray(np.hstack(columns[:-1])).save(temporary, format="PNG", optimize=True)


def _planar(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)
