"""anomaly_map and upsample_combine against the reference in float64, and the lines of their docstrings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stadfast import ops
from stadfast.ops import reference
from stadfast.ops.maps import EPS

from .cases import COMBINATIONS, DEVICES, DTYPES, GRIDS, LAYOUTS, pyramid, skip_without_kernel

SHAPES = [(24, 16, 12), (12, 8, 8), (5, 5, 3), (8, 1, 1), (6, 2, 16)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    skip_without_kernel(request.param)
    return request.param


def arguments(levels: int, keywords: dict[str, Any], grid: Any, size: Any) -> tuple[Any, ...]:
    """The schema's arguments for the Python face's keywords."""
    groups = keywords.get("groups", list(range(levels)))
    weights = keywords.get("weights", [1.0] * levels)
    return groups, weights, list(grid or size), list(size), keywords.get("combine", "product")


def assert_near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape
    scale = float(wanted.abs().max()) or 1.0
    torch.testing.assert_close(found.double() / scale, wanted.double() / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("grid_and_size", GRIDS, ids=str)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_anomaly_map_of_every_combination(device: str, name: str, grid_and_size: Any) -> None:
    levels, keywords = COMBINATIONS[name]
    grid, size = grid_and_size
    student, teacher = (pyramid(SHAPES[:levels], device=device, seed=seed) for seed in (1, 2))
    found = ops.anomaly_map(student, teacher, size, grid, **keywords)
    wide = [[x.double() for x in levels] for levels in (student, teacher)]
    wanted = reference.anomaly_map(*wide, *arguments(levels, keywords, grid, size), EPS)
    assert found.dtype == torch.float32
    assert_near(found, wanted, 2e-5)


@pytest.mark.parametrize("grid_and_size", GRIDS, ids=str)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_upsample_combine_of_every_combination(device: str, name: str, grid_and_size: Any) -> None:
    levels, keywords = COMBINATIONS[name]
    grid, size = grid_and_size
    maps = pyramid([(1, h, w) for _, h, w in SHAPES[:levels]], device=device)
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-13)):
        found = ops.upsample_combine([m.to(dtype) for m in maps], size, grid, **keywords)
        wanted = reference.upsample_combine(
            [m.double() for m in maps], *arguments(levels, keywords, grid, size)
        )
        assert found.dtype == dtype
        assert_near(found, wanted, tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_dtypes(device: str, layout: str, dtype: torch.dtype) -> None:
    student, teacher = (
        pyramid(SHAPES[:3], layout=layout, dtype=dtype, device=device, seed=seed) for seed in (1, 2)
    )
    found = ops.anomaly_map(student, teacher, (31, 33))
    wide = [[x.double() for x in levels] for levels in (student, teacher)]
    wanted = reference.anomaly_map(*wide, *arguments(3, {}, None, (31, 33)), EPS)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.is_contiguous()
    assert_near(found, wanted, 1e-12 if dtype == torch.float64 else 2e-5)


def test_is_the_composition_of_the_other_two(device: str) -> None:
    student, teacher = (pyramid(SHAPES[:3], device=device, seed=seed) for seed in (1, 2))
    together = ops.anomaly_map(student, teacher, (40, 41), (16, 12), groups=[0, 1, 0], combine="mean")
    apart = ops.upsample_combine(
        ops.pyramid_distance(student, teacher), (40, 41), (16, 12), groups=[0, 1, 0], combine="mean"
    )
    assert_near(together, apart, 1e-6)


def test_the_lines_of_the_docstring(device: str) -> None:
    student, teacher = (pyramid(SHAPES[:3], device=device, seed=seed) for seed in (1, 2))
    grid, size = (16, 12), (64, 48)
    distances = [
        (F.normalize(s) - F.normalize(t)).square().sum(1, keepdim=True)
        for s, t in zip(student, teacher, strict=True)
    ]
    at_grid = [F.interpolate(d, grid, mode="bilinear") for d in distances]
    wanted = F.interpolate(at_grid[0] * at_grid[1] * at_grid[2], size, mode="bilinear")
    assert_near(ops.anomaly_map(student, teacher, size, grid), wanted, 1e-5)


def test_the_official_pipeline_of_stpm(device: str) -> None:
    """STPM's code: 64x64 maps multiplied, half the squared distance each, then one resize to 256x256."""
    student, teacher = (
        pyramid([(64, 64, 64), (128, 32, 32), (256, 16, 16)], device=device, seed=s) for s in (1, 2)
    )
    product = torch.ones(2, 1, 64, 64, device=device)
    for s, t in zip(student, teacher, strict=True):
        d = 0.5 * (F.normalize(t, dim=1) - F.normalize(s, dim=1)).square().sum(1, keepdim=True)
        product = product * F.interpolate(d, size=(64, 64), mode="bilinear", align_corners=False)
    wanted = F.interpolate(product, size=(256, 256), mode="bilinear", align_corners=False)
    assert_near(ops.anomaly_map(student, teacher, (256, 256), (64, 64), weights=[0.5] * 3), wanted, 1e-5)


