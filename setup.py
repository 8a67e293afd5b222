"""What pyproject.toml cannot say: csrc travels inside the package, and is compiled where that is possible.

``STADFAST_BUILD``: ``auto`` (default: with a compiler, the line-scan extension, and the kernels if this build
environment has torch, as with ``pip install --no-build-isolation .``), ``0`` (leave it to the first use), ``cpu``
(compile, without CUDA) or ``1`` (compile, or fail).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def load_build() -> ModuleType:
    """stadfast/ops/_build.py alone: the package around it imports torch."""
    spec = importlib.util.spec_from_file_location("stadfast_build", ROOT / "stadfast" / "ops" / "_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithSources(build_py):
    """Adds csrc to the package, so that an installed package can compile its kernels at first use."""

    def run(self) -> None:
        if not self.editable_mode:  # a checkout reads csrc where it lies
            shutil.rmtree(Path(self.build_lib) / "stadfast", ignore_errors=True)  # modules deleted since
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "csrc", Path(self.build_lib) / "stadfast" / "csrc")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        target = Path(self.build_lib) / "stadfast"
        files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
        return [
            *super().get_outputs(include_bytecode),
            *(str(target / path.relative_to(ROOT)) for path in files),
        ]


def ahead_of_time() -> dict[str, Any]:
    """The arguments of setup() that compile now; none where all is left to the first use."""
    mode = os.environ.get("STADFAST_BUILD", "auto")
    if mode not in ("auto", "0", "1", "cpu"):
        sys.exit(f"STADFAST_BUILD: expected auto, 0, 1 or cpu, got {mode!r}")
    if mode == "0":
        return {}
    build = load_build()
    has_compiler = build.cxx_compiler() is not None
    has_torch, has_pybind11 = (importlib.util.find_spec(name) is not None for name in ("torch", "pybind11"))
    needs = {"torch": has_torch, "pybind11": has_pybind11, "a C++ compiler": has_compiler}
    missing = [name for name, found in needs.items() if not found]
    if missing and mode != "auto":
        sys.exit(f"STADFAST_BUILD={mode} needs {' and '.join(missing)}; see pip install --no-build-isolation")
    extensions = []
    if has_compiler and has_torch:
        build.find_ninja()  # without it one file is compiled after the other
        extensions += build.extensions(cuda=mode != "cpu")
    if has_compiler and has_pybind11:
        extensions.append(build.linescan_extension())
        extensions[-1].optional = mode == "auto"
    if not extensions:
        return {}
    return {
        "ext_modules": extensions,
        "cmdclass": {"build_ext": build_ext_class(has_torch)},
        # One wheel for every Python from 3.10: the kernels hold no Python, and the line-scan extension knows which
        # Python it serves (its fingerprint): others compile theirs at first use.
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def build_ext_class(has_torch: bool) -> type:
    """setuptools' build_ext, or torch's around it; the files are called NAME.so, on every Python."""
    if has_torch:
        from torch.utils.cpp_extension import BuildExtension as Base
    else:
        from setuptools.command.build_ext import build_ext as Base

    class BuildLibraries(Base):
        def get_ext_filename(self, name: str) -> str:
            return f"{name.replace('.', os.sep)}.so"

    return BuildLibraries


arguments = ahead_of_time()
arguments.setdefault("cmdclass", {})["build_py"] = BuildWithSources
setup(**arguments)
