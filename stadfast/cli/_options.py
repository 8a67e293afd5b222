"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A detector saved by fit.")]
NewModel = Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="File to write.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where to compute.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images computed at once.")]
NativeScale = Annotated[
    bool | None,
    typer.Option(
        "--native-scale/--resize-images",
        help="Run on images as they are (not with --output), or resized to the network's size; default: as the "
        "detector was fitted.",
    ),
]
_SKIP_BROKEN = "Leave out unreadable files and list them."
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help=_SKIP_BROKEN)]
SkipBrokenHere = Annotated[bool, typer.Option("--skip-broken", help=f"{_SKIP_BROKEN} Not with --output.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the results to this file; - prints them.")
]
Engine = Annotated[
    str, typer.Option(metavar="local|ray", help="With --output: where to score; ray needs stadfast[ray].")
]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="DIR|URL", help="Write the scores there, as Parquet files."),
]
Address = Annotated[
    str | None,
    typer.Option(metavar="auto|ray://...", help="With Ray: the cluster; default: one on this machine."),
]
ResumeJob = Annotated[bool, typer.Option("--resume", help="With --output: score only what is missing.")]
PartSize = Annotated[int, typer.Option(min=1, help="With --output: images per file.")]
Actors = Annotated[
    int | None, typer.Option(min=1, help="With Ray: number of actors; default: as many as fit.")
]
Cpus = Annotated[int, typer.Option(min=1, help="With Ray: cores of each actor.")]
Gpus = Annotated[float | None, typer.Option(min=0, help="With Ray: GPUs of each actor, such as 0.25.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
FOR_JOBS = ("resume", "part_size", "engine", "address", "actors", "cpus", "gpus")  # go with --output
WITH_OUTPUT = "goes with --output, the folder or URL that the scores are written to"
FOR_RAY = ("address", "actors", "cpus", "gpus")  # go with --engine ray


def refuse(context: typer.Context, names: Iterable[str], reason: str) -> None:
    """Refuse options that would have no effect, if they were given.

    Args:
        context: of the command.
        names: of its parameters.
        reason: what is wrong, such as "goes with --output".

    Raises:
        UsageError: names the first of them.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"{parameter.opts[0]} {reason}")
