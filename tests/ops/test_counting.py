"""rank_counts and key_histogram against the reference and plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stadfast import ops
from stadfast.errors import UsageError
from stadfast.ops import reference_metrics

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
HALF_TYPES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float32, torch.float64, *HALF_TYPES]


def draw(dtype: torch.dtype, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    special = torch.tensor([0.0, -0.0, float("nan"), -float("nan"), float("inf"), -float("inf")])
    return [
        (torch.randn(100, 371, generator=generator) * scale).to(dtype),
        (torch.randn(5003, generator=generator) * 1e-3).to(dtype),
        torch.empty(0, 4, dtype=dtype),
        special.to(dtype),
        (torch.randn(3, 4, 5, generator=generator) * 1e4).to(dtype),
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every", [10**9, 1000, 7, 1])
def test_rank_counts_are_the_references(device: str, dtype: torch.dtype, every: int) -> None:
    scores = [tensor.to(device) for tensor in draw(dtype)]
    pool = torch.cat([scores[0].flatten(), scores[1]])[::every]
    edges = torch.unique(pool).to(torch.float64 if dtype == torch.float64 else torch.float32)
    for some in (edges, edges[:0], edges[-1:]):
        counts = ops.rank_counts(scores, some)
        assert counts.dtype == torch.int64
        assert torch.equal(counts, reference_metrics.rank_counts(scores, some))
        assert counts[-1] == 4
        assert counts.sum() == sum(tensor.numel() for tensor in scores)


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 1.0, 1.0000001]
)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, st.integers(0, 60), elements=NUMBERS), st.sets(NUMBERS, max_size=20))
def test_rank_counts_of_any_scores(scores: np.ndarray, edges: set[float]) -> None:
    rising = np.unique(np.array(sorted(edges), np.float32) + np.float32(0))
    counts = ops.rank_counts([torch.from_numpy(scores)], torch.from_numpy(rising))
    slots = np.searchsorted(rising, scores) + np.searchsorted(rising, scores, side="right")
    np.testing.assert_array_equal(counts.numpy(), np.bincount(slots, minlength=2 * len(rising) + 2))


def test_edges_that_crowd_one_cell() -> None:
    """All but one edge within a sliver of the range: every search falls back to bisection."""
    edges = torch.cat([torch.linspace(1.0, 1.0001, 700).unique(), torch.tensor([1e30])])
    scores = [torch.rand(20000) * 1.2e-4 + 0.99999, torch.logspace(-3, 32, 1000)]
    assert torch.equal(ops.rank_counts(scores, edges), reference_metrics.rank_counts(scores, edges))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", ["wide", "crowded", "negative"])
def test_edges_in_groups(dtype: torch.dtype, spread: str) -> None:
    """So many that they are ranked group by group, with enough scores for a group to fill its buffer."""
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(400_000, generator=generator).to(dtype)
    if spread == "wide":
        scores = torch.exp(6 * scores)
    if spread == "crowded":
        scores = torch.where(scores < 1.5, 1.0 + 1e-3 * scores, 1e20 * scores)
    if spread == "negative":
        scores = -scores.abs()
    edges = scores[:280_000].unique()
    some = [scores, edges, edges[1:] - edges.diff() / 2, edges[:70_000].repeat(3)]
    assert torch.equal(ops.rank_counts(some, edges), reference_metrics.rank_counts(some, edges))


@pytest.mark.skipif(ops.backend().name == "reference", reason="needs the compiled kernels")
@pytest.mark.parametrize("edges", [[1.0, 1.0], [2.0, 1.0], [1.0, float("inf")], [float("nan")]])
def test_edges_that_do_not_rise_are_refused(edges: list[float]) -> None:
    with pytest.raises(RuntimeError, match="edges: expected finite, rising, distinct values"):
        ops.rank_counts([torch.zeros(3)], torch.tensor(edges))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
def test_histogram_is_the_references(device: str, dtype: torch.dtype) -> None:
    scores = [tensor.to(device) for tensor in draw(dtype, 100.0)]
    counts = ops.key_histogram(scores)
    assert (counts.shape, counts.dtype) == ((65536,), torch.int64)
    assert torch.equal(counts, reference_metrics.key_histogram(scores))
    assert counts[~ops.bin_edges(dtype).isfinite().to(device)].sum() == 4


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
def test_bins_are_intervals_in_the_order_of_the_scores(dtype: torch.dtype) -> None:
    scores = torch.cat([tensor.flatten() for tensor in draw(dtype)])
    scores = scores[scores.isfinite()]
    keys = ops.bin_keys(scores)
    order = scores.double().argsort()
    assert bool((keys[order].diff() >= 0).all())
    edges = ops.bin_edges(dtype).double()
    assert bool((edges[keys] <= scores.double()).all())
    above = edges[(keys + 1).clamp(max=65535)]
    assert bool(((scores.double() < above) | above.isnan() | (keys == 0x7FFF)).all())
    if dtype in HALF_TYPES:
        assert torch.equal(edges[keys], scores.double())


def test_threads_and_strides_do_not_change_counts() -> None:
    scores = torch.randn(40, 300, 200)[:, ::2, 1:]
    edges = scores.flatten()[::999].unique()
    threads = torch.get_num_threads()
    ranks, bins = [], []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        ranks.append(ops.rank_counts(list(scores), edges))
        bins.append(ops.key_histogram([scores]))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, reference_metrics.rank_counts([scores], edges)) for one in ranks)
    assert all(torch.equal(one, reference_metrics.key_histogram([scores])) for one in bins)


@pytest.mark.skipif(ops.backend().name == "reference", reason="needs the compiled kernels")
def test_opcheck() -> None:
    scores = list(torch.randn(3, 4, 5))
    torch.library.opcheck(torch.ops.stadfast.rank_counts, (scores, torch.linspace(-1, 1, 9)))
    torch.library.opcheck(torch.ops.stadfast.key_histogram, (scores,))


def test_wrong_arguments_are_named() -> None:
    scores = [torch.zeros(3)]
    with pytest.raises(UsageError, match=r"edges: expected \(n,\) torch.float32 .* got \(2,\) torch.float64"):
        ops.rank_counts(scores, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(UsageError, match=r"scores\[1\]: expected torch.float32 on cpu as scores\[0\]"):
        ops.rank_counts([*scores, torch.zeros(3).half()], torch.zeros(1))
    with pytest.raises(UsageError, match=r"expected float32, float16 or bfloat16, got torch.float64"):
        ops.key_histogram([torch.zeros(3, dtype=torch.float64)])
    with pytest.raises(UsageError, match="got nothing"):
        ops.key_histogram([])
    with pytest.raises(UsageError, match=r"scores\[0\]: expected a floating-point dtype"):
        ops.key_histogram([torch.zeros(3, dtype=torch.int32)])
