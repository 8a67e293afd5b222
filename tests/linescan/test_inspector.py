"""The inspector: from lines to events. What can go wrong on the way is in test_inspector_faults.py."""

from __future__ import annotations

import time

import numpy as np
import pytest
import webs

from stadfast.errors import UsageError
from stadfast.linescan import Inspector
from stadfast.linescan.history import RowHistory
from stadfast.linescan.sources import ArraySource, Block

Brightness, Script, inspect, web = webs.Brightness, webs.Script, webs.inspect, webs.web

SPOTS = [*webs.SPOTS, (398, 400, 5, 6)]
BOXES = [((a, b), (c, d)) for a, b, c, d in SPOTS]


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize(("block", "rows_per_push", "capacity"), [(1, 64, 64), (64, 64, 4096), (500, 7, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_finds_what_is_there(block, rows_per_push, capacity, channels):
    lines = web(400, 32, SPOTS, channels)
    inspector, seen = inspect(ArraySource(lines, block), rows_per_push=rows_per_push, capacity=capacity)
    assert seen.boxes == BOXES
    assert [e.defect.id for e in seen.events] == sorted(e.defect.id for e in seen.events)
    assert np.array_equal(np.concatenate([image for image, _, _ in seen.pieces]), lines)
    maps = np.concatenate([map for _, map, _ in seen.pieces])
    np.testing.assert_allclose(maps, lines.mean(2) / 255, atol=1e-6)
    firsts = [first for _, _, first in seen.pieces]
    assert firsts == list(np.cumsum([0, *(len(image) for image, _, _ in seen.pieces)][:-1]))
    status = inspector.status
    assert (status.state, status.lines, status.defects, status.lost, status.strips) == ("ended", 400, 4, 0, 1)
    assert (seen.kinds, seen.statuses[-1]) == (["start", "end"], status)
    assert seen.calls[0] == "open"
    assert seen.calls[-1] == "close"


def test_sixteen_bits_and_hysteresis():
    lines = web(200, 16, [(50, 60, 4, 8)]).astype(np.uint16) * 257
    lines[100:110, 4:8] = 26000  # above low only
    lines[50, 8] = 26000  # the defect's rim
    _, seen = inspect(ArraySource(lines), low=0.39)
    assert seen.boxes == [((50, 60), (4, 9))]


def test_thumbnails_show_the_defect():
    lines = web(400, 32, SPOTS)
    _, seen = inspect(ArraySource(lines))
    for event in seen.events:
        rows, columns = event.thumbnail_lines, event.thumbnail_columns
        assert rows[0] <= event.defect.rows[0] < event.defect.rows[1] <= rows[1]
        assert np.array_equal(event.thumbnail, lines[slice(*rows), slice(*columns)])
        np.testing.assert_allclose(event.thumbnail_map, event.thumbnail[..., 0] / 255, atol=1e-6)


def test_large_defects_have_small_thumbnails_and_grow():
    lines = web(3000, 32, [(100, 2500, 4, 12)])
    _, seen = inspect(ArraySource(lines), max_length=1000, history=512)
    assert [e.defect.growing for e in seen.events] == [True, True, False]
    assert {e.defect.id for e in seen.events} == {0}
    assert seen.boxes == [((100, 2500), (4, 12))]
    assert all(max(e.thumbnail.shape) <= 256 for e in seen.events)
    assert seen.statuses[-1].growing == 0


def test_time_and_encoder_of_an_event():
    lines = web(300, 16, [(100, 120, 4, 8)])
    began = time.time()
    stamps = time.monotonic_ns() + np.arange(300) * 1_000_000
    _, seen = inspect(Script(Block(lines, stamps, np.arange(300) * 7)))
    (event,) = seen.events
    assert event.encoder == (700, 119 * 7)
    assert event.last_time - event.first_time == pytest.approx(0.019, abs=1e-6)
    assert began - 1 < event.first_time < began + 60
    record = event.record()
    assert (record["lines"], record["columns"], record["type"]) == ((100, 120), (4, 8), "defect")
    assert record["first_time"].endswith("Z")
    _, seen = inspect(Script(Block(lines, stamps)))
    assert seen.events[0].encoder is seen.events[0].record()["encoder"] is None


def test_pixel_pitch():
    _, seen = inspect(ArraySource(web(300, 16, [(100, 120, 4, 8)])), pixel_pitch=(0.5, 0.25))
    defect = seen.events[0].defect
    assert (defect.rows_mm, defect.columns_mm, defect.area_mm2) == ((50, 60), (1, 2), 20 * 4 * 0.125)
    assert seen.runs[0].pixel_pitch == (0.5, 0.25)


def test_a_margin_raises_no_event_and_stays_in_the_picture():
    spots = [(50, 60, 0, 3), (100, 110, 28, 32), (150, 160, 2, 9)]
    lines = web(300, 32, spots)
    _, seen = inspect(ArraySource(lines), margin=(4, 4))
    assert seen.boxes == [((150, 160), (4, 9))]
    assert seen.runs[0].settings["margin"] == (4, 4)
    assert np.array_equal(np.concatenate([map for _, map, _ in seen.pieces])[50:60, :3], np.ones((10, 3)))


def test_an_empty_source():
    inspector, seen = inspect(Script())
    assert (seen.kinds, seen.events, inspector.status.lines) == (["start", "end"], [], 0)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"threshold": None}, "threshold"),
        ({"low": 0.9}, "low"),
        ({"rows_per_push": 0}, "rows_per_push"),
        ({"capacity": 10}, "capacity"),
        ({"overrun": "explode"}, "overrun"),
        ({"on_fault": "shrug"}, "on_fault"),
        ({"stall_after": 0}, "stall_after"),
        ({"retry_after": -1}, "retry_after"),
        ({"pixel_pitch": 0}, "pixel_pitch"),
        ({"min_area": 0}, "min_area"),
        ({"history": 0}, "history"),
        ({"margin": "edge"}, "margin"),
    ],
)
def test_bad_arguments(options, named):
    with pytest.raises(UsageError, match=named):
        Inspector(Brightness, Script(), **{"threshold": 0.5} | options)


def test_history_cuts_across_blocks():
    rows = np.arange(100)[:, None] * np.ones((1, 4), int)
    history = RowHistory(60)
    for first in range(0, 100, 7):
        history.append(rows[first : first + 7])
    assert history.end == 100
    assert 33 <= history.first <= 40
    for step in (1, 2, 5, 30):
        assert np.array_equal(history.cut(45, 93, slice(1, 3), step), rows[45:93:step, 1:3])
    history.forget(80)
    assert history.first == 77
