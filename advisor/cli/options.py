"""What the commands' options have in common: types, help texts, and which must agree."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiles.command_line import MODEL_HELP, gpu_names, model_names
from profiles.exits import fail
from profiles.numbers import option_parser
from profiles.own_files import is_marked, refuse_others
from profiles.preferences import Preference
from profiles.shared_options import Text
from profiles.sizes import GIB, parse_size
from profiles.streams import say, tell
from profiles.text import brief

if TYPE_CHECKING:
    from advisor.machine.target import Target


PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def memory_size(text: str) -> int:
    """Bytes from a size; notes how a plain number was read. Raises typer.BadParameter."""
    size = option_parser(parse_size)(text)
    if not text.strip()[-1].isalpha():
        tell(f"note: {text.strip()} is read as {size / GIB:g} GiB")
    return size


def explained_names(incomplete: str) -> Iterator[str]:
    """Completions of --explain: words of the answer, with hyphens, and settings."""
    from advisor.report.glossary import EXPLANATIONS
    from profiles.plan import setting_names

    names = [name.lower().replace(" ", "-") for name in EXPLANATIONS] + setting_names()
    yield from (name for name in names if name.startswith(incomplete.lower()))


def _listed(name: str | None) -> str | None:
    """The card's name; with `list`, print every card as --gpu takes it, and exit."""
    if name != "list":
        return name
    from profiles.gpus import gpus

    width = max(map(len, gpus()))
    for key, card in gpus().items():
        say(f"{key:{width}}  {card.title}")
    raise typer.Exit


Model = Annotated[
    Text, typer.Option(help=f"{MODEL_HELP} Default: one that fits.", autocompletion=model_names)
]


Vram = Annotated[
    int | None,
    typer.Option(metavar="SIZE", parser=memory_size, help="For a card of this size: 8GiB (or 8)."),
]


Card = Annotated[
    Text,
    typer.Option(
        metavar="NAME",
        help='For this card, such as "RTX 3060 12GB"; list: print all that are known.',
        autocompletion=gpu_names,
        callback=_listed,
    ),
]


System = Annotated[
    Text, typer.Option("--os", help="With --vram or --gpu: linux (default) or windows.")
]


Ram = Annotated[
    int | None,
    typer.Option(
        metavar="SIZE",
        parser=memory_size,
        help="With --vram or --gpu: the machine's host memory.  [16GiB for each card]",
    ),
]


Prefer = Annotated[
    Preference,
    typer.Option(help="What counts first among plans that fit: docs/advice.md."),
]


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Count the longest sample of this data set.")
]


def named_card(
    vram: int | None, gpu: str | None, system: str | None, ram: int | None = None
) -> Target | None:
    """The card that the options name, if any. Ends with exit code 2 on a contradiction."""
    from advisor.machine.target import Target
    from profiles.gpus import find_gpus

    if system == "wsl":
        # WSL 2 takes half of Windows' memory unless its .wslconfig says otherwise.
        fail(
            "--os: got 'wsl'; give linux or windows\n    hint: WSL is --os linux, with --ram what "
            "`free -g` says in it: half of Windows' memory, unless .wslconfig has memory="
        )
    if system not in (None, "linux", "windows"):
        fail(f"--os: got {system!r}; give linux or windows")
    if vram is None and gpu is None:
        if system is not None:
            fail("--os needs --vram or --gpu; this machine's own system is known")
        if ram is not None:
            fail("--ram needs --vram or --gpu; this machine's own memory is known")
        return None
    if vram is not None and gpu is not None:
        fail("--vram and --gpu both name a card; give one of them")
    try:
        count, cards = (1, []) if gpu is None else find_gpus(gpu)
    except ValueError as error:
        # Whatever is wrong with the name, the size alone is enough.
        fail(
            f"--gpu: {error}\n    hint: --gpu list names the known ones; "
            "--vram SIZE, such as 8GiB, gives the memory side of any GPU"
        )
    card = cards[0] if cards else None
    return Target(vram, card, system == "windows", ram, tuple(cards[1:]), count)


