"""The sink behind the operator's page."""

from __future__ import annotations

import contextlib
import os
import threading

import numpy as np

from ...errors import SinkError
from ..arguments import check_whole
from ..observer import Event, Notice, Run, Sink, Status
from .access import Access
from .board import Board
from .server import PageServer
from .waterfall import Waterfall

_FRAME_S = 0.2  # between two frames, at least
_NICENESS = 10
_INTERRUPTING = {"format": "lines of another format", "reopened": "the source came back"}


class OperatorPage(Sink):
    """A web page with the moving strip, its heat map, the defects and the inspection's figures.

    The inspector's thread only hands over what it has: pictures are drawn in a thread of lower priority, five times a
    second at most, once for all who look, and not at all while nobody does. What waits for a slow browser is bounded:
    frames are left out.

    Others can read the page only with a token; what travels is not encrypted, so that outside a trusted network an SSH
    tunnel or a proxy with TLS belongs before it.

    Args:
        port: 0: any that is free.
        host: the address to serve at. Any other than the loopback's needs a token.
        token: what a browser has to show, once, as ``?token=...``, and other programs as ``Authorization: Bearer``.
        stay: whether the page stays after the inspection, until :meth:`shutdown`.

    Attributes:
        port: the one in use, once open.

    Raises:
        UsageError: an argument out of range; an address other than the loopback's without a token.
    """

    def __init__(
        self, port: int = 8765, host: str = "127.0.0.1", token: str | None = None, *, stay: bool = False
    ) -> None:
        port = check_whole("port", port, 0, 65535)
        self._access = Access(host, token)
        self.port, self._host, self._stay = port, host, stay
        self._board, self._waterfall = Board(), Waterfall()
        self._server: PageServer | None = None
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        """Where the page is, without the token."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def open(self, run: Run) -> None:
        """Begin to serve, unless the page is there from an earlier run.

        Raises:
            SinkError: the address cannot be had.
        """
        self._board.begin(run)
        self._waterfall.begin(run.threshold)
        if self._server is not None:
            return
        try:
            self._server = PageServer(self._host, self.port, self._access, self._board, self._waterfall)
        except (OSError, UnicodeError) as error:
            raise SinkError(f"cannot serve the page at {self._host}, port {self.port}: {error}") from error
        self.port = self._server.server_port
        serve = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="stadfast-page", daemon=True
        )
        paint = threading.Thread(
            target=self._paint, args=(self._server,), name="stadfast-painter", daemon=True
        )
        self._threads = [serve, paint]
        for thread in self._threads:
            thread.start()

    def rows(self, image: np.ndarray, map: np.ndarray, first_line: int) -> None:
        self._waterfall.add(image, map, first_line)
        self._board.rows()

    def event(self, event: Event) -> None:
        self._board.event(event)

    def notice(self, notice: Notice) -> None:
        self._board.notice(notice)
        if notice.kind in _INTERRUPTING:
            self._waterfall.interrupt(_INTERRUPTING[notice.kind])

    def status(self, status: Status) -> None:
        self._board.status(status)

    def close(self) -> None:
        if not self._stay:
            self.shutdown()

    def shutdown(self) -> None:
        """End the page. Takes three seconds at most, whatever browsers do."""
        if self._server is None:
            return
        self._board.close()
        self._server.stop()
        for thread in self._threads:
            thread.join(1.0)
        self._server = None

    def _paint(self, server: PageServer) -> None:
        """The painter's thread: the inspection comes first."""
        with contextlib.suppress(OSError, AttributeError):  # on Linux threads have a niceness of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not server.closing.is_set():
            try:
                painted = self._waterfall.paint(_FRAME_S)
            except Exception as error:
                self._board.notice(Notice("page", f"drawing failed: {type(error).__name__}: {error}"))
                painted = True
            if painted:
                server.closing.wait(_FRAME_S)
