"""The inspector where something goes wrong: lines are lost, sources stall or leave, sinks and models fail."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import webs
from strips import SMALL, detector

from stadfast import STPM
from stadfast.errors import DataError, SinkError, SourceError, StadfastError, UsageError
from stadfast.linescan import Callback, DefectTracker, Inspector, RowView, Sink
from stadfast.linescan.sinks import JsonLines
from stadfast.linescan.sources import ArraySource, Block, Notice
from stadfast.linescan.strip import Strip

THRESHOLD, Brightness, Recorder, Script, inspect, web = (
    webs.THRESHOLD, webs.Brightness, webs.Recorder, webs.Script, webs.inspect, webs.web,
)  # fmt: skip

# ---------------------------------------------------------------- lost lines


@pytest.mark.parametrize("overrun", ["drop_oldest", "drop_newest"])
def test_lost_lines_are_counted_and_places_stay_right(overrun):
    lines = web(1000, 16, [(20, 30, 2, 5), (930, 940, 7, 9)])
    flood = webs.Flood(lines)
    recorder = Recorder()
    inspector = Inspector(
        flood.streamer,
        flood,
        [recorder],
        threshold=THRESHOLD,
        overrun=overrun,
        capacity=200,
        rows_per_push=50,
    )
    inspector.run()
    status = inspector.status
    gaps = [(n.line, n.details["lines"]) for n in recorder.notices if n.kind == "gap"]
    assert status.lost > 0
    assert status.lines + status.lost == 1000
    assert sum(n for _, n in gaps) == status.lost
    assert len(gaps) == status.gaps
    seen = np.zeros(1000, int)
    for image, map, first in recorder.pieces:
        assert np.array_equal(image, lines[first : first + len(image)])
        np.testing.assert_allclose(map, image[..., 0] / 255, atol=1e-6)
        seen[first : first + len(image)] += 1
    for first, count in gaps:
        seen[first : first + count] += 1
    assert (seen == 1).all()
    kept = ((930, 940), (7, 9)) if overrun == "drop_oldest" else ((20, 30), (2, 5))
    assert kept in recorder.boxes


@pytest.mark.parametrize(("live", "overrun"), [(True, "drop_oldest"), (False, "block")])
def test_a_live_source_does_not_wait_unless_it_is_told_to(live, overrun):
    source = Script(web(100, 16, []))
    source.live = live
    assert inspect(source)[1].runs[0].settings["overrun"] == overrun
    assert inspect(source, overrun="block")[1].runs[0].settings["overrun"] == "block"


def test_lines_that_a_source_has_lost_are_counted():
    """Before the first line, between lines, and before those of another format."""
    gap = Notice("gap", "3 lines lost", details={"lines": 3})
    blocks = [Block(web(60, width, []), notices=(gap,)) for width in (16, 16, 8)]
    inspector, seen = inspect(Script(*blocks))
    assert (inspector.status.lost, inspector.status.gaps, seen.kinds.count("gap")) == (9, 3, 3)


def test_an_event_at_a_gap_says_so():
    lines = web(600, 16, [(60, 70, 2, 5), (390, 410, 2, 5), (560, 565, 2, 5)])
    strip = Strip(Brightness(16, 30), DefectTracker(16, THRESHOLD), 3, 1000, 7, (0.5, 0.5), 4096)
    events, firsts = [], []
    for numbers in (np.arange(300), np.r_[300:400, 405:500], np.arange(500, 600)):
        before = strip.rows
        events += strip.push(RowView(lines[numbers], numbers, numbers * 10**6, numbers * 2))
        firsts += [piece.first_line for piece in strip.pieces(before)]
    events += strip.finish()
    assert [e.defect.rows for e in events] == [(1060, 1070), (1390, 1410), (1560, 1565)]
    assert [e.defect.rows_mm for e in events] == [(530, 535), (695, 705), (780, 782.5)]
    assert [e.at_gap for e in events] == [False, True, False]
    assert [e.defect.id for e in events] == [7, 8, 9]
    assert [e.encoder for e in events] == [(120, 138), (780, 818), (1120, 1128)]
    assert {e.strip for e in events} == {3}
    assert firsts == [1000, 1270, 1405, 1470]


# ---------------------------------------------------------------- faults


def test_another_width_begins_another_strip():
    first, second = web(100, 16, [(90, 100, 2, 5)]), web(100, 24, [(0, 4, 20, 24)])
    inspector, seen = inspect(Script(first[:50], first[50:], second, first))
    assert seen.boxes == [((90, 100), (2, 5)), ((100, 104), (20, 24)), ((290, 300), (2, 5))]
    assert [e.strip for e in seen.events] == [0, 1, 2]
    assert [e.defect.id for e in seen.events] == [0, 1, 2]
    assert seen.kinds == ["start", "format", "format", "end"]
    assert "from 16 pixels (grey, uint8) to 24 pixels" in seen.notices[1].message
    assert inspector.status.strips == 3


def test_lines_that_fit_no_margin_are_left_out():
    wide, narrow = web(100, 24, [(40, 50, 12, 14)]), web(100, 16, [(40, 50, 6, 9)])
    inspector, seen = inspect(Script(wide, narrow[:50], narrow[50:], wide), margin=(10, 8))
    assert [e.defect.rows for e in seen.events] == [(40, 50), (140, 150)]
    assert seen.kinds == ["start", "format", "format", "end"]
    assert "lines of 16 pixels (grey, uint8) are left out: margin: expected less" in seen.notices[2].message
    assert (inspector.status.lines, inspector.status.strips, inspector.status.faults) == (200, 2, 2)
    recorder = Recorder()
    never = Inspector(Brightness, Script(narrow, wide), [recorder], threshold=0.5, margin=(10, 8))
    with pytest.raises(UsageError, match="margin: expected less"):
        never.run()
    assert recorder.kinds == ["start", "error"]
    assert (recorder.statuses[-1].state, recorder.calls[-1]) == ("failed", "close")


class AtLeast(Brightness):
    """A streamer that refuses strips of less than 50 rows."""

    def finish(self):
        if self._rows.shape[2] < 50:
            raise UsageError("rows: wanted more")
        return super().finish()


def test_a_strip_too_short_is_left_out():
    short, long = web(30, 16, [(5, 9, 2, 5)]), web(100, 16, [(90, 100, 2, 5)])
    recorder = Recorder()
    source = Script(short, SourceError("unplugged"), long)
    Inspector(lambda width: AtLeast(width, 60), source, [recorder], threshold=0.5, retry_after=0.01).run()
    assert recorder.boxes == [((120, 130), (2, 5))]
    assert recorder.kinds == ["start", "format", "lost", "reopened", "end"]
    assert recorder.notices[1].message == "the end of a strip is left out: rows: wanted more"


def test_another_width_stops_where_it_is_to():
    first, second = web(100, 16, [(90, 100, 2, 5)]), web(100, 24, [])
    recorder = Recorder()
    inspector = Inspector(Brightness, Script(first, second), [recorder], threshold=0.5, on_fault="stop")
    with pytest.raises(SourceError, match="24 pixels"):
        inspector.run()
    assert recorder.boxes == [((90, 100), (2, 5))]
    assert recorder.calls[-1] == "close"


@pytest.mark.parametrize("error", [SourceError("unplugged"), ValueError("unplugged")])
def test_a_source_that_comes_back(error):
    lines = web(100, 16, [(90, 100, 2, 5)])
    source = Script(lines, error, 3, lines)
    inspector, seen = inspect(source)
    assert seen.kinds == ["start", "lost", "reopened", "end"]
    assert "unplugged" in seen.notices[1].message
    assert seen.boxes == [((90, 100), (2, 5)), ((190, 200), (2, 5))]
    assert (source.opened, inspector.status.faults) == (2, 1)


def test_a_source_that_fails_before_its_first_line():
    _, seen = inspect(Script(OSError("no light"), web(100, 16, [(90, 100, 2, 5)])))
    assert seen.kinds == ["start", "lost", "reopened", "end"]
    assert seen.boxes == [((90, 100), (2, 5))]


def test_a_source_that_is_gone_stops_where_it_is_to():
    recorder = Recorder()
    source = Script(web(100, 16, [(90, 100, 2, 5)]), SourceError("unplugged"))
    with pytest.raises(SourceError, match="unplugged"):
        Inspector(Brightness, source, [recorder], threshold=0.5, on_fault="stop").run()
    assert len(recorder.events) == 1


def test_a_source_that_is_not_there():
    class Nothing(Script):
        def open(self):
            raise SourceError("no camera")

    recorder = Recorder()
    with pytest.raises(SourceError, match="no camera"):
        Inspector(Brightness, Nothing(), [recorder], threshold=0.5).run()
    assert recorder.calls == []


class Stalls(Script):
    """Delivers, then nothing until told."""

    def __init__(self, lines):
        super().__init__(lines[:50])
        self.rest, self.go = lines[50:], threading.Event()
        self.delivered = threading.Event()  # what it delivers at first is in the ring

    def read(self, timeout):
        if self._steps:
            return super().read(timeout)
        self.delivered.set()
        if not self.go.wait(timeout):
            return Block(np.empty((0, 0, 0), np.uint8))
        rest, self.rest = self.rest, None
        return None if rest is None else Block(rest)


def test_a_stall_is_told_and_waited_for():
    source = Stalls(web(100, 16, [(40, 60, 2, 5)]))

    class Waker(Sink):
        def notice(self, notice):
            if notice.kind == "stall":
                source.go.set()

    _, seen = inspect(source, Waker(), stall_after=0.05, rows_per_push=64, status_every=0.01)
    assert [k for k in seen.kinds if k not in ("start", "end")][:2] == ["stall", "resumed"]
    assert seen.boxes == [((40, 60), (2, 5))]
    assert "stalled" in {status.state for status in seen.statuses}


def test_a_stall_stops_where_it_is_to():
    recorder = Recorder()
    source = Stalls(web(100, 16, [(40, 60, 2, 5)]))
    inspector = Inspector(Brightness, source, [recorder], threshold=0.5, on_fault="stop", stall_after=0.05)
    with pytest.raises(SourceError, match="no line from script for"):
        inspector.run()
    assert recorder.boxes == [((40, 50), (2, 5))]


def test_stop_closes_every_event():
    source = Stalls(web(100, 16, [(40, 60, 2, 5)]))
    recorder = Recorder()
    inspector = Inspector(Brightness, source, [recorder], threshold=0.5, rows_per_push=10)
    threading.Thread(target=lambda: source.delivered.wait(60) and inspector.stop()).start()
    inspector.run()
    assert recorder.boxes == [((40, 50), (2, 5))]
    assert inspector.status.lines == 50


def test_stop_loses_no_line_that_waits_for_room():
    source = ArraySource(web(128, 16, []), 64, repeat=None)
    recorder = Recorder()
    inspector = Inspector(Brightness, source, [recorder], threshold=0.5, rows_per_push=10, capacity=32)
    recorder.rows = lambda image, map, first: first > 500 and inspector.stop()
    inspector.run()
    assert (recorder.kinds, inspector.status.lost) == (["start", "end"], 0)
    assert inspector.status.lines % 64 == 0


def test_it_runs_once():
    inspector, _ = inspect(Script())
    with pytest.raises(UsageError, match="an Inspector runs once"):
        inspector.run()


def test_what_does_not_fit_the_model_is_said_before_a_line_comes():
    made = detector(SMALL)
    for message, options in {
        "rows_per_push: expected a multiple of 8, got 50": {"rows_per_push": 50},
        "precision: expected one of": {"precision": "fp16"},
        "overlap: expected a multiple of 8, got 4": {"overlap": 4},
    }.items():
        with pytest.raises(UsageError, match=message):
            Inspector(made, Script(), threshold=0.5, **options)
    with pytest.raises(StadfastError, match="fitted"):
        Inspector(STPM(), Script())


def test_notices_of_the_source_are_told():
    notice = Notice("truncated", "half a line", fault=True)
    lines = web(100, 16, [(90, 100, 2, 5)])
    script = (lines, Block(np.empty((0, 0, 0), np.uint8), notices=(notice,)))
    _, seen = inspect(Script(*script))
    assert notice in seen.notices
    recorder = Recorder()
    with pytest.raises(SourceError, match="half a line"):
        Inspector(Brightness, Script(*script), [recorder], threshold=0.5, on_fault="stop").run()
    assert recorder.boxes == [((90, 100), (2, 5))]


def test_a_failing_sink_does_not_stop_the_others():
    def fail(event):
        raise RuntimeError("the printer is on fire")

    lines = web(200, 16, [(50, 60, 2, 5), (150, 160, 2, 5)])
    _, seen = inspect(ArraySource(lines), Callback(fail))
    assert len(seen.events) == 2
    assert [n.message for n in seen.notices if n.kind == "sink"] == [
        "Callback.event failed: RuntimeError: the printer is on fire"
    ] * 2
    with pytest.raises(SinkError, match="on fire"):
        inspect(ArraySource(lines), Callback(fail), on_fault="stop")


def test_the_first_sink_hears_what_the_others_fail_at_last():
    class Stuck(Sink):
        def close(self):
            raise SinkError("nobody took 3 events")

    _, seen = inspect(Script(), Stuck())
    assert seen.kinds == ["start", "end", "sink"]
    assert seen.calls[-1] == "close"


def test_numbers_may_be_numpys(tmp_path):
    one = np.float32(0.5)
    inspect(
        Script(), JsonLines(tmp_path / "a.jsonl"), low=one, pixel_pitch=one, min_area=np.int64(1),
        merge_distance=np.int64(1), max_length=np.int64(100), rows_per_push=np.int64(16), downscale=np.int64(1),
    )  # fmt: skip
    run = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert run["pixel_pitch"] == [0.5, 0.5]
    assert (run["settings"]["low"], run["settings"]["max_length"]) == (0.5, 100)


@pytest.mark.parametrize(("refused", "error"), [(False, "out of memory"), (True, "expected finite scores")])
def test_an_error_of_its_own_closes_what_is_open(refused, error):
    """The second defect is whole, but a neighbour might have joined it; the third has reached the last map row."""
    lines = web(400, 32, [(10, 20, 3, 9), (85, 87, 0, 4), (70, 200, 20, 32)])
    recorder = Recorder()
    inspector = Inspector(
        lambda width: webs.Breaks(width, 150, refused), ArraySource(lines), [recorder], threshold=THRESHOLD,
        rows_per_push=50, merge_distance=10,
    )  # fmt: skip
    with pytest.raises((RuntimeError, DataError), match=error):
        inspector.run()
    assert {e.defect.rows: e.cut_off for e in recorder.events} == {
        (10, 20): False,
        (85, 87): False,
        (70, 92): True,
    }
    assert recorder.kinds == ["start", "error"]
    assert error in recorder.notices[-1].message
    assert (inspector.status.state, inspector.status.defects) == ("failed", 3)
    assert recorder.calls[-1] == "close"


def test_an_event_that_the_strips_end_cuts_off_says_so():
    _, seen = inspect(ArraySource(web(400, 32, [(300, 350, 3, 9), (370, 400, 3, 9)])), merge_distance=10)
    assert [(e.defect.rows, e.cut_off) for e in seen.events] == [((300, 350), False), ((370, 400), True)]
    assert [e.record()["cut_off"] for e in seen.events] == [False, True]
