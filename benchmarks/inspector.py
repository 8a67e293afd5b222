"""The inspector from end to end: what it finds on a generated web, and what becomes of lines that come too fast.

    python benchmarks/inspector.py [--model FILE] [--minutes 30] [--line-rate 200] [--defects 200] [--quick]
    python benchmarks/inspector.py --capacity [--model FILE]
    python benchmarks/inspector.py --soak [--lines 10000000]

There is no comparable tool. The web: woven, 256 columns of 0.5 mm, 30 minutes at 200 lines a second (6 m/min: 180 m),
generated and inspected as fast as it goes; 200 defects of five kinds, one in each 0.9 m, at known places. The detector
is STPM with efficientnet_lite0, fitted on 120 good images of another stretch of the web, as in ``stadfast demo`` (or
``--model``: the one that it saves), at half scale, 128 rows per push, without the 8 outermost columns on both sides
(``--margin``); the other settings are the defaults. One core is left to the camera's thread.

* recall; false events in 1,000 m; distance between the middles of a defect and of its event.
* ``--capacity``: lines a second with lines from memory. At 80 % of it for ten seconds, with a ring of two seconds, no
  line should be lost; at 200 %, with a quarter of a second, lines are lost, and every line is either inspected or in
  exactly one gap.
* ``--soak``: ten million lines through source, ring, history, tracker and journal, with the lines' brightness for a
  map: resident memory from the first tenth to the last.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import print_table, write_result
from torch import Tensor

import stadfast as sf
from stadfast.data import Material, write_material
from stadfast.linescan import Callback, Event, Inspector, Notice, Sink, Status
from stadfast.linescan.sinks import JsonLines
from stadfast.linescan.sources import ArraySource, GeneratedWeb, Paced
from stadfast.linescan.trial import inject, judge
from stadfast.runtime.memory import keep_freed_memory, resident_memory

WIDTH, PITCH_MM, FIRST = (
    256,
    0.5,
    1 << 29,
)  # FIRST: a stretch of the web that the detector has not been fitted on

STREAMING: dict[str, Any] = {"downscale": 2, "rows_per_push": 128}


def fitted() -> sf.STPM:
    with tempfile.TemporaryDirectory() as folder:
        write_material(folder, "woven", (WIDTH, WIDTH), train=120, test_good=0, test_per_defect=0)
        detector = sf.STPM("efficientnet_lite0", image_size=(128, 128), epochs=20, batch_size=8, seed=0)
        return detector.fit(Path(folder) / "train" / "good")


def end_to_end(detector: Any, minutes: float, line_rate: float, count: int, margin: int) -> dict[str, Any]:
    lines = round(minutes * 60 * line_rate)
    truths = inject("woven", WIDTH, lines, count, first=FIRST)
    web = GeneratedWeb("woven", WIDTH, lines, first=FIRST, defects=[one.defect for one in truths])
    events: list[Event] = []
    began = time.perf_counter()
    inspector = Inspector(
        detector, web, [Callback(events.append)], pixel_pitch=PITCH_MM, margin=margin, **STREAMING
    )
    status = inspector.run()
    seconds = time.perf_counter() - began
    assert (status.lines, status.lost) == (lines, 0)
    verdict = judge(truths, events)
    metres = lines * PITCH_MM / 1000
    offsets = [o.offset for o in verdict.outcomes if o.offset is not None]
    return {
        "case": {"what": "end to end", "minutes": minutes, "line_rate": line_rate, "lines": lines, "metres": metres,
                 "defects": count, "threshold": inspector.threshold, "margin": margin, **STREAMING},
        "seconds": round(seconds, 1), "lines_per_second": round(lines / seconds),
        "found": verdict.found, "recall": verdict.recall,
        "by_kind": {kind: {"found": found, "of": of} for kind, (found, of) in verdict.by_kind().items()},
        "missed": [{"kind": o.injected.defect.kind, "contrast": round(o.injected.defect.contrast, 3),
                    "lines": o.injected.lines, "columns": o.injected.columns}
                   for o in verdict.outcomes if not o.events],
        "events": len(events), "false_events": len(verdict.false),
        "false_events_per_1000_m": round(len(verdict.false) / metres * 1000, 2),
        "position_error_pixels": {
            "median": verdict.offsets()[0], "largest": verdict.offsets()[1],
            "median_lines": float(np.median([abs(y) for y, _ in offsets])) if offsets else None,
            "median_columns": float(np.median([abs(x) for _, x in offsets])) if offsets else None,
        },
    }  # fmt: skip


class Ledger(Sink):
    """How often each line was inspected or lost."""

    def __init__(self, lines: int) -> None:
        self.times = np.zeros(lines, np.int64)

    def rows(self, image: np.ndarray, map: np.ndarray, first_line: int) -> None:
        self.times[first_line : first_line + len(map)] += 1

    def notice(self, notice: Notice) -> None:
        if notice.kind == "gap" and notice.line is not None:
            self.times[notice.line : notice.line + notice.details["lines"]] += 1


def from_memory(
    detector: Any, web: np.ndarray, seconds: float, line_rate: float | None, **options: Any
) -> tuple:
    """(last status, ledger) of lines from memory, at a rate, or as fast as they are taken."""
    rounds = max(1, round(seconds * (line_rate or 1500) / len(web)))
    source: Any = ArraySource(web, repeat=rounds)
    source = source if line_rate is None else Paced(source, line_rate)
    ledger = Ledger(rounds * len(web))
    inspector = Inspector(detector, source, [ledger], status_every=1e9, **STREAMING, **options)
    return inspector.run(), ledger


def capacity_cases(detector: Any, seconds: float) -> list[dict[str, Any]]:
    web = Material("woven", WIDTH).rows(FIRST, 2048)[0]
    from_memory(detector, web, 1, None)  # warms up
    status, _ = from_memory(detector, web, 3 * seconds, None)
    capacity = status.line_rate
    cases = [{"case": {"what": "capacity"}, "lines_per_second": round(capacity), "lines": status.lines}]
    for share, overrun in ((0.8, "drop_newest"), (2.0, "drop_newest"), (2.0, "drop_oldest")):
        ring = round((2 if share < 1 else 0.25) * share * capacity)  # seconds
        status, ledger = from_memory(
            detector, web, seconds, share * capacity, overrun=overrun, capacity=ring, threshold=1e9
        )
        exact = bool((ledger.times == 1).all())
        assert status.lines + status.lost == len(ledger.times)
        assert exact, "a line is neither inspected nor in a gap, or twice"
        cases.append({
            "case": {"what": "overrun", "share_of_capacity": share, "overrun": overrun, "ring": ring},
            "lines_per_second": round(share * capacity), "pushed": len(ledger.times), "inspected": status.lines,
            "lost": status.lost, "gaps": status.gaps, "every_line_once": exact,
        })  # fmt: skip
    return cases


class Brightness:
    """A streamer without a network: the map is the lines' brightness, 100 lines later."""

    delay_rows = 100

    def __init__(self, width: int) -> None:
        self._rows = torch.zeros(1, 1, 0, width)

    def push(self, rows: Tensor) -> Tensor:
        self._rows = torch.cat([self._rows, rows[:, :1].float() / 255], dim=2)
        done = max(0, self._rows.shape[2] - self.delay_rows)
        out, self._rows = self._rows[:, :, :done].clone(), self._rows[:, :, done:].clone()
        return out

    def finish(self) -> Tensor:
        out, self._rows = self._rows, self._rows[:, :, :0]
        return out


