"""What the process keeps of freed memory, by the glibc that it finds."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from stadfast.runtime.memory import keep_freed_memory

GIB, OLD_LIMIT = 1 << 30, 32 << 20


def kept(monkeypatch: pytest.MonkeyPatch, refused: set[int], limit: int = GIB) -> tuple[bool, dict[int, int]]:
    """The answer, and what was set, where ``mallopt`` refuses some parameters, and thresholds above the limit."""
    settings: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        if parameter in refused or (parameter == -3 and value > limit):
            return 0
        settings[parameter] = value
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    return keep_freed_memory.__wrapped__(), settings


def test_large_blocks_are_kept_by_any_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept(monkeypatch, set()) == (True, {-3: GIB, -1: GIB})
    assert kept(monkeypatch, set(), OLD_LIMIT) == (True, {-4: 0, -1: GIB})  # no block by mmap


def test_where_they_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not kept(monkeypatch, {-3, -4})[0]
    assert not kept(monkeypatch, {-1})[0]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not keep_freed_memory.__wrapped__()
