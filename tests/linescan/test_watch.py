"""The operator's page: who may see it, what it says and shows, and what clients can do to it (nothing)."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import threading
import time
import urllib.parse
from dataclasses import replace

import numpy as np
import pytest
import webs
from PIL import Image
from typer.testing import CliRunner

from stadfast.cli import app
from stadfast.cli import stream as cli_stream
from stadfast.cli import watch as cli_watch
from stadfast.errors import SinkError, UsageError
from stadfast.linescan import Inspector, Notice, OperatorPage, Run, Status
from stadfast.linescan.sources import ArraySource
from stadfast.linescan.watch import pictures, server, waterfall
from stadfast.linescan.watch.access import Access

TOKEN = "open-sesame-0123456789"
HOSTILE = "<script>alert(1)</script>\"'&\r\n\r\ndata: {}\x1b[2J\u202e\udcff.png"
STATUS = Status("running", 9.0, 5000, 512.3, 0.456, 169, 0.25, 7, 4096, 3, 0, 21, 1, 1, 0)
PATIENCE_S = 30.0


@contextlib.contextmanager
def serving(token=None, *, source="a web", **options):
    page = OperatorPage(0, token=token, **options)
    page.open(Run(source, 0.5, None))
    try:
        yield page
    finally:
        page.shutdown()


@pytest.fixture
def page():
    with serving() as page:
        yield page


def get(page, path="/", headers=None, method="GET"):
    """(status, headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def ask(page, request, size=1 << 16):
    """What comes back for these very bytes."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=PATIENCE_S) as client:
        client.sendall(request)
        return client.recv(size)


class Live:
    """A client of ``/live``."""

    def __init__(self, page, **headers):
        self.socket = socket.create_connection(("127.0.0.1", page.port), timeout=PATIENCE_S)
        lines = [
            "GET /live HTTP/1.1",
            "Host: localhost",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self.socket.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        self._file = self.socket.makefile("rb")
        assert self._file.readline() == b"HTTP/1.1 200 OK\r\n"
        assert b"Content-Type: text/event-stream\r\n" in list(iter(self._file.readline, b"\r\n"))

    def next(self):
        """The next message; None at the end."""
        line = self._file.readline()
        if not line:
            return None
        assert line.startswith(b"data: {")
        assert self._file.readline() == b"\n"
        return json.loads(line[6:])

    def close(self):
        self._file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def message(page):
    """What a new client is told first."""
    with Live(page) as client:
        return client.next()


def frame(page, after=0):
    """(what it says, image, map's levels) of the newest frame."""
    status, _, body = get(page, f"/frame?after={after}")
    assert status == 200
    start = 4 + int.from_bytes(body[:4], "big")
    head = json.loads(body[4:start])
    image = Image.open(io.BytesIO(body[start : start + head["image"]]))
    heat = Image.open(io.BytesIO(body[start + head["image"] :]))
    assert (image.format, heat.format, heat.mode) == ("JPEG", "PNG", "P")
    assert image.size == heat.size == (head["columns"], head["rows"])
    return head, np.array(image), np.array(heat)


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def connections(page):
    return page._server.connections


def events(count=3, rows=400):
    """Those of a web with so many spots."""
    step = rows // count
    spots = [(i * step + 5, i * step + 12, 4, 20) for i in range(count)]
    recorder = webs.Recorder()
    lines = webs.web(rows, 32, spots)
    Inspector(webs.Brightness, ArraySource(lines), [recorder], threshold=0.5).run()
    assert len(recorder.events) == count
    return recorder.events


# ---------------------------------------------------------------- who may see it


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "inspection.example", ""])
def test_others_need_a_token(host):
    with pytest.raises(UsageError, match="token"):
        OperatorPage(0, host)
    OperatorPage(0, host, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_the_loopback_needs_none(host):
    OperatorPage(0, host)


@pytest.mark.parametrize(
    "token", ["", "short", "with spaces in between it", "uml\u00e4ut" * 4, "line\nbreak" * 3]
)
def test_tokens_that_are_none(token):
    with pytest.raises(UsageError, match="token: expected 16") as caught:
        OperatorPage(0, token=token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("port", [-1, 65536, "80", True, None])
def test_ports_that_are_none(port):
    with pytest.raises(UsageError, match="port"):
        OperatorPage(port)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8765", True),
        ("LOCALHOST:1", True),  # a forwarded port
        ("localhost", True),
        ("[::1]:8765", True),
        ("10.0.0.7", True),
        (socket.gethostname(), True),
        ("evil.example", False),
        ("evil.example:8765", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("localhost@evil.example", False),
        ("localhost:80x", False),
        ("", False),
    ],
)
def test_names_under_which_the_page_is_asked_for(host, known):
    assert Access("127.0.0.1", None).knows([host]) == known
    assert not Access("127.0.0.1", None).knows([host, host])
    assert not Access("127.0.0.1", None).knows([])
    assert Access("Inspection.example", TOKEN).knows(["inspection.example:80"])


def test_rebound_names_are_refused(page):
    """A page of evil.example whose name now means 127.0.0.1 reads nothing."""
    for path in ("/", "/live", "/frame", "/thumbnail/0", "/nothing"):
        status, _, body = get(page, path, {"Host": f"evil.example:{page.port}"})
        assert (status, body) == (421, b"this page has another name\n")
    assert get(page, headers={"Host": f"localhost:{page.port}"})[0] == 200
    assert ask(page, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")
    twice = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert ask(page, twice).startswith(b"HTTP/1.1 421")


def test_without_the_token_there_is_nothing_to_see():
    with serving(TOKEN, source="secret web") as page:
        for path in ("/", "/live", "/frame", "/thumbnail/0", "/nothing", "/?token=", f"/?token={TOKEN}x"):
            status, headers, body = get(page, path)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert b"secret" not in body
            assert TOKEN.encode() not in body
            assert "Set-Cookie" not in headers
        wrong = [
            {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"},
            {"Cookie": f"stadfast_{page.port}={TOKEN}"}, {"Cookie": "\x80;=;;"}, {"Authorization": "Bearer \xff"},
        ]  # fmt: skip
        for headers in wrong:
            assert get(page, headers=headers)[0] == 401
        assert get(page, f"/frame?token={TOKEN}")[0] == 401  # once, for the page


def test_the_token_once_then_a_cookie():
    with serving(TOKEN) as page, serving(TOKEN + "2") as other:
        status, headers, body = get(page, "/?" + urllib.parse.urlencode({"token": TOKEN}))
        assert (status, body) == (200, server.page()[0])
        cookie, *attributes = headers["Set-Cookie"].split("; ")
        assert set(attributes) == {"Path=/", "HttpOnly", "SameSite=Strict"}
        assert TOKEN not in cookie
        assert get(page, "/nothing", {"Cookie": cookie})[0] == 404
        with Live(page, Cookie=f"a=b; {cookie}") as client:
            assert client.next()["run"]["source"] == "a web"
        with Live(page, Authorization=f"Bearer {TOKEN}") as client:
            assert client.next()["run"]["source"] == "a web"
        assert get(other, "/", {"Cookie": cookie.replace(str(page.port), str(other.port))})[0] == 401


def test_other_methods_are_refused(page):
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        assert get(page, method=method)[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        "/page.html", "/server.py", "/../../../../etc/passwd", "/thumbnail/../../page.html", "/thumbnail/%2e%2e",
        "/thumbnail/", "/thumbnail/-1", "/thumbnail/1e3", "/thumbnail/99999", "/live/", "/frame/x", "http://[/", "*",
        "//etc", "/thumbnail/" + "9" * 5000,
    ],
)  # fmt: skip
def test_nothing_else_is_served(page, path):
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    assert re.match(rb"HTTP/1\.1 40[04] ", ask(page, request))


def test_bad_requests_do_no_harm(page, capfd):
    for request in (b"\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
                    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n"):  # fmt: skip
        with contextlib.suppress(ConnectionError):
            assert b" 200 " not in ask(page, request)
    for after in ("x", "-1", "1" * 100, "%00"):
        assert get(page, f"/frame?after={after}")[0] == 400
    assert get(page)[0] == 200
    assert capfd.readouterr().err == ""


def test_headers_on_everything(page):
    page.event(events(1)[0])
    page.rows(np.zeros((9, 9, 1), np.uint8), np.zeros((9, 9), np.float32), 0)
    for path in ("/", "/frame", "/thumbnail/0", "/nothing", "/favicon.ico"):
        headers = get(page, path)[1]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
        assert re.fullmatch("no-store|private, max-age=3600", headers["Cache-Control"])
        assert "Python" not in headers["Server"]


def test_the_page_is_whole(page):
    """One file, nothing from elsewhere, no code but its own."""
    status, headers, body = get(page)
    text = body.decode()
    assert status == 200
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert all(re.fullmatch(r"'sha256-[\w+/]+='", policy[kind]) for kind in ("script-src", "style-src"))
    assert not re.search(
        r"https?://|//\w|@import|url\(|<link|<iframe|\ssrc=|\son\w+=|\sstyle=|innerHTML|eval\(", text
    )
    assert text.count("<script>") == text.count("<style>") == 1


# ---------------------------------------------------------------- what it says


def test_messages_hold_what_is_new(page):
    with Live(page) as client:
        first = client.next()
        assert first["run"]["threshold"] == 0.5
        assert (first["status"], first["defects"], first["notices"], first["rows_age"]) == (
            None,
            [],
            [],
            None,
        )
        found = events(3)
        page.status(STATUS)
        page.notice(Notice("gap", "21 lines lost", 70, {"lines": 21}))
        page.event(found[0])
        seen = {"defects": [], "notices": []}
        while not (seen["defects"] and seen["notices"]):
            said = client.next()
            assert "run" not in said
            for key in seen:
                seen[key] += said[key]
        assert {**said["status"], "age": 0} == {**STATUS.record(), "age": 0}
        assert 0 <= said["status"]["age"] < PATIENCE_S
        assert [(n["kind"], n["message"], n["fault"]) for n in seen["notices"]] == [
            ("gap", "21 lines lost", True)
        ]
        (defect,) = seen["defects"]
        assert defect["lines"] == list(found[0].defect.rows)
        assert defect["over"] == pytest.approx(2)
        serial = said["serial"]
        said = client.next()  # a heartbeat: ages go on, nothing is said twice
        assert (said["defects"], said["notices"], said["serial"]) == ([], [], serial)
        page.event(found[1])
        while not (said := client.next())["defects"]:
            pass
        assert [d["id"] for d in said["defects"]] == [1]


def test_hostile_names_arrive_as_text():
    with serving(source=HOSTILE) as page:
        page.notice(Notice("unreadable", HOSTILE + "x" * 10_000))
        said = message(page)
        assert said["run"]["source"] == HOSTILE
        assert said["notices"][0]["message"] == (HOSTILE + "x" * 500)[:500]


def test_growing_defects_are_one():
    with serving(stay=True) as page:
        recorder = webs.Recorder()
        lines = webs.web(900, 32, [(100, 700, 4, 12)])
        Inspector(webs.Brightness, ArraySource(lines), [recorder, page], threshold=0.5, max_length=200).run()
        assert [event.defect.growing for event in recorder.events[:2]] == [True, True]
        (defect,) = message(page)["defects"]
        assert (defect["id"], defect["growing"], defect["lines"]) == (0, False, [100, 700])


def test_what_is_kept_is_bounded(page):
    (event,) = events(1)
    for number in range(500):
        page.event(replace(event, defect=replace(event.defect, id=number)))
        page.notice(Notice("gap", str(number)))
    page.event(replace(event, defect=replace(event.defect, id=500, absorbed=(499, 498))))
    said = message(page)
    assert [d["id"] for d in said["defects"]] == [*range(400, 498), 500]
    assert [n["message"] for n in said["notices"]] == [str(n) for n in range(450, 500)]
    assert get(page, "/thumbnail/399")[0] == get(page, "/thumbnail/499")[0] == 404


def test_thumbnails(page):
    (event,) = events(1)
    page.event(event)
    status, headers, body = get(page, "/thumbnail/0?v=x.1")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    picture = np.array(Image.open(io.BytesIO(body)))
    height, width = event.thumbnail.shape[:2]
    assert picture.shape == (height, 2 * width + 2, 3)
    assert np.array_equal(picture[:, :width], np.broadcast_to(event.thumbnail, (height, width, 3)))
    assert np.array_equal(
        picture[:, width + 2 :], pictures.PALETTE[pictures.levels(event.thumbnail_map, 0.5)]
    )
    page.event(replace(event, defect=replace(event.defect, id=1), thumbnail=None, thumbnail_map=None))
    assert get(page, "/thumbnail/1")[0] == 404
    urls = [defect["thumbnail"] for defect in message(page)["defects"]]
    assert re.fullmatch(r"thumbnail/0\?v=[0-9a-f]{8}\.[0-9]+", urls[0])
    assert urls[1] is None


# ---------------------------------------------------------------- what it shows


def test_a_frame_shows_the_lines_and_their_map(page):
    lines = webs.web(200, 48, [(50, 60, 4, 20)], channels=3)
    page.rows(lines, lines[:, :, 0].astype(np.float32) / 255, 1000)
    head, image, heat = frame(page)
    assert (head["scale"], head["segments"], head["breaks"]) == (1, [[0, 200, 1000, 1200]], [])
    assert np.abs(image.astype(int) - lines).mean() < 3  # JPEG
    assert np.array_equal(heat, pictures.levels(lines[:, :, 0] / np.float32(255), 0.5))


@pytest.mark.parametrize(
    ("dtype", "channels", "width"), [(np.uint8, 1, 4096), (np.uint16, 3, 2001), (np.uint8, 3, 7)]
)
def test_drawn_down_to_the_pages_width(page, dtype, channels, width):
    """Pushes of any size; one pixel of the map is seen however many there are, the last column's, too."""
    white = np.iinfo(dtype).max
    lines = np.full((333, width, channels), white // 2, dtype)
    lines[:, : width // 2] = white
    map = np.full((333, width), 0.05, np.float32)
    map[100, width - 1] = 5.0
    for start in range(0, 333, 31):
        page.rows(lines[start : start + 31], map[start : start + 31], start)
    head, image, heat = frame(page)
    scale = head["scale"]
    assert scale == -(-width // 960)
    assert head["columns"] == -(-width // scale) <= 960
    assert head["rows"] == 333 // scale
    assert head["segments"] == [[0, 333 // scale, 0, 333]]
    third = head["columns"] // 3
    assert image[:, :third].mean() == pytest.approx(255, abs=8)  # JPEG
    assert image[:, -third:].mean() == pytest.approx(127, abs=8)
    assert np.argwhere(heat == heat.max()).tolist() == [[100 // scale, head["columns"] - 1]]
    assert (heat.max(), heat.min()) == (255, 0)


def test_lost_lines_leave_a_mark(page):
    lines, map = np.full((100, 2000, 1), 99, np.uint8), np.ones((100, 2000), np.float32)
    page.rows(lines, map, 0)  # 3 lines in a row of the picture: one is left over
    page.rows(lines, map, 1112)
    page.notice(Notice("reopened", "..."))
    page.rows(lines, map, 1212)
    head, image, _ = frame(page)
    assert head["breaks"] == [[34, 10, "1,012 lines lost"], [78, 10, "the source came back"]]
    assert head["segments"] == [[0, 34, 0, 100], [44, 34, 1112, 1212], [88, 33, 1212, 1312]]
    assert (image[36:42] < 9).all()
    assert (image[50:70] > 90).all()


def test_another_format_begins_another_strip(page):
    for width, channels, first in ((32, 1, 0), (48, 3, 100)):
        page.rows(np.zeros((100, width, channels), np.uint8), np.zeros((100, width), np.float32), first)
    page.rows(np.zeros((100, 48, 3), np.uint8), np.zeros((100, 48), np.float32), 200)
    head, _, _ = frame(page)
    assert head["segments"] == [[0, 200, 100, 300]]


def test_the_oldest_rows_leave_the_picture(page):
    for first in range(0, 6000, 100):
        page.rows(np.zeros((100, 8, 1), np.uint8), np.zeros((100, 8), np.float32), first)
        if first == 1000:
            frame(page)
    head, _, _ = frame(page, after=11)
    (row, rows, first, end) = head["segments"][-1]
    assert head["rows"] == head["most_rows"] == row + rows
    assert (rows, end) == (end - first, 6000)
    assert first + 960 - rows <= 6000 - 960 + waterfall._BREAK_ROWS


def test_nobody_looks():
    """Nothing is drawn, and what waits is bounded; who comes later sees the newest lines, and what is missing."""
    falls = waterfall.Waterfall()
    map = np.zeros((64, 3000), np.float32)
    falls.add(np.zeros((64, 3000, 3), np.uint8), map, 0)
    assert falls.newest(0, 0.0) is None
    assert falls.paint(0.0)
    assert not falls.paint(0.0)
    for block in range(1, 1000):
        falls.add(np.zeros((64, 3000, 3), np.uint8), map, 64 * block)
        falls.interrupt("again and again")
        assert not falls.paint(0.0)
    assert falls._bytes == sum(
        a.nbytes + b.nbytes for a, b, _ in (i for i in falls._waiting if type(i) is tuple)
    )
    assert falls._bytes <= waterfall._WAITING_BYTES
    assert falls.newest(1, 0.0) is None
    assert falls.paint(0.0)
    body = falls.newest(1, 0.0).body
    head = json.loads(body[4 : 4 + int.from_bytes(body[:4], "big")])
    assert head["segments"][-1][3] == 64_000


def test_lines_that_were_not_drawn_are_not_lost():
    falls = waterfall.Waterfall()
    rows = np.zeros((100, 8, 1), np.uint8), np.zeros((100, 8), np.float32)
    falls.add(*rows, 0)
    falls.newest(0, 0.0)
    assert falls.paint(0.0)
    for first in range(100, 1300, 100):
        falls.add(*rows, first + (7 if first > 150 else 0))
    with falls._changed:
        skipped = falls._skipped
    assert skipped == 200
    words = []
    falls._break = words.append
    falls.newest(1, 0.0)
    falls.paint(0.0)
    assert words[0] == "200 lines not drawn, 7 lines lost"


def test_a_drawing_that_fails_is_said(page, monkeypatch):
    monkeypatch.setattr(server, "_FRAME_WAIT_S", 0.1)
    monkeypatch.setattr(waterfall.Waterfall, "_picture", lambda self: 1 / 0)
    page.rows(np.zeros((9, 9, 1), np.uint8), np.zeros((9, 9), np.float32), 0)
    assert get(page, "/frame")[0] == 204
    until(lambda: message(page)["notices"])
    assert "ZeroDivisionError" in message(page)["notices"][0]["message"]


# ---------------------------------------------------------------- what clients can do to it


def test_clients_that_vanish_leave_nothing_behind(page):
    threads = threading.active_count()
    clients = [Live(page) for _ in range(8)]
    for i, client in enumerate(clients):
        client.next()
        if i % 2:  # reset, as by a machine that crashed and came back
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    until(lambda: connections(page) == 0)
    until(lambda: threading.active_count() <= threads)


def test_a_client_that_reads_nothing_is_dropped(page, monkeypatch):
    """Its messages are not kept: it is one second behind, then gone. Others see everything meanwhile."""
    monkeypatch.setattr(server.Handler, "timeout", 0.5)
    monkeypatch.setattr(server, "_INTERVAL_S", 0.001)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", page.port))
    client.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: connections(page) == 1)
    deadline = time.monotonic() + PATIENCE_S
    while connections(page):
        assert time.monotonic() < deadline
        page.notice(Notice("gap", "x" * 500))
    client.close()
    monkeypatch.setattr(server.Handler, "timeout", PATIENCE_S)
    assert len(message(page)["notices"]) == 50


def test_a_client_that_sends_nothing_is_dropped(page, monkeypatch):
    monkeypatch.setattr(server.Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", page.port), timeout=PATIENCE_S) as client:
        client.sendall(b"GET / HT")
        assert client.recv(100) == b""


def test_many_clients(page, monkeypatch):
    monkeypatch.setattr(server, "CONNECTIONS", 12)
    clients = [Live(page) for _ in range(12)]
    assert ask(page, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 503")
    page.notice(Notice("gap", "everybody hears it"))
    for client in clients:
        while not (notices := client.next()["notices"]):
            pass
        assert notices[0]["message"] == "everybody hears it"
        client.close()
    until(lambda: connections(page) == 0)
    assert get(page)[0] == 200


def test_the_end_waits_for_nobody():
    """An open stream, a client in the middle of a request, one that waits for a frame: all are let go."""
    before = threading.active_count()
    with serving() as page:
        listener = Live(page)
        listener.next()
        clients = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(3)]
        clients[0].sendall(b"GET / HTTP/1.1\r\n")
        clients[1].sendall(b"GET /frame HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: connections(page) == 4)
        page.status(STATUS)
        began = time.monotonic()
        page.close()
        assert time.monotonic() - began < 10
    assert list(iter(listener.next, None))[-1]["closed"]
    for client in (*clients, listener):
        client.close()
    until(lambda: threading.active_count() <= before)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", page.port))
    page.shutdown()  # again: nothing to do


# ---------------------------------------------------------------- in an inspection


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
