"""DefectTracker against scipy on the whole strip."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from stadfast.errors import DataError, UsageError
from stadfast.linescan import DefectEvent, DefectTracker

NEIGHBOURS = np.ones((3, 3))
Summary = tuple[tuple[int, int], tuple[int, int], int, float, float, tuple[int, int]]


def label_events(scores: np.ndarray, low: float, high: float, min_area: int, distance: int) -> np.ndarray:
    """0 outside events, else their number: the class's four rules by scipy, on the whole strip."""
    labels, count = ndimage.label(scores > low, NEIGHBOURS)
    numbers = np.arange(1, count + 1)
    peaks = ndimage.maximum(scores, labels, numbers) if count else []
    areas = ndimage.sum_labels(scores > low, labels, numbers) if count else []
    counting = numbers[(np.asarray(peaks) > high) & (np.asarray(areas) >= min_area)]
    kept = np.isin(labels, counting)
    # Two pixels are at most d apart in rows and columns if and only if d x d squares at them touch.
    side = max(distance, 1)
    grown = np.zeros((kept.shape[0] + side, kept.shape[1] + side), bool)
    for y, x in itertools.product(range(side), repeat=2):
        grown[y : y + kept.shape[0], x : x + kept.shape[1]] |= kept
    return ndimage.label(grown, NEIGHBOURS)[0][: kept.shape[0], : kept.shape[1]] * kept


def expected(scores: np.ndarray, *rules: float) -> list[Summary]:
    events = label_events(scores, *rules)
    found = []
    for number in np.unique(events[events > 0]):
        inside = events == number
        y, x = np.nonzero(inside)
        values = scores[inside]
        first = int(values.argmax())
        found.append(
            ((int(y.min()), int(y.max()) + 1), (int(x.min()), int(x.max()) + 1), len(y), float(values.max()),
             float(values.mean(dtype=np.float64)), (int(y[first]), int(x[first])))
        )  # fmt: skip
    return sorted(found)


def summary(event: DefectEvent) -> Summary:
    return (event.rows, event.columns, event.area, event.peak, event.mean, event.peak_position)


def track(tracker: DefectTracker, scores: np.ndarray, sizes: Iterable[int]) -> list[DefectEvent]:
    """Push the strip in parts of these sizes, again and again."""
    events, row = [], 0
    for size in itertools.cycle(sizes):
        if row >= len(scores):
            break
        events += tracker.push(scores[row : row + size])
        row += size
    return events + tracker.finish()


def assert_same(events: list[DefectEvent], wanted: list[Summary]) -> None:
    got = sorted(summary(event) for event in events)
    assert [g[:4] + g[5:] for g in got] == [w[:4] + w[5:] for w in wanted]
    assert [g[4] for g in got] == pytest.approx([w[4] for w in wanted])


def draw(rng: np.random.Generator, shape: tuple[int, int], share: float) -> np.ndarray:
    return (rng.random(shape) < share) * rng.random(shape, np.float32)


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
               elements=st.sampled_from([0.0, 0.0, 0.0, 0.25, 0.5, 0.75])),
    st.sampled_from([-1.0, 0.0, 0.25]), st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    st.integers(1, 5), st.integers(0, 5), st.lists(st.integers(1, 7), min_size=1, max_size=4),
)  # fmt: skip
def test_events_are_scipys(
    scores: np.ndarray, low: float, rise: float, min_area: int, distance: int, sizes: list[int]
) -> None:
    tracker = DefectTracker(scores.shape[1], low, low + rise, min_area, distance)
    assert_same(track(tracker, scores, sizes), expected(scores, low, low + rise, min_area, distance))


@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.6, 0.95])
@pytest.mark.parametrize("distance", [0, 2, 6])
def test_events_of_larger_strips_are_scipys(share: float, distance: int) -> None:
    scores = draw(np.random.default_rng(0), (400, 90), share)
    tracker = DefectTracker(90, 0.3, 0.8, 3, distance)
    assert_same(track(tracker, scores, [1, 17, 64]), expected(scores, 0.3, 0.8, 3, distance))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 50), min_size=1, max_size=5),
       st.integers(0, 4), st.integers(1, 30))  # fmt: skip
