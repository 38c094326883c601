"""Who may use the server: with a token whoever has it, without one only this machine's own pages and programs."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

_OPEN = ("/api/health", "/api/openapi.json")  # and the page, which is the same for everybody
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'"),
]


def is_loopback(host: str) -> bool:
    """A name or address that reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses with 401 or 403, and adds the headers that keep a page from being misused."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(refused)
            else:
                await refused(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self._app(scope, receive, sending)

    def _refused(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if self._token is not None:
            if _is_open(scope["path"]) or _has(self._token, headers, scope):
                return None
            error = "token: got none or a wrong one, expected that of the server's start; send Authorization: Bearer .."
            return JSONResponse({"error": error}, 401, {"www-authenticate": "Bearer"})
        # A page of another site, or one whose name leads here, must not reach what has no token.
        host, origin = headers.get("host", ""), headers.get("origin")
        name = urlsplit(f"//{host}").hostname or ""
        if not is_loopback(name) or (origin is not None and urlsplit(origin).netloc != host):
            error = f"origin: got {(origin or host)[:60]!r}, expected this machine's own page; open http://localhost"
            return JSONResponse({"error": error}, 403)
        return None


def _is_open(path: str) -> bool:
    return path == "/" or path.startswith("/page/") or path in _OPEN


def _has(token: str, headers: Headers, scope: Scope) -> bool:
    """In a header, or in the address, for what can send none: a video's source, a browser's WebSocket."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    found: Sequence[str] = [given] if scheme.lower() == "bearer" else []
    found = [*found, QueryParams(scope.get("query_string", b"")).get("token", "")]
    return any(hmac.compare_digest(value.encode(), token.encode()) for value in found)
