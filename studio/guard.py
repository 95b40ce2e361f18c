"""Who may ask, and how much: the host's name, the page's origin, the token, the size of a body."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = ("127.0.0.1", "localhost", "::1")
COOKIE = "lisa-studio"
MOST_BYTES = 32 << 20  # of a request: a picture; JSON is far smaller
SAFE = ("GET", "HEAD")
# The page loads nothing from elsewhere, runs no inline script, and no other page may frame it.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is not answered; the status and the reason."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Guard:
    """Refuses what does not come from the page itself, and adds the headers of a safe page.

    Without a token the server is this machine's alone, and answers under this machine's names
    only: another name would be that of a page that has turned its own to this address.
    """

    def __init__(self, app: ASGIApp, token: str | None = None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        try:
            answer = self._checked(scope)
        except Refused as refused:
            answer = JSONResponse({"error": refused.why}, refused.status)
        if answer is not None:
            answer.headers.update(HEADERS)
            return await answer(scope, receive, send)
        await self.app(scope, _limited(receive), _with_headers(send))

    def _checked(self, scope: Scope) -> Response | None:
        """An answer in place of the page's, if any. Raises Refused."""
        headers = Headers(scope=scope)
        host = _name(headers.get("host", ""))
        if self.token is None and host not in LOCAL:
            raise Refused(421, "this server answers under this machine's names only")
        origin = headers.get("origin")
        if scope["method"] not in SAFE:
            foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
            if foreign or headers.get("sec-fetch-site", "same-origin") not in (
                "same-origin",
                "none",
            ):
                raise Refused(403, "this request comes from another page")
            if not headers.get("content-type", "").startswith(("application/json", "image/")):
                raise Refused(415, "allowed: application/json, or a picture")
            length = headers.get("content-length", "")
            if not length.isdecimal() or int(length) > MOST_BYTES:
                raise Refused(413, f"allowed: a known length of at most {MOST_BYTES} bytes")
        return self._admitted(scope, headers) if self.token is not None else None

    def _admitted(self, scope: Scope, headers: Headers) -> Response | None:
        """None for who has the token; who brings it in the address gets it as a cookie."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["path"] == "/" and self._is_token("".join(query.get("token", []))):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, str(self.token), httponly=True, samesite="strict")
            return answer
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_token(bearer) or self._is_token(_cookie(headers)):
            return None
        raise Refused(401, "open the address with the token that lisa-studio printed")

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), str(self.token).encode())


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(headers: Mapping[str, str]) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _limited(receive: Receive) -> Receive:
    """`receive` until more bytes have come than may."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MOST_BYTES:
            return {"type": "http.disconnect"}
        return message

    return limited


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sending
