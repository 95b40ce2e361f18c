"""lisa-advise report: the advice as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli.advising import advised
from advisor.cli.options import (
    Card,
    DataDir,
    Gpus,
    Model,
    Nodes,
    Prefer,
    Ram,
    Settings,
    SkipBroken,
    System,
    Vram,
    must_be_writable,
)
from advisor.cli.output import advice_errors, step_picture, with_forecast, write
from profiles.exits import fail
from profiles.streams import tell

if TYPE_CHECKING:
    from advisor.report.run_folder import Run


def report_command(
    file: Annotated[Path, typer.Argument(metavar="OUT.html", help="The file to write.")],
    model: Model = None,
    settings: Settings = None,
    gpu: Card = None,
    vram: Vram = None,
    system: System = None,
    ram: Ram = None,
    gpus: Gpus = None,
    nodes: Nodes = None,
    prefer: Prefer = "usual",
    data_dir: DataDir = None,
    skip_broken: SkipBroken = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Compare with what a run folder of lisa-train measured."),
    ] = None,
) -> None:
    """Write the advice as one HTML file, to send to a colleague. Needs some seconds and no GPU.

    It holds the memory of a step as a picture and loads nothing from the network. With --run, the
    advice is the one that the run was started with, if it kept one.

    Exit codes: 0 fits, 1 does not fit or the forecast failed, 2 bad usage, 3 cannot decide, 130
    interrupted.
    """
    from advisor.machine.evidence import Evidence
    from advisor.memory.live import live_forecast
    from advisor.report.page import page

    if file.suffix.lower() not in (".html", ".htm"):
        fail(f"got {file.name}; the name must end in .html")
    must_be_writable(file, "a report")
    found = None if run is None else _run(run)
    if found is not None and found.advice is not None:
        given = model, settings, gpu, vram, system, ram, gpus, nodes, data_dir, skip_broken
        if any(given) or prefer != "usual":
            fail(f"{run}: the run has its own advice; leave out the options that ask for another")
        advice, live = found.advice, live_forecast(found.advice.machine, None, None, tell)
    else:
        advice, live = advised(
            model, list(settings or ()),
            gpu=gpu, vram=vram, system=system, ram=ram, gpus=gpus, nodes=nodes, prefer=prefer,
            data_dir=data_dir, skip_broken=skip_broken, exact=True,
        )  # fmt: skip
    with advice_errors():
        advice = with_forecast(advice, live)
        picture = step_picture(advice, live, "svg")
    write(file, page(advice, picture, Evidence.here().table.rows, found))
    tell(f"{advice.verdict}: written to {file}")
    raise typer.Exit(advice.exit_code)


def _run(folder: Path) -> Run:
    from advisor.report.run_folder import read_run

    try:
        return read_run(folder)
    except ValueError as error:
        fail(f"--run: {error}")
