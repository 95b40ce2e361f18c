"""lisa-studio: parses, prints the address, serves the page."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiles.command_line import Commands, Version
from profiles.exits import fail
from profiles.extras import install_command
from profiles.streams import say, set_streams, tell

if TYPE_CHECKING:
    import socket

    from starlette.applications import Starlette

app = Commands()


@app.command(examples=["lisa-studio", "lisa-studio ~/work ~/photographs"])
def studio(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders that the page may see; it writes into the first. Default: ."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    version: Version = False,
) -> None:
    """Plan, look at data, train, ask and compare, on a page in your browser."""
    try:
        import uvicorn  # noqa: F401

        from studio.app import create_app
        from trainer.serve.address import taken, url
        from trainer.serve.guard import Access
    except ModuleNotFoundError as error:
        fail(f"{error.name} is not installed\n    hint: {install_command('serve')}")
    access = Access.of(host)
    try:
        page = create_app(folders or [Path()], access)
        listening = taken(host, port, waiting=True)
    except ValueError as error:
        fail(str(error))
    say(f"{url(host, listening)}/" + (f"?token={access.token}" if access.token else ""))
    tell("open this address in a browser; Ctrl-C ends lisa-studio, not its trainings")
    with suppress(KeyboardInterrupt):  # how it is ended
        asyncio.run(_serve(page, listening))


async def _serve(page: Starlette, listening: socket.socket) -> None:
    """Answer until Ctrl-C; then the model goes, whatever it does."""
    import uvicorn

    config = uvicorn.Config(page, log_level="warning", access_log=False, server_header=False,
                            proxy_headers=False, ws="none", lifespan="off",
                            timeout_graceful_shutdown=3)  # fmt: skip
    async with page.router.lifespan_context(page):
        await uvicorn.Server(config).serve([listening])


def main() -> None:
    """Entry point of `lisa-studio`."""
    set_streams()
    app(prog_name="lisa-studio")


if __name__ == "__main__":
    main()
