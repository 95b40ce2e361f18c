"""Who may ask: checks every request before the server looks at it.

A browser on this machine runs pages of strangers. Without these checks such a page could ask the
server on 127.0.0.1, under another name (DNS rebinding) or across origins.
"""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.serve.asked import NotAnswered

HERE = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # with no-referrer, our own form's origin would be null
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
OPEN_PATHS = frozenset({"/health"})  # without a token


@dataclass(frozen=True)
class Access:
    """From where a server may be asked, and by whom."""

    host: str = "127.0.0.1"
    token: str | None = None

    @classmethod
    def of(cls, host: str) -> Access:
        """Without a token if only this machine can connect, else with a new token."""
        return cls(host, None if host in HERE else secrets.token_urlsafe(32))

    def names(self, host: str) -> bool:
        """Whether a Host header names this server; DNS rebinding needs a name that others own."""
        name = _name(host)
        if name in HERE:
            return True
        return self.host not in HERE and (
            name in (self.host.lower(), socket.gethostname().lower()) or _is_address(name)
        )

    def knows(self, authorization: str) -> bool:
        """Whether a request shows the token."""
        if self.token is None:
            return True
        kind, _, shown = authorization.partition(" ")
        # Compared whole, so that the time says nothing about the first wrong letter.
        same = secrets.compare_digest(shown.strip().encode(), self.token.encode())
        return kind.lower() == "bearer" and same


class Guard:
    """Refuses requests of other hosts, origins and people; the rest goes to `app`."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        refused = self._refused(Headers(scope=scope), scope["path"])
        if refused is None:
            return await self.app(scope, receive, _with_headers(send))
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        headers = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else None
        response = JSONResponse(refused.document(), refused.status, headers)
        await response(scope, receive, _with_headers(send))

    def _refused(self, headers: Headers, path: str) -> NotAnswered | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.access.names(host):
            return NotAnswered(403, "this server has another name", "use the address it printed")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return NotAnswered(403, "pages of other servers may not ask this one")
        if path not in OPEN_PATHS and not self.access.knows(headers.get("authorization", "")):
            hint = "send the header Authorization: Bearer TOKEN; the server printed the token"
            return NotAnswered(401, "a token is needed", hint)
        return None


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return "" if "@" in host else (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *HEADERS]
        await send(message)

    return sending
