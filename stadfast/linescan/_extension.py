"""Find the extension of csrc/linescan (ring and tracker): shipped, cached, or compiled at first use."""

from __future__ import annotations

import importlib.util
import subprocess
import threading
from functools import cache
from pathlib import Path
from types import ModuleType

from ..errors import ExtensionError
from ..ops import _build, _library

_ADVICE = "install a C++ compiler (such as: apt install g++), or on a machine with one: pip install . compiles ahead"


_lock = threading.Lock()


def load() -> ModuleType:
    """The module ``stadfast._linescan``.

    Raises:
        ExtensionError: it is not there and cannot be compiled; says what is missing.
    """
    with _lock:
        return _load()


@cache
def _load() -> ModuleType:
    try:
        path = library()
        spec = importlib.util.spec_from_file_location(f"stadfast.{_build.LINESCAN}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        reason = str(error).strip() or type(error).__name__
        raise ExtensionError(
            f"the line-scan ring and tracker are compiled code that is not available: {reason}; {_ADVICE}"
        ) from error
    return module


def library() -> Path:
    """The file of the extension; compiles it where there is none yet."""
    fingerprint = _build.linescan_fingerprint()
    name = f"{_build.LINESCAN}.so"
    shipped = Path(__file__).resolve().parent.parent / name
    if _library.is_current(shipped, fingerprint):
        return shipped
    target = _library.cache_folder() / fingerprint / name
    if not _library.is_intact(target, fingerprint):
        _library.compile_into_cache(target, fingerprint, "linescan", _build.compile_linescan)
    return target
