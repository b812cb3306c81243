"""Who may talk to the page: host names, the token, origins, forms and their size; and what every answer carries."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import secrets
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

LONGEST_BODY = 1 << 20  # bytes of one form
MOST_FIELDS = 2_000  # of one form
WRONG_TOKEN_WAIT_S = 0.5  # one wrong token at a time, so guessing takes for ever

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                               "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: a browser would then send `Origin: null` with the page's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Refuse = Callable[[dict, int, str], Awaitable[Response]]


def is_loopback(host: str) -> bool:
    """Whether a host name or address reaches this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Refused(Exception):
    """A request that is not let through: HTTP status and words for a person."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Guard:
    """ASGI middleware. A POST that passes has its fields in `request.state.form` (dict of texts).

    host: what the server is bound to. token: what a browser must show once (a cookie remembers it) or a script must
    send as `Authorization: Bearer TOKEN`; None on loopback. refuse: makes the answer to a request that is turned away.
    `csrf` is new for every process, so a page of an earlier run cannot label.
    """

    def __init__(self, app, *, host: str, token: str | None, refuse: Refuse):
        self.app, self.token, self.refuse = app, token, refuse
        # Beyond loopback: the names by which other machines may know this one.
        self.names = None if is_loopback(host) else {host.strip("[]").lower(), socket.gethostname().lower(),
                                                     socket.getfqdn().lower()}
        self.csrf = secrets.token_urlsafe(24)
        self.session = secrets.token_urlsafe(24)
        self._wrong_token = asyncio.Lock()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            raise AssertionError(f"{scope['type']} is not served")
        scope.setdefault("state", {})["csrf"] = self.csrf

        async def send_with_headers(message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            if scope["method"] not in ("GET", "HEAD", "POST"):
                raise Refused(405, "This address takes GET and POST only.")
            if scope["method"] == "POST":
                self._check_origin(headers)
            if self.token is not None and not is_open(scope["path"]):
                await self._check_token(headers)
            if scope["method"] == "POST":
                form = await self._read_form(headers, receive)
                if scope["path"] != "/login":
                    self._check_csrf(headers, form)
                scope["state"]["form"] = form
        except Refused as refused:
            response = await self.refuse(scope, refused.status, refused.message)
            await response(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    async def log_in(self, token: str) -> str | None:
        """The value of the cookie that remembers a right token; None, after a while, for a wrong one."""
        if self.token is not None and same(token, self.token):
            return self.session
        async with self._wrong_token:
            await asyncio.sleep(WRONG_TOKEN_WAIT_S)
        return None

    def _check_host(self, headers: Headers) -> None:
        """A page elsewhere whose name is made to point here (DNS rebinding) comes with its own name as Host."""
        found = headers.getlist("host")
        try:
            name = urlsplit(f"//{found[0]}").hostname or "" if len(found) == 1 else ""
        except ValueError:
            name = ""
        if is_loopback(name):
            return
        if self.names is not None and (name in self.names or _is_address(name)):  # no name server lies about an address
            return
        raise Refused(400, f"The request is addressed to {name[:100] or 'no host'!r}; this server answers only to its "
                           "own names. Open the address that it printed when it started.")

    def _check_origin(self, headers: Headers) -> None:
        """A browser says from which page a form comes; a script says nothing and needs the CSRF token all the same."""
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise Refused(403, _FOREIGN)
        for name in ("origin", "referer"):
            if (found := headers.get(name)) is not None:
                try:
                    matches = urlsplit(found).netloc.lower() == headers["host"].lower()
                except ValueError:
                    matches = False
                if not matches:
                    raise Refused(403, _FOREIGN)

    async def _check_token(self, headers: Headers) -> None:
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            if await self.log_in(value.strip()) is not None:
                return
        elif any(same(value, self.session) for value in _cookies(headers, cookie_name(headers))):
            return
        raise Refused(401, "This server is reachable from other machines and needs its token. It was printed when the "
                           "server started.")

    async def _read_form(self, headers: Headers, receive) -> dict[str, str]:
        body = bytearray()
        too_long = Refused(413, f"The form is longer than {LONGEST_BODY:,} bytes. Shorten what was typed.")
        if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > LONGEST_BODY:
            raise too_long
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "The form did not arrive whole. Send it again.")
            body += message.get("body", b"")
            if len(body) > LONGEST_BODY:
                raise too_long
            if not message.get("more_body"):
                break
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if kind == "application/json":
                form = json.loads(body)
                if not isinstance(form, dict) or not all(isinstance(value, str) for value in form.values()):
                    raise ValueError("no object of texts")
                json.dumps(form, ensure_ascii=False).encode()  # a lone surrogate is no text
            elif kind == "application/x-www-form-urlencoded":
                form = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS,
                                      errors="strict"))
            else:
                raise Refused(415, f"The form came as {kind[:60] or 'nothing'!r}; allowed are "
                                   "application/x-www-form-urlencoded and application/json. Send it as one of them.")
        except (ValueError, RecursionError):
            raise Refused(400, "The form cannot be read: it must be UTF-8 fields, or one JSON object of texts. Send it "
                               "again from the page.") from None
        return form

    def _check_csrf(self, headers: Headers, form: dict[str, str]) -> None:
        sent = headers.get("x-csrf-token") or form.pop("csrf", "")
        if not same(sent, self.csrf):
            raise Refused(403, "Nothing was saved: the form does not carry this server's token. If the server was started "
                               "again since the page was opened, reload the page and do it once more.")


_FOREIGN = ("Nothing was saved: the request comes from a page of another site. Only this server's own pages may change "
            "anything.")


def is_open(path: str) -> bool:
    """Whether an address answers without the token too."""
    return path == "/login" or path.startswith("/static/")


def same(one: str, other: str) -> bool:
    """Whether two texts are equal, in a time that does not tell how much of them is."""
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode("utf-8", "surrogateescape"))


def cookie_name(headers: Headers) -> str:
    """The session's cookie. Browsers share cookies between the ports of a host, so the port is part of the name."""
    return "inspection-" + headers.get("host", "").rpartition(":")[2].strip("]")


def _cookies(headers: Headers, name: str) -> list[str]:
    pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return [value for key, _, value in pairs if key == name]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
