"""What an extra of this package, such as `serve`, needs."""

from __future__ import annotations

from importlib.metadata import requires

PACKAGE = "lisa-preflight"


def install_command(extra: str) -> str:
    """What installs an extra's packages by their names: no index has this package under its own."""
    needed = [one.replace("'", '"').partition(";") for one in requires(PACKAGE) or ()]
    names = [name.strip() for name, _, when in needed if when.strip() == f'extra == "{extra}"']
    return " ".join(["pip install", *(f"'{name}'" for name in names)])
