"""Events on their way to other machines: lines over TCP, web hooks, Prometheus."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import webs

from stadfast.errors import SinkError, UsageError
from stadfast.linescan import Sink
from stadfast.linescan.sinks import PrometheusFile, PrometheusServer, TcpLines, WebHook
from stadfast.linescan.sinks import network as network_sinks

inspect = webs.inspect_spots
PATIENCE_S = 60.0  # with a machine that has other things to do


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


@pytest.mark.parametrize(
    "address", [("", 1), ("a", 0), ("a", "80"), ("a", True), ("a", 65536), (".x", 80), ("a..b", 80)]
)
def test_tcp_addresses_that_are_none(address):
    with pytest.raises(UsageError, match="expected"):
        TcpLines(*address)


@pytest.mark.parametrize("port", [-1, 65536, "80", True])
def test_ports_that_are_none(port):
    with pytest.raises(UsageError, match="port: expected a whole number from 0 to 65535"):
        PrometheusServer(port)


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
