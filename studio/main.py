"""lisa-studio: parses, prints the address, serves the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from profiles.command_line import Commands, Version
from profiles.exits import fail
from profiles.streams import say, set_streams

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
        import uvicorn

        from studio.app import create_app
        from trainer.serve.guard import Access
    except ModuleNotFoundError as error:
        fail(f"{error.name} is not installed\n    hint: pip install 'lisa-preflight[studio]'")
    access = Access.of(host)
    try:
        served = create_app(folders or [Path()], access)
    except ValueError as error:
        fail(str(error))
    config = uvicorn.Config(served, host, port, log_level="warning", access_log=False,
                            server_header=False, proxy_headers=False, ws="none",
                            timeout_graceful_shutdown=3)  # fmt: skip
    try:
        listening = config.bind_socket()
    except SystemExit:  # uvicorn's, after it has said why
        fail(f"--port: {port} on {host} cannot be had\n    hint: --port 0 takes any that is free")
    shown = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
    say(shown if access.token is None else f"{shown}?token={access.token}")
    uvicorn.Server(config).run([listening])


def main() -> None:
    """Entry point of `lisa-studio`."""
    set_streams()
    app(prog_name="lisa-studio")


if __name__ == "__main__":
    main()
