"""The process's memory: what it holds, and what it keeps, since a block that comes anew costs page faults."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # glibc's names for mallopt
_KEPT = 1 << 30


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB of what torch frees, for the whole process; False where there is no glibc.

    The features of a batch of eight are tens of megabytes. glibc takes such blocks from the system and gives them
    back at once, which takes a quarter of the time of a forward pass.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # An older glibc refuses a threshold above 32 MiB, but not to keep every block, however large.
    large = mallopt(_MMAP_THRESHOLD, _KEPT) or mallopt(_MMAP_MAX, 0)
    return bool(large and mallopt(_TRIM_THRESHOLD, _KEPT))


def resident_memory(*, peak: bool = False) -> int:
    """Bytes that this process holds now, or its peak; 0 on systems other than Linux.

    The peak of ``getrusage`` would be that of the process which started this one, where this was larger.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    field = "VmHWM:" if peak else "VmRSS:"
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)
