"""Winograd's convolution with the instructions of every processor that it is compiled for (tests/cpp)."""

from __future__ import annotations

import ctypes

import pytest
import torch

from stadfast import ops

from .host import compile_host
from .test_winograd import assert_equal, case, exact


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_host("winograd", tmp_path_factory.mktemp("winograd"), "-O2", "-Wno-attributes")


@pytest.mark.parametrize("instructions", [0, 1, 2], ids=["plain", "AVX2", "AVX-512"])
@pytest.mark.parametrize("filters", [16, 80])
def test_equals_torch(compiled: ctypes.CDLL, instructions: int, filters: int) -> None:
    geometry = (2, 1, 32, filters, 7, 9, (1, 1))
    x, weight, bias, residual = case(geometry)
    found, packed = torch.full_like(residual, float("nan")), ops.pack_filters(weight, winograd=True)
    tensors = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, packed, bias)]
    sizes = [ctypes.c_int64(n) for n in (2, 32, filters, 7, 9)]
    if not compiled.run_winograd(instructions, *tensors, *sizes, ctypes.c_void_p(found.data_ptr())):
        pytest.skip("this processor does not have them")
    assert_equal(found, exact(x, weight, bias, None, geometry, True))