def test_pushes_change_nothing(seed: int, sizes: list[int], distance: int, max_length: int) -> None:
    """Everything about the events, growing ones and their order included."""
    scores = draw(np.random.default_rng(seed), (120, 24), 0.35)
    runs = [
        track(DefectTracker(24, 0.1, 0.6, 2, distance, max_length), scores, s) for s in (sizes, [1], [1000])
    ]
    assert runs[0] == runs[1] == runs[2]


def spiral(size: int) -> np.ndarray:
    """One arm, a pixel wide, that the scan meets as many parts."""
    image, y, x = np.zeros((size, size), np.float32), 0, 0
    lengths = [size - 1, *(n for n in range(size - 1, 0, -2) for _ in range(2))]
    for length, (dy, dx) in zip(lengths, itertools.cycle([(0, 1), (1, 0), (0, -1), (-1, 0)]), strict=False):
        ys, xs = y + dy * np.arange(length + 1), x + dx * np.arange(length + 1)
        image[ys, xs] = 1
        y, x = int(ys[-1]), int(xs[-1])
    return image


def comb(teeth: int, height: int) -> np.ndarray:
    image = np.zeros((height, 2 * teeth), np.float32)
    image[:, ::2] = image[-1] = 1
    return image


def nested_u(size: int) -> np.ndarray:
    """U in U: each closes before the one around it."""
    image = np.zeros((2 * size, 4 * size), np.float32)
    for i in range(size):
        image[: 2 * size - 2 * i, [2 * i, 4 * size - 2 - 2 * i]] = 1
        image[2 * size - 2 * i - 1, 2 * i : 4 * size - 1 - 2 * i] = 1
    return image


@pytest.mark.parametrize("shape", [spiral(61), spiral(60).T, comb(200, 30), nested_u(12), comb(40, 9)[::-1]])
def test_what_merges_late(shape: np.ndarray) -> None:
    scores = np.pad(shape, 2)
    wanted = expected(scores, 0.5, 0.9, 1, 0)
    assert (len(wanted) == 1) == (shape.shape != nested_u(12).shape)
    assert_same(track(DefectTracker(scores.shape[1], 0.5, 0.9), scores, [3]), wanted)


def test_hysteresis_is_as_in_two_lines_of_scipy() -> None:
    scores = draw(np.random.default_rng(1), (300, 60), 0.5)
    labels, _ = ndimage.label(scores > 0.4, NEIGHBOURS)
    kept = np.isin(labels, np.unique(labels[scores > 0.95])) & (labels > 0)
    events = track(DefectTracker(60, 0.4, 0.95), scores, [7])
    assert sum(event.area for event in events) == kept.sum()
    assert len(events) == ndimage.label(kept, NEIGHBOURS)[1]


def test_a_threshold_is_not_part_of_a_defect() -> None:
    assert (
        track(DefectTracker(2, 0.1, 0.1), np.full((1, 2), 0.1, np.float32), [1]) != []
    )  # float32(0.1) > 0.1
    assert track(DefectTracker(2, 0.25, 0.5), np.full((1, 2), 0.5, np.float32), [1]) == []
    assert track(DefectTracker(2, 0.5), np.full((1, 2), 0.5, np.float32), [1]) == []


@pytest.mark.parametrize("distance", [0, 1, 4])
def test_an_event_closes_with_the_first_row_that_leaves_it_alone(distance: int) -> None:
    tracker = DefectTracker(30, 0.5, merge_distance=distance)
    scores = draw(np.random.default_rng(2), (300, 30), 0.05)
    for row in scores:
        assert all(event.rows[1] + max(distance, 1) == tracker.rows for event in tracker.push(row[None]))


def test_an_event_waits_for_a_neighbour_that_may_come_to_count() -> None:
    scores = np.zeros((60, 8), np.float32)
    scores[2, 1] = 1.0  # a defect
    scores[2:50, 4] = 0.5  # near it, and of no account until it does this:
    assert [e.columns for e in track(DefectTracker(8, 0.3, 0.9, merge_distance=3), scores, [1])] == [(1, 2)]
    scores[49, 4] = 1.0
    whole = track(DefectTracker(8, 0.3, 0.9, merge_distance=3), scores, [1])
    assert [(e.columns, e.area) for e in whole] == [((1, 5), 49)]
    apart = DefectTracker(8, 0.3, 0.9, merge_distance=3, max_length=20)
    assert apart.push(scores[:26]) == []  # near until row 5, and 20 rows of patience
    assert [(e.columns, e.growing) for e in apart.push(scores[26:27])] == [((1, 2), False)]
    assert {e.columns for e in track(apart, scores[27:], [1])} == {(4, 5)}


