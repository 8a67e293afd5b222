"""Where events go: files, pictures, other programs. ``stadfast.linescan.observer`` says what a sink is."""

from __future__ import annotations

from importlib import import_module
from typing import Any

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


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
