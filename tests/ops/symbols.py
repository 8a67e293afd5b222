"""What a compiled library asks of others."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

# C functions that torch promises to keep, the C and C++ run-time libraries, and the linker's own.
ALLOWED = re.compile(
    r"(aoti_torch_|torch_)\w+|std::.*|operator (new|delete).*|(vtable|typeinfo|VTT) for (std|__cxxabiv1)::.*|"
    r"_ITM_\w+|__gmon_start__|[a-zA-Z_]\w*@(GLIBC|GCC|CXXABI|GLIBCXX)_.*"
)


def undefined_symbols(path: Path) -> list[str]:
    command = ["nm", "--undefined-only", "--demangle", "-D", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.split()[0] in "Uwv"]


def unstable_symbols(path: Path) -> list[str]:
    """Those that no promise covers: torch's C++ classes, Python, another OpenMP."""
    return [symbol for symbol in undefined_symbols(path) if not ALLOWED.fullmatch(symbol)]
