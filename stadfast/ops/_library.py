"""Find the compiled kernels, load them, or fall back to the reference: decided once, at the first call of an op."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import _build

logger = logging.getLogger("stadfast")

_PREBUILD = "pip install --no-build-isolation . (compiles ahead of time)"
_NEED_COMPILER = f"install a C++ compiler (for example: apt install g++), or on a machine with one: {_PREBUILD}"
_NEED_TOOLKIT = "install a CUDA toolkit (pip install 'stadfast[cuda]' brings one that fits)"


@dataclass(frozen=True)
class Backend:
    """Which implementation serves the ops.

    Attributes:
        name: ``"cpu+cuda"``, ``"cpu"`` (compiled kernels for these devices) or ``"reference"`` (plain PyTorch).
        reason: why, in words.
        advice: how to get a better one; empty if there is none to get.
        libraries: the loaded files by device.
    """

    name: str
    reason: str
    advice: str = ""
    libraries: dict[str, Path] = field(default_factory=dict)


def cache_folder() -> Path:
    """Where libraries compiled at first use are kept: ``$STADFAST_CACHE``, or the user's cache folder."""
    named = os.environ.get("STADFAST_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stadfast"


def _is_current(path: Path, fingerprint: str) -> bool:
    return path.is_file() and f"stadfast-fingerprint:{fingerprint}".encode() in path.read_bytes()


def _compile_into_cache(device: str, fingerprint: str) -> Path:
    """Compile under a lock that dies with its process; the finished file appears whole."""
    folder = cache_folder() / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_build.LIBRARIES[device]}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_current(target, fingerprint):  # another process was faster
            torch.ops.load_library(target)
            return target
        for leftover in folder.glob(f"build-{device}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        logger.info("compiling the %s kernels into %s (once)", device, folder)
        if sys.stderr.isatty():
            print(f"stadfast: compiling the {device} kernels, once (about 20 s) ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix=f"build-{device}-", dir=folder) as build:
            _build.compile_library(device, Path(build)).replace(target)
    return target


def _load_library(device: str) -> Path:
    """The compiled library for ``device``: shipped, cached, or compiled now; raises with the reason if none can be."""
    fingerprint = _build.fingerprint()
    name = f"{_build.LIBRARIES[device]}.so"
    shipped = Path(__file__).resolve().parent.parent / name
    for path in (shipped, cache_folder() / fingerprint / name):
        if _is_current(path, fingerprint):
            torch.ops.load_library(path)
            return path
    return _compile_into_cache(device, fingerprint)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _find_backend() -> Backend:
    if os.environ.get("STADFAST_BACKEND", "auto") == "reference":
        return Backend("reference", "STADFAST_BACKEND=reference asks for it", "unset STADFAST_BACKEND")
    try:
        libraries = {"cpu": _load_library("cpu")}
    except (OSError, RuntimeError) as error:
        logger.info("compiling the kernels failed", exc_info=True)
        reason = f"the compiled kernels are not available: {_first_line(error)}"
        warnings.warn(f"stadfast runs on plain PyTorch, slower; {reason}. {_NEED_COMPILER}", stacklevel=5)
        return Backend("reference", reason, _NEED_COMPILER)
    from . import _registration  # noqa: F401  (fake kernels and autograd need the schemas just loaded)

    if not torch.cuda.is_available():
        return Backend("cpu", "compiled kernels; torch sees no GPU", "", libraries)
    try:
        libraries["cuda"] = _load_library("cuda")
    except (OSError, RuntimeError) as error:
        logger.info("compiling the CUDA kernels failed", exc_info=True)
        reason = f"no CUDA kernels: {_first_line(error)}"
        warnings.warn(f"stadfast runs on plain PyTorch on the GPU; {reason}. {_NEED_TOOLKIT}", stacklevel=5)
        return Backend("cpu", reason, _NEED_TOOLKIT, libraries)
    return Backend("cpu+cuda", "compiled kernels", "", libraries)


_lock = threading.Lock()
_backend: Backend | None = None


def backend() -> Backend:
    """The backend in use; loads (and at the very first use compiles) the kernels."""
    global _backend
    if _backend is None:
        with _lock:
            if _backend is None:
                _backend = _find_backend()
    return _backend


@torch.compiler.assume_constant_result
def has_kernel(device: str) -> bool:
    """Whether compiled kernels serve tensors on ``device`` (a device type such as ``"cpu"``)."""
    return device in backend().libraries
