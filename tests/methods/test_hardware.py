"""What is free on a machine and in a container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from stadfast.methods import hardware

KIB = 1024


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of which 6000 KiB are free and 2000 more are cache."""
    for name, folder in (("_PROC", tmp_path / "proc"), ("_GROUPS", tmp_path / "groups")):
        monkeypatch.setattr(hardware, name, folder)
    write(tmp_path / "proc/meminfo", "MemFree: 6000 kB\nMemAvailable: 8000 kB\n")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def free() -> int:
    return hardware.available_memory(torch.device("cpu")) // KIB


def test_the_page_cache_is_free(machine: Path) -> None:
    assert free() == 8000
    (machine / "proc/meminfo").unlink()
    assert free() == pytest.approx(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // KIB, rel=0.5)


def test_a_container_of_version_2_has_less(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "0::/outer/inner\n")
    inner = machine / "groups/outer/inner"
    write(inner / "memory.max", "max\n")
    write(inner / "memory.current", f"{900 * KIB}\n")
    assert free() == 8000
    write(inner.parent / "memory.max", f"{5000 * KIB}\n")
    write(inner.parent / "memory.current", f"{1000 * KIB}\n")
    assert free() == 4000  # limits of the groups around it hold, too
    write(inner.parent / "memory.stat", f"anon {700 * KIB}\ninactive_file {300 * KIB}\n")
    assert free() == 4300


def test_a_container_of_version_1_has_less(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "5:cpu,cpuacct:/host/path\n4:memory:/host/path\n0::/host/path\n")
    write(machine / "groups/memory/memory.limit_in_bytes", f"{3000 * KIB}\n")
    write(machine / "groups/memory/memory.usage_in_bytes", f"{1000 * KIB}\n")
    assert free() == 2000
    write(machine / "groups/memory/memory.usage_in_bytes", f"{3001 * KIB}\n")
    assert free() == 0
