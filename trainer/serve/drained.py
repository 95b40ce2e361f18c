"""The rest of a request is read before it is answered.

A server that answers early closes a connection used for one request, and bytes that still arrive
reset it. Programs that send everything before they read, such as Python's urllib, would then see a
socket error instead of the answer.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES, SECONDS = 64 << 20, 30.0  # of a rest; a client that sends more is not waited for


class Drained:
    """Answers of `app` wait for the request's end."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = _Body(receive)
        asks_first = Headers(scope=scope).get("expect", "").lower() == "100-continue"

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and (body.begun or not asks_first):
                await body.read_rest()
            await send(message)

        await self.app(scope, body.receive, sending)


class _Body:
    """A request's messages, and whether its body has begun and ended."""

    def __init__(self, receive: Receive) -> None:
        self.source, self.begun, self.ended = receive, False, False

    async def receive(self) -> Message:
        self.begun = True
        message = await self.source()
        self.ended = not message.get("more_body", False)  # also where the client has left
        return message

    async def read_rest(self) -> None:
        left = MOST_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(SECONDS):
                while not self.ended and left > 0:
                    left -= len((await self.receive()).get("body", b""))
