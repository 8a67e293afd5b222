"""pyramid_distance and its gradient, against plain PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stadfast import ops
from stadfast.ops import reference

from .cases import DEVICES, DTYPES, LAYOUTS, PYRAMIDS, pyramid, skip_without_kernel

# Of the largest value: float32 sums of up to 2048 channels; gradients are rounded to the features' type.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 1e-5, torch.bfloat16: 1e-5}
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    skip_without_kernel(request.param)
    return request.param


def expected(student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
    return [
        (F.normalize(s.double(), dim=1) - F.normalize(t.double(), dim=1)).square().sum(1, keepdim=True)
        for s, t in zip(student, teacher, strict=True)
    ]


def assert_near(found: list[Tensor], wanted: list[Tensor], tolerance: float, scale: float = 0) -> None:
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        scale = max(scale, float(want.abs().max()))
        torch.testing.assert_close(got.double() / scale, want.double() / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PYRAMIDS)
def test_equals_the_formula(device: str, name: str, layout: str, dtype: torch.dtype) -> None:
    student = pyramid(PYRAMIDS[name], layout=layout, dtype=dtype, device=device, seed=1)
    teacher = pyramid(PYRAMIDS[name], layout=layout, dtype=dtype, device=device, seed=2)
    found = ops.pyramid_distance(student, teacher)
    assert all(d.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) for d in found)
    assert_near(found, expected(student, teacher), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PYRAMIDS)
def test_gradient_equals_autograd(device: str, name: str, layout: str, dtype: torch.dtype) -> None:
    shapes = PYRAMIDS[name]
    student = pyramid(shapes, layout=layout, dtype=dtype, device=device, seed=1)
    teacher = pyramid(shapes, layout=layout, dtype=dtype, device=device, seed=2)
    weights = [torch.randn(2, 1, h, w, device=device) for _, h, w in shapes]
    found = _gradients(student, teacher, weights, ops.pyramid_distance)
    wanted = _gradients([s.double() for s in student], [t.double() for t in teacher], weights, expected)
    assert [g.dtype for g in found] == [dtype] * len(found)
    assert_near(found, wanted, ROUNDING[dtype], gradient_scale(student, teacher, weights))


def gradient_scale(student: list[Tensor], teacher: list[Tensor], weights: list[Tensor]) -> float:
    """The size of the terms that the gradients are sums of: with one channel, these cancel."""
    levels = [(x, w) for pyramid in (student, teacher) for x, w in zip(pyramid, weights, strict=True)]
    return max(float((2 * w.abs() / x.double().norm(dim=1, keepdim=True)).max()) for x, w in levels)


def _gradients(student: list[Tensor], teacher: list[Tensor], weights: list[Tensor], function) -> list[Tensor]:  # type: ignore[no-untyped-def]
    leaves = [x.detach().requires_grad_() for x in (*student, *teacher)]
    distances = function(leaves[: len(student)], leaves[len(student) :])
    loss = sum((d * w).sum() for d, w in zip(distances, weights, strict=True))
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize(
    "pair",
    [
        ("planar", "channels_last"),
        ("channels_last", "planar"),
        ("cropped", "channels_last"),
        ("channels_last, channel slice", "transposed"),
        ("planar, channel slice", "planar"),
    ],
)
@pytest.mark.parametrize("name", ["resnet18, small", "odd sizes", "one channel", "one pixel"])
def test_student_and_teacher_in_different_layouts(device: str, name: str, pair: tuple[str, str]) -> None:
    student = pyramid(PYRAMIDS[name], layout=pair[0], device=device, seed=1)
    teacher = pyramid(PYRAMIDS[name], layout=pair[1], device=device, seed=2)
    weights = [torch.randn(2, 1, h, w, device=device) for _, h, w in PYRAMIDS[name]]
    assert_near(ops.pyramid_distance(student, teacher), expected(student, teacher), 3e-6)
    found = _gradients(student, teacher, weights, ops.pyramid_distance)
    wanted = _gradients(student, teacher, weights, expected)
    assert_near(found, wanted, 1e-5, gradient_scale(student, teacher, weights))


def test_levels_in_different_layouts(device: str) -> None:
    shapes = PYRAMIDS["resnet18, small"]
    layouts = list(LAYOUTS)[: len(shapes)]
    mixed = [
        [
            pyramid([s], layout=layout, device=device, seed=seed)[0]
            for s, layout in zip(shapes, layouts, strict=True)
        ]
        for seed in (1, 2)
    ]
    assert_near(ops.pyramid_distance(*mixed), expected(*mixed), 3e-6)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_empty_batch(device: str, layout: str) -> None:
    student, teacher = (
        pyramid([(8, 4, 4), (16, 2, 2)], batch=0, layout=layout, device=device) for _ in range(2)
    )
    student[0].requires_grad_()
    found = ops.pyramid_distance(student, teacher)
    assert [d.shape for d in found] == [(0, 1, 4, 4), (0, 1, 2, 2)]
    sum(d.sum() for d in found).backward()
    assert student[0].grad is not None
    assert student[0].grad.shape == (0, 8, 4, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("channels", [3, 64, 300])
def test_zero_vectors(device: str, channels: int, layout: str, dtype: torch.dtype) -> None:
    """As F.normalize: a zero vector stays zero, at distance 1 from any direction, and no gradient is NaN."""
    student, teacher = (
        pyramid([(channels, 2, 2)], batch=1, layout=layout, dtype=dtype, device=device, seed=seed)[0]
        for seed in (1, 2)
    )
    student[:, :, 0, 0] = 0
    student[:, :, 0, 1] = teacher[:, :, 0, 1] = 0
    student.requires_grad_()
    (d,) = ops.pyramid_distance([student], [teacher])
    assert float(d[0, 0, 0, 0].detach()) == pytest.approx(1, abs=1e-6)
    assert float(d[0, 0, 0, 1].detach()) == 0
    (gradient,) = torch.autograd.grad(d.sum(), student)
    assert not gradient.isnan().any()


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_identical_features_have_distance_zero(device: str, layout: str) -> None:
    features = pyramid(PYRAMIDS["resnet18, small"], layout=layout, device=device)
    same = ops.pyramid_distance(features, [f.clone() for f in features])
    assert max(float(d.max()) for d in same) < 1e-12
    opposite = ops.pyramid_distance(features, [-f for f in features])
    assert_near(opposite, [torch.full_like(d, 4) for d in opposite], 1e-6)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_distances_keep_their_digits(device: str, layout: str, dtype: torch.dtype) -> None:
    """d near 3e-5, as of a trained student: 2 - 2 cos would be 3 % off in float32."""
    torch.manual_seed(0)
    teacher = LAYOUTS[layout](torch.randn(2, 256, 16, 16, device=device).to(dtype))
    noise = 6e-3 if dtype == torch.bfloat16 else 5.5e-3  # bfloat16's own steps are of this size
    student = LAYOUTS[layout]((teacher.float() * (1 + noise * torch.randn_like(teacher.float()))).to(dtype))
    (found,) = ops.pyramid_distance([student], [teacher])
    (wanted,) = expected([student], [teacher])
    assert 1e-5 < float(wanted.mean()) < 1e-4
    error = ((found - wanted) / wanted).abs()
    assert float(error.mean()) < 1.5e-6
    assert float(error.max()) < 5e-6
    cosine = F.cosine_similarity(student.float(), teacher.float()).unsqueeze(1)
    assert float(((2 - 2 * cosine - wanted) / wanted).abs().max()) > 1e-3


def test_eps_is_the_length_below_which_a_vector_counts_as_zero(device: str) -> None:
    student, teacher = torch.full((1, 4, 1, 1), 1e-3, device=device), torch.zeros(1, 4, 1, 1, device=device)
    assert float(ops.pyramid_distance([student], [teacher])[0]) == pytest.approx(1)
    found = float(ops.pyramid_distance([student], [teacher], eps=1.0)[0])
    assert found == pytest.approx(4e-6)
    assert float(reference.pyramid_distance([student], [teacher], 1.0)[0]) == pytest.approx(4e-6)


@pytest.mark.parametrize("eps", [1.0, 0.21, 0.77, 0.85])  # 0.21: (1 / eps) * eps rounds to less than 1
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_gradient_below_and_above_eps(device: str, layout: str, eps: float) -> None:
    """Below, the length is the constant eps, and has no gradient."""
    features = [pyramid([(5, 4, 4)], layout=layout, device=device, seed=seed)[0] for seed in (1, 2)]
    lengths = eps * torch.linspace(0.1, 2.05, 32, device=device).view(2, 1, 4, 4)
    student, teacher = (F.normalize(x) * lengths for x in features)
    found = [x.detach().clone().requires_grad_() for x in (student, teacher)]
    ops.pyramid_distance(found[:1], found[1:], eps=eps)[0].sum().backward()
    wanted = [x.detach().double().requires_grad_() for x in (student, teacher)]
    reference.pyramid_distance(wanted[:1], wanted[1:], eps)[0].sum().backward()
    for got, want in zip(found, wanted, strict=True):
        assert_near([got.grad], [want.grad], 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["planar", "channels_last"])
def test_results_do_not_depend_on_the_number_of_threads(layout: str, dtype: torch.dtype) -> None:
    skip_without_kernel("cpu")
    shapes = [(64, 56, 57), (300, 17, 19)]
    student, teacher = (pyramid(shapes, layout=layout, dtype=dtype, batch=3, seed=seed) for seed in (1, 2))
    weights = [torch.randn(3, 1, h, w) for _, h, w in shapes]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            distances = ops.pyramid_distance(student, teacher)
            results.append((*distances, *_gradients(student, teacher, weights, ops.pyramid_distance)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_an_image_has_the_same_bits_alone_and_in_a_batch(device: str) -> None:
    for layout in ("planar", "channels_last"):
        student, teacher = (
            pyramid([(300, 9, 7)], batch=5, layout=layout, device=device, seed=seed) for seed in (1, 2)
        )
        (together,) = ops.pyramid_distance(student, teacher)
        (alone,) = ops.pyramid_distance([student[0][3:4]], [teacher[0][3:4]])
        assert torch.equal(together[3:4], alone)


@pytest.mark.parametrize("layout", ["planar", "channels_last"])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_gradcheck(device: str, layout: str, needs: tuple[bool, bool]) -> None:
    shapes = [(3, 2, 3), (5, 2, 1)]
    leaves = [
        x.requires_grad_(need)
        for seed, need in zip((1, 2), needs, strict=True)
        for x in pyramid(shapes, batch=2, dtype=torch.float64, layout=layout, device=device, seed=seed)
    ]
    assert torch.autograd.gradcheck(lambda *x: tuple(ops.pyramid_distance(x[:2], x[2:])), leaves)


def test_a_second_derivative_is_refused(device: str) -> None:
    student, teacher = (pyramid([(4, 3, 3)], device=device, seed=s) for s in (1, 2))
    student[0].requires_grad_()
    (gradient,) = torch.autograd.grad(
        ops.pyramid_distance(student, teacher)[0].sum(), student, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.square().sum().backward()


def test_gradient_of_some_levels_only(device: str) -> None:
    """One level's student is frozen, and one level's map is not used."""
    student, teacher = (pyramid([(4, 3, 3), (8, 2, 2), (2, 2, 2)], device=device, seed=s) for s in (1, 2))
    student[0].requires_grad_()
    student[2].requires_grad_()
    distances = ops.pyramid_distance(student, teacher)
    (distances[0].sum() + distances[1].sum()).backward()
    wanted = student[0].detach().clone().requires_grad_()
    reference.pyramid_distance([wanted], [teacher[0]], ops.maps.EPS)[0].sum().backward()
    assert student[0].grad is not None
    torch.testing.assert_close(student[0].grad, wanted.grad)
    assert student[1].grad is None
    assert student[2].grad is None or student[2].grad.count_nonzero() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(device: str, layout: str) -> None:
    student, teacher = (
        [x.requires_grad_() for x in pyramid([(4, 3, 3), (8, 2, 2)], layout=layout, device=device, seed=s)]
        for s in (1, 2)
    )
    torch.library.opcheck(torch.ops.stadfast.pyramid_distance, (student, teacher, 1e-12))
    grad = [torch.randn(2, 1, 3, 3, device=device), torch.randn(2, 1, 2, 2, device=device)]
    plain = [[x.detach() for x in levels] for levels in (student, teacher)]
    torch.library.opcheck(torch.ops.stadfast.pyramid_distance_backward, (grad, *plain, 1e-12))


def test_a_step_of_training_lowers_the_distance(device: str) -> None:
    student = torch.randn(2, 16, 4, 4, device=device, requires_grad=True)
    teacher = torch.randn(2, 16, 4, 4, device=device)
    before = ops.pyramid_distance([student], [teacher])[0].sum()
    (gradient,) = torch.autograd.grad(before, student)
    after = ops.pyramid_distance([student - 0.1 * gradient], [teacher])[0].sum()
    assert float(after.detach()) < float(before.detach())
