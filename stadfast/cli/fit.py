"""``stadfast fit``: from a folder of good images to a saved detector."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data import open_dataset
from ..errors import UsageError
from ..methods import create, distributed
from ..methods.checkpoint import checkpoint_files
from ._guard import printable, say
from ._output import check_writable
from .score import warn_broken


def fit(
    data: Path, method: str, output: Path, *, resume: bool, skip_broken: bool, arguments: dict[str, Any],
    native_scale: bool = False,
) -> None:  # fmt: skip
    """Train, calibrate and save. While it runs, ``OUTPUT.checkpoint`` holds what ``--resume`` needs."""
    with distributed.joined(arguments["device"]) as device:
        checkpoint = output.with_name(f"{output.name}.checkpoint")
        if distributed.on_main(lambda: _is_complete(output, checkpoint, resume)):
            return
        detector = create(method, **(arguments | {"device": device}))
        with _log_to_stderr():
            detector.fit(
                open_dataset(data), checkpoint=checkpoint, resume=resume, skip_broken=skip_broken,
                native_scale=native_scale,
            )  # fmt: skip
        if not distributed.is_main():
            return
        detector.save(output)
        for file in checkpoint_files(checkpoint):
            file.unlink(missing_ok=True)
    warn_broken(detector.broken_)
    last = detector.history_[-1]
    print(f"{printable(output)}: {method}, {last.epoch} epochs, threshold {detector.threshold_:.4g}")


def _is_complete(output: Path, checkpoint: Path, resume: bool) -> bool:
    """Whether there is nothing to resume; says so, or what an earlier run has left."""
    check_writable("--output", output)
    unfinished = checkpoint_files(checkpoint)
    if resume and output.exists() and not unfinished:
        say(f"{printable(output)} is complete: there is nothing to resume")
        return True
    if unfinished and not resume:
        say(f"starting anew; --resume would continue from {printable(unfinished[-1])}")
    return False


def parse_size(text: str, option: str = "--image-size") -> int | tuple[int, int]:
    """``"256"`` or ``"256x192"`` (height x width)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"{option}: expected a number, or HxW such as 256x192; got {text!r}")
    sides = [int(part) for part in parts]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def parse_setting(text: str, option: str = "--set", example: str = "variant=paper") -> tuple[str, Any]:
    """``"name=value"``; the value as JSON (numbers, true, null, lists), else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"{option}: expected NAME=VALUE, such as {example}; got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """The library's log (device, precision, cache) for the person who waits; of several processes, the first one's."""
    if not distributed.is_main():
        yield
        return
    logger, level = logging.getLogger("stadfast"), logging.getLogger("stadfast").level
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("stadfast: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
