"""Sources of lines: image files, watched folders, raw bytes, cameras, simulators. ``base`` says what a source is."""

from __future__ import annotations

from importlib import import_module
from typing import Any

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


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
