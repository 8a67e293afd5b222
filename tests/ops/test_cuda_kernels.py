"""The CUDA kernels without a GPU: run on the host (tests/cpp/emulator.h), and compiled with nvcc."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stadfast.ops import _build, reference

from .cases import COMBINATIONS, DTYPES, GRIDS, LAYOUTS, PYRAMIDS, pyramid
from .host import compile_host
from .symbols import unstable_symbols

GUARD = 64  # elements on both sides of every result, which the kernels must leave alone


class View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("inner_stride", ctypes.c_int64)]


class Level(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("channels_last", "channels", "pixels")),
        *((name, View) for name in ("student", "teacher", "gradient")),
        ("map", ctypes.c_void_p),
    ]


class Map(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("height", "width")),
        ("weight", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("opens", "closes")),
    ]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    # hidden: another emulator in this process must not share its variables
    return compile_host(
        "kernels", tmp_path_factory.mktemp("kernels"), "-O1", "-Wno-unknown-pragmas", "-fvisibility=hidden"
    )


def guarded(numel: int, dtype: torch.dtype) -> Tensor:
    """Storage of which [GUARD:-GUARD] is the result, aligned as torch's CUDA allocator aligns."""
    return torch.full((numel + 2 * GUARD,), -7, dtype=dtype)


def untouched(storage: Tensor) -> bool:
    return bool((storage[:GUARD] == -7).all() and (storage[-GUARD:] == -7).all())


def run_distance(
    kernels: ctypes.CDLL, student: list[Tensor], teacher: list[Tensor], grad: list[Tensor] | None, blocks: int
) -> list[Tensor]:
    """pyramid_distance, or its backward if there is a ``grad``."""
    maps = torch.float64 if student[0].dtype == torch.float64 else torch.float32
    levels, storages, results = (Level * len(student))(), [], []
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        b, c, h, w = s.shape
        inner = 3 if w > 1 else 2
        last = (c == 1 or s.stride(1) == 1) and h * w > 1 and s.stride(inner) != 1  # as layout.h
        if grad is None:
            storage = guarded(b * h * w, maps)
            result = storage[GUARD:-GUARD].view(b, 1, h, w)
            gradient, address = View(), result.data_ptr()
        else:
            storage = guarded(s.numel(), s.dtype)
            result = storage[GUARD:-GUARD].view((b, h, w, c) if last else (b, c, h, w))
            result = result.permute(0, 3, 1, 2) if last else result
            gradient = View(result.data_ptr(), result.stride(0), result.stride(inner if last else 1))
            address = grad[i].data_ptr()
        views = [View(x.data_ptr(), x.stride(0), x.stride(inner if last else 1)) for x in (s, t)]
        levels[i] = Level(int(last), c, h * w, *views, gradient, address)
        storages.append(storage)
        results.append(result)
    run = getattr(kernels, f"distance_{str(student[0].dtype).removeprefix('torch.')}")
    run(int(grad is not None), blocks, ctypes.c_int64(student[0].shape[0]), len(student), levels,
        ctypes.c_double(1e-12))  # fmt: skip
    assert all(untouched(storage) for storage in storages)
    return results


READ_IN_PLACE = [name for name in LAYOUTS if name not in ("cropped", "transposed")]  # those are copied before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", READ_IN_PLACE)
@pytest.mark.parametrize("name", PYRAMIDS)
def test_distance_and_gradient(kernels: ctypes.CDLL, name: str, layout: str, dtype: torch.dtype) -> None:
    shapes = PYRAMIDS[name]
    if name == "more pixels than a tile":
        shapes = [(8, 10, 11), (300, 7, 6)]  # an emulated GPU is no fast one
    student, teacher = (pyramid(shapes, layout=layout, dtype=dtype, seed=seed) for seed in (1, 2))
    found = run_distance(kernels, student, teacher, None, blocks=3)
    wide = [[x.double().requires_grad_() for x in levels] for levels in (student, teacher)]
    wanted = reference.pyramid_distance(*wide, 1e-12)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.double(), want.detach(), rtol=0, atol=tolerance)

    grad = [torch.randn_like(d) for d in found]
    gradients = run_distance(kernels, student, teacher, grad, blocks=2)
    loss = sum((d * g).sum() for d, g in zip(wanted, grad, strict=True))
    wanted = torch.autograd.grad(loss, wide[0])
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for got, want, s, g in zip(gradients, wanted, student, grad, strict=True):
        scale = float((2 * g.abs() / s.double().norm(dim=1, keepdim=True)).max().detach())
        torch.testing.assert_close(got.double() / scale, want / scale, rtol=0, atol=rounding)


