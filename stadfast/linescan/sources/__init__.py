"""Sources of lines: image files, watched folders, raw bytes, cameras, simulators. ``base`` says what a source is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import _loader

if TYPE_CHECKING:
    from .base import NOTHING, ArraySource, Block, Notice, Source
    from .cameras import GenICamCamera, VideoDevice
    from .files import ImageFiles, WatchedFolder
    from .raw import RawLines
    from .simulator import GeneratedWeb, Paced

_HOME = {
    "ArraySource": "base",
    "Block": "base",
    "GenICamCamera": "cameras",
    "GeneratedWeb": "simulator",
    "ImageFiles": "files",
    "NOTHING": "base",
    "Notice": "base",
    "Paced": "simulator",
    "RawLines": "raw",
    "Source": "base",
    "VideoDevice": "cameras",
    "WatchedFolder": "files",
}

__all__ = [
    "NOTHING",
    "ArraySource",
    "Block",
    "GenICamCamera",
    "GeneratedWeb",
    "ImageFiles",
    "Notice",
    "Paced",
    "RawLines",
    "Source",
    "VideoDevice",
    "WatchedFolder",
]


__getattr__ = _loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
