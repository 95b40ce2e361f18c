"""lisa-advise report: the advice as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from advisor.cli.advise_options import AskedOptions
from advisor.cli.advising import advised
from advisor.cli.options import must_be_writable
from advisor.cli.output import (
    advice_errors,
    step_picture,
    with_forecast,
    within_limits,
    write,
)
from profiles.command_options import given, takes
from profiles.exits import fail
from profiles.streams import tell

if TYPE_CHECKING:
    from advisor.report.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class ReportOptions(AskedOptions):
    """The options of `lisa-advise report`."""

    panels: ClassVar[Mapping[str, str]] = {**AskedOptions.panels, "file": ""}

    file: Annotated[Path, typer.Argument(metavar="OUT.html", help="The file to write.")]
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Compare with what a run folder of lisa-train measured."),
    ] = None

    def check(self) -> None:
        """End with exit code 2 for contradictions, also among this command's own options."""
        super().check()
        if self.file.suffix.lower() not in (".html", ".htm"):
            fail(f"got {self.file.name}; the name must end in .html")
        must_be_writable(self.file, "a report")


@takes(ReportOptions)
def report_command(context: typer.Context, options: ReportOptions) -> None:
    """Write the advice as one HTML file, to send to a colleague. Needs some seconds and no GPU.

    It holds the memory of a step as a picture and loads nothing from the network. With --run, the
    advice is the one that the run was started with, if it kept one.

    Exit codes: 0 fits, 1 does not fit or the forecast failed, 2 bad usage, 3 cannot decide, 130
    interrupted.
    """
    from advisor.machine.evidence import Evidence
    from advisor.memory.live import live_forecast
    from advisor.report.page import page

    options.check()
    found = None if options.run is None else _run(options.run)
    if found is not None and found.advice is not None:
        if given(options) - {"file", "run", "hours", "price"}:
            what = "the run has its own advice; leave out the options that ask for another"
            fail(f"{options.run}: {what}")
        advice = within_limits(found.advice, options.hours, options.price)
        live = live_forecast(advice.machine, None, None, tell)
    else:
        advice, live = advised(options, exact=True)
    with advice_errors():
        advice = with_forecast(advice, live)
        picture = step_picture(advice, live, "svg")
    write(options.file, page(advice, picture, Evidence.here().table.rows, found))
    tell(f"{advice.verdict}: written to {options.file}")
    raise typer.Exit(advice.exit_code)


def _run(folder: Path) -> Run:
    from advisor.report.run_folder import read_run

    try:
        return read_run(folder)
    except ValueError as error:
        fail(f"--run: {error}")
