"""The camera's thread: from a source into the acquisition ring."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

import numpy as np

from ..errors import RingClosedError
from .ring import RowRing
from .sources.base import Block, Notice, Source

POLL_S = 0.1  # how long a source may take to see that it is to stop


def format_of(block: Block) -> tuple[int, int, str]:
    """(width, channels, dtype): what all lines of a strip have in common."""
    return block.rows.shape[1], block.rows.shape[2], block.rows.dtype.name


class Feed(threading.Thread):
    """Pushes a source's lines into a ring until the source ends or fails, or its lines change their format.

    While it reads or pushes, the inspector computes: waiting, copying and decoding go without the interpreter's lock.

    Args:
        source: open; nobody else reads from it meanwhile.
        first: the first lines, read already.
        ring: for lines of this format.
        notices: where the source's notices go.

    Attributes:
        next: after the end: lines of another format, with which the next strip begins.
        error: after the end: what the source raised.
    """

    def __init__(self, source: Source, first: Block, ring: RowRing, notices: SimpleQueue[Notice]) -> None:
        super().__init__(name="stadfast-camera", daemon=True)
        self._source, self._first, self._ring, self._notices = source, first, ring, notices
        self._stopping = False
        self._reading_since: float | None = None
        self.next: Block | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        block: Block | None = self._first
        wanted = format_of(self._first)
        try:
            while block is not None and not self._stopping:
                for notice in block.notices:
                    self._notices.put(notice)
                if len(block.rows):
                    if format_of(block) != wanted:
                        self.next = block._replace(notices=())
                        return
                    self._reading_since = None
                    self._ring.push(np.ascontiguousarray(block.rows), block.timestamps, block.encoder)
                if self._reading_since is None:
                    self._reading_since = time.monotonic()
                block = self._source.read(POLL_S)
        except RingClosedError:
            pass
        except Exception as error:
            self.error = error
        finally:
            self._ring.close()

    def idle(self) -> float:
        """Seconds since the last line, during which there was room for more."""
        since = self._reading_since
        return 0.0 if since is None else time.monotonic() - since

    def end(self) -> None:
        """Read no more; what is waiting for room in the ring still comes. Called until the ring is closed."""
        self._stopping = True
        if self._reading_since is not None:  # not to wait for a source that hangs
            self._ring.close()

    def stop(self) -> None:
        """No more lines: those in the ring can still be taken."""
        self._stopping = True
        self._ring.close()
