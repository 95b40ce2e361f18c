"""The page's server: its files, and the actions that the page asks for as JSON."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from profiles.files import refused
from profiles.records import Frozen
from studio import plans, runs, training
from studio.guard import Guard
from studio.places import Places
from studio.processes import Processes

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
SAID = logging.getLogger("uvicorn.error")


class Listing(Frozen):
    """A folder to look into; empty for the folders of the page."""

    place: str = ""


@dataclass(frozen=True)
class Studio:
    """What every action works with."""

    places: Places
    processes: Processes


@dataclass(frozen=True)
class Action:
    """Something that the page can ask for: the form of the question, and who answers it."""

    form: type[Frozen]
    work: Callable[[Studio, Any], dict[str, Any]]


def _with_processes(work: Callable[[Any, Places, Processes], dict[str, Any]]) -> Any:
    return lambda studio, asked: work(asked, studio.places, studio.processes)


ACTIONS = {
    "choices": Action(runs.Nothing, lambda studio, _: plans.choices(studio.places)),
    "list": Action(Listing, lambda studio, one: {"entries": studio.places.listed(one.place)}),
    "plan": Action(plans.Wanted, lambda studio, one: plans.plan(one, studio.places)),
    "save-plan": Action(plans.Saved, lambda studio, one: plans.save(one, studio.places)),
    "train": Action(training.Training, _with_processes(training.start)),
    "stop": Action(training.Chosen, _with_processes(training.stop)),
    "resume": Action(training.Chosen, _with_processes(training.resume)),
    "runs": Action(runs.Nothing, _with_processes(runs.listed)),
    "run": Action(runs.Since, _with_processes(runs.look)),
}


def create_app(folders: list[Path], token: str | None = None) -> Any:
    """The page's application for these folders; with a token only who has it is answered."""
    places = Places(folders)
    studio = Studio(places, Processes(places))
    routes: list[BaseRoute] = [Route("/", partial(_page, name="index.html"))]
    routes += [Route(f"/{path.name}", partial(_page, name=path.name))
               for path in sorted(PAGE.iterdir()) if path.suffix in KINDS]  # fmt: skip
    routes.append(Route("/api/{name}", partial(_act, studio=studio), methods=["POST"]))
    return Guard(Starlette(routes=routes), token)


async def _page(request: Request, name: str) -> Response:
    return FileResponse(PAGE / name, media_type=KINDS[Path(name).suffix])


async def _act(request: Request, studio: Studio) -> Response:
    """The answer of an action; what a user can correct is an answer too."""
    action = ACTIONS.get(request.path_params["name"])
    if action is None:
        return JSONResponse({"error": "no such action"}, 404)
    try:
        asked = action.form.model_validate_json(await request.body())
    except ValidationError as error:
        return JSONResponse({"error": _what_is_wrong(error)}, 422)
    return await answered(partial(action.work, studio, asked))


async def answered(work: Callable[[], Any]) -> Response:
    """What `work` returns, worked on apart; errors of the user's in words, defects without any."""
    try:
        found = await run_in_threadpool(work)
        return found if isinstance(found, Response) else JSONResponse(found)
    except (ValueError, RuntimeError) as error:
        return JSONResponse({"error": str(error)}, 422)
    except OSError as error:
        return JSONResponse({"error": refused(error)}, 422)
    except Exception:
        SAID.exception("a defect")
        return JSONResponse({"error": "a defect: the terminal of lisa-studio has the details"}, 500)


def _what_is_wrong(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'request'}: {one['msg']}"
                     for one in found[:5])  # fmt: skip
