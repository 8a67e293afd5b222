"""Memory that is given back between two images costs a page fault every 4 KB when it comes again."""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names for mallopt
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
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT) and mallopt(_TRIM_THRESHOLD, _KEPT))
