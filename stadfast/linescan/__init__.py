"""Line-scan inspection: acquisition ring, exact row streaming, defects of an endless map. Loaded at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _loader

if TYPE_CHECKING:
    from .flat_field import FlatField
    from .images import NativeMaps, native_maps
    from .inspector import Inspector
    from .observer import Callback, Event, Run, Sink, Status
    from .ring import Gap, RingCounts, RowRing, RowView
    from .sources.base import Notice
    from .streamer import RowStreamer
    from .tiles import TiledStreamer
    from .tracker import DefectEvent, DefectTracker
    from .watch.page import OperatorPage

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

__all__ = [
    "Callback",
    "DefectEvent",
    "DefectTracker",
    "Event",
    "FlatField",
    "Gap",
    "Inspector",
    "NativeMaps",
    "Notice",
    "OperatorPage",
    "RingCounts",
    "RowRing",
    "RowStreamer",
    "RowView",
    "Run",
    "Sink",
    "Status",
    "TiledStreamer",
    "native_maps",
]


__getattr__ = _loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
