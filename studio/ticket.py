"""The token of a page for others: it comes with the address once, and stays as a cookie."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from trainer.serve.guard import Access

COOKIE = "lisa-studio"


class Ticket:
    """Passes a browser's cookie to the guard as its token; programs send the token themselves."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.access.token is not None:
            headers = Headers(scope=scope)
            query = parse_qs(scope["query_string"].decode("latin-1"))
            given = query.get("token", [""])[0]
            if scope["path"] == "/" and self.access.knows(f"Bearer {given}"):
                # Out of the address, where others could read it over a shoulder.
                answer = RedirectResponse("/", 303)
                answer.set_cookie(COOKIE, given, httponly=True, samesite="strict")
                return await answer(scope, receive, send)
            if "authorization" not in headers and (kept := _cookie(headers)):
                MutableHeaders(scope=scope)["authorization"] = f"Bearer {kept}"
        await self.app(scope, receive, send)


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""
