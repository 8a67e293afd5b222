"""Line-scan inspection: acquisition ring, exact row streaming, defects of an endless map. Loaded at first use."""

from __future__ import annotations

from .. import _loader

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


__getattr__ = _loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
