"""Sinks: what was found arrives, whole and in order, whatever happens to the listener."""

from __future__ import annotations

import csv
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import webs
from PIL import Image

from stadfast.errors import SinkError, UsageError
from stadfast.linescan import Callback, Inspector, Sink
from stadfast.linescan.sinks import (
    CsvTable,
    JsonLines,
    PrometheusFile,
    PrometheusServer,
    TcpLines,
    Thumbnails,
    WebHook,
)
from stadfast.linescan.sinks import network as network_sinks
from stadfast.linescan.sources import ArraySource

SPOTS = [(10, 20, 3, 9), (130, 131, 0, 1), (300, 380, 20, 32)]
LINES = webs.web(400, 32, SPOTS)
PATIENCE_S = 60.0  # with a machine that has other things to do


def inspect(*sinks, **options):
    recorder = webs.Recorder()
    source = ArraySource(LINES)
    Inspector(webs.Brightness, source, [*sinks, recorder], threshold=0.5, pixel_pitch=0.5, **options).run()
    return recorder


def records(path, type="defect"):
    return [r for r in map(json.loads, path.read_text().splitlines()) if r["type"] == type]


@pytest.mark.parametrize("fsync", ["event", "second", "never"])
def test_json_lines(tmp_path, fsync):
    path = tmp_path / "new" / "events.jsonl"
    recorder = inspect(JsonLines(path, fsync))
    assert records(path) == json.loads(json.dumps([e.record() for e in recorder.events]))
    assert [r["lines"] for r in records(path)] == [list(s[:2]) for s in SPOTS]
    assert [r["lines_mm"] for r in records(path)] == [[s[0] / 2, s[1] / 2] for s in SPOTS]
    assert [r["kind"] for r in records(path, "notice")] == ["start", "end"]
    assert records(path, "run")[0]["threshold"] == 0.5
    with path.open("a") as file:
        file.write('{"type": "defect", "torn by a power c')
    inspect(JsonLines(path, fsync))
    lines = path.read_text().splitlines()
    assert [i for i, line in enumerate(lines) if not line.endswith("}")] == [len(lines) // 2]
    assert len(lines) == 2 * (1 + 2 + 3) + 1


def test_csv(tmp_path):
    path = tmp_path / "events.csv"
    recorder = inspect(CsvTable(path))
    inspect(CsvTable(path))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6  # and one header
    for row, event in zip(rows[:3], recorder.events, strict=True):
        defect = event.defect
        assert (int(row["first_line"]), int(row["end_line"])) == defect.rows
        assert (float(row["left_mm"]), float(row["right_mm"])) == defect.columns_mm
        assert (int(row["peak_line"]), int(row["peak_column"])) == defect.peak_position
        assert float(row["peak"]) == defect.peak
        assert row["at_gap"] == "0"


def test_an_event_is_printed_without_its_pictures(capsys):
    inspect(Callback(print))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(SPOTS)
    assert not any("array" in line for line in printed)


def test_a_journal_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for sink in (JsonLines(tmp_path / "file" / "events"), CsvTable(tmp_path), Thumbnails(tmp_path / "file")):
        with pytest.raises(SinkError, match="cannot write"):
            inspect(sink)
    with pytest.raises(UsageError, match="fsync"):
        JsonLines(tmp_path / "events", "sometimes")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told():
    with pytest.raises(SinkError, match="No space left"):
        inspect(JsonLines("/dev/full"))


def test_a_line_that_a_full_disk_has_torn(tmp_path, monkeypatch):
    path, events = tmp_path / "events.csv", inspect().events
    sink = CsvTable(path)
    sink.open(None)
    write, room = os.write, [10]

    def cramped(file, data):
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[: room.pop()])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", cramped)
        with pytest.raises(SinkError, match="No space left"):
            sink.event(events[0])
    sink.event(events[1])
    sink.event(events[2])
    sink.close()
    whole = path.read_text().splitlines()
    assert len(whole) == 4  # the header, ten characters, and what came when there was room again
    assert len(whole[1]) == 10
    assert [line.split(",")[0] for line in whole[2:]] == ["1", "2"]


def test_thumbnails(tmp_path, monkeypatch):
    starts = ["20261123T111500Z", "20261123T111501Z"]
    for start in starts:  # the second run leaves the first one's
        monkeypatch.setattr(time, "gmtime", lambda *_, t=start: time.strptime(t, "%Y%m%dT%H%M%SZ"))
        recorder = inspect(Thumbnails(tmp_path / "pictures"))
    names = [f"{start}-{i:06d}.png" for start in starts for i in range(3)]
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == names
    for event, name in zip(recorder.events, names[3:], strict=True):
        image = np.asarray(Image.open(tmp_path / "pictures" / name))
        height, width = event.thumbnail_map.shape
        assert image.shape == (height, 2 * width + 2, 3)
        assert np.array_equal(image[:, :width], np.broadcast_to(event.thumbnail, (height, width, 3)))
        bright = image[:, width + 2 :, 0] > 127  # above the threshold
        assert np.array_equal(bright, event.thumbnail_map > 0.5)


