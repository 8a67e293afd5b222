"""Results on their way out: JSON for machines, names for pictures."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .._files import atomic_write
from ..errors import UsageError


def write_json(target: str | None, value: Mapping[str, Any]) -> None:
    """Write one object to ``target``, see :func:`opened`."""
    with opened(target) as file:
        file.write(_dumps(value, indent=2) + "\n")


def check_writable(option: str, target: str | os.PathLike[str] | None) -> None:
    """Find out before long work that its result can be written after it.

    Args:
        option: that names the file.
        target: the file; None and ``"-"`` are no files.

    Raises:
        UsageError: a folder, or in one that cannot be written.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder; wanted the name of a file")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{option}: cannot write {path}, as {folder} is not a folder with write permission")


class JsonList:
    """Writes ``{**head, key: [item, ...], **tail}`` item by item, so that many items need no memory."""

    def __init__(self, file: TextIO, head: Mapping[str, Any], key: str) -> None:
        self._file = file
        self._separator = "\n    "
        file.write(f"{_dumps(head, indent=2)[:-2]},\n  {_dumps(key)}: [")

    def append(self, item: Mapping[str, Any]) -> None:
        self._file.write(self._separator + _dumps(item))
        self._separator = ",\n    "

    def close(self, tail: Mapping[str, Any]) -> None:
        rest = "".join(f",\n  {_dumps(key)}: {_dumps(value)}" for key, value in tail.items())
        self._file.write(f"\n  ]{rest}\n}}\n")


@contextmanager
def opened(target: str | None) -> Iterator[TextIO]:
    """Where to write: ``"-"`` is standard output, None is nowhere; a file appears whole or not at all."""
    if target == "-":
        yield sys.stdout
    elif target is None:
        with Path(os.devnull).open("w") as file:
            yield file
    else:
        with atomic_write(target) as temporary, temporary.open("w", encoding="utf-8") as file:
            yield file


def _dumps(value: Any, **options: Any) -> str:
    return json.dumps(plain(value), allow_nan=False, **options)


def plain(value: Any) -> Any:
    """``value`` as JSON has it: tuples are lists, paths are text, NaN and infinities are null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def picture_names(images: Sequence[Path]) -> Iterator[Path]:
    """A relative PNG path for each image: its place below the folder that holds them all.

    Two images never share a name, as the whole file name stays (``a.jpg`` gives ``a.jpg.png``), and none
    leaves the folder, as the paths are absolute and normalised before they are cut.
    """
    paths = [Path(os.path.abspath(image)) for image in images]  # noqa: PTH100 (links stay as they are)
    root = os.path.commonpath([path.parent for path in paths]) if paths else "/"
    for path in paths:
        relative = path.relative_to(root)
        yield relative.with_name(relative.name + ".png")
