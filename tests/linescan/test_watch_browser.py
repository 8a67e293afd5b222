"""The operator's page in a real browser: what a person sees, reads out, and reaches with the keyboard."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import browser as browsers
import numpy as np
import pytest
import webs

from stadfast.linescan import Inspector, Notice, OperatorPage, Run, Status
from stadfast.linescan.sources import ArraySource

HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\u202e\n\x1b[2J.png"
SHOWN = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\\u{202e}\\u{a}\\u{1b}[2J.png"
STATUS = Status("running", 9.0, 5000, 512.3, 0.456, 169, 0.25, 7, 4096, 3, 0, 0, 0, 1, 0)
TOKEN = "open-sesame-0123456789"
BOX = "#56ccf2"


@pytest.fixture(scope="module")
def running():
    path = browsers.find()
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(browsers.NAMES)} found; set STADFAST_BROWSER")
    with browsers.Browser(path) as browser:
        yield browser


@pytest.fixture
def browser(running):
    """Without what an earlier test left."""
    running.call("Network.clearBrowserCookies")
    running.resize(1280, 900)
    running.open("about:blank")
    running.wait("location.href === 'about:blank'")
    running.errors.clear()
    running.requests.clear()
    return running


@pytest.fixture
def page():
    page = OperatorPage(0, stay=True)
    page.open(Run(HOSTILE, 0.5, None))
    yield page
    page.shutdown()


def found():
    """The events of a web with three defects, and its lines."""
    spots = [(100, 120, 30, 60), (400, 440, 100, 220), (500, 503, 5, 250)]
    lines, recorder = webs.web(560, 256, spots, channels=3), webs.Recorder()
    Inspector(webs.Brightness, ArraySource(lines), [recorder], threshold=0.5, pixel_pitch=0.25).run()
    assert len(recorder.events) == 3
    return lines, recorder.events


def feed(page, lines, first=0):
    for start in range(0, len(lines), 64):
        rows = lines[start : start + 64]
        page.rows(rows, rows.mean(2, dtype=np.float32) / 255, first + start)


def text(browser, selector):
    return browser.evaluate(f"document.querySelector({selector!r}).innerText")


def says(browser, selector, words):
    browser.wait(f"document.querySelector({selector!r}).innerText.includes({words!r})")


def pixel(browser, row, column):
    """The strip's colour at a row and column of its picture."""
    return browser.evaluate(
        f"""(() => {{
            const canvas = $("strip"), head = strip.head;
            const zoom = Math.min((canvas.clientWidth - AXIS) / head.columns, 3);
            const x = AXIS + ({column} + 0.5) * zoom, y = canvas.clientHeight - (head.rows - {row} - 0.5) * zoom;
            return [...canvas.getContext("2d").getImageData(Math.round(x), Math.round(y), 1, 1).data].slice(0, 3);
        }})()"""
    )


