"""What a person sees when something goes wrong: one line on standard error, and an exit code."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from ..errors import StadfastError, UsageError

INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # as shells report SIGINT, SIGPIPE and SIGTERM


def guarded(command: Callable[..., None], *, after_interrupt: str = "") -> Callable[..., None]:
    """Wrap a command: errors become one line and an exit code; with ``--debug`` they keep their traceback.

    Args:
        command: has a keyword argument ``debug``.
        after_interrupt: what to tell the person who pressed Ctrl-C.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with warnings.catch_warnings(), _terminable():
                warnings.showwarning = _show_warning
                command(*args, **kwargs)
            if sys.stdout is not None:  # as after >&-
                sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            say("interrupted" + (f"; {after_interrupt}" if after_interrupt else ""))
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _close_pipe()
        except StadfastError as error:
            if isinstance(error.__cause__, BrokenPipeError):  # while a file was being written, too
                _close_pipe()
            if kwargs.get("debug"):
                raise
            if not (isinstance(error, UsageError) and os.environ.get("RANK", "0") != "0"):
                say(
                    f"error: {printable(error)}"
                )  # of torchrun's processes, which have the same arguments, one says it
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            if kwargs.get("debug"):
                raise
            say(f"error: {printable(_one_line(error))}; run with --debug for the traceback")
            raise typer.Exit(1) from None

    return run


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does: temporary files go."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is None:
        yield  # no place for handlers, or one that Python could not restore
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _close_pipe() -> NoReturn:
    """The reader, such as head, has seen enough: that is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(BROKEN_PIPE) from None


def say(message: str) -> None:
    """A line on standard error."""
    print(f"stadfast: {message}", file=sys.stderr, flush=True)


def printable(text: object) -> str:
    """Text without control characters: a file's name must not move the cursor or break a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {printable(message)}")


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