# ---------------------------------------------------------------- the network


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(network_sinks, "_RETRY_S", 0.02)


def listen():
    """A port, and the lines that come over the second connection: the first is cut at once."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(PATIENCE_S)
    lines = []

    def serve():
        server.accept()[0].close()
        connection, _ = server.accept()
        with connection, connection.makefile() as file:
            lines.extend(file)
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return server.getsockname()[1], lines, thread


def test_tcp_lines(monkeypatch):
    monkeypatch.setattr(network_sinks, "_LAST_WORDS_S", PATIENCE_S)
    port, lines, thread = listen()
    with socket.create_connection(("127.0.0.1", port)) as first:
        first.recv(1)  # cut
    sink = TcpLines("127.0.0.1", port)
    recorder = inspect(sink)
    thread.join(PATIENCE_S)
    assert [json.loads(line)["id"] for line in lines] == [e.defect.id for e in recorder.events]
    assert sink.sent == 3


def test_tcp_a_listener_that_left_between_two_events(monkeypatch):
    monkeypatch.setattr(network_sinks, "_LAST_WORDS_S", PATIENCE_S)
    events = inspect().events[:2]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S / 4)
        sink = TcpLines(*server.getsockname())
        sink.open(None)
        for event in events:  # each over a connection of its own
            sink.event(event)
            connection, _ = server.accept()
            with connection, connection.makefile() as file:
                assert json.loads(file.readline())["id"] == event.defect.id
                connection.sendall(b"thanks")
        sink.close()


def test_tcp_nobody_listens(monkeypatch):
    monkeypatch.setattr(network_sinks, "_LAST_WORDS_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert len(inspect(TcpLines("127.0.0.1", port)).events) == 3  # the others are not kept from it
    sink = TcpLines("127.0.0.1", port)
    sink.open(None)
    event = inspect().events[0]
    sink.event(event)
    with pytest.raises(SinkError, match="did not take 1 events"):
        sink.close()


def test_tcp_nobody_listens_and_it_is_told_in_time(monkeypatch):
    monkeypatch.setattr(network_sinks, "_SILENCE_S", 0.1)
    first, second = inspect().events[:2]

    def wait():
        for _ in range(int(PATIENCE_S / 4 / 0.02)):
            sink.status(None)
            time.sleep(0.02)

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        sink = TcpLines(*server.getsockname())
        sink.open(None)
        sink.status(None)
        sink.event(first)
        with pytest.raises(SinkError, match=r"takes no events: .*refused"):
            wait()
        time.sleep(0.2)
        sink.status(None)  # once is enough
        server.listen()
        with server.accept()[0] as connection:
            assert connection.recv(1)
    sink.event(second)  # one has been taken, and again nobody listens
    with pytest.raises(SinkError, match=r"takes no events: .*refused"):
        wait()
    monkeypatch.setattr(network_sinks, "_LAST_WORDS_S", 0.1)
    with pytest.raises(SinkError, match="did not take 1 events"):
        sink.close()


def test_tcp_a_full_queue_is_told(monkeypatch):
    monkeypatch.setattr(network_sinks, "_QUEUE", 1)
    sink = TcpLines("127.0.0.1", 9)  # never opened: nobody takes from the queue
    event = inspect().events[0]
    sink.event(event)
    with pytest.raises(SinkError, match="1 have not been sent"):
        sink.event(event)


@pytest.fixture
def hook():
    """A web hook that fails first, then points elsewhere; its address and what it got."""
    got, failures = [], [302, 500]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.headers["Content-Type"], json.loads(body)["id"]))  # known before it is answered
            self.send_response(failures.pop() if failures else 204)
            self.send_header("Location", "/page")
            self.end_headers()

        def do_GET(self):
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/defects", got
    server.shutdown()
    server.server_close()


def test_web_hook_tries_until_it_is_heard(hook, monkeypatch):
    monkeypatch.setattr(network_sinks, "_LAST_WORDS_S", PATIENCE_S)
    url, got = hook
    inspect(WebHook(url))
    assert got == [("application/json", i) for i in (0, 0, 0, 1, 2)]


def test_an_error_of_any_kind_is_not_the_last_try(hook, monkeypatch):
    monkeypatch.setattr(network_sinks, "_LAST_WORDS_S", PATIENCE_S)
    url, got = hook
    errors = [UnicodeError("no such host"), RuntimeError()]

    class Failing(WebHook):
        def send(self, data):
            if errors:
                raise errors.pop()
            super().send(data)

    inspect(Failing(url))
    assert [i for _, i in got] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize("address", [("", 1), ("a", 0), ("a", 65536), (".x", 80), ("a..b", 80)])
def test_tcp_addresses_that_are_none(address):
    with pytest.raises(UsageError, match="expected"):
        TcpLines(*address)


@pytest.mark.parametrize(
    "url",
    ["ftp://a", "http://", "http://a/über", "http://ü/", "http://a/a path", "http://a/\n", "http://.x/", "http://a:99999/",
     "http://a:0/", "http://a:b/", "http://[::1/", "http://user:secret@a/"],
)  # fmt: skip
def test_web_addresses_that_are_none(url):
    with pytest.raises(UsageError, match="expected") as error:
        WebHook(url)
    assert "secret" not in str(error.value)


def test_addresses():
    for url in ("http://a", "https://a.b:443/c%20d?e=f@g", "http://[::1]:80/", "http://a.:80"):
        WebHook(url)
    for host in ("a", "bücher.example", "::1", "10.0.0.1"):
        TcpLines(host, 80)


# ---------------------------------------------------------------- Prometheus


def figures(text):
    """Name (with labels) -> value; every figure has its HELP and TYPE."""
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    named = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    plain = {name.split("{")[0] for name in found}
    assert {n.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for n in plain} == named
    return {name: float(value) for name, value in found.items()}


def check(found):
    assert found["stadfast_lines_total"] == 400
    assert found["stadfast_defects_total"] == 3
    assert found["stadfast_lines_lost_total"] == 0
    assert found['stadfast_state{state="ended"}'] == 1
    assert found['stadfast_state{state="running"}'] == 0
    assert found["stadfast_event_delay_seconds_count"] == 3
    assert found['stadfast_event_delay_seconds_bucket{le="+Inf"}'] == 3


def test_prometheus_server():
    server = PrometheusServer(0)
    pages = []

    class Visitor(Sink):
        def notice(self, notice):
            if notice.kind == "start":
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(f"http://127.0.0.1:{server.port}/secret", timeout=PATIENCE_S)

        def status(self, status):
            if status.state == "ended":
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{server.port}/metrics", timeout=PATIENCE_S
                ) as page:
                    assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                    pages.append(page.read().decode())

    recorder = inspect(server, Visitor())
    assert "sink" not in recorder.kinds, recorder.notices
    check(figures(pages[0]))
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", server.port), 1)


def test_prometheus_file(tmp_path):
    path = tmp_path / "stadfast.prom"
    inspect(PrometheusFile(path))
    check(figures(path.read_text()))


def test_prometheus_server_of_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6")
    server = PrometheusServer(0, "::1")
    server.open(None)
    with urllib.request.urlopen(f"http://[::1]:{server.port}/metrics", timeout=PATIENCE_S) as page:
        assert page.status == 200
    server.close()


def test_prometheus_port_in_use():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SinkError, match="cannot serve metrics"),
    ):
        inspect(PrometheusServer(taken.getsockname()[1]))


# ---------------------------------------------------------------- kill -9

KILLER = """
# Forks inspectors and kills them at random moments; prints what they had told by then.
import importlib.util, json, os, random, signal, sys, time
import numpy as np
from stadfast.linescan import Callback, Inspector
from stadfast.linescan.sinks import JsonLines
from stadfast.linescan.sources import ArraySource
spec = importlib.util.spec_from_file_location("webs", sys.argv[1])
webs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(webs)
moments = random.Random(7)
for kill in range(6):
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        lines = webs.web(100, 32, [(40, 50, 3, 9), (70, 72, 20, 30)])
        sinks = [JsonLines(f"{kill}.jsonl", ("event", "second", "never")[kill % 3]),
                 Callback(lambda event: os.write(tell, b"%d\\n" % event.defect.id))]
        Inspector(webs.Brightness, ArraySource(lines, repeat=None), sinks, threshold=0.5).run()
        os._exit(1)
    os.close(tell)
    heard, wanted = b"", moments.randint(1, 60)
    while heard.count(b"\\n") < wanted:
        heard += os.read(told, 1 << 16)
    time.sleep(moments.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    while part := os.read(told, 1 << 16):
        heard += part
    os.close(told)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    print(heard.count(b"\\n"))
"""


def test_kill_9_loses_no_closed_event(tmp_path):
    command = [sys.executable, "-c", KILLER, str(Path(webs.__file__))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = [int(line) for line in done.stdout.split()]
    assert len(told) == 6
    assert len(set(told)) > 1, "all were killed at the same event: the moments are not random"
    for kill, count in enumerate(told):
        text = (tmp_path / f"{kill}.jsonl").read_text()
        assert text.endswith("\n")
        found = records(tmp_path / f"{kill}.jsonl")
        assert len(found) >= count  # what was told after it was written
        assert [r["id"] for r in found] == list(range(len(found)))
        wanted = [[100 * i + a, 100 * i + b] for i in range(len(found)) for a, b in ((40, 50), (70, 72))]
        assert [r["lines"] for r in found] == wanted[: len(found)]
