"""Which device and which precision to train with, and why."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..errors import UsageError

PRECISIONS = ("auto", "fp32", "bf16")


class Precision(NamedTuple):
    """``name`` is fp32 or bf16; ``reason`` says why, for the log."""

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.name == "bf16" else torch.float32


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
        if feature in _cpu_flags():
            return Precision("bf16", f"the CPU has {feature}")
    return Precision("fp32", "the CPU has no bf16 instructions")


def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(flags.split())


def available_memory(device: torch.device) -> int:
    """Bytes that could be allocated on ``device`` now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Within it torch uses deterministic algorithms only (and raises where there is none)."""
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
