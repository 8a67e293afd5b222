"""What the operator's page shows: the moving strip and its map."""

from __future__ import annotations

import json

import numpy as np
import pytest
import webs
from pages import frame, get, message, until

from stadfast.linescan import Notice, pictures
from stadfast.linescan.watch import server, waterfall


def test_a_frame_shows_the_lines_and_their_map(page):
    lines = webs.web(200, 48, [(50, 60, 4, 20)], channels=3)
    page.rows(lines, lines[:, :, 0].astype(np.float32) / 255, 1000)
    head, image, heat = frame(page)
    assert (head["scale"], head["segments"], head["breaks"]) == (1, [[0, 200, 1000, 1200]], [])
    assert np.abs(image.astype(int) - lines).mean() < 3  # JPEG
    assert np.array_equal(heat, pictures.levels(lines[:, :, 0] / np.float32(255), 0.5))


@pytest.mark.parametrize(
    ("dtype", "channels", "width"), [(np.uint8, 1, 4096), (np.uint16, 3, 2001), (np.uint8, 3, 7)]
)
def test_drawn_down_to_the_pages_width(page, dtype, channels, width):
    """Pushes of any size; one pixel of the map is seen however many there are, the last column's, too."""
    white = np.iinfo(dtype).max
    lines = np.full((333, width, channels), white // 2, dtype)
    lines[:, : width // 2] = white
    map = np.full((333, width), 0.05, np.float32)
    map[100, width - 1] = 5.0
    for start in range(0, 333, 31):
        page.rows(lines[start : start + 31], map[start : start + 31], start)
    head, image, heat = frame(page)
    scale = head["scale"]
    assert scale == -(-width // 960)
    assert head["columns"] == -(-width // scale) <= 960
    assert head["rows"] == 333 // scale
    assert head["segments"] == [[0, 333 // scale, 0, 333]]
    third = head["columns"] // 3
    assert image[:, :third].mean() == pytest.approx(255, abs=8)  # JPEG
    assert image[:, -third:].mean() == pytest.approx(127, abs=8)
    assert np.argwhere(heat == heat.max()).tolist() == [[100 // scale, head["columns"] - 1]]
    assert (heat.max(), heat.min()) == (255, 0)


def test_lost_lines_leave_a_mark(page):
    lines, map = np.full((100, 2000, 1), 99, np.uint8), np.ones((100, 2000), np.float32)
    page.rows(lines, map, 0)  # 3 lines in a row of the picture: one is left over
    page.rows(lines, map, 1112)
    page.notice(Notice("reopened", "..."))
    page.rows(lines, map, 1212)
    head, image, _ = frame(page)
    assert head["breaks"] == [[34, 10, "1,012 lines lost"], [78, 10, "the source came back"]]
    assert head["segments"] == [[0, 34, 0, 100], [44, 34, 1112, 1212], [88, 33, 1212, 1312]]
    assert (image[36:42] < 9).all()
    assert (image[50:70] > 90).all()


def test_another_format_begins_another_strip(page):
    for width, channels, first in ((32, 1, 0), (48, 3, 100)):
        page.rows(np.zeros((100, width, channels), np.uint8), np.zeros((100, width), np.float32), first)
    page.rows(np.zeros((100, 48, 3), np.uint8), np.zeros((100, 48), np.float32), 200)
    head, _, _ = frame(page)
    assert head["segments"] == [[0, 200, 100, 300]]


def test_the_oldest_rows_leave_the_picture(page):
    for first in range(0, 6000, 100):
        page.rows(np.zeros((100, 8, 1), np.uint8), np.zeros((100, 8), np.float32), first)
        if first == 1000:
            frame(page)
    head, _, _ = frame(page, after=11)
    (row, rows, first, end) = head["segments"][-1]
    assert head["rows"] == head["most_rows"] == row + rows
    assert (rows, end) == (end - first, 6000)
    assert first + 960 - rows <= 6000 - 960 + waterfall._BREAK_ROWS


def test_nobody_looks():
    """Nothing is drawn, and what waits is bounded; who comes later sees the newest lines, and what is missing."""
    falls = waterfall.Waterfall()
    map = np.zeros((64, 3000), np.float32)
    falls.add(np.zeros((64, 3000, 3), np.uint8), map, 0)
    assert falls.newest(0, 0.0) is None
    assert falls.paint(0.0)
    assert not falls.paint(0.0)
    for block in range(1, 1000):
        falls.add(np.zeros((64, 3000, 3), np.uint8), map, 64 * block)
        falls.interrupt("again and again")
        assert not falls.paint(0.0)
    assert falls._bytes == sum(
        a.nbytes + b.nbytes for a, b, _ in (i for i in falls._waiting if type(i) is tuple)
    )
    assert falls._bytes <= waterfall._WAITING_BYTES
    assert falls.newest(1, 0.0) is None
    assert falls.paint(0.0)
    body = falls.newest(1, 0.0).body
    head = json.loads(body[4 : 4 + int.from_bytes(body[:4], "big")])
    assert head["segments"][-1][3] == 64_000


def test_lines_that_were_not_drawn_are_not_lost():
    falls = waterfall.Waterfall()
    rows = np.zeros((100, 8, 1), np.uint8), np.zeros((100, 8), np.float32)
    falls.add(*rows, 0)
    falls.newest(0, 0.0)
    assert falls.paint(0.0)
    for first in range(100, 1300, 100):
        falls.add(*rows, first + (7 if first > 150 else 0))
    with falls._changed:
        skipped = falls._skipped
    assert skipped == 200
    words = []
    falls._break = words.append
    falls.newest(1, 0.0)
    falls.paint(0.0)
    assert words[0] == "200 lines not drawn, 7 lines lost"


def test_a_drawing_that_fails_is_said(page, monkeypatch):
    monkeypatch.setattr(server, "_FRAME_WAIT_S", 0.1)
    monkeypatch.setattr(waterfall.Waterfall, "_picture", lambda self: 1 / 0)
    page.rows(np.zeros((9, 9, 1), np.uint8), np.zeros((9, 9), np.float32), 0)
    assert get(page, "/frame")[0] == 204
    until(lambda: message(page)["notices"])
    assert "ZeroDivisionError" in message(page)["notices"][0]["message"]