def test_growing_events() -> None:
    scores = np.zeros((100, 12), np.float32)
    scores[5:65, 1] = scores[10:65, 8] = 0.7
    scores[64, 1:9] = 0.7  # two streaks that turn out to be one
    tracker = DefectTracker(12, 0.5, max_length=20)
    reports = [(row, event) for row in range(100) for event in tracker.push(scores[row : row + 1])]
    assert [(row, e.id, e.rows, e.growing) for row, e in reports] == [
        (25, 0, (5, 26), True), (30, 1, (10, 31), True), (46, 0, (5, 47), True), (51, 1, (10, 52), True),
        (65, 0, (5, 65), False),
    ]  # fmt: skip
    assert [e.absorbed for _, e in reports] == [(), (), (), (), (1,)]
    assert reports[-1][1].area == 60 + 55 + 6
    assert tracker.finish() == []


def test_first_open_row() -> None:
    tracker = DefectTracker(6, 0.3, 0.9, merge_distance=2)
    assert tracker.first_open_row == 0
    tracker.push(np.zeros((4, 6), np.float32))
    assert tracker.first_open_row == 4
    weak = np.zeros((3, 6), np.float32)
    weak[1:, 2] = 0.5
    tracker.push(weak)
    assert tracker.first_open_row == 5  # it may yet count
    tracker.push(np.ones((1, 6), np.float32))
    tracker.push(np.zeros((1, 6), np.float32))
    assert tracker.first_open_row == 5  # not yet reported
    assert [event.rows for event in tracker.push(np.zeros((2, 6), np.float32))] == [(5, 8)]
    assert tracker.first_open_row == tracker.rows == 11


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_no_event_begins_before_the_first_open_row(seed: int, distance: int) -> None:
    scores = draw(np.random.default_rng(seed), (80, 20), 0.3)
    tracker, open_row = DefectTracker(20, 0.1, 0.7, 2, distance), 0
    for row in scores:
        assert all(event.rows[0] >= open_row for event in tracker.push(row[None]))
        assert tracker.first_open_row >= open_row
        open_row = tracker.first_open_row


def test_memory_is_constant_over_a_million_rows() -> None:
    rng = np.random.default_rng(3)
    block = draw(rng, (1000, 12), 0.3)
    block[:, 0] = 0.3  # a streak without end, near everything, that never counts
    block[:, 11] = 0.9  # and one that does
    tracker = DefectTracker(12, 0.2, 0.7, merge_distance=2, max_length=500)
    held, events = [], 0
    for _ in range(1000):
        events += len(tracker.push(block))
        held.append(tracker.state_bytes)
    assert tracker.rows == 1_000_000
    assert events > 1000
    assert max(held[100:]) <= 2 * max(held[:100])  # room for the steps in which vectors grow
    assert max(held) < 500_000


def test_millimetres() -> None:
    scores = np.zeros((9, 9), np.float32)
    scores[2:4, 5:8] = 1
    (event,) = track(DefectTracker(9, 0.5, pixel_pitch=(0.5, 0.25)), scores, [9])
    assert (event.rows_mm, event.columns_mm, event.area_mm2) == ((1.0, 2.0), (1.25, 2.0), 6 * 0.125)
    (event,) = track(DefectTracker(9, 0.5, pixel_pitch=2), scores, [9])
    assert (event.rows_mm, event.area_mm2) == ((4.0, 8.0), 24.0)
    (event,) = track(DefectTracker(9, 0.5), scores, [9])
    assert (event.rows_mm, event.columns_mm, event.area_mm2) == (None, None, None)


