"""The metrics' CUDA kernels without a GPU: run on the host, warp by warp (tests/cpp/warp_emulator.h)."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from stadfast.ops import reference_metrics

from .host import compile_host
from .test_counting import draw
from .test_regions import snake, spiral


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_host("counting", tmp_path_factory.mktemp("counting"), "-O1", "-Wno-unknown-pragmas")


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def addresses(scores: list[Tensor]) -> tuple[ctypes.Array, ctypes.Array]:
    data = (ctypes.c_void_p * len(scores))(*(tensor.data_ptr() for tensor in scores))
    return data, (ctypes.c_int64 * len(scores))(*(tensor.numel() for tensor in scores))


def masks_of_every_kind() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = {
        f"{shape} {share}": torch.rand(shape, generator=generator) < share
        for shape in [(2, 30, 33), (3, 1, 1), (1, 1, 130), (1, 130, 1), (2, 70, 64), (1, 90, 95)]
        for share in (0.1, 0.45, 0.6)
    }
    whole = torch.ones(1, 66, 131, dtype=torch.bool)
    return {**noise, "snake": snake(65, 97)[None], "spiral": spiral(70)[None], "whole": whole, "none": ~whole}


@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("kind", masks_of_every_kind())
def test_labels(kernels: ctypes.CDLL, kind: str, blocks: int) -> None:
    masks = masks_of_every_kind()[kind]
    labels = torch.full(masks.shape, -7, dtype=torch.int32)
    counts = torch.full(masks.shape[:1], -7, dtype=torch.int64)
    sizes = [ctypes.c_int64(n) for n in masks.shape]
    kernels.label(blocks, pointer(masks), *sizes, pointer(labels), pointer(counts))
    wanted = reference_metrics.label_regions(masks)
    assert torch.equal(labels, wanted[0])
    assert torch.equal(counts, wanted[1])


@pytest.mark.parametrize("every", [10**9, 1000, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_rank_counts(kernels: ctypes.CDLL, dtype: torch.dtype, every: int) -> None:
    scores = [tensor for tensor in draw(dtype) if tensor.numel()]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    edges = torch.unique(torch.cat([scores[0].flatten(), scores[1]])[::every]).to(wide)
    for some in (edges, edges[:0], edges[-1:].clone()):
        counts = torch.zeros(2 * len(some) + 2, dtype=torch.int64)
        function = getattr(kernels, f"ranks_{str(dtype).removeprefix('torch.')}")
        function(
            3, len(scores), *addresses(scores), ctypes.c_int64(len(some)), pointer(some), pointer(counts)
        )
        assert torch.equal(counts, reference_metrics.rank_counts(scores, some))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_histogram(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    scores = [tensor for tensor in draw(dtype, 100.0) if tensor.numel()]
    counts = torch.zeros(65536, dtype=torch.int64)
    function = getattr(kernels, f"histogram_{str(dtype).removeprefix('torch.')}")
    function(3, len(scores), *addresses(scores), pointer(counts))
    assert torch.equal(counts, reference_metrics.key_histogram(scores))
