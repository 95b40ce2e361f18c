"""A command's options as one frozen dataclass, where its own parameters would be too many."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from profiles.exits import fail

T = TypeVar("T")


def takes(options: type[T]) -> Callable[[Callable[[Any, T], None]], Callable[..., None]]:
    """Give a command one parameter for each field of `options`: typer reads the signature.

    The command is handed typer's context and the options.
    """
    import typer

    hints = get_type_hints(options, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", kind, annotation=typer.Context)]
    parameters += [
        inspect.Parameter(one.name, kind, default=one.default, annotation=hints[one.name])
        for one in fields(options)  # type: ignore[arg-type]
    ]

    def taken(command: Callable[[Any, T], None]) -> Callable[..., None]:
        def called(*, context: typer.Context, **given: Any) -> None:
            command(context, options(**given))

        called.__doc__, called.__name__ = command.__doc__, command.__name__
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called

    return taken


def must_be_bare(context: Any, options: Any) -> None:
    """End with exit code 2 where options stand before a command's name: it would not get them."""
    given = ((getattr(options, one.name), one.default) for one in fields(options))
    # typer has None or an empty list, too, for what is not given
    if any(value not in (default, None, []) for value, default in given):
        fail(f"give the options of {context.invoked_subcommand} after its name")
