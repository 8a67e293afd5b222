"""What a source and a sink are called on the command line."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from ..linescan import Sink
from ..linescan.sources import (
    GeneratedWeb,
    GenICamCamera,
    ImageFiles,
    Paced,
    RawLines,
    Source,
    VideoDevice,
    WatchedFolder,
)

WATCH = ("all", "new")
_WHOSE = {
    "width": "raw lines (from a file: with --format, too) or a generated web",
    "format": "raw lines (-, a FIFO or a file)",
    "watch": "a folder",
    "lines": "a generated web",
    "defect_rate": "a generated web",
    "serial": "a GenICam camera",
    "feature": "a GenICam camera",
}


def make_source(
    name: str,
    *,
    width: int | None = None,
    format: str | None = None,
    watch: str | None = None,
    line_rate: float | None = None,
    lines: int | None = None,
    defect_rate: float = 0.0,
    serial: str | None = None,
    features: Sequence[str] = (),
) -> Source:
    """The source that a person names: ``-``, a path, ``video:...``, ``genicam:...`` or ``simulate:...``.

    Raises:
        UsageError: options that do not fit, or that a source of this kind does not take.
        DataError: no such path.
    """
    given = {
        "format": format, "width": width, "watch": watch, "lines": lines, "defect_rate": defect_rate or None,
        "serial": serial, "feature": features or None,
    }  # fmt: skip

    def takes(*own: str) -> None:
        for option, value in given.items():
            if value is not None and option not in own:
                raise UsageError(f"--{option.replace('_', '-')}: expected {_WHOSE[option]}, got {name}")

    kind, _, rest = name.partition(":")
    if kind == "simulate" and rest in ("woven", "brushed"):
        takes("width", "lines", "defect_rate")
        source: Source = GeneratedWeb(rest, width or 256, lines, defect_rate=defect_rate)
    elif kind == "simulate":
        takes()
        if not rest:
            raise UsageError("expected simulate:woven, simulate:brushed or simulate:PATH, got simulate:")
        source = ImageFiles(rest, repeat=True)
    elif kind == "video":
        takes()
        source = VideoDevice(rest)
    elif kind == "genicam":
        takes("serial", "feature")
        source = GenICamCamera(rest, serial, dict(_feature(text) for text in features))
    elif name != "-" and not (name and Path(name).exists()):
        raise DataError(
            f"{name}: no such file or folder; wanted -, a path, video:..., genicam:... or simulate:..."
        )
    elif name != "-" and Path(name).is_dir():
        takes("watch")
        source = _folder(name, watch)
    elif name == "-" or format is not None or stat.S_ISFIFO(Path(name).stat().st_mode):
        takes("width", "format")
        if width is None:
            raise UsageError("raw lines need --width, and --format unless a pixel is one byte")
        source = RawLines(name, width, format or "mono8")
    else:
        takes()
        source = ImageFiles(name)
    return source if line_rate is None else Paced(source, line_rate)


def _folder(name: str, watch: str | None) -> Source:
    if watch is None:
        return ImageFiles(name)
    if watch not in WATCH:
        raise UsageError(f"--watch: expected {' or '.join(WATCH)}, got {watch!r}")
    return WatchedFolder(name, existing=watch == "all")


def _feature(text: str) -> tuple[str, Any]:
    from .fit import parse_setting

    return parse_setting(text, "--feature", "ExposureTime=200")


def make_sinks(
    *,
    jsonl: Path | None = None,
    csv: Path | None = None,
    thumbnails: Path | None = None,
    tcp: str | None = None,
    webhook: str | None = None,
    metrics: str | None = None,
    fsync: str = "event",
) -> list[Sink]:
    """The sinks that were asked for, those that must lose nothing first.

    Raises:
        UsageError: an address, a file or an ``fsync`` that is none.
    """
    from ..linescan import sinks
    from ..linescan.sinks.journal import FSYNC

    if fsync not in FSYNC:  # also where no file asks for it
        raise UsageError(f"--fsync: expected one of {', '.join(FSYNC)}, got {fsync!r}")
    for option, file in (("--jsonl", jsonl), ("--csv", csv)):
        if file == Path("-"):
            raise UsageError(f"{option}: expected a file, got -; standard output lists the events")
    made: list[Sink] = []
    if jsonl is not None:
        made.append(sinks.JsonLines(jsonl, fsync))
    if csv is not None:
        made.append(sinks.CsvTable(csv, fsync))
    if thumbnails is not None:
        made.append(sinks.Thumbnails(thumbnails))
    if tcp is not None:
        host, port = _address("--tcp", tcp)
        made.append(sinks.TcpLines(host, port))
    if webhook is not None:
        made.append(sinks.WebHook(webhook))
    if metrics is not None and metrics.endswith(".prom"):
        made.append(sinks.PrometheusFile(metrics))
    elif metrics is not None:
        host, port = _address("--metrics", metrics, "PORT, HOST:PORT or FILE.prom", "127.0.0.1")
        made.append(sinks.PrometheusServer(port, host))
    return made


def _address(option: str, text: str, wanted: str = "HOST:PORT", host: str = "") -> tuple[str, int]:
    """``host``: of a port alone."""
    given, colon, port = text.rpartition(":")
    host = given if colon else host
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{option}: expected {wanted}, got {text!r}")
    return host.strip("[]"), int(port)


def parse_margin(text: str) -> tuple[int, int]:
    """``8`` or ``8x12`` (left, right), in pixels."""
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"--margin: expected PIXELS or LEFTxRIGHT, such as 8 or 8x12, got {text!r}")
    return int(parts[0]), int(parts[-1])


def parse_pitch(text: str) -> float | tuple[float, float]:
    """``0.25`` or ``0.2x0.25`` (along the web, across it), in mm."""
    try:
        values = tuple(float(part) for part in text.split("x"))
    except ValueError:
        values = ()
    if len(values) not in (1, 2):
        raise UsageError(
            f"--pixel-pitch: expected MM or ALONGxACROSS, such as 0.25 or 0.2x0.25, got {text!r}"
        )
    return values[0] if len(values) == 1 else (values[0], values[1])
