"""What the commands' options have in common: types, help texts, and which must agree."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiles.exits import fail
from profiles.sizes import GIB, MIB

if TYPE_CHECKING:
    from advisor.machine.target import Target


PLOT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pdf")


MAX_VRAM_BYTES = 2**44  # 16 TiB: anything above is a wrong unit


_UNITS = {"mib": MIB, "gib": GIB, "mb": 10**6, "gb": 10**9}


def parse_size(text: str) -> int:
    """Bytes from a number with a unit. Raises typer.BadParameter.

    A bare number is refused: 8 GB and 8 GiB differ by more than the whole margin.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)", text.strip(), re.ASCII)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise typer.BadParameter(f"got {text!r}; give a number and MiB, GiB, MB or GB: 8GiB")
    try:
        size = round(float(match[1]) * unit)
    except OverflowError:
        size = MAX_VRAM_BYTES + 1
    if not 0 < size <= MAX_VRAM_BYTES:
        raise typer.BadParameter(f"got {text!r}; give more than 0 and at most 16384GiB")
    return size


Text = str | None


Vram = Annotated[
    int | None,
    typer.Option(metavar="SIZE", parser=parse_size, help="For a card of this size, such as 8GiB."),
]


Card = Annotated[Text, typer.Option(metavar="NAME", help='For this card, such as "RTX 3060 12GB".')]


System = Annotated[
    Text, typer.Option("--os", help="With --vram or --gpu: linux (default) or windows.")
]


Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a setting of the plan. Repeatable."),
]


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Count the longest sample of this data set.")
]


SkipBroken = Annotated[
    Text, typer.Option(metavar="N|all", help="Skip up to N broken entries of the data.")
]


def must_agree(assignments: list[str]) -> None:
    """Ends with exit code 2 if one setting is given two values."""
    from profiles.overrides import assigned

    given: dict[str, str] = {}
    for text in assignments:
        for key, value in assigned([text]).items():
            if given.setdefault(key, value) != value:
                fail(f"{key}: got {given[key]} and {value}; give it once")


def named_card(vram: int | None, gpu: str | None, system: str | None) -> Target | None:
    """The card that the options name, if any. Ends with exit code 2 on a contradiction."""
    from advisor.machine.target import Target
    from profiles.gpus import find_gpu

    if system not in (None, "linux", "windows"):
        fail(f"--os: got {system!r}; give linux or windows")
    if vram is None and gpu is None:
        if system is not None:
            fail("--os needs --vram or --gpu; this machine's own system is known")
        return None
    if vram is not None and gpu is not None:
        fail("--vram and --gpu both name a card; give one of them")
    try:
        card = None if gpu is None else find_gpu(gpu)
    except ValueError as error:
        # Whatever is wrong with the name, the size alone is enough.
        fail(f"--gpu: {error}\n    hint: if the card is not listed, give --vram SIZE, such as 8GiB")
    return Target(vram, card, windows=system == "windows")


def must_be_data(folder: Path | None, skip_broken: str | None) -> None:
    """Ends with exit code 2 if there is no data; passes --skip-broken on to child processes."""
    from profiles.skipping import VARIABLE, announce, announced, read_most
    from profiles.splits import NEEDED, importing, located

    if folder is not None and not folder.is_dir():
        fail(f"{folder}: no such folder; --data-dir must name ReasonSeg data")
    if folder is not None and located(folder) is None:
        command = importing(folder)
        hint = f"\n    hint: {command} makes it of the annotations there" if command else ""
        fail(f"{folder}: --data-dir must name ReasonSeg data; needed: {NEEDED}{hint}")
    if skip_broken is not None and folder is None:
        fail("--skip-broken needs --data-dir")
    try:
        if skip_broken is not None:
            announce(read_most(skip_broken))
        else:
            announced()
    except ValueError as error:
        fail(str(error) if skip_broken is not None else f"{VARIABLE}: {error}")


def must_be_positive(name: str, value: float | None) -> None:
    """Ends with exit code 2 for a number that is none, or not above 0."""
    if value is not None and not 0 < value < math.inf:
        fail(f"{name}: got {value:g}; give a number above 0")


def must_be_writable(path: Path | None) -> None:
    """Ends with exit code 2 before the work, not after it."""
    if path is None:
        return
    if path.is_dir():
        fail(f"{path}: cannot be written: is a folder")
    if not path.parent.is_dir():
        fail(f"{path}: cannot be written: no folder {path.parent} to write into")
    if not os.access(path.parent, os.W_OK):
        fail(f"{path}: cannot be written: no right to write into {path.parent}\n"
              "    hint: name another folder, or change its rights")  # fmt: skip


def parse_capability(text: str) -> tuple[int, int]:
    """Compute capability from text such as 8.6. Raises typer.BadParameter."""
    match = re.fullmatch(r"([0-9]{1,2})\.([0-9])", text.strip(), re.ASCII)
    if match is None:
        raise typer.BadParameter(f"--compute-capability: got {text!r}; give a number such as 8.6")
    return int(match[1]), int(match[2])
