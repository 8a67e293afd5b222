"""``stadfast watch``: the inspection of ``stadfast stream``, on a web page."""

from __future__ import annotations

import threading
import webbrowser
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from ..linescan import OperatorPage, Run, Sink
from ._guard import printable, say
from .linescan import inspect_as
from .stream import stopping


def watch(
    options: dict[str, Any],
    *,
    port: int,
    host: str,
    token: str | None,
    token_file: Path | None,
    open_browser: bool,
    stay: bool,
) -> None:
    """Inspect, as the options of ``stream`` say, with the page; then keep the page until a signal comes."""
    page = OperatorPage(port, host, read_token(token, token_file), stay=stay)
    try:
        inspect_as(options, page, Announcement(page, open_browser))
        if stay:
            say(f"the inspection has ended; {page.url} stays until Ctrl-C")
            done = threading.Event()
            with stopping(done.set):
                done.wait()
    finally:
        page.shutdown()


def read_token(token: str | None, file: Path | None) -> str | None:
    """The token that was given, or the one in a file.

    Raises:
        UsageError: both were given.
        DataError: the file cannot be read.
    """
    if token is not None and file is not None:
        raise UsageError("--token, --token-file: expected one of them, got both")
    if file is None:
        return token
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--token-file: cannot read {file}: {error}") from error


class Announcement(Sink):
    """Says where the page is, once it is there, and opens it."""

    def __init__(self, page: OperatorPage, open_browser: bool) -> None:
        self._page, self._open = page, open_browser

    def open(self, run: Run) -> None:
        say(f"watch at {self._page.url}")
        if self._open:
            threading.Thread(target=self._show, name="stadfast-browser", daemon=True).start()

    def _show(self) -> None:
        try:
            opened = webbrowser.open(
                self._page.url
            )  # without the token, which the page asks for: others see arguments
        except Exception as error:
            say(f"warning: no browser could be opened: {printable(error)}")
        else:
            if not opened:
                say("warning: no browser could be opened")
