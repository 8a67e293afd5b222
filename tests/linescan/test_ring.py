"""The acquisition ring: order, losses, waiting, and who owns the memory."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from stadfast.errors import RingClosedError, RingError, RingTimeoutError, StadfastError, UsageError
from stadfast.linescan import Gap, RowRing

ROOT = Path(__file__).resolve().parents[2]
POLICIES = ("block", "drop_oldest", "drop_newest")
SOON = 0.02  # seconds
LONG = 30.0
AT_WORK = 0.5  # until another thread is surely at it, on a busy machine, too


def make_lines(
    first: int, count: int, width: int = 10, channels: int = 1, dtype: str = "uint8"
) -> np.ndarray:
    """Each value tells the line and the place in it."""
    values = np.arange(first, first + count)[:, None] * 7 + np.arange(width * channels)
    return (values % 251).astype(dtype).reshape(count, width, channels)


@contextmanager
def running(function: object, *arguments: object) -> Iterator[threading.Thread]:
    """A thread that has to end by itself; its exceptions are the test's."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            function(*arguments)  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    yield thread
    thread.join(LONG)
    assert not thread.is_alive()
    assert errors == []


def numbers(ring: RowRing, rows: int = 1) -> list[int]:
    """The numbers of all lines that can be taken; the stream has ended."""
    found: list[int] = []
    while (view := ring.take(rows)) is not None:
        found += view.lines.tolist()
    return found


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(("width", "channels"), [(10, 1), (64, 1), (21, 3)])
def test_lines_come_out_as_they_went_in(width: int, channels: int, dtype: str) -> None:
    """Pushes and views of changing sizes, many times around the ring."""
    ring, rng = RowRing(width, 37, channels, dtype), np.random.default_rng(0)
    pushed = taken = 0
    while taken < 3000:
        count = int(rng.integers(0, 37 - ring.counts().unread + 1))
        stamps = np.arange(pushed, pushed + count)
        lines = make_lines(pushed, count, width, channels, dtype)
        assert ring.push(lines, timestamps=stamps * 10, encoder=stamps * 3) == count
        pushed += count
        if pushed == taken:
            continue
        wanted = int(rng.integers(1, pushed - taken + 1))
        view = ring.take(wanted)
        assert view is not None
        assert view.rows.shape == (wanted, width, channels)
        assert np.array_equal(view.rows, make_lines(taken, wanted, width, channels, dtype))
        assert view.lines.tolist() == list(range(taken, taken + wanted))
        assert np.array_equal(view.timestamps, view.lines * 10)
        assert np.array_equal(view.encoder, view.lines * 3)
        assert view.rows.flags.c_contiguous or width * channels * ring.dtype.itemsize % 64
        taken += wanted
        del view
    assert ring.counts().lost == 0
    assert ring.pop_gaps() == []


def test_what_pushes_may_bring() -> None:
    ring = RowRing(6, 20)
    image = make_lines(0, 12, 8)[:, :6]  # lines with something between them
    ring.push(image[::2])
    ring.push(image[:1, :, 0])
    ring.push(np.empty((0, 6), np.uint8))
    before = time.monotonic_ns()
    ring.push(image[:2])
    view = ring.take(9)
    assert view is not None
    assert np.array_equal(view.rows, np.concatenate([image[::2], image[:1], image[:2]]))
    assert view.encoder.tolist() == list(range(9))
    assert before <= view.timestamps[7] == view.timestamps[8] <= time.monotonic_ns()
    assert view.timestamps[0] < before


