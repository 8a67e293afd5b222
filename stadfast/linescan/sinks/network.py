"""Events for other programs: a line over TCP, or a web hook. A slow or absent listener does not slow the inspection."""

from __future__ import annotations

import contextlib
import json
import math
import queue
import re
import socket
import threading
import time
import urllib.parse
import urllib.request
from abc import abstractmethod
from typing import Any

from ...errors import SinkError, UsageError
from ..arguments import check_whole
from ..observer import Event, Run, Sink, Status

_TIMEOUT_S = 5.0
_RETRY_S = 1.0
_LAST_WORDS_S = 3.0  # how long the end waits for a listener
_SILENCE_S = 5.0  # an event that has waited so long is told of
_QUEUE = 10_000


class _Sender(Sink):
    """Delivers records from a thread of its own, in order, each until it has arrived.

    While nobody listens, up to 10,000 events wait; what comes then is lost here (not in a journal), and said. That
    nobody listens is said, too, after five seconds.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUE)
        self._deadline = math.inf
        self._worker: threading.Thread | None = None
        self._since = math.inf  # when the event that is being sent was first tried
        self._told = math.inf  # the one of these that has been told of
        self._reason = ""
        self._accepted = self.sent = self.lost = 0

    def open(self, run: Run) -> None:
        self._deadline = self._since = math.inf
        self._worker = threading.Thread(
            target=self._work, name=f"stadfast-{type(self).__name__}", daemon=True
        )
        self._worker.start()

    def event(self, event: Event) -> None:
        try:
            self._queue.put_nowait(event.record())
            self._accepted += 1
        except queue.Full:
            self.lost += 1
            raise SinkError(f"{self._where} takes no events; {self.lost} have not been sent there") from None

    def status(self, status: Status) -> None:
        """Look after the sending thread.

        Raises:
            SinkError: an event has not been taken for five seconds; once until one has.
        """
        since = self._since
        if since != self._told and time.monotonic() - since >= _SILENCE_S:
            self._told = since
            raise SinkError(f"{self._where} takes no events: {self._reason}")

    def close(self) -> None:
        """Wait three seconds for what has not been sent.

        Raises:
            SinkError: something is left.
        """
        self._deadline = time.monotonic() + _LAST_WORDS_S
        if self._worker is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=_LAST_WORDS_S)
            self._worker.join(_LAST_WORDS_S)
            self._worker = None
        self.disconnect()
        if self.sent < self._accepted:
            raise SinkError(f"{self._where} did not take {self._accepted - self.sent} events")

    def _work(self) -> None:
        while (record := self._queue.get()) is not None:
            data = json.dumps(record).encode()
            self._reason, self._since = "no answer", time.monotonic()
            while not self._delivered(data):
                left = self._deadline - time.monotonic()
                if left <= 0:
                    return
                time.sleep(_RETRY_S if left > _LAST_WORDS_S else _RETRY_S / 4)
            self._since = math.inf

    def _delivered(self, data: bytes) -> bool:
        try:
            self.send(data)
        except Exception as error:  # of whatever kind: without this thread nothing would be sent any more
            self._reason = str(error) or type(error).__name__
            self.disconnect()
            return False
        self.sent += 1
        return True

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Deliver one record.

        Raises:
            Exception: it did not arrive.
        """

    def disconnect(self) -> None:
        """Let go of a connection, if there is one."""


class TcpLines(_Sender):
    """Sends each event as a line of JSON over a TCP connection, which is made again whenever it breaks.

    Nothing acknowledges a line: it counts as sent once the system has it, and what is on its way when the listener dies
    may be lost. A listener that closes its side is taken for gone; what it says is ignored.

    Args:
        host, port: of the listener.

    Raises:
        UsageError: no address.
    """

    def __init__(self, host: str, port: int) -> None:
        port = check_whole("port", port, 1, 65535)
        if not host or not _is_name(host):
            raise UsageError(f"host: expected a name, got {host!r}")
        super().__init__(f"{host}:{port}")
        self._address = (host, port)
        self._socket: socket.socket | None = None

    def send(self, data: bytes) -> None:
        if self._socket is not None and _has_ended(self._socket):
            self.disconnect()
        if self._socket is None:
            self._socket = socket.create_connection(self._address, _TIMEOUT_S)
        self._socket.sendall(data + b"\n")

    def disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _is_name(host: str) -> bool:
    """Whether a host can be called so (not ``.a``, which Python's own network functions stumble over)."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _has_ended(connection: socket.socket) -> bool:
    """Whether the other side has closed it: the system would take one more line all the same."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):  # what it said before must not hide its end
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(_TIMEOUT_S)
    return True


class WebHook(_Sender):
    """Posts each event as JSON to an address, until it is answered with success (2xx). Redirections are not followed.

    Args:
        url: http or https, in ASCII and without blanks (write them as %20), user and password (nothing sends them).

    Raises:
        UsageError: no such address.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            host = parts.hostname or ""
            good = parts.scheme in ("http", "https") and host and _is_name(host) and parts.port != 0
        except ValueError:  # its port is none
            good = False
        if not good or "@" in parts.netloc or not re.fullmatch("[!-~]+", url):
            raise UsageError(
                "url: expected http://... or https://..., in ASCII, without blanks and user:password@"
            )  # not what it was: something in it may be secret
        super().__init__(host)
        self._url = url
        self._opener = urllib.request.build_opener(_NoRedirection)

    def send(self, data: bytes) -> None:
        request = urllib.request.Request(self._url, data, {"Content-Type": "application/json"}, method="POST")
        with self._opener.open(request, timeout=_TIMEOUT_S):
            pass


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Takes 3xx for the refusal that it is: the new address would be asked for a page, without the event."""

    def redirect_request(self, *_: Any) -> None:
        return None
