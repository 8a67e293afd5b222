"""Who may see the operator's page, and what it serves: itself, and nothing else."""

from __future__ import annotations

import contextlib
import re
import socket
import urllib.parse

import numpy as np
import pytest
from pages import TOKEN, Live, ask, events, get, serving

from stadfast.errors import UsageError
from stadfast.linescan import OperatorPage
from stadfast.linescan.watch import server
from stadfast.linescan.watch.access import Access


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "inspection.example", ""])
def test_others_need_a_token(host):
    with pytest.raises(UsageError, match="token"):
        OperatorPage(0, host)
    OperatorPage(0, host, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_the_loopback_needs_none(host):
    OperatorPage(0, host)


@pytest.mark.parametrize(
    "token", ["", "short", "with spaces in between it", "uml\u00e4ut" * 4, "line\nbreak" * 3]
)
def test_tokens_that_are_none(token):
    with pytest.raises(UsageError, match="token: expected 16") as caught:
        OperatorPage(0, token=token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("port", [-1, 65536, "80", True, None])
def test_ports_that_are_none(port):
    with pytest.raises(UsageError, match="port"):
        OperatorPage(port)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8765", True),
        ("LOCALHOST:1", True),  # a forwarded port
        ("localhost", True),
        ("[::1]:8765", True),
        ("10.0.0.7", True),
        (socket.gethostname(), True),
        ("evil.example", False),
        ("evil.example:8765", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("localhost@evil.example", False),
        ("localhost:80x", False),
        ("", False),
    ],
)
def test_names_under_which_the_page_is_asked_for(host, known):
    assert Access("127.0.0.1", None).knows([host]) == known
    assert not Access("127.0.0.1", None).knows([host, host])
    assert not Access("127.0.0.1", None).knows([])
    assert Access("Inspection.example", TOKEN).knows(["inspection.example:80"])


def test_rebound_names_are_refused(page):
    """A page of evil.example whose name now means 127.0.0.1 reads nothing."""
    for path in ("/", "/live", "/frame", "/thumbnail/0", "/nothing"):
        status, _, body = get(page, path, {"Host": f"evil.example:{page.port}"})
        assert (status, body) == (421, b"this page has another name\n")
    assert get(page, headers={"Host": f"localhost:{page.port}"})[0] == 200
    assert ask(page, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")
    twice = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert ask(page, twice).startswith(b"HTTP/1.1 421")


def test_without_the_token_there_is_nothing_to_see():
    with serving(TOKEN, source="secret web") as page:
        for path in ("/", "/live", "/frame", "/thumbnail/0", "/nothing", "/?token=", f"/?token={TOKEN}x"):
            status, headers, body = get(page, path)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert b"secret" not in body
            assert TOKEN.encode() not in body
            assert "Set-Cookie" not in headers
        wrong = [
            {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"},
            {"Cookie": f"stadfast_{page.port}={TOKEN}"}, {"Cookie": "\x80;=;;"}, {"Authorization": "Bearer \xff"},
        ]  # fmt: skip
        for headers in wrong:
            assert get(page, headers=headers)[0] == 401
        assert get(page, f"/frame?token={TOKEN}")[0] == 401  # once, for the page


def test_the_token_once_then_a_cookie():
    with serving(TOKEN) as page, serving(TOKEN + "2") as other:
        status, headers, body = get(page, "/?" + urllib.parse.urlencode({"token": TOKEN}))
        assert (status, body) == (200, server.page()[0])
        cookie, *attributes = headers["Set-Cookie"].split("; ")
        assert set(attributes) == {"Path=/", "HttpOnly", "SameSite=Strict"}
        assert TOKEN not in cookie
        assert get(page, "/nothing", {"Cookie": cookie})[0] == 404
        with Live(page, Cookie=f"a=b; {cookie}") as client:
            assert client.next()["run"]["source"] == "a web"
        with Live(page, Authorization=f"Bearer {TOKEN}") as client:
            assert client.next()["run"]["source"] == "a web"
        assert get(other, "/", {"Cookie": cookie.replace(str(page.port), str(other.port))})[0] == 401


def test_other_methods_are_refused(page):
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        assert get(page, method=method)[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        "/page.html", "/server.py", "/../../../../etc/passwd", "/thumbnail/../../page.html", "/thumbnail/%2e%2e",
        "/thumbnail/", "/thumbnail/-1", "/thumbnail/1e3", "/thumbnail/99999", "/live/", "/frame/x", "http://[/", "*",
        "//etc", "/thumbnail/" + "9" * 5000,
    ],
)  # fmt: skip
def test_nothing_else_is_served(page, path):
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    assert re.match(rb"HTTP/1\.1 40[04] ", ask(page, request))


def test_bad_requests_do_no_harm(page, capfd):
    for request in (b"\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
                    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n"):  # fmt: skip
        with contextlib.suppress(ConnectionError):
            assert b" 200 " not in ask(page, request)
    for after in ("x", "-1", "1" * 100, "%00"):
        assert get(page, f"/frame?after={after}")[0] == 400
    assert get(page)[0] == 200
    assert capfd.readouterr().err == ""


def test_headers_on_everything(page):
    page.event(events(1)[0])
    page.rows(np.zeros((9, 9, 1), np.uint8), np.zeros((9, 9), np.float32), 0)
    for path in ("/", "/frame", "/thumbnail/0", "/nothing", "/favicon.ico"):
        headers = get(page, path)[1]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
        assert re.fullmatch("no-store|private, max-age=3600", headers["Cache-Control"])
        assert "Python" not in headers["Server"]


def test_the_page_is_whole(page):
    """One file, nothing from elsewhere, no code but its own."""
    status, headers, body = get(page)
    text = body.decode()
    assert status == 200
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert all(re.fullmatch(r"'sha256-[\w+/]+='", policy[kind]) for kind in ("script-src", "style-src"))
    assert not re.search(
        r"https?://|//\w|@import|url\(|<link|<iframe|\ssrc=|\son\w+=|\sstyle=|innerHTML|eval\(", text
    )
    assert text.count("<script>") == text.count("<style>") == 1
