"""The one place that knows the sources of csrc and how they are compiled.

Used by ``setup.py`` (ahead of time), and at first use by ``_library.py`` (the kernels) and
``linescan/_extension.py`` (the Python extension of ``csrc/linescan``, which has no torch in it). Nothing here
imports torch until kernels are compiled, so that ``setup.py`` can load this file where torch is absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIBRARIES = {"cpu": "_C", "cuda": "_C_cuda"}
LINESCAN = "_linescan"

# LibTorch's stable ABI as of 2.11: one library runs on every torch from 2.11 on, whichever it was built with.
_COMMON = ["-O3", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
_CXX = [*_COMMON, "-fopenmp-simd", "-fno-math-errno", "-fvisibility=hidden"]  # errno: roots in vectors
_NVCC = [*_COMMON, "-DUSE_CUDA", "-Xcompiler", "-fvisibility=hidden"]
_LINESCAN = ["-O3", "-std=c++17", "-pthread", "-fopenmp-simd", "-fvisibility=hidden"]
# Where neither a GPU nor TORCH_CUDA_ARCH_LIST says more; Jetson Orin takes the PTX of 8.0.
_DEFAULT_CUDA_ARCHITECTURES = "7.5;8.0+PTX;8.6;8.9;9.0+PTX"


def library_name(device: str) -> str:
    """Of the file in the cache: kernels serve the GPUs that were there when they were compiled, and torch's CUDA."""
    if device == "cpu":
        return f"{LIBRARIES[device]}.so"
    import torch

    given = os.environ.get("TORCH_CUDA_ARCH_LIST")
    there = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
    named = given or ";".join(f"{major}.{minor}" for major, minor in there) or _DEFAULT_CUDA_ARCHITECTURES
    return f"{LIBRARIES[device]}-cu{torch.version.cuda}-{re.sub('[^0-9A-Za-z.+]+', '_', named)}.so"


def source_folder() -> Path:
    """``csrc``: inside the installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "csrc"
    return shipped if shipped.is_dir() else package.parent / "csrc"


def sources(device: str) -> list[Path]:
    """The files of the ``"cpu"`` or ``"cuda"`` library, or of the ``"linescan"`` extension."""
    root = source_folder()
    if device == "linescan":
        return [root / "fingerprint.cpp", *sorted((root / "linescan").glob("*.cpp"))]
    if device == "cpu":
        return [root / "fingerprint.cpp", root / "schema.cpp", *sorted((root / "cpu").glob("*.cpp"))]
    return [root / "fingerprint.cpp", *sorted((root / "cuda").glob("*.cu"))]


def fingerprint() -> str:
    """Of the kernels: 16 hexadecimal digits that change with their sources and flags, and the architecture."""
    root = source_folder()
    files = [path for path in root.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    return _digest([path for path in files if root / "linescan" not in path.parents], (_CXX, _NVCC))


def linescan_fingerprint() -> str:
    """Of the extension: it serves one version of Python only."""
    root = source_folder()
    files = [root / "fingerprint.cpp", root / "macros.h", *(root / "linescan").glob("*")]
    return _digest(files, (_LINESCAN, sysconfig.get_config_var("SOABI")))


def _digest(files: list[Path], settings: tuple[object, ...]) -> str:
    digest = hashlib.sha256(repr((*settings, os.uname().machine)).encode())
    for path in sorted(files):
        digest.update(path.relative_to(source_folder()).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def flags() -> dict[str, list[str]]:
    """Compiler flags, in the form of cpp_extension's ``extra_compile_args``."""
    mark = f"-DSTADFAST_FINGERPRINT={fingerprint()}"
    return {"cxx": [*_CXX, mark], "nvcc": [*_NVCC, mark]}


def cxx_compiler() -> str | None:
    """The C++ compiler that would be used, if there is one: ``$CXX`` if that is set."""
    named = os.environ.get("CXX", "").split()
    return shutil.which(named[0]) if named else shutil.which("c++") or shutil.which("g++")


def cuda_home() -> Path | None:
    """A CUDA toolkit with nvcc and headers.

    ``nvcc`` on the path may be a wrapper script far from the headers: a folder counts only if it has both.
    """
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    candidates = [Path(p) for p in named if p]
    candidates += [Path(p) / "nvidia" / "cu13" for p in sys.path if p.endswith("site-packages")]
    candidates += [Path(nvcc).resolve().parent.parent] if nvcc else []
    candidates += [Path("/usr/local/cuda")]
    for home in candidates:
        if (home / "bin" / "nvcc").is_file() and (home / "include" / "cuda_runtime.h").is_file():
            return home
    return None


