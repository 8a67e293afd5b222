"""``stadfast score|evaluate --output``: whole archives, in this process or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import load
from ..data import Sample, open_dataset
from ..errors import DataError, StadfastError, UsageError
from ..methods.bundle import is_bundle
from ..scale import ENGINES, Cluster, Summary
from ..scale import evaluate as evaluate_job
from ..scale import score as score_job
from ..scale.store import needed
from ._guard import printable, say
from ._output import check_writable, write_json
from .evaluate import print_figures

# What errors of the library advise or begin with, and what it is called here.
_ADVICE = {"native_scale=False": "--resize-images", "resume=True": "--resume"}
_ARGUMENTS = ("output: ", "address: ")


def check_engine(engine: str) -> None:
    """Whether it is known, and installed."""
    if engine not in ENGINES:
        raise UsageError(f"--engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "ray":
        needed("ray", "--engine ray")


def score(model: Path, paths: Sequence[str], output: str, *, json: str | None, **options: Any) -> None:
    """Write the scores, and print what came of the job."""
    check_writable("--json", json)
    with _in_options():
        summary = score_job(model, paths, output, **_for_job(options))
    _tell(summary, quiet=json == "-")
    if json is not None:
        write_json(json, {"model": model, **_described(summary)})


def evaluate(model: Path, data: str, output: str, *, json: str | None, **options: Any) -> None:
    """Write the scores of labelled images, and print the figures."""
    check_writable("--json", json)
    samples, left_out = _unseen(model, data)
    with _in_options():
        figures, summary = evaluate_job(model, samples, output, **_for_job(options))
    if left_out:
        figures["notes"].append(f"left out {left_out} images that were used to make the detector")
    _tell(summary, quiet=json == "-")
    if json != "-":
        print_figures(figures, os.path.basename(data.rstrip("/")))  # noqa: PTH119 (may be a URL)
    if json is not None:
        write_json(json, {"model": model, "data": data, **figures, "job": _described(summary)})


@contextmanager
def _in_options() -> Iterator[None]:
    """Errors that name an argument of the library name its option instead."""
    try:
        yield
    except StadfastError as error:
        message = str(error)
        for argument, option in _ADVICE.items():
            message = message.replace(argument, option)
        error.args = (f"--{message}" if message.startswith(_ARGUMENTS) else message,)
        raise


def _for_job(options: dict[str, Any]) -> dict[str, Any]:
    cluster = Cluster(**{name: options.pop(name) for name in ("address", "actors", "cpus", "gpus")})
    return options | {"cluster": cluster}


def _unseen(model: Path, data: str) -> tuple[list[Sample] | list[str], int]:
    """A category's test images that the detector was not made with, and how many others there are; or a table."""
    detector = load(model, device="cpu") if is_bundle(model) else None
    if (
        "://" in data
        or data.endswith(".parquet")
        or (Path(data).is_dir() and any(Path(data).glob("*.parquet")))
    ):
        if detector is not None and detector.header().get("search"):
            raise DataError(
                f"{model} was weighed on labelled images, and a table does not tell which: evaluate a folder"
            )
        return [data], 0
    samples: list[Sample] = open_dataset(data).test
    unseen = [sample for sample in samples if detector is None or not detector.saw(sample.image)]
    if not unseen:
        raise DataError(f"{data} has no test images to evaluate; wanted test/good and test/<defect> in it")
    return unseen, len(samples) - len(unseen)


def _described(summary: Summary) -> dict[str, Any]:
    facts = asdict(summary)
    return facts | {"memory_mb_max": max(facts.pop("memory_mb"))}


def _tell(summary: Summary, quiet: bool) -> None:
    if summary.broken and summary.broken == summary.images:
        raise DataError(f"none of {summary.images} images could be read: the column error says why")
    if summary.broken:
        say(f"{summary.broken} images could not be read: the column error says why")
    if not quiet:
        print(
            f"{printable(summary.output)}: {summary.images} images, {summary.defective} defective, "
            f"{summary.parts} files ({summary.done_before} from before), {summary.seconds:.0f} s"
        )
