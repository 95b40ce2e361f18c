"""lisa-advise report: the advice as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    group_settings,
    must_agree,
    must_be_data,
    must_be_writable,
    named_card,
)
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
    from advisor.cli.output import advice_errors, step_picture, with_forecast, write
    from advisor.machine.evidence import Evidence
    from advisor.machine.probe import probe
    from advisor.memory.live import live_forecast
    from advisor.preflight import advise
    from advisor.report.page import page

    if file.suffix.lower() not in (".html", ".htm"):
        fail(f"got {file.name}; the name must end in .html")
    must_be_writable(file)
    found = None if run is None else _run(run)
    target, assignments = named_card(vram, gpu, system, ram), list(settings or ())
    assignments += group_settings(gpus, nodes, target, assignments)
    must_be_data(data_dir, skip_broken)
    must_agree(assignments)
    kept = found.advice if found else None
    if kept is not None and (model or assignments or target or data_dir or prefer != "usual"):
        fail(f"{run}: the run has its own advice; leave out the options that ask for another")
    machine, evidence = (kept.machine if kept else probe()), Evidence.here()
    with advice_errors():
        live = live_forecast(machine, target, data_dir, tell)
        advice = kept or advise(
            machine, model, assignments, target,
            data=data_dir, live=live, evidence=evidence, prefer=prefer, exact=True,
        )  # fmt: skip
        advice = with_forecast(advice, live)
        picture = step_picture(advice, live, "svg")
    write(file, page(advice, picture, evidence.table.rows, found))
    tell(f"{advice.verdict}: written to {file}")
    raise typer.Exit(advice.exit_code)


def _run(folder: Path) -> Run:
    from advisor.report.run_folder import read_run

    try:
        return read_run(folder)
    except ValueError as error:
        fail(f"--run: {error}")
