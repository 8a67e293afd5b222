"""Line-scan inspection: acquisition ring, exact row streaming, defects of an endless map. Loaded at first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Callback": "observer",
    "DefectEvent": "tracker",
    "DefectTracker": "tracker",
    "Event": "observer",
    "FlatField": "flat_field",
    "Gap": "ring",
    "Inspector": "inspector",
    "Notice": "sources.base",
    "OperatorPage": "watch.page",
    "RingCounts": "ring",
    "RowRing": "ring",
    "RowStreamer": "streamer",
    "RowView": "ring",
    "Run": "observer",
    "Sink": "observer",
    "Status": "observer",
    "TiledStreamer": "tiles",
    "NativeMaps": "images",
    "native_maps": "images",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
