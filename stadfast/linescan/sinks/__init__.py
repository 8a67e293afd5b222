"""Where events go: files, pictures, other programs. ``stadfast.linescan.observer`` says what a sink is."""

from __future__ import annotations

from ... import _loader

_HOME = {
    "CsvTable": "journal",
    "JsonLines": "journal",
    "PrometheusFile": "metrics",
    "PrometheusServer": "metrics",
    "TcpLines": "network",
    "Thumbnails": "thumbnails",
    "WebHook": "network",
}

__all__ = list(_HOME)


__getattr__ = _loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
