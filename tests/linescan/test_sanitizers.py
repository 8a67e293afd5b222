"""Ring and tracker as C and C++ programs under the address, undefined-behaviour and thread sanitizers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from stadfast.ops import _build

PROGRAMS = Path(__file__).resolve().parents[1] / "cpp"
RING = ("mirrored_memory.cpp", "ring.cpp", "row_ring.cpp")
TRACKER = ("runs.cpp", "tracker.cpp")
ADDRESS = "-fsanitize=address,undefined"
THREAD = "-fsanitize=thread"
pytestmark = pytest.mark.slow


def build(folder: Path, sanitizer: str, *sources: Path) -> Path:
    compiler = _build.cxx_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    strict = ["-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all"]
    flags = [sanitizer, *strict, "-g", "-O1", "-pthread", "-fopenmp-simd"]
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}\n")
    program = folder / "program"
    if (
        subprocess.run([compiler, *flags, str(probe), "-o", str(program)], capture_output=True).returncode
        != 0
    ):
        pytest.skip(f"{compiler} has no {sanitizer}")
    objects = []
    for source in sources:
        objects.append(folder / f"{source.name}.o")
        language = ["-x", "c", "-std=c99"] if source.suffix == ".c" else ["-std=c++17"]
        command = [compiler, *flags, *language, "-c", str(source), "-o", str(objects[-1])]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    subprocess.run([compiler, *flags, *map(str, objects), "-o", str(program)], check=True)
    return program


def run(program: Path) -> str:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([str(program)], capture_output=True, text=True, env=environment, timeout=300)
    if (
        "unexpected memory mapping" in done.stderr
        or "LeakSanitizer does not work under ptrace" in done.stderr
    ):
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 0, done.stderr
    assert "Sanitizer" not in done.stderr
    return done.stdout


def sources(program: str, parts: tuple[str, ...]) -> list[Path]:
    return [PROGRAMS / program, *(_build.source_folder() / "linescan" / part for part in parts)]


@pytest.mark.parametrize("sanitizer", [ADDRESS, THREAD])
def test_ring(sanitizer: str, tmp_path: Path) -> None:
    """A camera in C, a consumer, and a third thread that releases views in any order."""
    out = run(build(tmp_path, sanitizer, *sources("run_ring.cpp", RING), PROGRAMS / "camera.c"))
    lost = [int(count) for count in re.findall(r"policy \d: (\d+) of 20000 lost", out)]
    assert len(lost) == 3
    assert lost[0] == 0


def test_tracker(tmp_path: Path) -> None:
    out = run(build(tmp_path, ADDRESS, *sources("run_tracker.cpp", TRACKER)))
    assert int(out.split()[0]) > 1000
