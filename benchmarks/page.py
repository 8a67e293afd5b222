"""What the operator's page costs an inspection that has to share its cores with it.

    python benchmarks/page.py [--model FILE] [--rounds 9] [--seconds 5] [--quick]

The inspector of ``inspector.py`` (STPM with efficientnet_lite0 on 256 columns) inspects lines from memory as fast as it
goes, in turn

* ``no page``
* ``page``: served, with nobody looking
* ``viewer``: and one browser's worth of requests from another process on the same machine, which reads ``/live`` and
  every frame; it draws nothing, as a browser on this machine would in addition

Ratios are of the lines per second within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Timing, print_table, ratio, write_result
from inspector import FIRST, STREAMING, WIDTH, fitted

import stadfast as sf
from stadfast.data import Material
from stadfast.linescan import Inspector, OperatorPage, Run
from stadfast.linescan.sources import ArraySource
from stadfast.runtime.memory import keep_freed_memory

WAYS = ("no page", "page", "viewer")


def inspect(detector: Any, web: np.ndarray, seconds: float, rate: float, page: OperatorPage | None) -> float:
    """Lines a second."""
    source = ArraySource(web, repeat=max(1, round(seconds * rate / len(web))))
    sinks = [] if page is None else [page]
    return Inspector(detector, source, sinks, **STREAMING).run().line_rate


@contextlib.contextmanager
def page_for(way: str) -> Iterator[tuple[OperatorPage | None, list[int]]]:
    """A page and, in the end, [frames that the viewer has seen]."""
    frames: list[int] = []
    if way == "no page":
        yield None, frames
        return
    page = OperatorPage(0, stay=True)
    try:
        with contextlib.ExitStack() as stack:
            if way == "viewer":
                stack.enter_context(viewing(page, frames))
            yield page, frames
    finally:
        page.shutdown()


@contextlib.contextmanager
def viewing(page: OperatorPage, frames: list[int]) -> Iterator[None]:
    """The page is served from its first inspection on; a line without any opens it."""
    page.open(Run("a web", 0.5, None))
    command = [sys.executable, __file__, "--view", str(page.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as viewer:
        assert viewer.stdout is not None
        assert viewer.stdout.readline() == "looking\n"
        yield
        frames.append(int(viewer.communicate("\n")[0]))


def view(port: int) -> None:
    """What a browser asks for, until a line comes in; prints the number of frames."""
    ended, frames = threading.Event(), 0

    def live() -> None:
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/live")
        answer = connection.getresponse()
        while answer.readline():
            pass

    threading.Thread(target=live, daemon=True).start()
    threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
    connection, last = HTTPConnection("127.0.0.1", port), "0"
    print("looking", flush=True)
    while not ended.is_set():
        connection.request("GET", f"/frame?after={last}")
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            last, frames = answer.headers["X-Frame"], frames + 1
    print(frames, flush=True)


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = (round(float(q), 1) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": middle, "q1": low, "q3": high, "n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a saved detector, as stadfast demo makes it")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5, help="of one inspection")
    parser.add_argument("--threads", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1))
    parser.add_argument("--quick", action="store_true", help="two short rounds, nothing written")
    parser.add_argument("--view", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.view:
        return view(options.view)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    detector = sf.load(options.model, device="cpu") if options.model else fitted()
    rounds, seconds = (2, 1.0) if options.quick else (options.rounds, options.seconds)
    web = Material("woven", WIDTH).rows(FIRST, 2048)[0]
    rate = inspect(detector, web, 1, 2000, None)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    shown = []
    for _ in range(rounds):
        for way in WAYS:
            with page_for(way) as (page, frames):
                began = time.perf_counter()
                rates[way].append(inspect(detector, web, seconds, rate, page))
                took = time.perf_counter() - began
            shown += [frame / took for frame in frames]
    timings = {way: Timing(tuple(values)) for way, values in rates.items()}
    cases = [{
        "case": {"width": WIDTH, **STREAMING, "threads": options.threads},
        "lines_per_second": {way: spread(values) for way, values in rates.items()},
        "ratios": {f"{way} / no page": ratio(timings[way], timings["no page"]) for way in WAYS[1:]},
        "frames_per_second": spread(shown),
    }]  # fmt: skip
    rows = [[way, f"{np.median(values):.0f}"] for way, values in rates.items()]
    print_table(["", "lines a second"], rows)
    print(cases[0]["ratios"], cases[0]["frames_per_second"])
    if not options.quick:
        print(write_result("page", cases))


if __name__ == "__main__":
    main()
