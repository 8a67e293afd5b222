"""Finding, compiling, caching and loading the kernels, and what happens where that fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stadfast import ops
from stadfast.ops import _build

ROOT = Path(__file__).resolve().parents[2]

USE = """
import sys, torch
from stadfast import ops
features = [torch.randn(1, 8, 4, 4)]
for _ in range(3):
    map = ops.anomaly_map(features, [-f for f in features], (8, 8))  # line 6
ops.pyramid_distance(features, features)
ops.upsample_combine([map], (8, 8))
assert abs(float(map.mean()) - 4) < 1e-5
print(ops.backend().name)
"""

# In place of the compiler: takes $SECONDS, writes a line to $LOG, and copies the library that exists.
FAKE_COMPILER = """
import os, shutil, time
from pathlib import Path
from stadfast.ops import _build

def compile_library(device, folder):
    with open(os.environ["LOG"], "a") as log:
        log.write("compiled\\n")
    half_written = folder / "_C.o"
    half_written.write_bytes(b"half")
    time.sleep(float(os.environ["SECONDS"]))
    target = Path(shutil.copy(os.environ["LIBRARY"], folder / "_C.so"))
    import torch
    torch.ops.load_library(target)
    return target

_build.compile_library = compile_library
"""


class Sandbox:
    """A fresh cache, and processes that use it."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.log = folder / "log"
        self.library = ops.backend().libraries.get("cpu")
        self.environment = {
            **os.environ,
            "STADFAST_CACHE": str(self.cache),
            "PYTHONPATH": str(ROOT),
            **{"LOG": str(self.log), "SECONDS": "0", "LIBRARY": str(self.library)},  # of FAKE_COMPILER
        }
        self.environment.pop("STADFAST_BACKEND", None)

    def start(self, program: str = FAKE_COMPILER + USE, **changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", program],
            env={**self.environment, **changes},
            cwd="/",
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, program: str = FAKE_COMPILER + USE, **changes: str) -> tuple[str, str]:
        """(what it printed, what it complained of)"""
        process = self.start(program, **changes)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return out.strip(), err.strip()

    def compilations(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def cached(self) -> Path:
        return self.cache / _build.fingerprint() / "_C.so"


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    sandbox = Sandbox(tmp_path)
    if sandbox.library is None:
        pytest.skip(f"no compiled kernels: {ops.backend().reason}")
    if sandbox.library.parent == ROOT / "stadfast":
        pytest.skip("the library was compiled ahead of time: nothing is cached")
    return sandbox


def test_where_there_is_a_compiler_there_are_kernels() -> None:
    if _build.cxx_compiler() is None or os.environ.get("STADFAST_BACKEND") == "reference":
        pytest.skip("no compiler, or not asked for")
    assert "cpu" in ops.backend().libraries
    assert ops.backend().name in ("cpu", "cpu+cuda")


def test_reference_on_request(sandbox: Sandbox) -> None:
    assert sandbox.run(STADFAST_BACKEND="reference") == ("reference", "")
    assert sandbox.compilations() == 0


def test_without_a_compiler_one_warning_names_the_fix(sandbox: Sandbox) -> None:
    out, err = sandbox.run(USE, PATH="", CXX="no-such-compiler")
    assert out == "reference"
    assert err.count("UserWarning") == 1
    assert "no C++ compiler" in err
    assert "apt install g++" in err
    assert "--no-build-isolation" in err
    assert err.startswith("<string>:6:")  # the caller's line


def test_a_compiler_that_fails_is_named(sandbox: Sandbox, tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho the sky is falling >&2\nexit 1\n")
    broken.chmod(0o755)
    out, err = sandbox.run(USE, CXX=str(broken))
    assert out == "reference"
    assert err.count("stadfast runs on plain PyTorch") == 1
    assert str(broken) in err


def test_what_a_compiler_complains_of_is_told(sandbox: Sandbox, tmp_path: Path) -> None:
    grumbling = tmp_path / "c++"
    real = shutil.which("c++") or "c++"
    grumbling.write_text(
        f'#!/bin/sh\nfor i; do case "$i" in -c) echo "x.cpp:1:1: error: no such thing" >&2; exit 1;; esac; done\n'
        f'exec {real} "$@"\n'
    )
    grumbling.chmod(0o755)
    _, err = sandbox.run(USE, CXX=str(grumbling))
    assert "the compiled kernels are not available: x.cpp:1:1: error: no such thing. install" in err


def test_a_cache_that_cannot_be_written(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out, err = sandbox.run(STADFAST_CACHE=str(tmp_path / "file"))
    assert out == "reference"
    assert str(tmp_path / "file") in err


def test_a_library_that_cannot_be_kept_serves_its_process(sandbox: Sandbox) -> None:
    """Its schemas are there once it is loaded: the reference could not take their names."""
    full_disk = """
def write_text(self, text):
    raise OSError(28, "No space left on device")

Path.write_text = write_text
"""
    out, err = sandbox.run(FAKE_COMPILER + full_disk + USE)
    assert out == "cpu"
    assert "cannot be kept" in err
    assert "No space left on device" in err
    assert not sandbox.cached().exists()


@pytest.mark.slow
def test_compiled_once_silently_and_then_without_a_compiler(sandbox: Sandbox) -> None:
    """The real compiler, in an empty cache; the second process finds no compiler and needs none."""
    assert sandbox.run(USE) == ("cpu", "")
    assert sandbox.cached().is_file()
    assert [p.name for p in sandbox.cached().parent.iterdir() if p.name.startswith("build-")] == []
    assert sandbox.run(USE, PATH="", CXX="no-such-compiler") == ("cpu", "")


def test_racing_processes_compile_once(sandbox: Sandbox) -> None:
    processes = [sandbox.start(SECONDS="1") for _ in range(3)]
    for process in processes:
        out, err = process.communicate()
        assert (process.returncode, out.strip(), err.strip()) == (0, "cpu", "")
    assert sandbox.compilations() == 1
    assert sandbox.run() == ("cpu", "")
    assert sandbox.compilations() == 1


def test_a_killed_compilation_leaves_nothing_that_blocks(sandbox: Sandbox) -> None:
    process = sandbox.start(SECONDS="1000")
    deadline = time.monotonic() + 120
    while not list(sandbox.cache.glob("*/build-cpu-*/_C.o")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(sandbox.cache.glob("*/build-cpu-*"))  # the killed one could not tidy up
    assert sandbox.run() == ("cpu", "")
    assert sandbox.compilations() == 2
    assert not list(sandbox.cache.glob("*/build-cpu-*"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "a changed byte", "no digest", "of other sources"])
def test_a_damaged_library_is_compiled_again(sandbox: Sandbox, damage: str) -> None:
    sandbox.run()
    path = sandbox.cached()
    content = path.read_bytes()
    if damage == "no digest":
        path.with_suffix(".sha256").unlink()
    else:
        changed = {
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "a changed byte": content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
            "of other sources": content.replace(_build.fingerprint().encode(), b"0" * 16),
        }
        path.write_bytes(changed[damage])
    out, err = sandbox.run()
    assert out == "cpu"
    assert ("damaged and will be compiled again" in err) == (damage != "no digest")
    assert sandbox.compilations() == 2
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["distance.h", "schema.cpp", "cuda/anomaly_map.cu", "cuda/*.cuh"])
def test_changed_sources_have_another_fingerprint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "csrc"
    shutil.copytree(_build.source_folder(), copy)
    before = _build.fingerprint()
    monkeypatch.setattr(_build, "source_folder", lambda: copy)
    assert _build.fingerprint() == before
    with next(copy.glob(name)).open("a") as file:
        file.write("\n")
    assert _build.fingerprint() != before


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STADFAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert ops.cache_folder() == Path("/somewhere/stadfast")
    monkeypatch.setenv("STADFAST_CACHE", "/here")
    assert ops.cache_folder() == Path("/here")
