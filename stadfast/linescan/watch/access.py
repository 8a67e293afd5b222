"""Who may see the page."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from http.cookies import CookieError, SimpleCookie

from ...errors import UsageError

_SHORTEST_TOKEN = 16


class Access:
    """Decides about requests: by the name under which the page is asked for, and by a token, if there is one.

    A page on this machine's loopback needs no token; at any other address it does.

    Args:
        host: the address the page is served at.
        token: 16 characters or more, printable ASCII without spaces; None: none is asked for.

    Raises:
        UsageError: an address other than the loopback without a token, or a token that is none.
    """

    def __init__(self, host: str, token: str | None) -> None:
        if token is None and not is_loopback(host):
            raise UsageError(
                f"host: {host} can be reached by others, who need a token: give one (--token-file), or serve the page "
                f"at 127.0.0.1"
            )
        if token is not None:
            fine = token.isascii() and token.isprintable() and " " not in token
            if not fine or len(token) < _SHORTEST_TOKEN:
                raise UsageError(
                    f"token: expected {_SHORTEST_TOKEN} or more printable ASCII characters without spaces, got "
                    f"{len(token)} characters" + ("" if fine else ", others among them")
                )
        self._token = None if token is None else token.encode()
        # A name can be made to mean any address (DNS rebinding); these names, and addresses themselves, cannot.
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    def knows(self, hosts: list[str]) -> bool:
        """Whether a request's Host headers are one name of this page, with any port (it may be forwarded)."""
        if len(hosts) != 1:
            return False
        name, bracket, rest = hosts[0].strip().lower().removeprefix("[").partition("]")
        if not bracket:
            name, _, rest = name.partition(":")
        if rest.removeprefix(":").strip("0123456789"):
            return False
        return name in self._names or _address(name) is not None

    def admits(self, token: str | None, authorization: str | None, cookies: str | None, port: int) -> bool:
        """Whether a request shows the token: in the query, as ``Authorization: Bearer``, or by the page's cookie."""
        if self._token is None:
            return True
        shown = [token.encode()] if token is not None else []
        scheme, _, value = (authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            shown.append(value.strip().encode())
        try:
            cookie = SimpleCookie(cookies or "").get(_cookie_name(port))
        except CookieError:
            cookie = None
        found = [hmac.compare_digest(one, self._token) for one in shown]
        found.append(hmac.compare_digest(cookie.value.encode() if cookie else b"", self._pass().encode()))
        return any(found)

    def cookie(self, port: int) -> str | None:
        """The cookie for a browser that has shown the token."""
        if self._token is None:
            return None
        return f"{_cookie_name(port)}={self._pass()}; Path=/; HttpOnly; SameSite=Strict"

    def _pass(self) -> str:
        """What the cookie holds: it follows from the token, and does not tell it."""
        assert self._token is not None
        return hmac.new(self._token, b"stadfast watch", hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which nobody else can reach."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _cookie_name(port: int) -> str:
    return f"stadfast_{port}"  # cookies are not kept apart by port: two pages on a machine need two names