@pytest.mark.parametrize("channels_last", [False, True])
def test_results_do_not_depend_on_the_number_of_blocks(kernels: ctypes.CDLL, channels_last: bool) -> None:
    layout = "channels_last" if channels_last else "planar"
    student, teacher = (pyramid([(12, 9, 8), (300, 3, 7)], batch=3, layout=layout, seed=s) for s in (1, 2))
    first, *others = (run_distance(kernels, student, teacher, None, blocks) for blocks in (1, 4, 64))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_levels_of_both_layouts_share_a_launch(kernels: ctypes.CDLL) -> None:
    shapes = [(24, 7, 6), (9, 5, 5), (264, 3, 3), (6, 4, 4)]
    formats = ["channels_last", "planar", "planar", "channels_last"]
    student, teacher = (
        [pyramid(shapes, layout=f, seed=seed)[i] for i, f in enumerate(formats)] for seed in (1, 2)
    )
    found = run_distance(kernels, student, teacher, None, blocks=2)
    for got, want in zip(found, reference.pyramid_distance(student, teacher, 1e-12), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid_and_size", GRIDS, ids=str)
@pytest.mark.parametrize("name", COMBINATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_combination(kernels: ctypes.CDLL, name: str, grid_and_size: Any, dtype: torch.dtype) -> None:
    levels, keywords = COMBINATIONS[name]
    grid, size = grid_and_size
    grid = grid or size
    shapes = [(1, 16, 12), (1, 8, 8), (1, 5, 3), (1, 1, 1), (1, 2, 16)][:levels]
    maps = pyramid(shapes, dtype=dtype)
    groups, weights = keywords.get("groups", list(range(levels))), keywords.get("weights", [1.0] * levels)
    combine = keywords.get("combine", "product")
    order = sorted(range(levels), key=lambda level: groups[level])
    same = [combine != "product" or groups[a] == groups[b] for a, b in itertools.pairwise(order)]
    scale = sum(weights) if combine == "mean" else 1
    arguments = (Map * levels)()
    for i, level in enumerate(order):
        opens, closes = i == 0 or not same[i - 1], i == levels - 1 or not same[i]
        arguments[i] = Map(maps[level].data_ptr(), *shapes[level][1:], weights[level] / scale, opens, closes)
    storage = guarded(2 * size[0] * size[1], dtype)
    run = getattr(kernels, f"combine_{str(dtype).removeprefix('torch.')}")
    run(3, ctypes.c_int64(2), *grid, *size, levels, arguments, ctypes.c_void_p(storage[GUARD:].data_ptr()))
    wanted = reference.upsample_combine(
        [m.double() for m in maps], groups, weights, list(grid), list(size), combine
    )
    found = storage[GUARD:-GUARD].view(2, 1, *size).double()
    tolerance = (1e-12 if dtype == torch.float64 else 2e-5) * float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    assert untouched(storage)


@pytest.mark.slow
def test_the_cuda_library_compiles_without_a_warning_and_links(tmp_path: Path) -> None:
    home = _build.cuda_home()
    if home is None:
        pytest.skip("no CUDA toolkit")
    if _build.cxx_compiler() is None or shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    files = [path for path in _build.sources("cuda") if path.suffix == ".cu"]
    assert {path.stem for path in files} >= {
        "pyramid_distance",
        "anomaly_map",
        "upsample_combine",
        "peer_distance",
    }
    include = ["-isystem", str(Path(torch.__file__).parent / "include")]
    strict = ["-std=c++17", "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall,-Werror", "-arch=sm_80"]
    nvcc = [str(home / "bin" / "nvcc"), *_build.flags()["nvcc"], *strict]

    def run(*command: str) -> str:
        done = subprocess.run([*nvcc, *command], capture_output=True, text=True)
        return "" if done.returncode == 0 else f"{command}: {done.stderr}"

    def compile_one(path: Path) -> str:
        return run(*include, "-c", str(path), "-o", str(tmp_path / f"{path.stem}.o"))

    with ThreadPoolExecutor(2) as pool:
        assert [error for error in pool.map(compile_one, files) if error] == []
    library = tmp_path / "_C_cuda.so"
    assert run("-shared", *(str(path) for path in tmp_path.glob("*.o")), "-o", str(library)) == ""
    assert unstable_symbols(library) == []