def _cpp_extension(device: str) -> Any:
    """torch.utils.cpp_extension, pointed at the toolkit where CUDA is to be compiled."""
    import torch

    log = logging.getLogger("torch.utils.cpp_extension")
    level = log.level
    log.setLevel(logging.ERROR)  # without a GPU, the import warns of the toolkit that it found
    try:
        from torch.utils import cpp_extension
    finally:
        log.setLevel(level)
    if device == "cuda":
        home = cuda_home()
        if home is None:
            raise RuntimeError("no CUDA toolkit (nvcc and headers) found")
        cpp_extension.CUDA_HOME = str(home)
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", _DEFAULT_CUDA_ARCHITECTURES)
    return cpp_extension


def cuda_linking(folder: Path) -> list[str]:
    """Linker flags for a toolkit from PyPI, whose runtime library lacks the name that linkers look for.

    Args:
        folder: where to put a link of that name.
    """
    home = cuda_home()
    found = (
        [path for name in ("lib64", "lib") for path in sorted((home / name).glob("libcudart.so*"))]
        if home
        else []
    )
    if not found or any(path.name == "libcudart.so" for path in found):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "libcudart.so"
    link.unlink(missing_ok=True)
    link.symlink_to(found[0].resolve())
    return [f"-L{folder.resolve()}"]


def extensions(cuda: bool = True) -> list[Any]:
    """setuptools extensions for every library that can be compiled here; paths relative to the checkout."""
    import torch

    devices = ["cpu"]
    if cuda and torch.version.cuda is not None and cuda_home() is not None:
        devices.append("cuda")
    found = []
    for device in devices:
        cpp_extension = _cpp_extension(device)
        kind = cpp_extension.CUDAExtension if device == "cuda" else cpp_extension.CppExtension
        found.append(
            kind(
                f"stadfast.{LIBRARIES[device]}",
                [os.path.relpath(path) for path in sources(device)],
                extra_compile_args=flags(),
                extra_link_args=[
                    "-Wl,--as-needed",
                    *(cuda_linking(Path("build/link")) if device == "cuda" else []),
                ],
                py_limited_api=True,  # keeps libtorch_python out: the libraries hold no Python
            )
        )
    return found


def linescan_extension() -> Any:
    """A setuptools extension of ``csrc/linescan``; needs pybind11."""
    import pybind11
    from setuptools import Extension

    return Extension(
        f"stadfast.{LINESCAN}",
        [os.path.relpath(path) for path in sources("linescan")],
        include_dirs=[pybind11.get_include()],
        language="c++",
        extra_compile_args=[*_LINESCAN, f"-DSTADFAST_FINGERPRINT={linescan_fingerprint()}"],
        extra_link_args=["-pthread"],
    )


def compile_linescan(folder: Path) -> Path:
    """Compile the extension of ``csrc/linescan`` in ``folder`` and return its path.

    Raises:
        RuntimeError: no compiler, or it failed; the message holds what it printed.
        ImportError: no pybind11.
    """
    import pybind11

    if cxx_compiler() is None:
        raise RuntimeError("no C++ compiler (c++ or g++) found")
    target = folder / f"{LINESCAN}.so"
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    flags = [*_LINESCAN, "-fPIC", "-shared", f"-DSTADFAST_FINGERPRINT={linescan_fingerprint()}", *includes]
    compiler = os.environ.get("CXX", "").split() or [str(cxx_compiler())]
    command = [*compiler, *flags, *map(str, sources("linescan")), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{compiler[0]} failed: {done.stderr.strip()}")
    return target


def find_ninja() -> None:
    """Put the folder of PyPI's ninja on the path, where it is not if nobody has activated the environment."""
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])


@contextlib.contextmanager
def _restoring(*names: str) -> Iterator[None]:
    """These variables of the environment, the process's own, are afterwards what they were before."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def compile_library(device: str, folder: Path) -> Path:
    """Compile the library for ``device`` in ``folder`` and return its path; the library is loaded, too.

    Raises:
        RuntimeError: no compiler, or it failed; the message holds what it printed.
    """
    if cxx_compiler() is None:
        raise RuntimeError("no C++ compiler (c++ or g++) found")
    name = LIBRARIES[device]
    settings = flags()
    with _restoring("PATH", "TORCH_CUDA_ARCH_LIST"):
        find_ninja()
        _cpp_extension(device).load(
            name,
            [str(path) for path in sources(device)],
            extra_cflags=settings["cxx"],
            extra_cuda_cflags=settings["nvcc"],
            # --as-needed drops libtorch_python, which load() always names.
            extra_ldflags=["-Wl,--as-needed", *(cuda_linking(folder / "link") if device == "cuda" else [])],
            build_directory=str(folder),
            with_cuda=device == "cuda",
            is_python_module=False,
        )
    return folder / f"{name}.so"
