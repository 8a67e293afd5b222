"""The inspector's figures for Prometheus: over HTTP, or as a file for the node exporter's textfile collector."""

from __future__ import annotations

import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..._files import atomic_write
from ...errors import SinkError, StadfastError
from ..arguments import check_whole
from ..observer import Event, Notice, Run, Sink, Status

# name, type, help, field of Status
_FIGURES = (
    ("lines_total", "counter", "Lines inspected.", "lines"),
    (
        "lines_lost_total",
        "counter",
        "Lines lost: the inspector was too slow, or the source told of them.",
        "lost",
    ),
    ("gaps_total", "counter", "Places where lines were lost.", "gaps"),
    ("defects_total", "counter", "Defects that have closed.", "defects"),
    ("strips_total", "counter", "Strips begun.", "strips"),
    ("faults_total", "counter", "Faults of source and sinks.", "faults"),
    ("defects_growing", "gauge", "Defects that go on.", "growing"),
    ("line_rate", "gauge", "Lines inspected a second.", "line_rate"),
    ("budget_ratio", "gauge", "Share of the time in which the inspector works.", "budget"),
    ("delay_seconds", "gauge", "Age of the newest row of the map.", "delay"),
    ("queue_lines", "gauge", "Lines waiting in the ring.", "queue"),
    ("queue_capacity_lines", "gauge", "Lines that the ring holds.", "capacity"),
)
_STATES = ("waiting", "running", "stalled", "lost", "ended", "failed")
_DELAYS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class _Figures(Sink):
    """Keeps the page up to date. (Prometheus text format 0.0.4.)"""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._delays = [0] * (len(_DELAYS) + 1)
        self._delay_sum = 0.0
        self.text = ""

    def event(self, event: Event) -> None:
        if not event.defect.growing:
            self._delays[sum(event.delay > bound for bound in _DELAYS)] += 1
            self._delay_sum += event.delay

    def notice(self, notice: Notice) -> None:
        pass

    def status(self, status: Status) -> None:
        lines = []
        for name, kind, help, field in _FIGURES:
            lines += [f"# HELP stadfast_{name} {help}", f"# TYPE stadfast_{name} {kind}",
                      f"stadfast_{name} {getattr(status, field):.10g}"]  # fmt: skip
        lines += ["# HELP stadfast_state What the inspector does.", "# TYPE stadfast_state gauge"]
        lines += [f'stadfast_state{{state="{state}"}} {int(status.state == state)}' for state in _STATES]
        name, total = "stadfast_event_delay_seconds", 0
        lines += [f"# HELP {name} From a defect's last line to its report.", f"# TYPE {name} histogram"]
        for bound, count in zip((*map(str, _DELAYS), "+Inf"), self._delays, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        lines += [f"{name}_sum {self._delay_sum:.10g}", f"{name}_count {total}"]
        self.text = "\n".join(lines) + "\n"


class PrometheusServer(_Figures):
    """Serves ``/metrics``.

    Args:
        port: 0: any that is free.
        host: the loopback by default: who opens it to others decides so.

    Attributes:
        port: the one in use, once open.

    Raises:
        UsageError: a port that is none.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        super().__init__()
        self.port, self._host = check_whole("port", port, 0, 65535), host
        self._server: ThreadingHTTPServer | None = None

    def open(self, run: Run) -> None:
        figures = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path.split("?")[0] in ("/", "/metrics")
                body = figures.text.encode() if found else b"only /metrics is here\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in self._host else socket.AF_INET

        try:
            self._server = Server((self._host, self.port), Handler)
        except (OSError, OverflowError) as error:
            raise SinkError(f"cannot serve metrics at {self._host}:{self.port}: {error}") from error
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="stadfast-metrics", daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class PrometheusFile(_Figures):
    """Writes the figures to a file, which is replaced as a whole about once a second.

    Args:
        path: in the textfile collector's folder, ending in ``.prom``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._path = Path(path)

    def status(self, status: Status) -> None:
        super().status(status)
        try:
            with atomic_write(self._path) as temporary:
                temporary.write_text(self.text)
        except StadfastError as error:
            raise SinkError(str(error)) from error
