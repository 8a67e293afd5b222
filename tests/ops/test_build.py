"""What the compiled library is linked to: the stable ABI of torch, and neither its C++ classes nor Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from stadfast import ops
from stadfast.ops import _build

from .symbols import ALLOWED, undefined_symbols, unstable_symbols


@pytest.fixture
def library() -> Path:
    if "cpu" not in ops.backend().libraries:
        pytest.skip(f"no compiled kernels: {ops.backend().reason}")
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("no binutils")
    return ops.backend().libraries["cpu"]


def test_no_unstable_symbols(library: Path) -> None:
    assert any(symbol.startswith("aoti_torch_") for symbol in undefined_symbols(library))
    assert unstable_symbols(library) == []


@pytest.mark.parametrize("bad", ["at::Tensor::sizes() const", "c10::Warning::warn()", "torch::Library::def()",
                                 "PyObject_Call", "_PyErr_Clear", "GOMP_parallel"])  # fmt: skip
def test_the_rule_sees_what_it_forbids(bad: str) -> None:
    assert not ALLOWED.fullmatch(bad)


def test_needs_no_python(library: Path) -> None:
    text = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"NEEDED.*\[(.+?)\]", text)
    assert "libtorch_cpu.so" in needed
    assert [name for name in needed if "python" in name or "gomp" in name] == []


def test_a_toolkit_counts_only_with_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvcc on the path may be a wrapper script."""
    wrapper = tmp_path / "wrapper" / "bin" / "nvcc"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text("#!/bin/sh\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert _build.cuda_home() != tmp_path / "wrapper"
    whole = tmp_path / "whole"
    for file in ("bin/nvcc", "include/cuda_runtime.h"):
        (whole / file).parent.mkdir(parents=True, exist_ok=True)
        (whole / file).write_text("")
    monkeypatch.setenv("CUDA_HOME", str(whole))
    assert _build.cuda_home() == whole


def test_a_toolkit_from_pypi_gets_the_name_that_linkers_look_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "cu13"
    (home / "lib").mkdir(parents=True)
    library = home / "lib" / "libcudart.so.13"
    library.write_bytes(b"the runtime")
    monkeypatch.setattr(_build, "cuda_home", lambda: home)
    for _ in range(2):  # an earlier build's link may be there
        assert _build.cuda_linking(tmp_path / "link") == [f"-L{tmp_path / 'link'}"]
    assert (tmp_path / "link" / "libcudart.so").read_bytes() == b"the runtime"
    (home / "lib" / "libcudart.so").symlink_to(library)
    assert _build.cuda_linking(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_compiling_leaves_the_environment_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils import cpp_extension

    seen = []
    monkeypatch.setattr(cpp_extension, "load", lambda *_, **__: seen.append(dict(os.environ)))
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_build, "cuda_home", lambda: tmp_path)
    monkeypatch.setattr(_build, "cxx_compiler", lambda: "c++")
    monkeypatch.setattr(_build, "find_ninja", lambda: monkeypatch.setenv("PATH", "ninja's"))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    before = dict(os.environ)
    _build.compile_library("cuda", tmp_path)
    assert seen[0]["PATH"] == "ninja's"
    assert "9.0" in seen[0]["TORCH_CUDA_ARCH_LIST"]
    assert dict(os.environ) == before


def test_kernels_for_other_gpus_are_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    names = set()
    for gpus in ([], [(9, 0)], [(8, 0)], [(9, 0), (8, 0)]):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i, gpus=gpus: gpus[i])
        names.add(_build.library_name("cuda"))
    assert len(names) == 4
    assert {"_C_cuda-cu12.8-9.0.so", "_C_cuda-cu12.8-8.0_9.0.so"} <= names
    monkeypatch.setattr(torch.version, "cuda", "13.0")  # needs another libcudart
    assert _build.library_name("cuda") == "_C_cuda-cu13.0-8.0_9.0.so"
    assert _build.library_name("cpu") == "_C.so"


def test_an_op_of_cuda_is_a_file_of_the_same_name_as_its_cpu_twin() -> None:
    cpu = {path.stem for path in _build.sources("cpu")}
    assert {path.stem for path in _build.sources("cuda")} <= cpu | {"fingerprint"}


def test_every_op_has_a_reference_with_its_signature() -> None:
    """csrc/schema.cpp against stadfast/ops/reference*.py."""
    import inspect

    from stadfast.ops import reference, reference_metrics, regions

    gathered = {name: getattr(regions, f"gather_{name}") for name in ("region_pixels", "region_histogram")}
    twins = {**vars(reference), **vars(reference_metrics), **gathered}
    if "cpu" not in ops.backend().libraries:
        pytest.skip("no compiled kernels")
    text = (_build.source_folder() / "schema.cpp").read_text()
    names = re.findall(r'"(\w+)\(', text)
    assert "anomaly_map" in names
    for name in names:
        if name.endswith("_backward"):
            continue
        schema = getattr(torch.ops.stadfast, name).default._schema
        assert list(inspect.signature(twins[name]).parameters) == [
            argument.name for argument in schema.arguments
        ]
        assert not any(argument.has_default_value() for argument in schema.arguments)
