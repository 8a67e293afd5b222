"""The line-scan commands and their options; as in ``app``, what they do lies in modules that load torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def stream(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A detector that fit has saved.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Image, folder, FIFO or file of raw lines, - (raw lines on standard input), video:DEVICE, "
            "genicam:PRODUCER.cti, simulate:woven, simulate:brushed, or simulate:PATH (images, over and over).",
        ),
    ],
    width: Annotated[int | None, typer.Option(min=1, help="Pixels of a raw or generated line.")] = None,
    format: Annotated[
        str | None, typer.Option(metavar="mono8|mono12p|mono16|rgb8", help="Of raw lines.")
    ] = None,
    watch: Annotated[
        str | None, typer.Option(metavar="all|new", help="Wait for new files in the folder SOURCE.")
    ] = None,
    line_rate: Annotated[
        float | None, typer.Option(help="Deliver the lines at this rate, in lines a second.")
    ] = None,
    lines: Annotated[int | None, typer.Option(min=1, help="Of a generated web; default: no end.")] = None,
    defect_rate: Annotated[float, typer.Option(min=0, help="Of a generated web, in 1000 lines.")] = 0.0,
    serial: Annotated[str | None, typer.Option(help="Serial number of the GenICam camera.")] = None,
    features: Annotated[
        list[str] | None, typer.Option("--feature", metavar="NAME=VALUE", help="GenICam feature to set.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Of a defect's peak; default the model's.")] = None,
    low: Annotated[
        float | None, typer.Option(help="Threshold of a defect's pixels; default --threshold.")
    ] = None,
    min_area: Annotated[int, typer.Option(min=1, help="Pixels of the smallest defect.")] = 1,
    merge_distance: Annotated[int, typer.Option(min=0, help="Pixels between parts of one defect.")] = 0,
    max_length: Annotated[
        int, typer.Option(min=1, help="Lines; a longer defect is reported while it goes on.")
    ] = 10_000,
    pixel_pitch: Annotated[
        str | None, typer.Option(metavar="MM|ALONGxACROSS", help="Of a pixel, in mm.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Lines computed at once.")] = 64,
    downscale: Annotated[int, typer.Option(min=1, help="Average squares of so many pixels first.")] = 1,
    overlap: Annotated[
        int | None,
        typer.Option(min=1, help="Tiles with this overlap, for methods that cannot be streamed exactly."),
    ] = None,
    precision: Annotated[str, typer.Option(metavar="fp32|bf16", help="Of the networks.")] = "fp32",
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where to compute.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the computation; default: a core is left to the camera.")
    ] = None,
    flat_field: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Images of good material, to correct the columns by.")
    ] = None,
    overrun: Annotated[
        str, typer.Option(metavar="block|drop_oldest|drop_newest", help="If lines come too fast.")
    ] = "block",
    capacity: Annotated[int, typer.Option(min=1, help="Lines that may wait.")] = 4096,
    on_fault: Annotated[
        str, typer.Option(metavar="recover|stop", help="If the source stalls, fails or changes its lines.")
    ] = "recover",
    stall_after: Annotated[float, typer.Option(help="Seconds without a line.")] = 5.0,
    jsonl: Annotated[Path | None, typer.Option(metavar="FILE", help="Append events and notices.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Append events to a table.")] = None,
    thumbnails: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a picture of each defect.")
    ] = None,
    tcp: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Send events as lines of JSON.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Post events as JSON.")] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="[HOST:]PORT|FILE.prom", help="Figures for Prometheus.")
    ] = None,
    fsync: Annotated[
        str, typer.Option(metavar="event|second|never", help="When --jsonl and --csv wait for the disk.")
    ] = "event",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Inspect the lines of a web as they come: one line of output per defect."""
    from ._sources import make_sinks, make_source, parse_pitch
    from .stream import stream as run

    run(
        model,
        make_source(
            source, width=width, format=format, watch=watch, line_rate=line_rate, lines=lines,
            defect_rate=defect_rate, serial=serial, features=features or (),
        ),
        make_sinks(
            jsonl=jsonl, csv=csv, thumbnails=thumbnails, tcp=tcp, webhook=webhook, metrics=metrics, fsync=fsync
        ),
        device=device, threads=threads, flat_field=flat_field, threshold=threshold, low=low, min_area=min_area,
        merge_distance=merge_distance, max_length=max_length,
        pixel_pitch=None if pixel_pitch is None else parse_pitch(pixel_pitch), rows_per_push=rows,
        downscale=downscale, overlap=overlap, precision=precision, overrun=overrun, capacity=capacity,
        on_fault=on_fault, stall_after=stall_after,
    )  # fmt: skip
