"""The operator's page in an inspection, and ``stadfast watch``."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading

import pytest
import webs
from pages import TOKEN, get, message
from PIL import Image
from typer.testing import CliRunner

from stadfast.cli import app
from stadfast.cli import stream as cli_stream
from stadfast.cli import watch as cli_watch
from stadfast.errors import SinkError
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
        (("--width", "9", "--rows", "9999", "--capacity", "1"), 2, "capacity"),
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
