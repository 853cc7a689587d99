"""Who may ask the server, and what a browser may do with its answers.

Any page that the user visits can send requests to 127.0.0.1, and a name that an attacker controls can be made to lead
there. So every request, event streams too, must name this server in ``Host``; if the browser says where it comes from
(``Origin``, ``Sec-Fetch-Site``), that must be this server; and it must carry the session's cookie, which is set when
the page is opened by the address with the token and which no other site can send (``SameSite=Strict``).
"""

import hmac
import html
import ipaddress
import json
import secrets
from typing import Any
from urllib.parse import parse_qsl, urlencode

Scope = dict[str, Any]

ANYWHERE = ("0.0.0.0", "::")
"""What to listen at for all addresses of this machine."""

MOST_BYTES = 64 * 1024
"""The largest body of a request."""

POLICY = "; ".join(
    (
        "default-src 'self'",  # styles too: the pages adopt style sheets that their scripts construct
        "img-src 'self' data: blob:",  # the diagram's atlases, and figures that are drawn to be saved
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
"""Headers of every answer."""

_WRITES = {"POST", "PUT", "PATCH", "DELETE"}
_TOKEN = "token"


_AGAIN = b'<!doctype html><meta http-equiv="refresh" content="0"><title>convcircuits</title>'
"""Opens the same address again, now from here: a browser sends the cookie with no link of another site, such as a chat
or a terminal in the browser, nor with what the first address leads on to. It shows nothing, whoever asks."""

_PROBLEM = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<title>{sentence}</title>
<h1>convcircuits</h1>
<p>{sentence}</p>
{link}
</html>
"""
"""What a person reads who opens an address at which there is an error."""


class Guard:
    """An ASGI application in front of another, which passes on what may be asked.

    Args:
        app: The application behind.
        port: The port that this serves.
        host: The address that this listens at.
        read_only: Refuse everything that writes.

    Attributes:
        token: The secret that opens the page the first time.
    """

    def __init__(self, app: Any, *, port: int, host: str = "127.0.0.1", read_only: bool = False) -> None:
        self.app, self._port, self._host, self._read_only = app, port, host, read_only
        self.token, self._session = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self.cookie = f"convcircuits-{port}"  # cookies of one host are those of all its ports

    @property
    def address(self) -> str:
        """The address that opens the page the first time."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{'127.0.0.1' if self._anywhere else host}:{self._port}/?{_TOKEN}={self.token}"

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass on a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = [(name, value) for name, value in message["headers"] if name.decode("latin-1") not in HEADERS]
                named = {name for name, _ in given}
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                if b"cache-control" not in named:
                    added.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*given, *added]}
            await send(message)

        headers = _single(scope["headers"])
        if _is_opened(scope, headers):
            send = _for_people(send)
        refused = self._refused(scope, headers)
        if refused is not None:
            await _answer(guarded, *refused)
            return
        target = self._redirect(scope)
        if target is not None:
            await _answer(guarded, 303, "", [(b"location", target.encode()), (b"set-cookie", self._set_cookie())])
            return
        if not self._has_session(headers):
            if scope["method"] == "GET" and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                await _send(guarded, 200, _AGAIN, "text/html; charset=utf-8")
                return
            await _answer(guarded, 401, "This page is opened by the address that the explorer printed in its terminal.")
            return
        if scope["method"] in _WRITES:
            length = headers.get("content-length", "0")
            if not length.isdecimal() or len(length) > 9 or int(length) > MOST_BYTES:
                await _answer(guarded, 413, f"A request may have {MOST_BYTES:,} bytes.")
                return
            receive = _bounded(receive)
        # Routes are matched before percent signs are decoded, so that a layer's name may hold any character.
        scope = {**scope, "path": scope.get("raw_path", b"/").decode("ascii", "replace")}
        try:
            await self.app(scope, receive, guarded)
        except _TooLongError:
            await _answer(guarded, 413, f"A request may have {MOST_BYTES:,} bytes.")

    def _refused(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return the status and a sentence for a request that must not be answered, whoever sends it."""
        host = headers.get("host", "")
        if not self._is_own(host):
            return 421, "This address is not the explorer's; open the one that it printed in its terminal."
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return 403, "Requests from other pages are refused."
        site = headers.get("sec-fetch-site")
        opens = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
        if site not in (None, "same-origin", "none") and not opens:
            return 403, "Requests from other pages are refused."
        if scope["method"] in _WRITES:
            if self._read_only:
                return 403, "This explorer was started with --read-only, so nothing can be changed."
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if scope["method"] != "DELETE" and kind != "application/json":
                return 415, "Requests that write must have the content type application/json."
        return None

    @property
    def _anywhere(self) -> bool:
        return self._host in ANYWHERE

    def _is_own(self, host: str) -> bool:
        """Return whether ``Host`` names this server.

        Where it listens at all addresses, any number is its own: only a name can be led here by somebody else.
        """
        name, colon, port = host.rpartition(":")
        if not colon or port != str(self._port):
            return False
        if name in {"127.0.0.1", "localhost", "[::1]", self._host, f"[{self._host}]"} and not self._anywhere:
            return True
        if not self._anywhere:
            return False
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name == "localhost"
        return True

    def _redirect(self, scope: Scope) -> str | None:
        """Return where to go on, without the token, if the request has the right one."""
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == _TOKEN]
        if scope["method"] != "GET" or len(given) != 1 or not _equal(given[0], self.token):
            return None
        rest = urlencode([(name, value) for name, value in query if name != _TOKEN])
        path: str = "/" + scope.get("raw_path", b"/").decode("ascii", "replace").lstrip("/\\")
        return path + (f"?{rest}" if rest else "")

    def _has_session(self, headers: dict[str, str]) -> bool:
        # Other servers at 127.0.0.1 set cookies too, and at one of theirs that it cannot read SimpleCookie gives up.
        pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        return any(name == self.cookie and _equal(value, self._session) for name, _, value in pairs)

    def _set_cookie(self) -> bytes:
        return f"{self.cookie}={self._session}; HttpOnly; SameSite=Strict; Path=/".encode()


class _TooLongError(BaseException):
    """A body is too long. Not an ``Exception``, which the application would take for a body that is not JSON."""


def _bounded(receive: Any) -> Any:
    """Return a ``receive`` that stops a body without a length when it gets too long."""
    total = 0

    async def bounded() -> Any:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MOST_BYTES:
            raise _TooLongError
        return message

    return bounded


def _single(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by name; one that is there twice has a value that nothing equals."""
    found: dict[str, str] = {}
    for name, value in headers:
        text = name.decode("latin-1").lower()
        found[text] = value.decode("latin-1") if text not in found else f"{found[text]}, {value.decode('latin-1')}"
    return found


def _is_opened(scope: Scope, headers: dict[str, str]) -> bool:
    """Return whether a request is of a person who opens an address of a page, not of a program."""
    page = headers.get("sec-fetch-mode") == "navigate" or "text/html" in headers.get("accept", "")
    path: bytes = scope.get("raw_path", b"/")
    return page and scope["method"] == "GET" and not f"{path.decode('latin-1')}/".startswith("/api/")


def _is_json(message: dict[str, Any]) -> bool:
    kind: bytes = dict(message["headers"]).get(b"content-type", b"")
    return kind.startswith(b"application/json")


def _for_people(send: Any) -> Any:
    """Return a ``send`` that shows the sentence of an error as a page."""
    begun: dict[str, Any] | None = None
    body = b""

    async def shown(message: dict[str, Any]) -> None:
        nonlocal begun, body
        if message["type"] == "http.response.start" and message["status"] >= 400 and _is_json(message):
            begun = message
            return
        if begun is None:
            await send(message)
            return
        body += message.get("body", b"")
        if message.get("more_body"):
            return
        link = '<p><a href="/">The first page</a></p>' if begun["status"] == 404 else ""
        page = _PROBLEM.format(sentence=html.escape(json.loads(body)["error"]), link=link).encode()
        changed = {b"content-type": b"text/html; charset=utf-8", b"content-length": str(len(page)).encode()}
        await send({**begun, "headers": [(name, changed.get(name, value)) for name, value in begun["headers"]]})
        await send({"type": "http.response.body", "body": page})

    return shown


def _equal(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


async def _answer(send: Any, status: int, sentence: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = json.dumps({"error": sentence}).encode() if sentence else b""
    await _send(send, status, body, "application/json", headers)


async def _send(
    send: Any, status: int, body: bytes, kind: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    given = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": body})
