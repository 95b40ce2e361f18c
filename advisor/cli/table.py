"""lisa-advise table: the tested configurations, listed, exported and imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiles.command_line import Commands, model_names
from profiles.sizes import GIB
from profiles.streams import say, tell
from profiles.text import counted

if TYPE_CHECKING:
    from profiles.tested import Table, TestedRow

app = Commands(
    help="Tested configurations: the card and the memory that each took.",
    examples=["lisa-advise table --model 7b --verdict FITS", "lisa-advise table --source user"],
)


@app.callback(invoke_without_command=True)
def listed(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Only rows of this model.", autocompletion=model_names)
    ] = None,
    source: Annotated[str | None, typer.Option(help="Only rows of this source.")] = None,
    verdict: Annotated[str | None, typer.Option(help="Only rows with this verdict.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """List the shipped rows and yours; beside each claim (source seed) what measurements say."""
    if context.invoked_subcommand is not None:
        return
    from typing import get_args

    from profiles.models import models
    from profiles.tested import Source, Verdict

    known = {"model": tuple(models()), "source": get_args(Source), "verdict": get_args(Verdict)}
    for name, value in (("model", model), ("source", source), ("verdict", verdict)):
        if value is not None and value not in known[name]:
            tell(f"error: --{name}: got {value!r}; known: {', '.join(known[name])}")
            raise typer.Exit(2)
    table = _read()
    wanted = {"model": model, "source": source, "verdict": verdict}
    given = {name: value for name, value in wanted.items() if value is not None}
    rows = [row for row in table.rows if all(getattr(row, name) == v for name, v in given.items())]
    if as_json:
        for row in rows:
            say(row.model_dump_json())
        return
    from rich.table import Table as RichTable
    from rich.text import Text

    from advisor.report.text import PlainConsole

    by_name = {row.id: row for row in reversed(table.rows)}  # the first of a name holds
    shown = RichTable(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("row", "verdict", "GiB", "cap", "text", "what, and what measurements say"):
        shown.add_column(name, justify="right" if name in ("GiB", "cap", "text") else "left")
    for row in rows:
        shape = row.data_shape
        shown.add_row(
            Text(row.id), row.verdict, _gib(row.needed_bytes), _gib(row.limit_bytes),
            str(shape.text_tokens) if shape else "", Text(row.title + _judged(row, by_name)),
        )  # fmt: skip
    PlainConsole().print(shown)
    tell(f"{len(rows)} of {len(table.rows)} rows")
    if any(row.source == "seed" for row in rows):
        tell("seed rows are claims: 'confirmed by' and 'contradicted by' name rows that\n"
             "measured them; a claim that leaves settings open may have both")  # fmt: skip


@app.command("export", examples=["lisa-advise table export rows.jsonl"])
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines; '-' for stdout.")],
) -> None:
    """Write your own rows to a file, to share them."""
    _must_be_ours(file)
    rows = [row for row in _read().rows if row.source == "user"]
    text = "".join(row.model_dump_json() + "\n" for row in rows)
    if str(file) == "-":
        say(text.removesuffix("\n"))
    else:
        from advisor.cli.output import write

        write(file, text)
    tell(counted(len(rows), "row"))


@app.command("share", examples=["lisa-advise table share", "lisa-advise table share rows.md"])
def share(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to write it. Default: print it.")
    ] = None,
) -> None:
    """Print your measured rows for an issue: card, versions, plan, memory; no names, no folders."""
    from advisor.report.shared_rows import block, shared
    from profiles.exits import EXIT_FAILED, fail

    _must_be_ours(file)
    own = [row for row in _read().rows if row.source == "user" and row.gpu is not None]
    if not own:
        fail("no measured row of yours\n    hint: lisa-advise --measure makes one", EXIT_FAILED)
    text = block([shared(row) for row in own])
    if file is None:
        say(text)
    else:
        from advisor.cli.output import write

        write(file, text + "\n")
    tell(f"{counted(len(own), 'row')}; read them before you paste them")


@app.command("import", examples=["lisa-advise table import rows.jsonl"])
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines as exported, or a shared text.")
    ],
) -> None:
    """Add the rows of a file to your own; rows that you already have are kept."""
    from advisor.report.shared_rows import rows_of
    from profiles.files import read_regular, reason
    from profiles.tested import append_all, parse_table

    try:
        found = parse_table(rows_of(read_regular(file)), str(file))
    except OSError as error:
        tell(f"error: {file}: cannot be read: {reason(error)}")
        raise typer.Exit(2) from None
    known = {row.id for row in _read().rows}
    new = {row.id: row for row in reversed(found.rows) if row.id not in known}
    own = [row.model_copy(update={"source": "user"}) for row in reversed(new.values())]
    if own:
        append_all(own)
    for finding in found.findings:
        tell(str(finding))
    tell(f"{counted(len(new), 'row')} added, {len(found.rows) - len(new)} were there")
    raise typer.Exit(2 if found.findings else 0)


def _must_be_ours(file: Path | None) -> None:
    """Ends with exit code 2 for a file that holds something else than rows."""
    from advisor.cli.options import are_rows, must_be_writable

    if str(file) != "-":
        must_be_writable(file, "a table", are_rows)


def _read() -> Table:
    from profiles.tested import read_table

    table = read_table()
    for finding in table.findings:
        tell(str(finding))
    return table


def _gib(number: int | None) -> str:
    return "" if number is None else f"{number / GIB:.2f}"


def _judged(row: TestedRow, by_name: Mapping[str, TestedRow]) -> str:
    """What measured rows say of a claim, with their numbers."""
    text = ""
    for word, names in (("confirmed", row.confirmed_by), ("contradicted", row.contradicted_by)):
        facts = []
        for name in names:
            other = by_name.get(name)
            if other is None:  # an imported row may name a row that is absent
                facts.append(name)
                continue
            took = f"takes {_gib(other.needed_bytes)} GiB"
            if other.verdict == "OOM":
                took = f"out of memory at {_gib(other.limit_bytes)} GiB"
            facts.append(f"{name} {took}")
        if facts:
            text += f"; {word} by {', '.join(facts)}"
    return text + (f" ({json.dumps(row.versions)})" if row.source == "user" else "")
