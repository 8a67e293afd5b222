"""peer_distance, its gradient, and what is built on it, against plain PyTorch in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from stadfast import ops
from stadfast.ops import reference

from .cases import DEVICES, DTYPES, LAYOUTS, skip_without_kernel

SHAPES: dict[str, tuple[int, int, int]] = {  # (C, H, W)
    "one channel": (1, 9, 8),
    "odd": (7, 13, 5),
    "one pixel": (65, 1, 1),
    "one row": (8, 1, 37),
    "more channels than are widened at once": (1100, 3, 2),
    "more pixels than a block": (5, 40, 41),
}
Pairs = list[tuple[int, int]]
PAIRS: dict[str, tuple[int, Pairs, list[int]]] = {  # descriptors, pairs, groups
    "one pair": (2, [(0, 1)], [0]),
    "ordered and out of order": (4, [(2, 1), (1, 2), (3, 0), (1, 3), (0, 2), (2, 0)], [1, 1, 0, 0, 2, 0]),
    "with itself, and twice": (3, [(1, 1), (0, 2), (0, 2)], [0, 0, 0]),
    "a tree of seven": (
        7,
        [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6), (1, 2), *itertools.combinations(range(3, 7), 2)],
        [0] * 2 + [1] * 4 + [2] * 7,
    ),
    "more pairs than a launch": (8, list(itertools.permutations(range(8), 2)), [i % 3 for i in range(56)]),
}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    skip_without_kernel(request.param)
    return request.param


def descriptors(
    count: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str,
    device: str,
    batch: int = 2,
    seed: int = 0,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        LAYOUTS[layout](torch.randn(batch, *shape, generator=generator).to(device=device, dtype=dtype))
        for _ in range(count)
    ]


def expected(x: list[Tensor], pairs: Pairs, groups: list[int], squared: bool) -> Tensor:
    wide = [y.double() for y in x]
    maps = []
    for group in range(max(groups) + 1):
        total = torch.zeros_like(wide[0][:, 0])
        for (i, j), g in zip(pairs, groups, strict=True):
            if g == group:
                square = (wide[i] - wide[j]).pow(2).sum(1)
                total = total + (square if squared else square.sqrt())
        maps.append(total)
    return torch.stack(maps, 1)


def assert_near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape
    scale = float(wanted.detach().abs().max()) or 1.0
    torch.testing.assert_close(found.double() / scale, wanted.double() / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula(device: str, shape: str, layout: str, dtype: torch.dtype) -> None:
    count, pairs, groups = PAIRS["ordered and out of order"]
    x = descriptors(count, SHAPES[shape], dtype, layout, device)
    for squared in (False, True):
        found = ops.peer_distance(x, pairs, groups, squared=squared)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        wanted = expected(x, pairs, groups, squared)
        tolerance = 1e-13 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=0)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("name", PAIRS)
def test_any_pairs_in_any_groups(device: str, name: str, layout: str) -> None:
    count, pairs, groups = PAIRS[name]
    x = descriptors(count, (12, 6, 7), torch.float32, layout, device)
    found = ops.peer_distance(x, pairs, groups)
    torch.testing.assert_close(found.double(), expected(x, pairs, groups, False), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_ordered_pairs_count_twice(device: str, layout: str) -> None:
    x = descriptors(4, (9, 5, 5), torch.float32, layout, device)
    unordered = ops.peer_distance(x, list(itertools.combinations(range(4), 2)))
    ordered = ops.peer_distance(x, list(itertools.permutations(range(4), 2)))
    torch.testing.assert_close(ordered, 2 * unordered)


@pytest.mark.parametrize(
    "layouts", [*itertools.permutations(["planar", "channels_last", "transposed"])], ids=str
)
def test_descriptors_in_different_layouts(device: str, layouts: tuple[str, ...]) -> None:
    x = [
        descriptors(1, (6, 7, 5), torch.float32, layout, device, seed=i)[0]
        for i, layout in enumerate(layouts)
    ]
    x = [y.requires_grad_() for y in x]
    pairs = [(0, 1), (1, 2), (2, 0)]
    found = ops.peer_distance(x, pairs)
    assert_near(found, expected(x, pairs, [0] * 3, False), 1e-6)
    gradients = torch.autograd.grad(found.sum(), x)
    wanted = torch.autograd.grad(expected(x, pairs, [0] * 3, False).sum(), x)
    for got, want in zip(gradients, wanted, strict=True):
        assert_near(got, want, 1e-6)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_equals_autograd(
    device: str, shape: str, layout: str, dtype: torch.dtype, squared: bool
) -> None:
    count, pairs, groups = PAIRS["ordered and out of order"]
    x = [y.requires_grad_() for y in descriptors(count, SHAPES[shape], dtype, layout, device)]
    wide = [y.detach().double().requires_grad_() for y in x]
    weights = torch.randn(2, 3, *SHAPES[shape][1:], device=device)
    found = torch.autograd.grad((ops.peer_distance(x, pairs, groups, squared=squared) * weights).sum(), x)
    wanted = torch.autograd.grad((expected(wide, pairs, groups, squared) * weights).sum(), wide)
    rounding = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == dtype
        assert_near(got, want, rounding)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("squared", [False, True])
def test_gradcheck(device: str, layout: str, squared: bool) -> None:
    count, pairs, groups = PAIRS["ordered and out of order"]
    x = [y.requires_grad_() for y in descriptors(count, (3, 2, 3), torch.float64, layout, device)]
    assert torch.autograd.gradcheck(lambda *x: ops.peer_distance(x, pairs, groups, squared=squared), x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("squared", [False, True])
def test_opcheck(device: str, layout: str, squared: bool) -> None:
    x = [y.requires_grad_() for y in descriptors(3, (4, 3, 3), torch.float32, layout, device)]
    pairs, groups = [0, 1, 2, 1, 0, 2], [0, 1, 1]
    torch.library.opcheck(torch.ops.stadfast.peer_distance, (x, pairs, groups, squared))
    factors = torch.randn(2, 3, 3, 3, device=device)
    plain = [y.detach() for y in x]
    torch.library.opcheck(torch.ops.stadfast.peer_distance_backward, (factors, plain, pairs, [2, 0]))


@pytest.mark.parametrize("groups", [None, [0, 1, 0]])
def test_the_gradient_takes_nothing_from_the_host(
    device: str, groups: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy would let a GPU wait in every step, and could not be captured."""
    x = [y.requires_grad_() for y in descriptors(3, (4, 3, 3), torch.float32, "planar", device)]
    pairs = [(0, 1), (1, 2), (0, 2)]
    total = ops.peer_distance(x, pairs, groups, squared=True).sum()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "tensor", None)
        patched.setattr(torch, "as_tensor", None)
        total.backward()
    torch.testing.assert_close(x[0].grad, (2 * (2 * x[0] - x[1] - x[2])).detach())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("squared", [False, True])