@pytest.mark.parametrize("policy", POLICIES)
def test_a_fast_camera(policy: str) -> None:
    """Every line is taken or in a gap, once; the consumer holds views meanwhile."""
    ring, total, rng = RowRing(10, 64, overrun=policy), 20_000, np.random.default_rng(1)

    def camera() -> None:
        sizes, first, stored = np.random.default_rng(2), 0, 0
        while first < total:
            count = min(int(sizes.integers(1, 30)), total - first)
            stored += ring.push(make_lines(first, count), encoder=np.arange(first, first + count) * 3)
            first += count
        ring.close()
        assert policy == "drop_oldest" or stored == total - ring.counts().lost

    gaps: list[Gap] = []
    seen = np.zeros(total, int)
    held = []
    with running(camera):
        while (view := ring.take(int(rng.integers(1, 25)))) is not None:
            held.append(view)
            if len(held) == 3:
                old = held.pop(int(rng.integers(3)))  # any order
                assert np.array_equal(old.encoder, old.lines * 3)
                assert np.array_equal(old.rows[:, 0, 0], old.lines * 7 % 251)
                assert np.array_equal(old.rows[:, 9, 0], (old.lines * 7 + 9) % 251)
                seen[old.lines] += 1
                del old
            gaps += ring.pop_gaps()
            del view
            if policy != "block":
                time.sleep(2e-5)
    for view in held:
        seen[view.lines] += 1
    for line, count in gaps + ring.pop_gaps():
        seen[line : line + count] += 1
    assert (seen == 1).all()
    counts = ring.counts()
    assert (counts.pushed, counts.unread) == (total, 0)
    assert counts.taken + counts.lost == total
    assert (counts.lost == 0) == (policy == "block")


@pytest.mark.parametrize(
    ("policy", "left", "gaps"),
    [("drop_oldest", range(15, 25), [(0, 15)]), ("drop_newest", range(10), [(10, 15)])],
)
@pytest.mark.parametrize("size", [1, 4, 25])
def test_losses_without_views(policy: str, left: range, gaps: list[tuple[int, int]], size: int) -> None:
    ring = RowRing(10, 10, overrun=policy)
    stored = sum(ring.push(make_lines(i, min(size, 25 - i))) for i in range(0, 25, size))
    assert stored == (25 if policy == "drop_oldest" else 10)
    assert (ring.counts().lost, ring.counts().unread) == (15, 10)
    ring.close()
    assert numbers(ring, 3) == list(left)
    assert ring.pop_gaps() == gaps
    assert ring.pop_gaps() == []


def test_the_newest_lines_pass_over_a_view() -> None:
    ring = RowRing(64, 64, overrun="drop_oldest")
    ring.push(make_lines(0, 64, 64))
    view = ring.take(20)
    assert view is not None
    for first in range(64, 500, 4):
        ring.push(make_lines(first, 4, 64))
    assert np.array_equal(view.rows, make_lines(0, 20, 64))  # untouched for many rounds
    counts = ring.counts()
    assert (counts.unread, counts.lost, counts.lent) == (44, 500 - 44 - 20, 20)
    ring.close()
    assert numbers(ring, 30) == list(range(456, 500))
    assert sum(gap.lines for gap in ring.pop_gaps()) == counts.lost


def test_block_with_a_timeout() -> None:
    ring = RowRing(10, 8)
    start = time.monotonic()
    assert ring.push(make_lines(0, 11), timeout=SOON) == 8
    assert SOON <= time.monotonic() - start < LONG
    assert ring.push(make_lines(11, 1), timeout=0) == 0
    assert (ring.counts().pushed, ring.counts().lost) == (12, 4)
    ring.close()
    assert numbers(ring) == list(range(8))
    assert ring.pop_gaps() == [Gap(8, 4)]


def test_block_waits_for_room_without_the_gil() -> None:
    ring = RowRing(10, 8)
    with running(ring.push, make_lines(0, 100)) as camera:
        time.sleep(SOON)
        assert camera.is_alive()
        taken = 0
        while taken < 100:
            with ring.take(min(8, 100 - taken), timeout=LONG) as view:
                taken += len(view)
    assert ring.counts().lost == 0
    assert ring.counts().taken == 100


def test_take_waits_for_all_its_rows() -> None:
    ring = RowRing(10, 50)
    ring.push(make_lines(0, 3))
    with pytest.raises(RingTimeoutError, match=r"take: no 5 lines within 0.02 s \(3 came\)"):
        ring.take(5, timeout=SOON)
    timer = threading.Timer(SOON, ring.push, [make_lines(3, 2)])
    timer.start()
    view = ring.take(5, timeout=LONG)
    assert view is not None
    assert view.lines.tolist() == [0, 1, 2, 3, 4]


