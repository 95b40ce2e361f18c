"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Text = str | None
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a plan setting. Repeatable."),
]
SkipBroken = Annotated[
    Text,
    typer.Option(metavar="N|all", help="Skip up to N broken entries of the data."),
]
