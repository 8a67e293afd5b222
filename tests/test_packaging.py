"""What a wheel and a source distribution hold, and what their installation asks for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


IN_PLACE = ("--no-deps", "--no-build-isolation")  # with the packages that are here
NO_COMPILER = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}


def pip(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy without what builds leave behind: this tree stays clean."""
    target = tmp_path_factory.mktemp("packaging") / "stadfast"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so", "__pycache__", "results")
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    """Built as `pip install .` builds it: in isolation, without torch, and here without any compiler."""
    out = checkout.parent / "wheel"
    done = pip(
        "wheel",
        "--no-deps",
        "--wheel-dir",
        str(out),
        str(checkout),
        CXX="no-such-compiler",
        CC="no-such-compiler",
    )
    if done.returncode != 0 and re.search(
        r"No matching distribution found for setuptools|Connection", done.stderr
    ):
        pytest.skip("no package index to take setuptools from")
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_is_pure_and_holds_the_sources(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]
    expected = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cuh", ".cpp", ".cu"}]
    assert {f"stadfast/{path.relative_to(ROOT)}" for path in expected} <= names
    assert {"stadfast/py.typed", "stadfast/ops/_build.py", "stadfast/report/template.html.j2"} <= names
    assert "stadfast/linescan/watch/page.html" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"stadfast"}
    python = {f"stadfast/{path.relative_to(ROOT / 'stadfast')}" for path in (ROOT / "stadfast").rglob("*.py")}
    assert python <= names


def test_the_metadata_names_what_is_needed(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [line for line in needed if re.match(r"torch\b(?!vision)", line)] == ["torch>=2.11"]
    assert any(entry.endswith("licenses/LICENSE") for entry in archive.namelist())
    (scripts,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "stadfast = stadfast.cli:main" in archive.read(scripts).decode()


def test_building_asks_for_no_torch() -> None:
    """In isolation a build requirement would download a second torch."""
    text = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"\[build-system\]\s*requires = (\[.*?\])", text, re.DOTALL)
    assert requires is not None
    assert requires[1] == '["setuptools>=77", "pybind11>=2.13"]'


def test_the_installed_wheel_finds_its_sources(wheel: Path, tmp_path: Path) -> None:
    """Installed without its dependencies beside the ones that are here, far from the checkout."""
    assert pip("install", "--no-deps", "--no-index", "--target", str(tmp_path), str(wheel)).returncode == 0
    program = """
import stadfast
from stadfast.ops import _build
print(stadfast.__file__)
print(_build.source_folder())
print(_build.fingerprint())
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=True)
    from stadfast.ops import _build

    file, sources, fingerprint = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert Path(sources) == tmp_path / "stadfast" / "csrc"
    assert fingerprint == _build.fingerprint()  # the same sources: the same cached library serves both


def test_the_source_distribution_builds_the_same_wheel(checkout: Path, wheel: Path) -> None:
    program = "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
    out = checkout.parent / "sdist"
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", program, str(out)]
    environment = {**os.environ, "STADFAST_BUILD": "0"}
    subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    (path,) = out.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
        assert {
            "LICENSE",
            "README.md",
            "setup.py",
            "csrc/schema.cpp",
            "csrc/cuda/kernel.cuh",
            "tests/conftest.py",
        } <= names
        archive.extractall(out / "unpacked", filter="data")
    (unpacked,) = (out / "unpacked").iterdir()
    done = pip(
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
        str(unpacked),
        STADFAST_BUILD="0",
    )
    assert done.returncode == 0, done.stderr
    (again,) = out.glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_ahead_of_time(checkout: Path, tmp_path: Path) -> None:
    """`pip install --no-build-isolation .`: the library is in the wheel, no cache is used."""
    from stadfast.ops import _build

    if _build.cxx_compiler() is None:
        pytest.skip("no C++ compiler")
    out = tmp_path / "wheel"
    done = pip(
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
        str(checkout),
        STADFAST_BUILD="cpu",
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    assert re.search(r"-cp310-abi3-linux_\w+\.whl$", path.name)
    assert {"stadfast/_C.so", "stadfast/_linescan.so"} <= set(zipfile.ZipFile(path).namelist())
    site = tmp_path / "site"
    assert pip("install", "--no-deps", "--no-index", "--target", str(site), str(path)).returncode == 0
    program = "from stadfast import ops; print(ops.backend().name, ops.backend().libraries['cpu'])"
    environment = {**os.environ, "PYTHONPATH": str(site), "STADFAST_CACHE": "/nonexistent", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd="/", env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["cpu", str(site / "stadfast" / "_C.so")], done.stderr


@pytest.mark.parametrize(
    ("mode", "message"),
    [("maybe", "expected auto, 0, 1 or cpu"), ("1", r"needs a C\+\+ compiler")],
)
def test_build_modes_are_checked(checkout: Path, mode: str, message: str) -> None:
    environment = {**os.environ, "STADFAST_BUILD": mode, "PATH": "", "CXX": "no-such-compiler"}
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(message, done.stderr)
