"""Sources of lines: image files, watched folders, raw bytes, cameras, simulators. ``base`` says what a source is."""

from __future__ import annotations

from ... import _loader

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

__all__ = list(_HOME)


__getattr__ = _loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