def test_the_page_shows_the_inspection(browser, page):
    lines, events = found()
    browser.open(page.url)
    browser.wait("page.run")
    page.status(STATUS)
    page.notice(Notice("unreadable", HOSTILE))
    feed(page, lines)
    for event in events:
        page.event(event)
    browser.wait("strip.head && strip.head.segments.at(-1)[3] === 560")
    browser.wait("document.querySelectorAll('#defects li').length === 3")
    browser.wait("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    says(browser, "#state", "running")
    # what is hostile is text
    assert text(browser, "#source") == SHOWN
    assert SHOWN in text(browser, "#notices")
    assert browser.evaluate("window.hacked") is None
    # figures, and how old they are
    rates = text(browser, "#rates").split("\n")
    assert {"512", "5,000 in all", "46 %", "0.25 s", "169 lines behind", "3"} <= set(rates)
    assert text(browser, "#status-age").endswith(" ago")
    assert "2.0 × threshold" in text(browser, "#defects li:first-child")
    assert "at 0.125 m, 1.3–62.5 mm" in text(browser, "#defects li:first-child")
    # the strip: dark web, bright spot under the map's colour, black where nothing is
    browser.evaluate("document.querySelector('[value=image]').click()")
    assert max(abs(a - b) for a, b in zip(pixel(browser, 540, 200), lines[540, 200], strict=True)) < 16
    assert min(pixel(browser, 501, 100)) > 200
    browser.evaluate("document.querySelector('[value=over]').click()")
    red, green, blue = pixel(browser, 501, 100)
    assert red > green > blue  # white under the map's colour for twice the threshold
    # nothing went wrong, nothing came from elsewhere
    assert browser.errors == []
    assert {url.split("/")[2] for url in browser.requests if url.startswith("http")} == {
        f"127.0.0.1:{page.port}"
    }


def test_boxes_are_where_the_defects_are(browser, page):
    lines, events = found()
    feed(page, lines)
    browser.open(page.url)
    browser.wait("strip.head")
    page.event(events[1])  # lines 400-439, columns 100-219
    browser.wait("defects.size === 1")
    browser.evaluate("draw()")
    zoom = browser.evaluate("Math.min(($('strip').clientWidth - AXIS) / strip.head.columns, 3)")
    blue = np.array([0x56, 0xCC, 0xF2])
    seen = []
    for row in np.arange(390, 450, 0.5 / zoom):
        if np.abs(np.array(pixel(browser, row, 160)) - blue).max() < 8:
            seen.append(row)
    assert seen, "no box"
    assert min(seen) == pytest.approx(400 - 4 / zoom, abs=3 / zoom)
    assert max(seen) == pytest.approx(440 + 4 / zoom, abs=3 / zoom)


def test_a_narrow_screen(browser, page):
    lines, events = found()
    browser.resize(360, 740)
    browser.open(page.url)
    page.status(STATUS)
    page.notice(Notice("lost", "a" * 300, fault=True))
    feed(page, lines)
    for event in events:
        page.event(event)
    browser.wait("document.querySelectorAll('#defects li').length === 3 && strip.head")
    for view in ("beside", "image", "over"):
        browser.evaluate(f"document.querySelector('[value={view}]').click()")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
    browser.evaluate("select(2)")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # one column, in the order in which it matters
    tops = browser.evaluate(
        "['strip', 'rates', 'defects', 'notices'].map((id) => $(id).getBoundingClientRect().top)"
    )
    assert tops == sorted(tops)


def test_the_keyboard_reaches_everything(browser, page):
    _, events = found()
    browser.open(page.url)
    for event in events:
        page.event(event)
    browser.wait("defects.size === 3")
    reached = []
    for _ in range(12):
        browser.press("Tab", 9)
        reached.append(
            browser.evaluate("document.activeElement.id || document.activeElement.innerText.split('\\n')[0]")
        )
        if reached[-1] == "#2":
            break
    assert "pause" in reached
    assert browser.evaluate("document.activeElement.matches(':focus-visible')")
    browser.press("ArrowDown", 40)
    browser.press("ArrowDown", 40)
    browser.press("ArrowUp", 38)
    browser.press("Enter", 13)
    assert browser.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert "Defect 1\nlines 400–439 (100.0–110.0 mm)\ncolumns 100–219" in text(browser, "#detail")
    page.event(
        replace(events[0], defect=replace(events[0].defect, id=3))
    )  # what comes does not take the focus
    browser.wait("defects.size === 4")
    assert browser.evaluate("document.activeElement.innerText.startsWith('#1')")
    browser.press("Escape", 27)
    assert browser.evaluate(
        "$('detail').hidden && document.activeElement.getAttribute('aria-pressed') === 'false'"
    )
    # every control has a name
    names = browser.evaluate(
        "[...document.querySelectorAll('button, input, meter, img')].map((one) => "
        "(one.ariaLabel || one.alt || one.innerText || one.parentNode.innerText).trim())"
    )
    assert all(names)


def test_pause(browser, page):
    lines, _ = found()
    browser.open(page.url)
    feed(page, lines[:64])
    browser.wait("strip.head")
    browser.evaluate("$('pause').click()")
    assert browser.evaluate("$('pause').getAttribute('aria-pressed')") == "true"
    says(browser, "#strip-age", "paused")
    before = browser.evaluate("strip.number")
    feed(page, lines[64:], 64)
    time.sleep(0.5)
    assert browser.evaluate("strip.number") <= before + 1  # one frame may have been on its way
    browser.evaluate("$('pause').click()")
    browser.wait("strip.head.segments.at(-1)[3] === 560")


def test_what_is_wrong_is_said(browser, page):
    browser.open(page.url)
    says(browser, "#banner", "Waiting")
    lines, _ = found()
    feed(page, lines)
    page.status(STATUS)
    browser.wait("$('banner').hidden")
    page.notice(Notice("stall", "no line", fault=True))
    page.status(replace(STATUS, state="stalled", faults=1))
    says(browser, "#state", "stalled")
    says(browser, "#banner", "Stalled: no lines are coming")
    assert "old" in text(browser, "#banner")
    assert browser.evaluate("document.title").startswith("! stalled")
    page.notice(Notice("lost", HOSTILE, fault=True))
    page.status(replace(STATUS, state="lost", faults=2))
    says(browser, "#banner", "Source lost: <img src=x")
    page.notice(Notice("gap", "1000 lines lost", 560, {"lines": 1000}))
    page.status(replace(STATUS, lost=1000, gaps=1))
    says(browser, "#banner", "1,000 lines lost in 1 places, the last ")
    feed(page, lines, 1560)
    browser.wait("strip.head && strip.head.breaks.some((one) => one[2] === '1,000 lines lost')")
    page.status(replace(STATUS, state="ended"))
    says(browser, "#banner", "The inspection ended")
    assert browser.errors == []


def test_an_inspection_that_failed_is_said(browser, page):
    _, events = found()
    browser.open(page.url)
    page.notice(Notice("error", "the inspection failed: RuntimeError: " + HOSTILE, fault=True))
    page.event(replace(events[0], cut_off=True))
    page.event(replace(events[1], at_gap=True))
    page.status(replace(STATUS, state="failed", faults=1))
    says(browser, "#state", "failed")
    says(browser, "#banner", "The inspection failed")
    assert browser.evaluate("document.title").startswith("! failed")
    assert "RuntimeError: " + SHOWN in text(browser, "#notices")
    browser.wait("defects.size === 2")
    marks = browser.evaluate("[...document.querySelectorAll('#defects mark')].map((one) => one.innerText)")
    assert marks == ["near lost lines", "cut off"]  # the newest defect first
    assert browser.errors == []


def test_another_run_begins_afresh(browser, page):
    _, events = found()
    page.event(events[0])
    browser.open(page.url)
    browser.wait("defects.size === 1")
    page.open(Run("the next web", 0.5, None))
    says(browser, "#source", "the next web")
    assert browser.evaluate("defects.size + document.querySelectorAll('#defects li').length") == 0


def test_a_lost_connection_is_said_and_made_again(browser):
    first = OperatorPage(0)
    first.open(Run("first", 0.5, None))
    first.status(STATUS)
    browser.open(first.url)
    says(browser, "#state", "running")
    first._server.closing.set()  # as if it had died: no last words
    first._server.shutdown()
    first._server.stop()
    says(browser, "#banner", "Connection to the inspector lost")
    assert browser.evaluate("document.body.classList.contains('old')")
    second = OperatorPage(first.port)
    second.open(Run("second", 0.5, None))
    try:
        says(browser, "#source", "second")
        assert browser.evaluate("page.status") is None
    finally:
        second.shutdown()
    says(browser, "#state", "ended")


def test_the_token(browser):
    page = OperatorPage(0, token=TOKEN)
    page.open(Run("a web", 0.5, None))
    try:
        browser.open(page.url)
        browser.wait("document.querySelector('[name=token]')")
        browser.evaluate(f"document.querySelector('[name=token]').value = {TOKEN!r}")
        browser.evaluate("document.querySelector('button').click()")
        browser.wait("page.run")
        assert (
            browser.evaluate("location.href") == page.url
        )  # not in the history, nor over anybody's shoulder
        assert TOKEN not in browser.evaluate("document.cookie")
        browser.open(page.url + "?again")
        browser.wait("page.run")
    finally:
        page.shutdown()


def test_an_inspection_from_end_to_end(browser):
    """Lines that keep coming, a page that keeps up."""
    lines = webs.web(1000, 128, [(200, 230, 30, 60)])
    page = OperatorPage(0)
    inspector = Inspector(
        webs.Brightness, ArraySource(lines, repeat=None), [page], threshold=0.5, status_every=0.1
    )
    thread = threading.Thread(target=inspector.run)
    thread.start()
    try:
        while not page.port:
            time.sleep(0.01)
        browser.open(page.url)
        browser.wait("page.status && strip.head && defects.size > 3")
        number = browser.evaluate("strip.number")
        browser.wait(f"strip.number > {number} + 100")
    finally:
        inspector.stop()
        thread.join()
    says(browser, "#state", "ended")
    assert str(inspector.status.defects) in text(browser, "#banner")
