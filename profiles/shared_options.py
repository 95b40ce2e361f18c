"""Options that lisa-advise, lisa-train and lisa-segment have in common, each declared once."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from profiles.numbers import (
    option_parser,
    parse_count,
    parse_minutes,
    parse_number,
    parse_share,
)

Text = str | None
NEWEST = "runs/latest means the newest of runs/latest, runs/latest-2 and so on."
TRAINED_HELP = f"Run folder, checkpoint, export, or converted model folder. {NEWEST}"

# What an option that takes a number passes to typer.
NUMBER: dict[str, Any] = {"metavar": "NUMBER", "parser": option_parser(parse_number)}
COUNT: dict[str, Any] = {"metavar": "N", "parser": option_parser(parse_count)}
SOME: dict[str, Any] = COUNT | {"parser": option_parser(partial(parse_count, least=1))}
SHARE: dict[str, Any] = {"metavar": "SHARE", "parser": option_parser(parse_share)}
MINUTES: dict[str, Any] = {"metavar": "MINUTES", "parser": option_parser(parse_minutes)}

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a setting of the plan. Repeatable."),
]
SkipBroken = Annotated[
    Text, typer.Option(metavar="N|all", help="Skip up to N broken entries of the data.")
]
Gpus = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Train on N cards of a machine, one process on each."),
]
Nodes = Annotated[
    int | None,
    typer.Option(
        metavar="M", min=1, help="Train on M machines, by torchrun, each with --gpus cards."
    ),
]
Weights = Annotated[
    Text, typer.Option(metavar="FOLDER", help="Model folder of lisa-train convert, or random.")
]
LoraRank = Annotated[
    int | None,
    typer.Option("--lora-r", min=1, max=256, help="Set LoRA's rank, and alpha to twice that."),
]
Unquantized = Annotated[
    bool, typer.Option("--no-quantization", help="Keep the base weights as published.")
]
