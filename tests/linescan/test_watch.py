"""The operator's page in an inspection, and ``stadfast watch``."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import threading

import pytest
import webs
from pages import TOKEN, frame, get, message, until
from PIL import Image
from typer.testing import CliRunner

from stadfast.cli import app
from stadfast.cli import stream as cli_stream
from stadfast.cli import watch as cli_watch
from stadfast.errors import SinkError, SourceError
from stadfast.linescan import Inspector, OperatorPage
from stadfast.linescan.sources import ArraySource


def test_the_inspection_is_the_same_and_the_page_ends_with_it():
    lines = webs.web(400, 32, [(10, 20, 3, 9), (130, 131, 0, 1)])
    seen, alone, page = webs.Recorder(), webs.Recorder(), OperatorPage(0)
    Inspector(webs.Brightness, ArraySource(lines), [page, seen], threshold=0.5).run()
    Inspector(webs.Brightness, ArraySource(lines), [alone], threshold=0.5).run()
    assert seen.boxes == alone.boxes
    assert seen.kinds == ["start", "end"]
    with pytest.raises(ConnectionError):
        get(page)


def test_a_page_that_stays_shows_the_next_run():
    page = OperatorPage(0, stay=True)
    try:
        for spots in ([(10, 20, 3, 9)], [(10, 20, 3, 9), (200, 210, 3, 9)]):
            Inspector(webs.Brightness, ArraySource(webs.web(400, 32, spots)), [page], threshold=0.5).run()
            said = message(page)
            assert (said["status"]["state"], said["status"]["defects"]) == ("ended", len(spots))
            assert len(said["defects"]) == len(spots)
            assert [n["kind"] for n in said["notices"]] == ["start", "end"]
    finally:
        page.shutdown()


@pytest.fixture
def staying():
    """A page that is there after the inspection, too."""
    page = OperatorPage(0, stay=True)
    yield page
    page.shutdown()


def told(page):
    """(state, kind and fault of each notice, message of the newest fault) as a new client is told them."""
    said = message(page)
    faults = [n["message"] for n in said["notices"] if n["fault"]]
    return said["status"]["state"], [(n["kind"], n["fault"]) for n in said["notices"]], faults[-1]


def test_an_error_of_the_model_is_shown_with_the_defects_that_it_cut_off(staying):
    lines = webs.web(400, 32, [(10, 20, 3, 9), (70, 200, 20, 32)])
    inspector = Inspector(
        lambda width: webs.Breaks(width, 150), ArraySource(lines), [staying], threshold=0.5, rows_per_push=50
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        inspector.run()
    state, notices, fault = told(staying)
    assert (state, notices) == ("failed", [("start", False), ("error", True)])
    assert fault == "the inspection failed: RuntimeError: out of memory"
    said = message(staying)
    assert (said["status"]["defects"], said["status"]["growing"], said["status"]["faults"]) == (2, 0, 1)
    assert [(d["lines"], d["cut_off"]) for d in said["defects"]] == [([10, 20], False), ([70, 92], True)]
    assert frame(staying)[0]["segments"] == [[0, 92, 0, 92]]  # what had been inspected by then


def test_a_source_that_is_lost_is_shown_until_it_is_back(staying):
    lines = webs.web(100, 32, [(90, 100, 3, 9)])
    back = threading.Event()

    class Unplugged(webs.Script):
        def open(self):
            if self.opened and not back.is_set():
                raise SourceError("still unplugged")
            super().open()

    source = Unplugged(lines, SourceError("unplugged"), lines)
    recorder = webs.Recorder()  # hears everything after the page
    inspector = Inspector(
        webs.Brightness, source, [staying, recorder], threshold=0.5, retry_after=0.01, status_every=0.01
    )
    inspection = threading.Thread(target=inspector.run)
    inspection.start()
    try:
        until(lambda: "lost" in {status.state for status in recorder.statuses})
        assert told(staying) == ("lost", [("start", False), ("lost", True)], "unplugged")
        assert [(d["lines"], d["cut_off"]) for d in message(staying)["defects"]] == [([90, 100], True)]
    finally:
        back.set()
        inspection.join()
    state, notices, _ = told(staying)
    assert (state, notices[2:]) == ("ended", [("reopened", False), ("end", False)])
    head = frame(staying)[0]
    assert [words for _, _, words in head["breaks"]] == ["the source came back"]
    assert [segment[2:] for segment in head["segments"]] == [[0, 100], [100, 200]]


def test_a_source_that_is_lost_for_good_is_shown(staying):
    source = webs.Script(webs.web(100, 32, []), SourceError("unplugged"))
    with pytest.raises(SourceError, match="unplugged"):
        Inspector(webs.Brightness, source, [staying], threshold=0.5, on_fault="stop").run()
    assert told(staying) == ("ended", [("start", False), ("lost", True), ("end", False)], "unplugged")


def test_lost_lines_are_shown_where_they_were(staying):
    flood = webs.Flood(webs.web(600, 32, [(20, 30, 2, 5)]))
    Inspector(
        flood.streamer, flood, [staying], threshold=0.5, overrun="drop_newest", capacity=200, rows_per_push=50
    ).run()
    said = message(staying)
    lost, gaps = said["status"]["lost"], [n for n in said["notices"] if n["kind"] == "gap"]
    assert said["status"]["lines"] + lost == 600
    assert len(gaps) == said["status"]["gaps"] > 0
    assert all(gap["fault"] and "the inspector is too slow" in gap["message"] for gap in gaps)
    assert [(d["lines"], d["at_gap"]) for d in said["defects"]] == [([20, 30], False)]
    head = frame(staying)[0]
    between = [after[2] - before[3] for before, after in itertools.pairwise(head["segments"])]
    assert [words for _, _, words in head["breaks"]] == [f"{n} lines lost" for n in between]
    assert sum(between) + 600 - head["segments"][-1][3] == lost


def test_an_address_that_is_taken(page):
    with pytest.raises(SinkError, match=f"port {page.port}"):
        Inspector(webs.Brightness, webs.Script(), [OperatorPage(page.port)], threshold=0.5).run()


# ---------------------------------------------------------------- stadfast watch


@pytest.fixture
def web_file(tmp_path, monkeypatch):
    """An image of a web, for a detector that sees brightness."""
    monkeypatch.setattr(cli_stream, "load", lambda path, device: webs.Brightness)
    Image.fromarray(webs.web(400, 32, [(10, 20, 3, 9)])[:, :, 0]).save(tmp_path / "web.png")
    return tmp_path / "web.png"


def watch(*arguments):
    return CliRunner().invoke(app, ["watch", "model", *map(str, arguments), "--port", "0", "--device", "cpu"])


def test_watch_takes_streams_options(web_file, tmp_path):
    result = watch(web_file, "--threshold", 0.5, "--rows", 32, "--jsonl", tmp_path / "a.jsonl", "--no-stay")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("0\t10-19\t3-8\t60 px")
    assert re.search(r"watch at http://127\.0\.0\.1:\d+/\n", result.stderr)
    assert '"peak_position"' in (tmp_path / "a.jsonl").read_text()


def test_watch_stays_until_a_signal(web_file, monkeypatch):
    """The source has ended; the page is there until Ctrl-C."""
    answers = []

    @contextlib.contextmanager
    def stopping(stop):
        with cli_stream.stopping(stop) as received:
            threading.Thread(target=look, daemon=True).start()
            yield received

    def look():
        try:
            page.port = int(re.search(r":(\d+)/", announced[0])[1])
            answers.append(get(page)[0])
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    announced = []
    page = OperatorPage(0)
    monkeypatch.setattr(cli_watch, "stopping", stopping)
    monkeypatch.setattr(cli_watch, "say", announced.append)
    result = watch(web_file, "--threshold", 0.5)
    assert result.exit_code == 0, result.output
    assert answers == [200]
    assert "stays until Ctrl-C" in announced[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--host", "0.0.0.0"), 2, "host: 0.0.0.0 can be reached by others"),
        (("--token", "short"), 2, "token: expected 16"),
        (("--token", TOKEN, "--token-file", "x"), 2, "got both"),
        (("--token-file", "/nowhere"), 1, "--token-file: cannot read /nowhere"),
        (("--rows", "9999", "--capacity", "1"), 2, "capacity"),
    ],
)
def test_bad_input_is_one_line(web_file, arguments, code, words):
    result = watch(web_file, "--threshold", 0.5, *arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_token_from_a_file(tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert cli_watch.read_token(None, tmp_path / "token") == TOKEN
    assert cli_watch.read_token(TOKEN, None) == TOKEN
    assert cli_watch.read_token(None, None) is None
