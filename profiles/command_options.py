"""A command's options as one frozen dataclass, where its own parameters would be too many."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, fields
from typing import Annotated, Any, TypeVar, get_type_hints

from profiles.exits import fail

T = TypeVar("T")


def takes(options: type[T]) -> Callable[[Callable[[Any, T], None]], Callable[..., None]]:
    """Give a command one parameter for each field of `options`: typer reads the signature.

    The command itself gets typer's context and an `options` object. `options.panels` names the
    first option of each group of the help; '' is the group that --help is in.
    """
    import typer

    hints = get_type_hints(options, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", kind, annotation=typer.Context)]
    panel = ""
    for one in fields(options):  # type: ignore[arg-type]
        panel = options.panels.get(one.name, panel)  # type: ignore[attr-defined]
        hint = _in_panel(hints[one.name], panel)
        default = inspect.Parameter.empty if one.default is MISSING else one.default
        parameters.append(inspect.Parameter(one.name, kind, default=default, annotation=hint))

    def taken(command: Callable[[Any, T], None]) -> Callable[..., None]:
        def called(*, context: typer.Context, **given: Any) -> None:
            command(context, options(**given))

        called.__doc__, called.__name__ = command.__doc__, command.__name__
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called

    return taken


def _in_panel(hint: Any, panel: str) -> Any:
    """A copy of an option's annotation, placed in a group of the help. Commands share options."""
    option = copy(hint.__metadata__[0])
    option.rich_help_panel = panel or None
    return Annotated[hint.__origin__, option]


def given(options: Any) -> set[str]:
    """The options that differ from their defaults."""
    # For an option that is not given, typer may also pass None or an empty list.
    return {one.name for one in fields(options)
            if getattr(options, one.name) not in (one.default, None, [])}  # fmt: skip


def takes_only(options: Any, allowed: set[str], what: str) -> None:
    """End with exit code 2 if options are given that `what` would ignore."""
    if others := given(options) - allowed:
        fail(f"{what}: leave out {', '.join(sorted(_typed(options, name) for name in others))}")


def _typed(options: Any, name: str) -> str:
    """An option or argument as it is typed."""
    declared = get_type_hints(type(options), include_extras=True)[name].__metadata__[0]
    if type(declared).__name__ == "ArgumentInfo":
        return name.upper()
    # Beside a type, typer has the first of an option's names as its default until it is read.
    names = map(str, (declared.default, *(declared.param_decls or ())))
    return next((one for one in names if one.startswith("-")), f"--{name.replace('_', '-')}")


def must_be_bare(context: Any, options: Any) -> None:
    """End with exit code 2 where options stand before a command's name: it would not get them."""
    if given(options):
        fail(f"give the options of {context.invoked_subcommand} after its name")
