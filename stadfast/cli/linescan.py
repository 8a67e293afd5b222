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
        typer.Argument(metavar="MODEL", help="A detector that fit has saved, or its .pt or .pt2 archive."),
    ],
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
    margin: Annotated[
        str, typer.Option(metavar="PIXELS|LEFTxRIGHT", help="Columns at the web's edges that raise no event.")
    ] = "0",
    pixel_pitch: Annotated[
        str | None, typer.Option(metavar="MM|ALONGxACROSS", help="Of a pixel, in mm.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Lines computed at once; default: 64, or the next that the model can take."),
    ] = None,
    downscale: Annotated[int, typer.Option(min=1, help="Average squares of so many pixels first.")] = 1,
    overlap: Annotated[
        int | None,
        typer.Option(min=1, help="Tiles with this overlap, for methods that cannot be streamed exactly."),
    ] = None,
    precision: Annotated[str, typer.Option(metavar="fp32|bf16", help="Of the networks.")] = "fp32",
    device: Device = "auto",
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
    stall_after: Annotated[float, typer.Option(help="Seconds without a line that are told.")] = 5.0,
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
    debug: Debug = False,
) -> None:
    """Inspect the lines of a web as they come. One line of output per defect."""
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
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0: any that is free.")] = 8765,
    host: Annotated[
        str, typer.Option(help="Serve the page at this address; any other than the loopback's needs a token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option(help="What a browser has to show; others may see it among the processes.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="The same, from a file.")] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    stay: Annotated[
        bool, typer.Option("--stay/--no-stay", help="Keep the page after the source's end, until Ctrl-C.")
    ] = True,
    **options: Any,
) -> None:
    """Inspect as stream does, and show it on a web page. The strip, its map, defects and rates."""
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