def test_forward_and_gradient_can_be_captured(squared: bool) -> None:
    skip_without_kernel("cuda")
    count, pairs, groups = PAIRS["more pairs than a launch"]
    x = [y.requires_grad_() for y in descriptors(count, (4, 3, 3), torch.float32, "planar", "cuda")]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ops.peer_distance(x, pairs, groups, squared=squared).sum(), x)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        wanted = step()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        found = step()
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_only_wanted_gradients_are_computed(device: str) -> None:
    x = descriptors(3, (4, 3, 3), torch.float32, "planar", device)
    x[1].requires_grad_()
    ops.peer_distance(x, [(0, 1), (1, 2)], squared=True).sum().backward()
    torch.testing.assert_close(x[1].grad, 2 * (2 * x[1].detach() - x[0] - x[2]))
    assert x[0].grad is None
    assert x[2].grad is None


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_equal_descriptors_have_distance_and_gradient_zero(device: str, layout: str) -> None:
    (x,) = descriptors(1, (5, 4, 4), torch.float32, layout, device)
    x.requires_grad_()
    d = ops.peer_distance([x, x.detach().clone()], [(0, 1)])
    assert d.count_nonzero() == 0
    d.sum().backward()
    assert x.grad is not None
    assert x.grad.count_nonzero() == 0


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_empty_batch(device: str, layout: str) -> None:
    x = [y.requires_grad_() for y in descriptors(3, (4, 3, 2), torch.float32, layout, device, batch=0)]
    d = ops.peer_distance(x, [(0, 1), (1, 2)], [0, 1])
    assert d.shape == (0, 2, 3, 2)
    d.sum().backward()
    assert x[0].grad is not None
    assert x[0].grad.shape == (0, 4, 3, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_results_do_not_depend_on_the_number_of_threads(layout: str, dtype: torch.dtype) -> None:
    skip_without_kernel("cpu")
    count, pairs, groups = PAIRS["a tree of seven"]
    x = [y.requires_grad_() for y in descriptors(count, (33, 45, 47), dtype, layout, "cpu", batch=3)]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            maps = ops.peer_distance(x, pairs, groups)
            results.append((maps, *torch.autograd.grad(maps.sum(), x)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("squared", [False, True])
def test_the_reference_is_the_formula(squared: bool) -> None:
    count, pairs, groups = PAIRS["a tree of seven"]
    x = descriptors(count, (12, 6, 7), torch.bfloat16, "planar", "cpu")
    flat = [i for pair in pairs for i in pair]
    found = reference.peer_distance(x, flat, groups, squared)
    assert found.dtype == torch.float32
    assert_near(found, expected(x, pairs, groups, squared), 1e-6)


@pytest.mark.parametrize("codes", [[1] * 7, [4] * 7, [3, 1, 2], [40, 30]], ids=str)
def test_reduced_heads_keep_all_distances(codes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(64, k, generator=generator, dtype=torch.float64) for k in codes]
    biases = [torch.randn(64, generator=generator, dtype=torch.float64) for _ in codes]
    z = [torch.randn(2, k, 5, 4, generator=generator, dtype=torch.float64) for k in codes]

    def maps(heads: list[Tensor], offsets: list[Tensor]) -> Tensor:
        x = [
            torch.einsum("ok,bkhw->bohw", head, code) + offset[:, None, None]
            for head, offset, code in zip(heads, offsets, z, strict=True)
        ]
        pairs = list(itertools.combinations(range(len(x)), 2))
        return ops.peer_distance(x, pairs, list(range(len(pairs))))

    small, offsets = ops.reduce_heads(weights, biases)
    channels = min(64, sum(codes) + len(codes))
    assert [tuple(w.shape) for w in small] == [(channels, k) for k in codes]
    assert [tuple(b.shape) for b in offsets] == [(channels,)] * len(codes)
    torch.testing.assert_close(maps(small, offsets), maps(weights, biases), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [(3, 5), (100, 170)])  # one strip, and three with a rest
def test_distances_of_codes_are_those_of_their_descriptors(device: str, size: tuple[int, int]) -> None:
    count, pairs, groups = PAIRS["ordered and out of order"]
    codes = descriptors(count, (3, *size), torch.float64, "channels_last", device)
    weights = [torch.randn(10, 3, dtype=torch.float64, device=device) for _ in codes]
    biases = [torch.randn(10, dtype=torch.float64, device=device) for _ in codes]
    x = [
        torch.nn.functional.conv2d(z, w[:, :, None, None], b)
        for z, w, b in zip(codes, weights, biases, strict=True)
    ]
    found = ops.code_distance(codes, weights, biases, pairs, groups)
    torch.testing.assert_close(found, expected(x, pairs, groups, False), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("students", [1, 2, 3, 5])
def test_ensemble_scores_are_uninformed_students(device: str, students: int) -> None:
    teacher, *others = descriptors(students + 1, (16, 4, 5), torch.float32, "channels_last", device)
    error, variance = ops.ensemble_scores(teacher, others)
    stacked = torch.stack(others).double()
    mean = stacked.mean(0)
    torch.testing.assert_close(error.double(), (mean - teacher.double()).pow(2).sum(1), rtol=1e-5, atol=1e-5)
    wanted = stacked.pow(2).sum(2).mean(0) - mean.pow(2).sum(1)
    torch.testing.assert_close(variance.double(), wanted, rtol=1e-5, atol=1e-5)
    assert (variance == 0).all() == (students == 1)
