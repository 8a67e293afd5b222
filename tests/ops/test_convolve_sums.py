"""The sums of a bfloat16 convolution on matrix units, here emulated, and by vectors (tests/cpp)."""

from __future__ import annotations

import ctypes

import pytest
import torch

from stadfast import ops

from .host import compile_host

PIXELS = 32


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_host("convolve", tmp_path_factory.mktemp("convolve"), "-O2", "-Wno-attributes")


@pytest.mark.parametrize("vectors", [False, True], ids=["tiles", "vectors"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "kernel"), [(32, (3, 3)), (64, (1, 1)), (3, (7, 7)), (20, (2, 3))])
def test_sums(
    compiled: ctypes.CDLL, channels: int, kernel: tuple[int, int], stride: int, vectors: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = kernel
    weight = torch.randn(32, channels, rows, columns, generator=generator).bfloat16()
    seen = ((PIXELS - 1) * stride + columns) * channels
    length = seen + 32  # tiles read on, and meet zeros among the filters
    values = torch.randn(rows, length, generator=generator).bfloat16()
    memory = torch.zeros(PIXELS * 32 + 16)
    sums = memory[-(memory.data_ptr() // 4) % 16 :][: PIXELS * 32].view(PIXELS, 32)
    filters = ops.pack_filters(weight)
    sizes = [ctypes.c_int64(n) for n in (rows, columns, channels, stride * channels)]
    rows_and_filters = (
        ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(length), ctypes.c_void_p(filters.data_ptr()),
    )  # fmt: skip
    if not compiled.run_convolve(vectors, *rows_and_filters, *sizes, ctypes.c_void_p(sums.data_ptr())):
        pytest.skip("this processor does not multiply bfloat16, or the compiler does not know how")
    windows = values.double().unfold(1, columns * channels, stride * channels)[:, :PIXELS]
    wanted = torch.einsum("rpv,frv->pf", windows, weight.double().permute(0, 2, 3, 1).flatten(2))
    torch.testing.assert_close(sums.double(), wanted, rtol=1e-5, atol=1e-4)
