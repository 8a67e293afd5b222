"""What clients can do to the operator's page: nothing."""

from __future__ import annotations

import socket
import struct
import threading
import time

from pages import PATIENCE_S, STATUS, Live, ask, get, message, serving, until

from stadfast.linescan import Notice
from stadfast.linescan.watch import server


def connections(page):
    return page._server.connections


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
