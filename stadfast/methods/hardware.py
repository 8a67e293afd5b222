"""Which device and which precision to train with, and why."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16")

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Controllers as /proc/self/cgroup names them (none: version 2) -> limit, use, and what of the use gives way.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class Precision(NamedTuple):
    """``name`` is fp32 or bf16; ``reason`` says why, for the log."""

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.name == "bf16" else torch.float32

    def autocast(self, device: torch.device) -> torch.autocast:
        """Within it networks on ``device`` compute in this precision."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.name == "bf16")


def choose_device(name: str) -> torch.device:
    """``"auto"``: the GPU if torch sees one, else the CPU; ``"cuda"``: the calling thread's GPU.

    Raises:
        UsageError: an unknown device, or one that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device: {name!r} is not there; torch sees {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "cuda" and device.index is None:  # the same in every thread from now on
        return torch.device("cuda", torch.cuda.current_device())
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """``"auto"``: bf16 where the hardware multiplies it natively, else fp32.

    On a CPU without AMX or AVX512-BF16, bf16 is emulated and slower than fp32.
    """
    if name not in PRECISIONS:
        raise UsageError(f"precision: expected one of {', '.join(PRECISIONS)}, got {name!r}")
    if name != "auto":
        return Precision(name, "as asked for")
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return Precision("bf16", "the GPU has it") if native else Precision("fp32", "the GPU has no bf16")
    for feature in ("amx_bf16", "avx512_bf16"):
        if feature in cpu_flags():
            return Precision("bf16", f"the CPU has {feature}")
    return Precision("fp32", "the CPU has no bf16 instructions")


def cpu_name() -> str:
    """What the processor calls itself."""
    return _cpu("model name") or platform.processor() or "unknown"


def cpu_flags() -> frozenset[str]:
    """The processor's features, as Linux names them."""
    return frozenset(_cpu("flags").split())


def _cpu(entry: str) -> str:
    parts = (line.partition(":") for line in _lines(_PROC / "cpuinfo"))
    return next((value.strip() for name, _, value in parts if name.strip() == entry), "")


def available_memory(device: torch.device) -> int:
    """Bytes that could be allocated on ``device`` now, by the machine and by the process's container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_free_on_machine(), *_free_in_groups()])


def _free_on_machine() -> int:
    """With the page cache, which gives way; where the system does not say, the pages that nobody uses."""
    for line in _lines(_PROC / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_in_groups() -> Iterator[int]:
    """What is left below the limit of each control group around the process, as containers set them."""
    for line in _lines(_PROC / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in _GROUP_FILES:
            limit, used, cache = _GROUP_FILES[controllers]
            top = _GROUPS / controllers
            folder = top / path.lstrip("/")  # in a container it may be the machine's, and not be there
            for group in [folder, *folder.parents][: len(folder.parts) - len(top.parts) + 1]:
                with contextlib.suppress(OSError, ValueError):  # no such file, or no limit ("max")
                    left = int((group / limit).read_text()) - int((group / used).read_text())
                    statistics = dict(entry.split() for entry in _lines(group / "memory.stat"))
                    yield max(0, left + int(statistics.get(cache, 0)))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


_determinism = threading.Lock()
_inside = 0  # who is in the context below
_before = False  # what torch was set to before the first of them


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Within it torch uses deterministic algorithms only (and raises where there is none).

    torch has one setting for the process: while one thread is inside it holds for all of them.
    """
    global _inside, _before
    if not enabled:
        yield
        return
    with _determinism:
        if not _inside:
            _before = torch.are_deterministic_algorithms_enabled()
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        _inside += 1
    try:
        yield
    finally:
        with _determinism:
            _inside -= 1
            if not _inside:
                torch.use_deterministic_algorithms(_before)