def test_a_product_of_small_half_precision_distances_does_not_underflow(device: str) -> None:
    torch.manual_seed(0)
    teacher = pyramid(SHAPES[:3], dtype=torch.float16, device=device)
    student = [(t.float() * (1 + 4e-3 * torch.randn_like(t.float()))).half() for t in teacher]
    found = ops.anomaly_map(student, teacher, (16, 16))
    assert float(found.min()) > 0
    assert float(found.max()) < 6e-8  # the smallest half


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("grid", [None, (8, 8)])
def test_batch_sizes(device: str, batch: int, grid: tuple[int, int] | None) -> None:
    student, teacher = (pyramid(SHAPES[:2], batch=batch, device=device, seed=seed) for seed in (1, 2))
    found = ops.anomaly_map(student, teacher, (9, 10), grid)
    assert found.shape == (batch, 1, 9, 10)
    assert ops.upsample_combine(ops.pyramid_distance(student, teacher), (9, 10), grid).shape == found.shape
    for i in range(batch):
        alone = ops.anomaly_map(
            [s[i : i + 1] for s in student], [t[i : i + 1] for t in teacher], (9, 10), grid
        )
        assert torch.equal(alone, found[i : i + 1])


def test_maps_need_not_be_contiguous(device: str) -> None:
    maps = pyramid([(1, 9, 8), (1, 4, 6)], device=device)
    strided = [m.repeat_interleave(2, dim=3)[..., ::2] for m in maps]
    assert torch.equal(ops.upsample_combine(strided, (12, 12)), ops.upsample_combine(maps, (12, 12)))


@pytest.mark.parametrize("grid", [None, (40, 40)])
def test_results_do_not_depend_on_the_number_of_threads(grid: tuple[int, int] | None) -> None:
    skip_without_kernel("cpu")
    student, teacher = (pyramid([(64, 40, 40), (128, 20, 20)], batch=3, seed=seed) for seed in (1, 2))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.anomaly_map(student, teacher, (256, 255), grid, groups=[0, 1]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_gradients_flow_through_the_reference(device: str) -> None:
    """The fused kernels have no backward: with a gradient wanted, the differentiable form runs."""
    student, teacher = (pyramid(SHAPES[:3], device=device, seed=seed) for seed in (1, 2))
    student[1].requires_grad_()
    found = ops.anomaly_map(student, teacher, (20, 20), combine="sum")
    assert_near(
        found.detach(), ops.anomaly_map([s.detach() for s in student], teacher, (20, 20), combine="sum"), 1e-5
    )
    found.sum().backward()
    assert float(student[1].grad.abs().sum()) > 0
    with torch.no_grad():
        assert not ops.anomaly_map(student, teacher, (20, 20)).requires_grad

    maps = [m.requires_grad_() for m in pyramid([(1, 3, 4), (1, 2, 2)], dtype=torch.float64, device=device)]
    assert torch.autograd.gradcheck(lambda *m: ops.upsample_combine(m, (5, 5), (4, 4)), maps)


def test_opcheck(device: str) -> None:
    student, teacher = (pyramid(SHAPES[:2], device=device, seed=seed) for seed in (1, 2))
    rest = arguments(2, {}, (8, 8), (17, 16))
    torch.library.opcheck(torch.ops.stadfast.anomaly_map, (student, teacher, *rest, EPS))
    maps = pyramid([(1, 3, 4), (1, 2, 2)], device=device)
    torch.library.opcheck(torch.ops.stadfast.upsample_combine, (maps, *rest))


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60, deadline=None)
@given(
    levels=st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4
    ),
    batch=st.integers(0, 3),
    size=SIZES,
    grid=st.none() | SIZES,
    layout=st.sampled_from(list(LAYOUTS)),
    combine=st.sampled_from(ops.COMBINATIONS),
    data=st.data(),
)
def test_any_shape(
    levels: Any, batch: int, size: Any, grid: Any, layout: str, combine: str, data: Any
) -> None:
    skip_without_kernel("cpu")
    groups = data.draw(st.lists(st.integers(0, 3), min_size=len(levels), max_size=len(levels)))
    groups = [sorted(set(groups)).index(g) for g in groups]
    student, teacher = (pyramid(levels, batch=batch, layout=layout, seed=seed) for seed in (1, 2))
    found = ops.anomaly_map(student, teacher, size, grid, groups=groups, combine=combine)
    keywords = {"groups": groups, "combine": combine}
    wide = [[x.double() for x in pyramid] for pyramid in (student, teacher)]
    wanted = reference.anomaly_map(*wide, *arguments(len(levels), keywords, grid, size), EPS)
    assert found.shape == (batch, 1, *size)
    if batch:
        assert_near(found, wanted, 3e-5)
