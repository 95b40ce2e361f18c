"""What all commands have in common: flags without a type, examples, --version, completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from profiles.text import brief
from profiles.usage_errors import in_own_words


def _plain(parameters: list[Any]) -> list[Any]:
    """The parameters, with flags shown without a type; this includes typer's own options."""
    for one in parameters:
        if isinstance(one, TyperOption) and one.is_flag and one.metavar is None:
            one.metavar = ""
    return parameters


def _refuse_second_values(command: Any, ctx: Any, args: list[str]) -> None:
    """End with exit code 2 if an option that takes one value gets two: the first would be lost."""
    if ctx.resilient_parsing:  # shell completion
        return
    parser, single = command.make_parser(ctx), {}
    for one in command.get_params(ctx):
        if isinstance(one, TyperOption) and not one.is_flag and not one.multiple:
            single[one.name] = one
            collecting = copy(one)
            collecting.multiple = True
            collecting.add_to_parser(parser, ctx)
    for name, values in parser.parse_args(list(args))[0].items():
        if name in single and len(found := list(dict.fromkeys(values))) > 1:
            got = " and ".join(map(brief, found))
            raise typer.BadParameter(f"got {got}; give it once", ctx, single[name])


def hyphenated(arguments: Sequence[str]) -> list[str]:
    """The arguments, with hyphens for underscores in the names of options; after -- is none."""
    result = []
    for one in arguments:
        name, equals, value = one.partition("=")
        is_option = name.startswith("--") and "--" not in result
        result.append(name.replace("_", "-") + equals + value if is_option else one)
    return result


class _Careful:
    """Plain help texts, errors in this project's words, and no option given twice."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))  # type: ignore[misc]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = hyphenated(args)
        with in_own_words(ctx):
            _refuse_second_values(self, ctx, args)
            found: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
            return found


class _Command(_Careful, TyperCommand):
    pass


class _Group(_Careful, TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with in_own_words(ctx):
            return super().resolve_command(ctx, args)


class Commands(typer.Typer):
    """A typer app whose help ends with examples."""

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(
            cls=_Group,
            epilog=_listed(examples),
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
            **options,
        )

    def command(
        self, name: str | None = None, *, examples: Sequence[str] = (), **options: Any
    ) -> Any:
        """Register a command as typer does, with examples."""
        return super().command(name, cls=_Command, epilog=_listed(examples), **options)


def _listed(examples: Sequence[str]) -> str | None:
    # typer joins lines, but not those of a paragraph that begins so.
    return "\n".join(["\b", "Examples:", *(f"  {one}" for one in examples)]) if examples else None


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import version

        from profiles.places import NAME
        from profiles.streams import say

        say(f"{context.find_root().info_name} {version(NAME)}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
]


def gpu_names(incomplete: str) -> Iterator[tuple[str, str]]:
    """Cards whose key begins so, also without RTX or GTX; each with its name."""
    from profiles.gpus import gpus

    for key, card in gpus().items():
        for name in (key, key.removeprefix("rtx-").removeprefix("gtx-")):
            if name.startswith(incomplete.lower()):
                yield name, card.title
                break


def model_names(incomplete: str) -> Iterator[tuple[str, str]]:
    """Models whose name begins so, each with its title."""
    from profiles.models import models

    yield from ((name, one.title) for name, one in models().items() if name.startswith(incomplete))


def recipe_names(incomplete: str) -> Iterator[str]:
    """The included recipes that begin so."""
    from profiles.recipe import shipped_recipes

    yield from (name for name in shipped_recipes() if name.startswith(incomplete))


Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Settings from a TOML or YAML file, or an included recipe: docs/runs.md.",
        autocompletion=recipe_names,
    ),
]


MODEL_HELP = "Size, such as tiny, 7b or qwen3-vl-4b."