def test_closing_ends_all_waiting() -> None:
    ring = RowRing(10, 50)
    ring.push(make_lines(0, 3))
    threading.Timer(SOON, ring.close).start()
    view = ring.take(5)
    assert view is not None
    assert view.lines.tolist() == [0, 1, 2]
    assert ring.take(5) is None
    assert ring.closed
    with pytest.raises(RingClosedError, match="push: the ring is closed"):
        ring.push(make_lines(0, 1))
    full = RowRing(10, 4)
    threading.Timer(SOON, full.close).start()
    assert full.push(make_lines(0, 9)) == 4  # waits for room until the end
    assert numbers(full) == [0, 1, 2, 3]
    assert full.pop_gaps() == [Gap(4, 5)]


def test_a_view_keeps_its_lines_until_the_last_array_is_gone() -> None:
    ring = RowRing(10, 16)
    ring.push(make_lines(0, 16))
    view = ring.take(8)
    assert view is not None
    part = torch.from_numpy(view.rows)[2:4]
    with view:
        assert ring.counts().lent == 8
    assert not hasattr(view, "rows")
    assert ring.counts().lent == 8  # the tensor has them
    assert ring.push(make_lines(16, 4), timeout=0) == 0
    assert np.array_equal(part.numpy(), make_lines(2, 2))
    del part
    gc.collect()
    assert ring.counts().lent == 0
    assert ring.push(make_lines(20, 8), timeout=0) == 8


def test_a_view_keeps_the_ring() -> None:
    ring = RowRing(10, 16)
    ring.push(make_lines(0, 16))
    view = ring.take(16)
    del ring
    gc.collect()
    assert view is not None
    assert np.array_equal(view.rows, make_lines(0, 16))
    view.rows[:] = 0  # its own memory, as far as anybody sees


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("stadfast-ring")


def test_a_ring_that_nobody_has_gives_its_memory_back() -> None:
    before = mappings()
    for _ in range(5):
        ring = RowRing(1000, 100)
        ring.push(make_lines(0, 5, 1000))
        view = ring.take(5)
        del ring
        assert mappings() >= before + 1
        del view
    gc.collect()
    assert mappings() == before


@pytest.mark.parametrize("policy", POLICIES)
def test_views_that_hold_too_much(policy: str) -> None:
    ring = RowRing(10, 16, overrun=policy)
    ring.push(make_lines(0, 16))
    view = ring.take(10)
    rest = ring.take(6)
    assert rest is not None
    with pytest.raises(RingError, match="views hold all 16 lines"):
        ring.take(1)
    if policy != "block":
        assert ring.push(make_lines(16, 3)) == 0
    rest.release()
    with running(ring.push, make_lines(19, 7), None, None, SOON):
        short = ring.take(9, timeout=LONG)  # nine cannot come while `view` is held
    assert short is not None
    assert len(short) == 6
    assert view is not None
    assert np.array_equal(view.rows, make_lines(0, 10))


def test_one_thread_on_each_side() -> None:
    ring = RowRing(10, 4)
    with running(ring.take, 2, LONG):
        time.sleep(AT_WORK)
        with pytest.raises(RingError, match="another thread is taking"):
            ring.take(1)
        ring.push(make_lines(0, 2))
    ring.push(make_lines(2, 4))
    with running(ring.push, make_lines(6, 2)):
        time.sleep(AT_WORK)
        with pytest.raises(RingError, match="another thread is pushing"):
            ring.push(make_lines(0, 1))
        ring.take(2)


@pytest.mark.parametrize("side", ["take", "push"])
def test_signals_end_waiting(side: str) -> None:
    ring = RowRing(10, 4)
    wait = {"take": lambda: ring.take(1), "push": lambda: ring.push(make_lines(0, 5))}[side]

    def wait_and_be_interrupted() -> None:  # on a busy machine perhaps before the wait
        threading.Timer(SOON, os.kill, [os.getpid(), signal.SIGINT]).start()
        wait()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            wait_and_be_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    counts = ring.counts()
    assert (counts.pushed, counts.lost) == ((0, 0) if side == "take" else (5, 1))


