"""lisa-segment --serve: answers over HTTP until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.environment import at_home, python_module
from profiles.extras import install_command
from profiles.overrides import assigned
from profiles.streams import tell
from trainer.serve.limits import RESIDENT

if TYPE_CHECKING:
    from trainer.answer.trained_model import Trained
    from trainer.serve.guard import Access
    from trainer.serve.limits import Limits
    from trainer.serve.workers import Workers

MODULE = "trainer.cli.model_process"


def serve(trained: Trained, run: Path, assignments: Sequence[str], host: str, port: int) -> None:
    """Serve a model. Raises RuntimeError: it cannot be loaded, ValueError: no such address."""
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ValueError(
            f"--serve needs more packages\n    hint: {install_command('serve')}"
        ) from None
    from trainer.serve.address import taken
    from trainer.serve.guard import Access

    # Before the model is loaded, which may take minutes.
    with taken(host, port) as place, workers_for(trained, run, assignments) as workers:
        asyncio.run(_serve(workers, Access.of(host), place))


@contextmanager
def workers_for(
    trained: Trained, run: Path, assignments: Sequence[str], limits: Limits | None = None
) -> Iterator[Workers]:
    """A process for each card that the model answers on, not yet started, with their folders.

    Raises ValueError.
    """
    from trainer.serve.limits import Limits
    from trainer.serve.workers import Workers

    _check(assignments)
    limits = limits or Limits()
    environments = _environments(trained)
    with ExitStack() as stack:
        commands = []
        for _ in environments:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lisa-segment-"))
            asked = {"run": str(run), "set": list(assignments), "folder": folder,
                     "pixels": limits.pixels}  # fmt: skip
            commands.append(python_module(MODULE, json.dumps(asked)))
        yield Workers(list(zip(commands, environments, strict=True)), limits, tell)


def _check(assignments: Sequence[str]) -> None:
    name, resident = RESIDENT.split("=")
    for one in assignments:
        if assigned([one]).get(name, resident).replace(" ", "") != resident:
            why = "a server gets pictures that it does not know before, so its encoders stay loaded"
            raise ValueError(f"--set {one}: {why}\n    hint: leave it out")


def _environments(trained: Trained) -> list[dict[str, str]]:
    """One for each card, in which a process sees this card alone."""
    base = at_home(os.environ)
    if trained.plan.device == "cpu":
        return [base]
    visible = [one for one in base.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if not visible:
        from advisor.machine.probe import probe

        visible = [str(number) for number in range(len(probe().gpus))]
    return [base | {"CUDA_VISIBLE_DEVICES": one} for one in visible or [""]]


async def _serve(workers: Workers, access: Access, place: socket.socket) -> None:
    import uvicorn

    from trainer.serve.address import url
    from trainer.serve.app import create_app
    from trainer.serve.child import Gone

    tell("loading the model ...")
    try:
        await workers.start()
    except Gone as error:
        raise RuntimeError(str(error)) from None
    try:
        app = create_app(workers, access)
        config = uvicorn.Config(app, log_level="warning", server_header=False, access_log=False,
                                proxy_headers=False, lifespan="off",
                                timeout_graceful_shutdown=5)  # fmt: skip
        server = uvicorn.Server(config)
        listening = asyncio.create_task(server.serve([place]))
        while not server.started and not listening.done():
            await asyncio.sleep(0.05)
        if server.started:
            page = "" if access.token else "/docs"  # a browser sends no token
            tell(f"answering on {url(access.host, place)}{page}, Ctrl-C ends it")
            if access.token is not None:
                tell(f"token (shown this once): {access.token}")
        await listening
    finally:
        await workers.stop()