def test_tensors_and_strided_rows() -> None:
    scores = draw(np.random.default_rng(4), (40, 30), 0.3)
    wanted = track(DefectTracker(15, 0.5), np.ascontiguousarray(scores[:, ::2]), [40])
    assert track(DefectTracker(15, 0.5), scores[:, ::2], [40]) == wanted
    tracker = DefectTracker(15, 0.5)
    assert tracker.push(torch.from_numpy(scores)[:, ::2]) + tracker.finish() == wanted


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers(bad: float) -> None:
    scores = draw(np.random.default_rng(5), (40, 130), 0.2)
    damaged = scores.copy()
    damaged[7, 101] = bad
    tracker = DefectTracker(130, 0.5)
    events = tracker.push(scores[:10])
    with pytest.raises(DataError, match=rf"rows: .*{bad} in map row 17, column 101"):
        tracker.push(damaged)
    assert tracker.rows == 10  # nothing of it was added
    events += tracker.push(scores[10:]) + tracker.finish()
    assert events == track(DefectTracker(130, 0.5), scores, [40])


@pytest.mark.parametrize(("margin", "left", "right"), [(3, 3, 3), ((0, 30), 0, 30), ((29, 0), 29, 0)])
def test_what_lies_in_the_margin_raises_no_event(margin: object, left: int, right: int) -> None:
    """As if the map were low there; and not even a score that is no number matters."""
    scores = draw(np.random.default_rng(7), (80, 60), 0.3)
    low = scores.copy()
    low[:, :left] = low[:, 60 - right :] = 0
    rules = {"low": 0.5, "min_area": 2, "merge_distance": 2, "pixel_pitch": (0.5, 0.25)}
    wanted = track(DefectTracker(60, **rules), low, [13])
    assert wanted != track(DefectTracker(60, **rules), scores, [13])
    scores[3, (0 if left else 59)] = np.nan
    assert track(DefectTracker(60, **rules, margin=margin), scores, [13]) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width: expected a whole number from 1 to 2147483647, got 0"),
        ({"width": 2.0}, "width: .* got 2.0"),
        ({"min_area": 0}, "min_area: "),
        ({"merge_distance": -1}, "merge_distance: expected a whole number from 0"),
        ({"max_length": 0}, "max_length: "),
        ({"low": float("nan")}, "low, high: expected finite"),
        ({"low": 0.9}, r"low, high: .*got 0.9, 0.8"),
        ({"pixel_pitch": 0}, "pixel_pitch: .*got 0"),
        ({"pixel_pitch": (1, 2, 3)}, "pixel_pitch: "),
        ({"margin": 4}, "margin: expected less than the map's 8 columns, got 4 and 4"),
        ({"margin": -1}, "margin: expected columns, or .*, from 0, got -1"),
        ({"margin": (1, 2, 3)}, "margin: "),
        ({"margin": 0.5}, "margin: "),
    ],
)
def test_wrong_arguments(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DefectTracker(**{"width": 8, "low": 0.5, "high": 0.8, **change})


@pytest.mark.parametrize(
    "rows",
    [np.zeros((3, 7), np.float32), np.zeros((3, 8)), np.zeros((1, 1, 3, 8), np.float32), "rows",
     torch.zeros(3, 8, dtype=torch.bfloat16), torch.zeros(3, 8, requires_grad=True), torch.zeros(3, 8, device="meta")],
    ids=["width", "float64", "batch", "text", "bfloat16", "gradient", "device"],
)  # fmt: skip
def test_wrong_rows(rows: object) -> None:
    with pytest.raises(UsageError, match="rows: expected"):
        DefectTracker(8, 0.5).push(rows)


def test_after_the_end() -> None:
    tracker = DefectTracker(4, 0.5)
    tracker.push(np.ones((2, 4), np.float32))
    assert len(tracker.finish()) == 1
    assert tracker.finish() == []
    assert tracker.first_open_row == 2
    with pytest.raises(UsageError, match="has finished"):
        tracker.push(np.ones((2, 4), np.float32))


def test_a_second_thread_is_refused() -> None:
    """Pushing runs without Python's lock: two at once would share the tracker's memory."""
    tracker = DefectTracker(2000, 0.9)
    rows = np.random.default_rng(0).random((500, 2000), dtype=np.float32)
    refused: list[UsageError] = []

    def push() -> None:
        try:
            tracker.push(rows)
        except UsageError as error:
            refused.append(error)

    for _ in range(100):
        threads = [threading.Thread(target=push) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if refused:
            break
    assert str(refused[0]) == "push: another thread is pushing; a tracker has one user"
    tracker.push(rows)
