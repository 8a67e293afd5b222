"""The C++ of tests/cpp, compiled for this machine and loaded."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from stadfast.ops import _build

SOURCES = Path(__file__).resolve().parent.parent / "cpp"


def compile_host(name: str, folder: Path, *flags: str) -> ctypes.CDLL:
    """``run_NAME.cpp`` as a library in ``folder``, without a warning; the test is skipped without a compiler."""
    compiler = _build.cxx_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    target = folder / f"{name}.so"
    include = Path(torch.__file__).parent / "include"
    common = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-isystem{include}"]
    command = [compiler, *common, *flags, str(SOURCES / f"run_{name}.cpp"), "-o", str(target)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))
