"""Clients of the operator's page, for its tests."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import time

import numpy as np
import webs
from PIL import Image

from stadfast.linescan import Inspector, OperatorPage, Run, Status
from stadfast.linescan.sources import ArraySource

TOKEN = "open-sesame-0123456789"
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


def events(count=3, rows=400):
    """Those of a web with so many spots."""
    step = rows // count
    spots = [(i * step + 5, i * step + 12, 4, 20) for i in range(count)]
    recorder = webs.Recorder()
    lines = webs.web(rows, 32, spots)
    Inspector(webs.Brightness, ArraySource(lines), [recorder], threshold=0.5).run()
    assert len(recorder.events) == count
    return recorder.events
