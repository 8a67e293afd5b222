"""What the operator's page says: messages, defects, thumbnails."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import webs
from pages import PATIENCE_S, STATUS, Live, events, get, message, serving
from PIL import Image

from stadfast.linescan import Inspector, Notice, pictures
from stadfast.linescan.sources import ArraySource

HOSTILE = "<script>alert(1)</script>\"'&\r\n\r\ndata: {}\x1b[2J\u202e\udcff.png"


def test_messages_hold_what_is_new(page):
    with Live(page) as client:
        first = client.next()
        assert first["run"]["threshold"] == 0.5
        assert (first["status"], first["defects"], first["notices"], first["rows_age"]) == (
            None,
            [],
            [],
            None,
        )
        found = events(3)
        page.status(STATUS)
        page.notice(Notice("gap", "21 lines lost", 70, {"lines": 21}))
        page.event(found[0])
        seen = {"defects": [], "notices": []}
        while not (seen["defects"] and seen["notices"]):
            said = client.next()
            assert "run" not in said
            for key in seen:
                seen[key] += said[key]
        assert {**said["status"], "age": 0} == {**STATUS.record(), "age": 0}
        assert 0 <= said["status"]["age"] < PATIENCE_S
        assert [(n["kind"], n["message"], n["fault"]) for n in seen["notices"]] == [
            ("gap", "21 lines lost", True)
        ]
        (defect,) = seen["defects"]
        assert defect["lines"] == list(found[0].defect.rows)
        assert defect["over"] == pytest.approx(2)
        serial = said["serial"]
        said = client.next()  # a heartbeat: ages go on, nothing is said twice
        assert (said["defects"], said["notices"], said["serial"]) == ([], [], serial)
        page.event(found[1])
        while not (said := client.next())["defects"]:
            pass
        assert [d["id"] for d in said["defects"]] == [1]


def test_hostile_names_arrive_as_text():
    with serving(source=HOSTILE) as page:
        page.notice(Notice("unreadable", HOSTILE + "x" * 10_000))
        said = message(page)
        assert said["run"]["source"] == HOSTILE
        assert said["notices"][0]["message"] == (HOSTILE + "x" * 500)[:500]


def test_growing_defects_are_one():
    with serving(stay=True) as page:
        recorder = webs.Recorder()
        lines = webs.web(900, 32, [(100, 700, 4, 12)])
        Inspector(webs.Brightness, ArraySource(lines), [recorder, page], threshold=0.5, max_length=200).run()
        assert [event.defect.growing for event in recorder.events[:2]] == [True, True]
        (defect,) = message(page)["defects"]
        assert (defect["id"], defect["growing"], defect["lines"]) == (0, False, [100, 700])


def test_what_is_kept_is_bounded(page):
    (event,) = events(1)
    for number in range(500):
        page.event(replace(event, defect=replace(event.defect, id=number)))
        page.notice(Notice("gap", str(number)))
    page.event(replace(event, defect=replace(event.defect, id=500, absorbed=(499, 498))))
    said = message(page)
    assert [d["id"] for d in said["defects"]] == [*range(400, 498), 500]
    assert [n["message"] for n in said["notices"]] == [str(n) for n in range(450, 500)]
    assert get(page, "/thumbnail/399")[0] == get(page, "/thumbnail/499")[0] == 404


def test_thumbnails(page):
    (event,) = events(1)
    page.event(event)
    status, headers, body = get(page, "/thumbnail/0?v=x.1")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    picture = np.array(Image.open(io.BytesIO(body)))
    height, width = event.thumbnail.shape[:2]
    assert picture.shape == (height, 2 * width + 2, 3)
    assert np.array_equal(picture[:, :width], np.broadcast_to(event.thumbnail, (height, width, 3)))
    assert np.array_equal(
        picture[:, width + 2 :], pictures.PALETTE[pictures.levels(event.thumbnail_map, 0.5)]
    )
    page.event(replace(event, defect=replace(event.defect, id=1), thumbnail=None, thumbnail_map=None))
    assert get(page, "/thumbnail/1")[0] == 404
    urls = [defect["thumbnail"] for defect in message(page)["defects"]]
    assert re.fullmatch(r"thumbnail/0\?v=[0-9a-f]{8}\.[0-9]+", urls[0])
    assert urls[1] is None
