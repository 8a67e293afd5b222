"""The line-scan commands and their options; as in ``app``, what they do lies in modules that load torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import Debug, Device

if TYPE_CHECKING:
    from ..linescan import Sink


def stream(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A detector saved by fit, or its .pt or .pt2 archive."),
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Image, folder, FIFO or file of raw lines, - (raw lines on standard input), video:DEVICE, "
            "genicam:PRODUCER.cti, simulate:woven, simulate:brushed, or simulate:PATH (its images, repeatedly).",
        ),
    ],
    width: Annotated[
        int | None, typer.Option(min=1, help="Pixels per line, of raw lines or a generated web.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="mono8|mono12p|mono16|rgb8",
            help="Pixel format of raw lines; a file of them needs it. Default: mono8.",
        ),
    ] = None,
    watch: Annotated[
        str | None,
        typer.Option(
            metavar="all|new",
            help="Keep watching the folder SOURCE: inspect all files in it, or only new ones.",
        ),
    ] = None,
    line_rate: Annotated[
        float | None, typer.Option(help="Deliver the lines at this rate, in lines per second.")
    ] = None,
    lines: Annotated[
        int | None, typer.Option(min=1, help="Length of a generated web, in lines; default: endless.")
    ] = None,
    defect_rate: Annotated[
        float, typer.Option(min=0, help="Random defects per 1000 lines of a generated web.")
    ] = 0.0,
    serial: Annotated[str | None, typer.Option(help="Serial number of the GenICam camera.")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option("--feature", metavar="NAME=VALUE", help="GenICam feature to set; may be repeated."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Report defects whose peak exceeds this; default: the model's.")
    ] = None,
    low: Annotated[
        float | None,
        typer.Option(help="Pixels above this belong to the defect (hysteresis); default: --threshold."),
    ] = None,
    min_area: Annotated[
        int, typer.Option(min=1, help="Area of the smallest defect that is reported, in pixels.")
    ] = 1,
    merge_distance: Annotated[
        int, typer.Option(min=0, help="Defects at most so many pixels apart are reported as one.")
    ] = 0,
    max_length: Annotated[
        int, typer.Option(min=1, help="Report a defect after so many lines, though it goes on.")
    ] = 10_000,
    margin: Annotated[
        str, typer.Option(metavar="PIXELS|LEFTxRIGHT", help="Columns to ignore at the edges of the web.")
    ] = "0",
    pixel_pitch: Annotated[
        str | None, typer.Option(metavar="MM|ALONGxACROSS", help="Size of a pixel, in mm.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1, help="Lines computed at once; default: 64, or the next number that the model can take."
        ),
    ] = None,
    downscale: Annotated[
        int, typer.Option(min=1, help="First shrink the lines by this factor: average squares of pixels.")
    ] = 1,
    overlap: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Compute tiles with this overlap, in lines, for methods that cannot be streamed exactly.",
        ),
    ] = None,
    precision: Annotated[str, typer.Option(metavar="fp32|bf16", help="Precision of the networks.")] = "fp32",
    device: Device = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of the computation; default: one core is left to the camera."),
    ] = None,
    flat_field: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Images of good material, to correct the brightness of the columns by."
        ),
    ] = None,
    overrun: Annotated[
        str | None,
        typer.Option(
            metavar="block|drop_oldest|drop_newest",
            help="What to do when lines come too fast; default: drop_oldest with a camera, else block.",
        ),
    ] = None,
    capacity: Annotated[
        int, typer.Option(min=1, help="Number of lines that may wait to be inspected.")
    ] = 4096,
    on_fault: Annotated[
        str,
        typer.Option(
            metavar="recover|stop", help="What to do when the source stalls, fails or changes its lines."
        ),
    ] = "recover",
    stall_after: Annotated[
        float, typer.Option(help="Report a stall after so many seconds without a line.")
    ] = 5.0,
    jsonl: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Append events and notices to this file, as lines of JSON."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append events to this file, as a table.")
    ] = None,
    thumbnails: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a picture of each defect there.")
    ] = None,
    tcp: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Send events there, as lines of JSON.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Post events there, as JSON.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT|FILE.prom",
            help="Give figures to Prometheus, at this address or in this file.",
        ),
    ] = None,
    fsync: Annotated[
        str, typer.Option(metavar="event|second|never", help="When to force --jsonl and --csv to the disk.")
    ] = "event",
    debug: Debug = False,
) -> None:
    """Inspect the lines of a web as they come. Prints one line per defect."""
    inspect_as(locals())


def inspect_as(options: dict[str, Any], *more: Sink) -> None:
    """Inspect as the options of :func:`stream` say, for these further sinks, too."""
    from ._sources import make_sinks, make_source, parse_margin, parse_pitch
    from .stream import stream as run

    left = dict(options)

    def take(*names: str) -> dict[str, Any]:
        return {name: left.pop(name) for name in names}

    del left["debug"]
    features, pitch = left.pop("features") or (), left.pop("pixel_pitch")
    model, name = left.pop("model"), left.pop("source")
    source = make_source(
        name,
        **take("width", "format", "watch", "line_rate", "lines", "defect_rate", "serial"),
        features=features,
    )
    sinks = make_sinks(**take("jsonl", "csv", "thumbnails", "tcp", "webhook", "metrics", "fsync"))
    left["rows_per_push"], left["margin"] = left.pop("rows"), parse_margin(left.pop("margin"))
    run(model, source, [*sinks, *more], pixel_pitch=None if pitch is None else parse_pitch(pitch), **left)


def _and_those_of(command: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The decorated command has the arguments of ``command``, too; it takes them as keywords."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        first, own = (
            inspect.signature(one, eval_str=True).parameters.values() for one in (command, function)
        )
        parameters = [*(one for one in own if one.kind is not one.VAR_KEYWORD), *first]
        parameters.sort(key=lambda one: one.default is not one.empty)  # MODEL and SOURCE, then its own
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {one.name: one.annotation for one in parameters}
        return function

    return decorate


@_and_those_of(stream)
def watch(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0: any that is free.")
    ] = 8765,
    host: Annotated[
        str, typer.Option(help="Address to serve the page at; any other than the loopback's needs a token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            help="Secret that a browser has to show; other users may see it in the list of processes."
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File that holds the token.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    stay: Annotated[
        bool,
        typer.Option("--stay/--no-stay", help="Keep the page after the end of the source, until Ctrl-C."),
    ] = True,
    **options: Any,
) -> None:
    """Inspect as stream does, and show it on a web page. The page has the strip, its map, defects and rates."""
    from .watch import watch as run

    run(
        options,
        port=port,
        host=host,
        token=token,
        token_file=token_file,
        open_browser=open_browser,
        stay=stay,
    )