def test_pushing_through_the_c_functions() -> None:
    """As a camera's SDK would, on a thread that knows no Python."""
    ring = RowRing(10, 100, overrun="drop_newest")
    library = ctypes.CDLL(str(RowRing.library()))
    push = library.stadfast_ring_push
    push.restype = ctypes.c_int64
    push.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_void_p] * 2 + [ctypes.c_int64]
    buffer = np.zeros((30, 16), np.uint8)  # lines of a camera's buffer, padded
    buffer[:, :10] = make_lines(0, 30)[:, :, 0]
    stamps = np.arange(30, dtype=np.int64)
    pixels, times = buffer.ctypes.data, stamps.ctypes.data
    assert push(ring.handle, pixels, 30, 16, times, None, -1) == 30
    assert push(ring.handle, pixels, 10, 9, None, None, -1) == -2
    assert push(ring.handle, None, 1, 0, None, None, -1) == -2
    assert push(None, pixels, 1, 0, None, None, -1) == -2
    library.stadfast_ring_close(ctypes.c_void_p(ring.handle))
    assert push(ring.handle, pixels, 1, 0, None, None, -1) == -1
    view = ring.take(100)
    assert view is not None
    assert np.array_equal(view.rows, make_lines(0, 30))
    assert view.timestamps.tolist() == stamps.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width: expected a whole number from 1, got 0"),
        ({"capacity": 1.5}, "capacity: .* got 1.5"),
        ({"channels": True}, "channels: .* got True"),
        ({"dtype": "float32"}, "dtype: expected uint8 or uint16, got 'float32'"),
        ({"dtype": "nonsense"}, "dtype: .*'nonsense'"),
        ({"overrun": "drop"}, "overrun: expected one of block, drop_oldest, drop_newest, got 'drop'"),
        ({"capacity": 2**50}, "width, channels and capacity"),
    ],
)
def test_wrong_arguments(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RowRing(**{"width": 8, "capacity": 8, **change})


def test_more_memory_than_there_is() -> None:
    program = """
import resource
from stadfast.linescan import RowRing
RowRing(8, 8)
resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
try:
    RowRing(2**20, 2**17)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("RingError capacity: cannot allocate 131072 MiB for 131072 lines"), (
        done.stderr
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (np.zeros((2, 9), np.uint8), r"lines: expected \(n, 10, 1\) or \(n, 10\), got \(2, 9, 1\)"),
        (np.zeros((2, 10)), "lines: expected a uint8 array .* got float64"),
        ([[0] * 10], "lines: .* got list"),
        (np.zeros(10, np.uint8), "lines: "),
        (np.zeros((2, 20), np.uint8)[:, ::2], "lines: expected dense lines"),
        (np.zeros((2, 10), np.uint8)[::-1], "lines: expected dense lines"),
        (np.broadcast_to(np.zeros(10, np.uint8), (5, 10)), "lines: expected dense lines"),
    ],
)
def test_wrong_lines(lines: np.ndarray, message: str) -> None:
    ring = RowRing(10, 8)
    with pytest.raises(UsageError, match=message):
        ring.push(lines)
    assert ring.counts().pushed == 0


def test_wrong_numbers() -> None:
    ring = RowRing(10, 8)
    for change in ({"timestamps": [1]}, {"encoder": [1.0, 2.0]}, {"timeout": -1}, {"timeout": float("nan")}):
        with pytest.raises(UsageError, match=next(iter(change))):
            ring.push(make_lines(0, 2), **change)
    for rows in (0, 9, 2.0, True):
        with pytest.raises(UsageError, match="rows: expected a whole number from 1 to 8"):
            ring.take(rows)  # type: ignore[arg-type]


def test_without_a_compiler_the_error_names_what_is_missing(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from stadfast.linescan import RowRing, _extension
from stadfast.ops import _library
_library.is_current = lambda path, fingerprint: False  # nothing was compiled ahead of time
try:
    RowRing(8, 8)
except ImportError as error:
    print(type(error).__name__, error)
"""
    environment = {**os.environ, "PATH": "", "CXX": "no-such-compiler", "STADFAST_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("ExtensionError the line-scan ring and tracker are compiled code"), (
        done.stderr
    )
    assert (
        "no C++ compiler (c++ or g++) found; install a C++ compiler (such as: apt install g++)" in done.stdout
    )
    assert issubclass(RingTimeoutError, StadfastError)
