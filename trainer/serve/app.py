"""The HTTP interface of a trained model: `create_app`, or `routes` for a larger application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Message

from profiles.text import is_text, one_line
from trainer.prompts import PromptError
from trainer.serve.asked import KINDS, Asked, NotAnswered, named
from trainer.serve.drained import Drained
from trainer.serve.guard import Access, Guard
from trainer.serve.limits import Limits
from trainer.serve.openapi import document, page
from trainer.serve.workers import Workers

ResultT = TypeVar("ResultT")
FIELDS = ("picture", "question", "kind")
CLIENT_LEFT = 499  # nobody reads it
_NOWHERE = Path()  # the picture has no file here


def create_app(workers: Workers, access: Access | None = None) -> Starlette:
    """The application for one model; `workers` are started and stopped by the caller."""
    access = access or Access()

    async def start(request: Request) -> Response:
        return RedirectResponse("docs")

    return Starlette(
        routes=[Route("/", start), *routes(workers, needs_token=access.token is not None)],
        middleware=[Middleware(Drained), Middleware(Guard, access=access)],
        exception_handlers=HANDLERS,
    )


def routes(workers: Workers, needs_token: bool = False) -> list[Route]:
    """POST /segment, GET /health, /model, /openapi.json and /docs."""
    described = document(workers.limits, needs_token)

    async def segment(request: Request) -> Response:
        try:
            async with workers.place():
                asked = await _asked(request, workers.limits)
                answered = await _unless_left(request, workers.ask(asked))
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        except NotAnswered as error:
            return _not_answered(request, error)
        height, width = answered.size
        return JSONResponse({"height": height, "width": width, "answers": answered.rows})

    async def health(request: Request) -> Response:
        status = "ready" if workers.ready else "loading"
        health = {"status": status, "processes": workers.ready, "waiting": workers.waiting}
        if workers.problem:
            return JSONResponse(health | {"status": "failed", "error": workers.problem}, 503)
        return JSONResponse(health)

    async def model(request: Request) -> Response:
        return JSONResponse(workers.facts)

    async def described_as_json(request: Request) -> Response:
        return JSONResponse(described)

    async def described_as_page(request: Request) -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
        return HTMLResponse(page(described), headers={"Content-Security-Policy": policy})

    return [
        Route("/segment", segment, methods=["POST"]),
        Route("/health", health),
        Route("/model", model),
        Route("/openapi.json", described_as_json),
        Route("/docs", described_as_page),
    ]


async def _asked(request: Request, limits: Limits) -> Asked:
    """What a form asks. Raises NotAnswered, ClientDisconnect."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise NotAnswered(415, "the request is no multipart/form-data", "see /docs")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise NotAnswered(415, "the request's body is compressed", "send it as it is")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > limits.body_bytes:
        raise _too_large(limits)
    limited = Request(request.scope, _counted(request, limits))
    most = limits.questions + len(FIELDS)
    try:
        async with limited.form(max_files=1, max_fields=most, max_part_size=1 << 20) as form:
            return await _read(form, limits)
    except (MultiPartException, HTTPException) as error:
        why = getattr(error, "message", None) or getattr(error, "detail", "")
        raise NotAnswered(400, f"the form cannot be read: {one_line(why)}") from None


def _counted(request: Request, limits: Limits) -> Callable[[], Awaitable[Message]]:
    """The request's `receive`, which raises as soon as more arrives than is allowed."""
    total = 0

    async def receive() -> Message:
        nonlocal total
        message = await request.receive()
        total += len(message.get("body", b""))
        if total > limits.body_bytes:
            raise _too_large(limits)
        return message

    return receive


async def _read(form: FormData, limits: Limits) -> Asked:
    """The fields of a form. Raises NotAnswered."""
    if unknown := sorted(set(form) - set(FIELDS)):
        raise NotAnswered(422, f"unknown: {one_line(unknown[0])}", f"fields: {', '.join(FIELDS)}")
    picture, texts = form.getlist("picture"), form.getlist("question")
    if len(picture) != 1 or not isinstance(picture[0], UploadFile):
        raise NotAnswered(
            422, "picture: one file is needed", "its part needs a file name: curl -F picture=@FILE"
        )
    if not 1 <= len(texts) <= limits.questions:
        raise NotAnswered(422, f"question: one to {limits.questions} are needed")
    kinds = form.getlist("kind") or [KINDS[0]]
    if len(kinds) > 1 or kinds[0] not in KINDS:
        raise NotAnswered(422, f"kind: one of {', '.join(KINDS)}")
    asked = Asked(
        await picture[0].read(),
        tuple(_text(text, named(number, len(texts)), limits) for number, text in enumerate(texts)),
        phrase=kinds[0] == "phrase",
        explain=kinds[0] == "explain",
    )
    _check(asked, limits)
    return asked


def _check(asked: Asked, limits: Limits) -> None:
    if not asked.picture:
        raise NotAnswered(422, "picture: the file is empty", "it may have been read before")
    if len(asked.picture) > limits.picture_bytes:
        raise _too_large(limits)
    for number, question in enumerate(asked.questions(_NOWHERE)):
        try:
            question.turn()
        except PromptError as error:
            which = named(number, len(asked.texts))
            raise NotAnswered(422, f"{which}: {one_line(error)}") from None


def _text(text: object, which: str, limits: Limits) -> str:
    if not isinstance(text, str):
        raise NotAnswered(422, f"{which}: text is needed, not a file")
    if not is_text(text):
        raise NotAnswered(422, f"{which}: half characters are no text")
    if len(text) > limits.letters:
        raise NotAnswered(422, f"{which}: {limits.letters} letters are allowed")
    return text


def _too_large(limits: Limits) -> NotAnswered:
    allowed = f"{limits.picture_bytes >> 20} MiB are allowed"
    return NotAnswered(413, f"the picture's file is too large: {allowed}", "save it smaller")


async def _unless_left(request: Request, work: Awaitable[ResultT]) -> ResultT:
    """The result of some work, which is cancelled if the client leaves. Raises ClientDisconnect."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        leaving.cancel()
        doing.cancel()
        await asyncio.gather(leaving, doing, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _not_answered(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotAnswered)
    headers = {"Retry-After": str(error.retry_seconds)} if error.retry_seconds else None
    return JSONResponse(error.document(), error.status, headers)


def _refused(request: Request, error: Exception) -> Response:
    """What Starlette refuses itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    body = {"error": error.detail, "hint": "POST /segment asks; see /docs"}
    return JSONResponse(body, error.status_code, error.headers)


def _defect(request: Request, error: Exception) -> Response:
    """The traceback stays here: uvicorn prints it on the server's stderr."""
    return JSONResponse({"error": "the server failed"}, 500)


HANDLERS = {NotAnswered: _not_answered, HTTPException: _refused, 500: _defect}
