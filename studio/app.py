"""The page's server: its files, and the actions that the page asks for as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from profiles.files import refused
from profiles.records import Frozen
from studio import (
    answers,
    comparisons,
    data,
    forecasts,
    layers,
    plans,
    questions,
    results,
    runs,
    training,
)
from studio.answers import Desk
from studio.fields import in_fields
from studio.places import Places
from studio.processes import Processes
from studio.slow import Left, Slow, Watched, answered
from studio.ticket import Ticket
from trainer.serve.app import HANDLERS, routes
from trainer.serve.asked import NotAnswered
from trainer.serve.drained import Drained
from trainer.serve.guard import Access, Guard

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
MOST_BYTES = 32 << 20  # of a request: a picture, or many outlines
# The page loads nothing from elsewhere, runs no inline script, and no other page may frame it.
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class Listing(Frozen):
    """A folder to look into; empty for the folders of the page."""

    place: str = ""


@dataclass(frozen=True)
class Studio:
    """What every action works with."""

    places: Places
    processes: Processes
    desk: Desk


Work: TypeAlias = Callable[[Studio, Any], Any]


def _at(work: Callable[[Any, Places], Any]) -> Work:
    return lambda studio, asked: work(asked, studio.places)


def _with(work: Callable[[Any, Places, Processes], Any]) -> Work:
    return lambda studio, asked: work(asked, studio.places, studio.processes)


# By name: the form of the question, and who answers it. Bytes are a PNG.
ACTIONS: dict[str, tuple[type[Frozen], Work | Slow]] = {
    "choices": (runs.Nothing, lambda studio, _: plans.choices(studio.places)),
    "list": (Listing, lambda studio, one: studio.places.look(one.place)),
    "picture": (data.Shown, _at(data.picture)),
    "plan": (plans.Wanted, _at(plans.plan)),
    "save-plan": (plans.Saved, _at(plans.save)),
    "check": (data.Data, Slow(data.check)),
    "sheet": (data.Sheet, _at(data.sheet)),
    "synthesise": (data.Synthetic, _at(data.synthesise)),
    "import": (data.Import, Slow(data.import_)),
    "question": (questions.Picture, _at(questions.look)),
    "save-question": (questions.Edited, _at(questions.save)),
    "train": (training.Training, _with(training.start)),
    "stop": (training.Chosen, _with(training.stop)),
    "resume": (training.Chosen, _with(training.resume)),
    "runs": (runs.Nothing, _with(runs.listed)),
    "run": (runs.Since, _with(runs.look)),
    "forecast": (training.Chosen, _with(forecasts.forecast)),
    "compare": (comparisons.Compared, _at(comparisons.compare)),
    "evaluate": (results.Evaluation, _with(results.evaluate)),
    "export": (results.Export, _with(results.export)),
    "models": (runs.Nothing, lambda studio, _: answers.models(studio.places)),
    "memory": (answers.Model, _at(answers.memory)),
    "draw": (layers.Drawing, lambda _, one: layers.draw(one)),
    "load": (answers.Model, lambda studio, one: studio.desk.load(one)),
    "unload": (runs.Nothing, lambda studio, _: studio.desk.unload()),
    "desk": (runs.Nothing, lambda studio, _: studio.desk.state()),
}


def create_app(folders: Sequence[Path], access: Access | None = None) -> Starlette:
    """The page's application for these folders. Raises ValueError for a path that is no folder."""
    access = access or Access()
    places = Places(folders)
    studio = Studio(places, Processes(places), Desk(places))
    pages: list[BaseRoute] = [Route("/", partial(_page, name="index.html"))]
    pages += [Route(f"/{path.name}", partial(_page, name=path.name))
              for path in sorted(PAGE.iterdir()) if path.suffix in KINDS]  # fmt: skip
    act = Route("/api/{name}", partial(_act, studio=studio), methods=["POST"])
    return Starlette(
        routes=[*pages, act, *routes(studio.desk, needs_token=access.token is not None)],
        middleware=[
            Middleware(Drained),
            Middleware(Ticket, access=access),
            Middleware(Guard, access=access),
        ],
        exception_handlers=HANDLERS,
        lifespan=studio.desk.lifespan,
    )


async def _page(request: Request, name: str) -> Response:
    kind = KINDS[Path(name).suffix]
    return FileResponse(PAGE / name, media_type=kind, headers={"Content-Security-Policy": POLICY})


async def _act(request: Request, studio: Studio) -> Response:
    """The answer of an action; what a user can correct is an answer too."""
    form, work = ACTIONS.get(request.path_params["name"], (None, None))
    if form is None or work is None:
        return JSONResponse({"error": "no such action"}, 404)
    try:
        asked = form.model_validate_json(await _body(request))
    except ValidationError as error:
        return JSONResponse({"error": _what_is_wrong(error)}, 422)
    if not isinstance(work, Slow):
        return await _answer(partial(work, studio, asked))
    watched = Watched()
    return await answered(_answer(partial(work.work, asked, studio.places, watched)), watched)


async def _answer(work: Callable[[], Any]) -> Response:
    try:
        # What runs in this very loop is a coroutine, made at once; all else works apart.
        found = await run_in_threadpool(work)
        if isawaitable(found):
            found = await found
    except Left:
        found = None
    except OSError as error:
        return Answer({"error": refused(error)}, 422)
    except (ValueError, RuntimeError) as error:
        return Answer({"error": in_fields(str(error))}, 422)
    if isinstance(found, bytes):
        return Response(found, media_type="image/png")
    return Answer(found)


class Answer(JSONResponse):
    """JSON of what files hold: half a letter is escaped in it, and what is no number is null."""

    def render(self, content: Any) -> bytes:
        """The answer's bytes."""
        try:
            return json.dumps(content, allow_nan=False).encode()
        except ValueError:
            finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
            return json.dumps(finite, allow_nan=False).encode()


async def _body(request: Request) -> bytes:
    """What was sent, if it is not too much. Raises NotAnswered, ClientDisconnect."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise NotAnswered(413, f"the request is too large: {MOST_BYTES >> 20} MiB are allowed")
        parts.append(part)
    return b"".join(parts)


def _what_is_wrong(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'request'}: {one['msg']}"
                     for one in found[:5])  # fmt: skip