def group_settings(
    gpus: int | None, nodes: int | None, target: Target | None, settings: list[str]
) -> list[str]:
    """The settings that --gpus and --nodes add to those given; none for one card.

    Notes how many cards a machine is assumed to have if no number is given. Ends with exit code 2
    if --gpus and --gpu name different numbers of cards.
    """
    from profiles.overrides import assigned

    named = target.count if target is not None else 1
    if gpus is not None and named not in (1, gpus):
        fail(f"--gpus: got {gpus}, and --gpu names {named} cards; give one of the two")
    cards = gpus or named
    if cards == 1 and nodes is None:
        return []
    found = [f"nodes={nodes or 1}"]
    if gpus is None and cards == 1:
        if "processes" in assigned(settings):
            return found
        if nodes != 1:
            tell(f"note: --nodes {nodes} without --gpus: one card in each is assumed")
    return [f"processes={cards * (nodes or 1)}", *found]


def must_be_data(folder: Path | None, skip_broken: str | None) -> None:
    """Ends with exit code 2 if there is no data; passes --skip-broken on to child processes."""
    from profiles.skipping import VARIABLE, announce, announced, read_most
    from profiles.splits import MAKES_DATA, NEEDED, located, remedy

    if folder is not None and not folder.is_dir():
        fail(f"{folder}: no such folder; --data-dir must name ReasonSeg data\n"
             f"    hint: {MAKES_DATA}")  # fmt: skip
    if folder is not None and located(folder) is None:
        hint = remedy(folder) or MAKES_DATA
        fail(f"{folder}: --data-dir must name ReasonSeg data; needed: {NEEDED}\n    hint: {hint}")
    if skip_broken is not None and folder is None:
        fail("--skip-broken needs --data-dir")
    try:
        if skip_broken is not None:
            announce(read_most(skip_broken))
        else:
            announced()
    except ValueError as error:
        fail(str(error) if skip_broken is not None else f"{VARIABLE}: {error}")


def is_plan(path: Path) -> bool:
    """Whether a file holds a plan."""
    from profiles.findings import PlanError
    from profiles.plan import Plan

    try:
        Plan.read(path)
    except PlanError:
        return False
    return True


def are_rows(path: Path) -> bool:
    """Whether a file holds tested rows as they are exported or shared. Raises OSError."""
    from advisor.report.shared_rows import rows_of
    from profiles.files import read_regular
    from profiles.tested import parse_table

    found = parse_table(rows_of(read_regular(path)), str(path))
    return bool(found.rows) and not found.findings


def must_be_writable(
    path: Path | None, kind: str = "a picture", is_ours: Callable[[Path], bool] = is_marked
) -> None:
    """Ends with exit code 2, before the work, if a file cannot be written or must not be replaced.

    Only files that this product wrote (`is_ours`) are replaced.
    """
    if path is None:
        return
    if path.is_dir():
        fail(f"{path}: cannot be written: is a folder")
    if not path.parent.is_dir():
        fail(f"{path}: cannot be written: no folder {path.parent} to write into")
    if not os.access(path.parent, os.W_OK):
        fail(f"{path}: cannot be written: no right to write into {path.parent}\n"
              "    hint: name another folder, or change its rights")  # fmt: skip
    try:
        refuse_others(path, kind, is_ours)
    except FileExistsError as error:
        fail(str(error))


def parse_capability(text: str) -> tuple[int, int]:
    """Compute capability from text such as 8.6. Ends with exit code 2 for another one."""
    match = re.fullmatch(r"([0-9]{1,2})\.([0-9])", text.strip(), re.ASCII)
    if match is None:
        fail(f"--compute-capability: got {brief(text)}; give a number such as 8.6")
    return int(match[1]), int(match[2])
