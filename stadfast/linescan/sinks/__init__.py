"""Where events go: files, pictures, other programs. ``stadfast.linescan.observer`` says what a sink is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import _loader

if TYPE_CHECKING:
    from .journal import CsvTable, JsonLines
    from .metrics import PrometheusFile, PrometheusServer
    from .network import TcpLines, WebHook
    from .thumbnails import Thumbnails

_HOME = {
    "CsvTable": "journal",
    "JsonLines": "journal",
    "PrometheusFile": "metrics",
    "PrometheusServer": "metrics",
    "TcpLines": "network",
    "Thumbnails": "thumbnails",
    "WebHook": "network",
}

__all__ = [
    "CsvTable",
    "JsonLines",
    "PrometheusFile",
    "PrometheusServer",
    "TcpLines",
    "Thumbnails",
    "WebHook",
]


__getattr__ = _loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
