"""What a wrong argument is told: the name of the argument, what came, and what was wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stadfast import ops
from stadfast.errors import UsageError

from .cases import pyramid, skip_without_kernel


def good() -> dict[str, Any]:
    return {
        "student": pyramid([(4, 6, 6), (8, 3, 3)], seed=1),
        "teacher": pyramid([(4, 6, 6), (8, 3, 3)], seed=2),
    }


def with_level(name: str, level: int, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    arguments = good()
    arguments[name][level] = change(arguments[name][level])
    return arguments


PYRAMID_MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("no level", {"student": [], "teacher": []}, r"student: expected 1 to 32 levels, got 0"),
    (
        "33 levels",
        {"student": [torch.ones(1, 1, 1, 1)] * 33, "teacher": [torch.ones(1, 1, 1, 1)] * 33},
        r"student: expected 1 to 32 levels, got 33",
    ),
    (
        "a level less",
        {**good(), "teacher": good()["teacher"][:1]},
        r"teacher: .* as many levels .*\(2\), got 1",
    ),
    (
        "three dimensions",
        with_level("student", 1, lambda x: x[0]),
        r"student\[1\]: .*\(B, C, H, W\).*\(8, 3, 3\)",
    ),
    (
        "no channels",
        with_level("student", 0, lambda x: x[:, :0]),
        r"student\[0\]: .*without zeros.*\(2, 0, 6, 6\)",
    ),
    ("no rows", with_level("student", 0, lambda x: x[:, :, :0]), r"student\[0\]: .*\(2, 4, 0, 6\)"),
    (
        "another shape",
        with_level("teacher", 1, lambda x: x[..., :2]),
        r"teacher\[1\]: .*\(2, 8, 3, 3\), got \(2, 8, 3, 2\)",
    ),
    (
        "another batch size",
        {name: [levels[0], levels[1][:1]] for name, levels in good().items()},
        r"student\[1\]: expected the batch size of level 0 \(2\), got 1",
    ),
    (
        "integers",
        with_level("student", 0, lambda x: x.int()),
        r"student\[0\]: .*floating-point.*torch\.int32",
    ),
    ("complex", with_level("teacher", 1, lambda x: x + 0j), r"teacher\[1\]: .*floating-point.*complex"),
    (
        "two dtypes",
        with_level("teacher", 1, lambda x: x.half()),
        r"teacher\[1\]: expected torch\.float32 on cpu .*got torch\.float16 on cpu",
    ),
    ("two devices", with_level("student", 1, lambda x: x.to("meta")), r"student\[1\]: .*on cpu.*on meta"),
]

COMBINATION_MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("size of three", {"size": (1, 2, 3)}, r"size: expected two positive numbers \(H, W\), got \(1, 2, 3\)"),
    ("size zero", {"size": (8, 0)}, r"size: .*got \(8, 0\)"),
    ("negative grid", {"grid": (-1, 4)}, r"grid: .*got \(-1, 4\)"),
    ("one group too many", {"groups": [0, 1, 2]}, r"groups: expected one per level \(2\), got 3"),
    ("a gap in the groups", {"groups": [0, 2]}, r"groups: .*without a gap, got \[0, 2\]"),
    ("groups from one", {"groups": [1, 1]}, r"groups: .*without a gap, got \[1, 1\]"),
    ("one weight", {"weights": [1.0]}, r"weights: expected one per level \(2\), got 1"),
    ("unknown combination", {"combine": "max"}, r"combine: expected one of product, sum, mean, got 'max'"),
    (
        "a mean of nothing",
        {"weights": [1.0, -1.0], "combine": "mean"},
        r"weights: a mean needs a sum that is not",
    ),
]

MAP_MISTAKES: list[tuple[str, list[torch.Tensor], str]] = [
    ("none", [], r"maps: expected 1 to 32 levels, got 0"),
    ("two channels", [torch.ones(1, 2, 3, 3)], r"maps\[0\]: .*\(1, 1, H, W\), got \(1, 2, 3, 3\)"),
    ("another batch", [torch.ones(2, 1, 3, 3), torch.ones(1, 1, 3, 3)], r"maps\[1\]: .*\(2, 1, H, W\)"),
    ("halves", [torch.ones(1, 1, 3, 3).half()], r"maps\[0\]: expected float32 or float64.*float16"),
    ("two dtypes", [torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3).double()], r"maps\[1\]: .*float64"),
]


def table(mistakes: list[Any]) -> Any:
    return pytest.mark.parametrize(
        ("arguments", "message"), [m[1:] for m in mistakes], ids=[m[0] for m in mistakes]
    )


@table(PYRAMID_MISTAKES)
def test_features(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ops.pyramid_distance(**arguments)
    with pytest.raises(UsageError, match=message):
        ops.anomaly_map(**arguments, size=(8, 8))


@table(COMBINATION_MISTAKES)
def test_combinations(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ops.anomaly_map(**good(), **{"size": (8, 8), **arguments})
    with pytest.raises(UsageError, match=message):
        ops.upsample_combine([torch.ones(1, 1, 2, 2)] * 2, **{"size": (8, 8), **arguments})


@table(MAP_MISTAKES)
def test_maps(arguments: list[torch.Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ops.upsample_combine(arguments, (8, 8))


PEER_MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("no descriptors", {"descriptors": []}, "descriptors: expected at least one"),
    (
        "three dimensions",
        {"descriptors": [torch.ones(4, 3, 3)] * 3},
        r"descriptors\[0\]: .*\(B, C, H, W\).*\(4, 3, 3\)",
    ),
    (
        "integers",
        {"descriptors": [torch.ones(1, 4, 3, 3).int()] * 3},
        r"descriptors\[0\]: .*floating-point.*int32",
    ),
    (
        "another shape",
        {"descriptors": [torch.ones(1, 4, 3, 3), torch.ones(1, 4, 3, 2)]},
        r"descriptors\[1\]: expected the shape .*\(1, 4, 3, 3\), got \(1, 4, 3, 2\)",
    ),
    (
        "another dtype",
        {"descriptors": [torch.ones(1, 4, 3, 3), torch.ones(1, 4, 3, 3).half()]},
        r"descriptors\[1\]: expected torch\.float32 .*got torch\.float16",
    ),
    ("no pairs", {"pairs": []}, r"pairs: expected at least one pair"),
    ("a triple", {"pairs": [(0, 1, 2)]}, r"pairs: expected .*\(i, j\), got \[\(0, 1, 2\)\]"),
    ("nobody's number", {"pairs": [(0, 3)]}, r"pairs: expected numbers from 0 to 2, got \[\(0, 3\)\]"),
    ("a negative number", {"pairs": [(-1, 1)]}, r"pairs: expected numbers from 0 to 2"),
    ("a group too many", {"groups": [0, 0, 0]}, r"groups: expected one per pair \(2\), got 3"),
    ("a gap in the groups", {"groups": [0, 2]}, r"groups: .*without a gap, got \[0, 2\]"),
]


@table(PEER_MISTAKES)
def test_peers(arguments: dict[str, Any], message: str) -> None:
    fine = {"descriptors": [torch.ones(1, 4, 3, 3)] * 3, "pairs": [(0, 1), (1, 2)], "groups": [0, 1]}
    with pytest.raises(UsageError, match=message):
        ops.peer_distance(**(fine | arguments))


@pytest.mark.parametrize(
    ("weights", "biases", "message"),
    [
        ([], [], "at least one, got 0 and 0"),
        ([torch.ones(4, 2)], [], "biases: expected one per weight"),
        (
            [torch.ones(4, 2), torch.ones(5, 2)],
            [torch.ones(4)] * 2,
            r"weights\[1\]: expected \(4, k\), got \(5, 2\)",
        ),
        ([torch.ones(4, 2)], [torch.ones(5)], r"biases\[0\]: expected \(4,\), got \(5,\)"),
    ],
)
def test_heads(weights: list[torch.Tensor], biases: list[torch.Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ops.reduce_heads(weights, biases)


def test_an_ensemble_needs_students() -> None:
    with pytest.raises(UsageError, match="students: expected at least one"):
        ops.ensemble_scores(torch.ones(1, 2, 3, 3), [])


def raw_calls() -> list[Any]:
    """Calls past Python's checks, as an archive or a C++ program may make them."""
    s, t = pyramid([(4, 6, 6)], seed=1), pyramid([(4, 6, 6)], seed=2)
    one = [torch.ones(1, 1, 2, 2)]
    grad = [torch.ones(2, 1, 6, 6)]
    rest = ([0], [1.0], [4, 4], [4, 4], "product")
    maps = torch.ones(2, 1, 6, 6)
    return [
        ("peer_distance", ([s[0][0]] * 2, [0, 1], [0], False), "expected 4 dimensions"),
        ("peer_distance", ([s[0][:, :0]] * 2, [0, 1], [0], False), r"descriptors\[0\]: empty"),
        ("peer_distance", ([s[0], t[0][:1]], [0, 1], [0], False), r"descriptors\[1\]: shapes differ"),
        ("peer_distance", ([s[0], t[0].half()], [0, 1], [0], False), r"descriptors\[1\]: dtypes differ"),
        ("peer_distance", ([s[0].int()] * 2, [0, 1], [0], False), "expected float32"),
        ("peer_distance", (s + t, [0, 2], [0], False), "numbers of descriptors .0 to 1., got 2"),
        ("peer_distance", (s + t, [0, -1], [0], False), "numbers of descriptors"),
        ("peer_distance", (s + t, [0, 1, 1], [0], False), "two numbers a pair"),
        ("peer_distance", (s + t, [], [], False), "at least one pair"),
        ("peer_distance", (s + t, [0, 1], [0, 0], False), "groups: expected one per pair"),
        ("peer_distance", (s + t, [0, 1], [1], False), "groups: .*without a gap"),
        ("peer_distance", (s + t, [0, 1], [-1], False), "groups: .*without a gap"),
        ("peer_distance_backward", (maps, s + t, [0, 1], [2]), "wanted: expected numbers of descriptors"),
        ("peer_distance_backward", (maps[:1], s + t, [0, 1], [0]), "factors: expected a map of each pair"),
        ("peer_distance_backward", (maps, s + t, [0, 1, 1, 0], [0]), "factors: expected a map of each pair"),
        ("peer_distance_backward", (maps.double(), s + t, [0, 1], [0]), "factors: expected a map of each"),
        ("pyramid_distance", (s, [], 1e-12), "as many student as teacher levels"),
        ("pyramid_distance", (s, [t[0][:, :3]], 1e-12), "differ in shape"),
        ("pyramid_distance", (s, [t[0].half()], 1e-12), "differ in dtype"),
        ("pyramid_distance", ([s[0].int()], [t[0].int()], 1e-12), "expected float32"),
        ("pyramid_distance", ([s[0][0]], [t[0][0]], 1e-12), "4 dimensions"),
        ("pyramid_distance", ([s[0][:, :, :0]], [t[0][:, :, :0]], 1e-12), "empty map"),
        ("pyramid_distance_backward", ([], s, t, 1e-12), "grad: expected one per level"),
        (
            "pyramid_distance_backward",
            ([grad[0][..., :5]], s, t, 1e-12),
            r"grad\[0\]: expected a map of level 0",
        ),
        (
            "pyramid_distance_backward",
            ([grad[0].double()], s, t, 1e-12),
            r"grad\[0\]: expected a map of level 0",
        ),
        ("anomaly_map", (s, t, [1], *rest[1:], 1e-12), "without a gap"),
        ("anomaly_map", (s, t, [0, 0], *rest[1:], 1e-12), "groups: expected one per level"),
        ("anomaly_map", (s, t, [0], [], *rest[2:], 1e-12), "weights: expected one per level"),
        ("anomaly_map", (s, t, *rest[:2], [4], *rest[3:], 1e-12), "grid: expected two positive"),
        ("anomaly_map", (s, t, *rest[:3], [4, -1], rest[4], 1e-12), "size: expected two positive"),
        ("anomaly_map", (s, t, *rest[:3], [4, 1 << 40], rest[4], 1e-12), "size: expected two positive"),
        ("anomaly_map", (s, t, *rest[:4], "max", 1e-12), "expected product, sum or mean, got max"),
        ("anomaly_map", (s * 33, t * 33, [0] * 33, [1.0] * 33, *rest[2:], 1e-12), "1 to 32 levels, got 33"),
        ("upsample_combine", ([one[0].half()], *rest), "expected float32 or float64"),
        ("upsample_combine", (s, *rest), r"expected \(B, 1, H, W\)"),
        ("upsample_combine", ([one[0][:0, :, :0]], *rest), "empty map"),
        (
            "upsample_combine",
            ([one[0], torch.ones(2, 1, 2, 2)], [0, 1], [1.0, 1.0], *rest[2:]),
            "batch sizes",
        ),
    ]


@pytest.mark.parametrize(("name", "arguments", "message"), raw_calls())
def test_the_compiled_ops_check_what_decides_an_address(name: str, arguments: Any, message: str) -> None:
    skip_without_kernel("cpu")
    with pytest.raises(RuntimeError, match=f"stadfast: .*{message}"):
        getattr(torch.ops.stadfast, name)(*arguments)