class Memory(Sink):
    """Resident MiB at each status."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, float]] = []

    def status(self, status: Status) -> None:
        self.samples.append((status.lines, resident_memory() / 2**20))


def soak(lines: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    web = random.integers(0, 100, (50_000, WIDTH, 1), dtype=np.uint8)
    for _ in range(50):  # one defect in 1000 lines
        y, x = random.integers(0, 49_900), random.integers(0, WIDTH - 40)
        web[y : y + random.integers(1, 100), x : x + random.integers(1, 40)] = 255
    memory = Memory()
    with tempfile.TemporaryDirectory() as folder:
        journal = JsonLines(Path(folder) / "events.jsonl", fsync="second")
        inspector = Inspector(
            Brightness, ArraySource(web, 64, repeat=lines // len(web)), [journal, memory],
            threshold=0.5, rows_per_push=64, status_every=0.1,
        )  # fmt: skip
        status = inspector.run()
        written = sum('"type": "defect"' in line for line in (Path(folder) / "events.jsonl").open())
    early = [mib for at, mib in memory.samples if lines * 0.05 <= at <= lines * 0.15]
    late = [mib for at, mib in memory.samples if at >= lines * 0.9]
    assert written == status.defects, (written, status.defects)
    return {
        "case": {"what": "soak", "lines": status.lines, "width": WIDTH, "rows_per_push": 64},
        "seconds": round(status.seconds, 1), "lines_per_second": round(status.line_rate), "defects": status.defects,
        "lost": status.lost, "resident_mib_first_tenth": round(float(np.median(early)), 1),
        "resident_mib_last_tenth": round(float(np.median(late)), 1),
        "resident_mib_largest": round(max(mib for _, mib in memory.samples), 1),
        "samples": [(at, round(mib, 1)) for at, mib in memory.samples[:: max(1, len(memory.samples) // 20)]],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a saved detector, as stadfast demo makes it")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--line-rate", type=float, default=200)
    parser.add_argument("--defects", type=int, default=200)
    parser.add_argument("--margin", type=int, default=8, help="columns at both edges that raise no event")
    parser.add_argument("--capacity", action="store_true")
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--lines", type=int, default=10_000_000, help="of the soak")
    parser.add_argument("--threads", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1))
    parser.add_argument("--quick", action="store_true", help="a minute of web, a short soak, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.soak:
        name, cases = "inspector_soak", [soak(500_000 if options.quick else options.lines)]
    else:
        detector = sf.load(options.model, device="cpu") if options.model else fitted()
        minutes, count, seconds = (1, 5, 2) if options.quick else (options.minutes, options.defects, 10)
        if options.capacity:
            name, cases = "inspector_capacity", capacity_cases(detector, seconds)
        else:
            name, cases = (
                "inspector" if options.margin else "inspector_no_margin",
                [end_to_end(detector, minutes, options.line_rate, count, options.margin)],
            )
            kinds = cases[0]["by_kind"].items()
            print_table(["kind", "found", "of"], [[kind, *counts.values()] for kind, counts in kinds])
    for case in cases:
        print({key: value for key, value in case.items() if key not in ("by_kind", "missed", "samples")})
    if not options.quick:
        print(write_result(name, cases))


if __name__ == "__main__":
    main()
