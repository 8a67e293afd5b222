"""The page's HTTP server: four addresses to read from, and nothing else."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .access import Access
from .board import Board
from .waterfall import Waterfall

CONNECTIONS = 64
_SILENCE_S = 10.0  # how long a client may take to send a request, or to take an answer
_INTERVAL_S = 0.2  # between two messages to a client, at least
_HEARTBEAT_S = 1.0  # at most
_FRAME_WAIT_S = 2.0
_HEADERS = {
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
_ASK = b"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="dark">
<meta name="viewport" content="width=device-width"><title>stadfast watch</title>
<h1>stadfast watch</h1><form action="/"><label>Token <input name="token" type="password" autofocus></label>
<button>Show the page</button></form></html>
"""


class PageServer(ThreadingHTTPServer):
    """Serves the page to a bounded number of connections, each in a thread of its own.

    Args:
        host, port: where.
        access: who may see it.
        board, waterfall: what there is to see.

    Raises:
        OSError: the address cannot be had.
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, host: str, port: int, access: Access, board: Board, waterfall: Waterfall) -> None:
        self.access, self.board, self.waterfall = access, board, waterfall
        self.closing = threading.Event()
        self._connections: set[Any] = set()
        self._changed = threading.Condition()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(
            self.server_address
        )  # the base class asks for the host's full name, which can take seconds
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @property
    def connections(self) -> int:
        return len(self._connections)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if self.connections < CONNECTIONS and not self.closing.is_set():
            return True
        with contextlib.suppress(OSError):
            request.settimeout(0.1)
            request.sendall(
                b"HTTP/1.1 503 Too many connections\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # clients that vanish are no error
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """Give the last messages a moment, then end every connection."""
        self.closing.set()
        self.waterfall.end()
        self.shutdown()
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, 2 * _INTERVAL_S)
            for request in self._connections:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._connections, 2.0)
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection. Only GET; nothing that is asked for changes anything here."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "stadfast", ""
    timeout = _SILENCE_S

    def setup(self) -> None:
        super().setup()
        # Without these the system would hold minutes of messages for a client that is gone.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * _SILENCE_S))

    def do_GET(self) -> None:
        access = self.server.access
        try:
            url = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        except ValueError:
            return self._send(HTTPStatus.BAD_REQUEST, b"not an address\n")
        if not access.knows(self.headers.get_all("Host") or []):
            return self._send(HTTPStatus.MISDIRECTED_REQUEST, b"this page has another name\n")
        token = query.get("token") if url.path == "/" else None
        port = self.server.server_port
        if not access.admits(token, self.headers["Authorization"], self.headers["Cookie"], port):
            return self._send(HTTPStatus.UNAUTHORIZED, _ASK, "text/html; charset=utf-8", {
                "Content-Security-Policy": "default-src 'none'; form-action 'self'; frame-ancestors 'none'",
                "WWW-Authenticate": "Bearer",
            })  # fmt: skip
        if url.path == "/":
            self._page(access.cookie(port) if token is not None else None)
        elif url.path == "/live":
            self._live()
        elif url.path == "/frame":
            self._frame(query.get("after", "0"))
        elif found := re.fullmatch(r"/thumbnail/([0-9]{1,15})", url.path):
            self._thumbnail(int(found[1]))
        elif url.path == "/favicon.ico":  # browsers ask for it
            self._send(HTTPStatus.NO_CONTENT, b"")
        else:
            self._send(HTTPStatus.NOT_FOUND, b"nothing here\n")

    def _page(self, cookie: str | None) -> None:
        body, policy = page()
        headers = {"Content-Security-Policy": policy} | ({"Set-Cookie": cookie} if cookie else {})
        self._send(HTTPStatus.OK, body, "text/html; charset=utf-8", headers)

    def _live(self) -> None:
        """Server-sent events: what changed, as often as the client takes it, at least once a second."""
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        for name, value in {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "Connection": "close",
                            "X-Accel-Buffering": "no"}.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        since, closed = 0, False
        while not closed:
            message = self.server.board.message(since, _HEARTBEAT_S - _INTERVAL_S if since else 0.0)
            since, closed = message["serial"], message["closed"] or self.server.closing.is_set()
            self.wfile.write(b"data: " + json.dumps(message).encode() + b"\n\n")
            self.server.closing.wait(_INTERVAL_S)

    def _frame(self, after: str) -> None:
        if not re.fullmatch("[0-9]{1,15}", after):
            return self._send(HTTPStatus.BAD_REQUEST, b"after: a frame's number\n")
        frame = self.server.waterfall.newest(int(after), _FRAME_WAIT_S)
        if frame is None:
            self._send(HTTPStatus.NO_CONTENT, b"")
        else:
            self._send(HTTPStatus.OK, frame.body, "application/octet-stream", {"X-Frame": str(frame.number)})

    def _thumbnail(self, number: int) -> None:
        picture = self.server.board.thumbnail(number)
        if picture is None:
            self._send(HTTPStatus.NOT_FOUND, b"no such picture\n")
        else:
            self._send(HTTPStatus.OK, picture, "image/png", {"Cache-Control": "private, max-age=3600"})

    def _send(
        self,
        status: HTTPStatus,
        body: bytes,
        kind: str = "text/plain; charset=utf-8",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        headers = {"Cache-Control": "no-store", **(headers or {})}
        if status >= 400:
            headers["Connection"] = "close"
            self.close_connection = True
        if status != HTTPStatus.NO_CONTENT:
            headers |= {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@lru_cache(maxsize=1)
def page() -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy: its own script and style by their hashes, nothing from elsewhere."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in content]
        hashes[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src 'self'; "
        f"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy
