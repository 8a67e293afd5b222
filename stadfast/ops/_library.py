"""Find the compiled kernels, load them, or fall back to the reference; decided once, at the first call."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import _build, _stand_in

logger = logging.getLogger("stadfast")

_PREBUILD = "pip install --no-build-isolation . (compiles ahead of time)"
_NEED_COMPILER = f"install a C++ compiler (such as: apt install g++), or on a machine with one: {_PREBUILD}"
_NEED_TOOLKIT = "install a CUDA toolkit (pip install 'stadfast[cuda]' brings one that fits)"


@dataclass(frozen=True)
class Backend:
    """Which implementation serves the ops.

    Attributes:
        name: ``"cpu+cuda"``, ``"cpu"`` (compiled kernels for these devices), ``"reference"`` (plain PyTorch).
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


def is_current(path: Path, fingerprint: str) -> bool:
    """Whether ``path`` was built from the sources of this fingerprint."""
    return path.is_file() and f"stadfast-fingerprint:{fingerprint}".encode() in path.read_bytes()


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def is_intact(path: Path, fingerprint: str) -> bool:
    """Whether the cache holds this library; False if there is none, or a damaged one, which is not even opened.

    (The linker maps files into memory: a truncated library would end the process with a bus error.)
    """
    try:
        intact = _digest_file(path).read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return False
    if not intact or not is_current(path, fingerprint):
        logger.warning("%s is damaged and will be compiled again", path)
        return False
    return True


def compile_into_cache(target: Path, fingerprint: str, what: str, build: Callable[[Path], Path]) -> bool:
    """Compile under a lock that dies with its process; the finished file appears whole.

    Args:
        target: ``cache_folder() / fingerprint / name``.
        fingerprint: of the sources.
        what: the file's stem while it is built, and its name in words.
        build: compiles in a folder and returns the file.

    Returns:
        Whether ``build`` was called: False if another process was faster.
    """
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_intact(target, fingerprint):
            return False
        for leftover in folder.glob(f"build-{what}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        logger.info("compiling %s into %s (once)", what, folder)
        if sys.stderr.isatty():
            print(f"stadfast: compiling its {what} library, once (half a minute or so) ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix=f"build-{what}-", dir=folder) as scratch:
            built = build(Path(scratch))
            digest = Path(scratch) / "digest"
            digest.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
            digest.replace(_digest_file(target))
            built.replace(target)
    return True


def _load_library(device: str) -> Path:
    """The library for ``device``: shipped, cached, or compiled now; raises with the reason if none can be."""
    fingerprint = _build.fingerprint()
    shipped = Path(__file__).resolve().parent.parent / f"{_build.LIBRARIES[device]}.so"
    if is_current(shipped, fingerprint):
        torch.ops.load_library(shipped)
        return shipped
    target = cache_folder() / fingerprint / _build.library_name(device)
    loaded: list[Path] = []

    def build(folder: Path) -> Path:
        loaded.append(_build.compile_library(device, folder))  # which loads it, and that cannot be undone
        return loaded[0]

    try:
        if not is_intact(target, fingerprint):
            compile_into_cache(target, fingerprint, device, build)
    except OSError as error:
        if not loaded:
            raise
        logger.warning("%s cannot be kept, and will be compiled again: %s", target, error)
    if not loaded:
        torch.ops.load_library(target)
    return target


# What a compiler that is missing, broken or of no use comes to.
_FAILURES = (OSError, RuntimeError, ImportError, subprocess.SubprocessError)


def _fall_back(message: str, error: Exception, reason: str, advice: str) -> None:
    """One warning, at the line that called into stadfast."""
    logger.info("no compiled kernels", exc_info=error)
    package, frame, level = f"{Path(__file__).resolve().parents[1]}{os.sep}", sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"{message}; {reason}. {advice}", stacklevel=level)


def _cause(error: Exception) -> str:
    """The compiler's first error, of all that it has printed; or the first line."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return next((line for line in lines if "error:" in line), lines[0])[:500]


def _find_backend() -> Backend:
    if os.environ.get("STADFAST_BACKEND", "auto") == "reference":
        _stand_in.define()
        return Backend("reference", "STADFAST_BACKEND=reference asks for it", "unset STADFAST_BACKEND")
    try:
        libraries = {"cpu": _load_library("cpu")}
    except _FAILURES as error:
        reason = f"the compiled kernels are not available: {_cause(error)}"
        _fall_back("stadfast runs on plain PyTorch, slower", error, reason, _NEED_COMPILER)
        _stand_in.define()
        return Backend("reference", reason, _NEED_COMPILER)
    from . import _registration  # noqa: F401  (fake kernels and autograd need the schemas just loaded)

    if not torch.cuda.is_available():
        return Backend("cpu", "compiled kernels; torch sees no GPU", "", libraries)
    try:
        libraries["cuda"] = _load_library("cuda")
    except _FAILURES as error:
        reason = f"no CUDA kernels: {_cause(error)}"
        _fall_back("stadfast runs on plain PyTorch on the GPU", error, reason, _NEED_TOOLKIT)
        _stand_in.serve_cuda()
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


_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_pytorch(enabled: bool = True) -> Iterator[None]:
    """Within it the ops run, and are recorded, as plain PyTorch: a graph that needs no library of ours."""
    token = _plain.set(enabled or _plain.get())
    try:
        yield
    finally:
        _plain.reset(token)


def has_kernel(device: str) -> bool:
    """Whether compiled kernels serve tensors on ``device`` (a device type such as ``"cpu"``)."""
    return not _plain.get() and device in backend().libraries


# What torch.compiler.assume_constant_result does, without its import of the compiler (over a second).
has_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]
