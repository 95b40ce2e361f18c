"""Recipes: settings of a plan that are kept in a file and used again. Some are included.

A recipe's settings count as if given with --set. Options on the command line override the recipe,
and the recipe overrides the advice; `plan.json` holds the result.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from profiles.files import read_regular, reason
from profiles.findings import Finding, PlanError
from profiles.overrides import assigned, legible, nearest_setting
from profiles.text import brief

SHIPPED = Path(__file__).with_name("recipes")
MOST_BYTES, MOST_BRACKETS = 1 << 16, 100
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
ABOUT = "description"  # is in no plan


def shipped_recipes() -> list[str]:
    """The names of the included recipes."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def with_recipe(recipe: str | None, given: Sequence[str], model: str | None = None) -> list[str]:
    """A recipe's assignments without those that `given` overrides, then `given`. Raises PlanError.

    `model`: the model that --model names.
    """
    if recipe is None:
        return list(given)
    named = assigned(given).keys() | ({"model"} if model else set())
    tables = {name.partition(".")[0] for name in named}
    return [
        f"{name}={value}"
        for name, value in read_recipe(recipe).items()
        if name not in named | tables and name.partition(".")[0] not in named
    ] + list(given)


def read_recipe(recipe: str) -> dict[str, str]:
    """The settings of a recipe as --set takes them: the name of a shipped one, or a file.

    Raises PlanError with everything that is wrong.
    """
    from profiles.plan import setting_names

    path = Path(recipe)
    if not path.suffix and path.name == recipe:
        if recipe not in shipped_recipes():
            known = f"a file, or one of {', '.join(shipped_recipes())}"
            raise PlanError([Finding("--recipe", f"allowed: {known}", brief(recipe))])
        path = SHIPPED / f"{recipe}.toml"
    document = _document(path)
    document.pop(ABOUT, None)
    names = setting_names()
    settings = dict(_settings(document, names))
    wrong = [
        Finding(f"{path}: {legible(name)}", "no such setting", brief(value),
                nearest_setting(name, names))
        for name, value in settings.items() if name not in names
    ]  # fmt: skip
    if wrong:
        raise PlanError(wrong)
    return {name: _raw(value) for name, value in settings.items()}


def _document(path: Path) -> dict[str, Any]:
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads, ".yaml": _yaml, ".yml": _yaml
    }  # fmt: skip
    where = str(path)
    if path.suffix not in readers:
        fix = "lisa-train --plan takes plan.json; DeepSpeed has no part here: docs/several-gpus.md"
        raise PlanError([Finding(where, f"allowed: files that end in {', '.join(readers)}",
                                 fix=fix if path.suffix == ".json" else "")])  # fmt: skip
    try:
        found = readers[path.suffix](read_regular(path, MOST_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError([Finding(where, f"cannot be read: {reason(error)}")]) from None
    if not isinstance(found, dict):
        raise PlanError([Finding(where, "must be a table of settings", brief(found))])
    return found


def _yaml(text: str) -> Any:
    """A YAML document, read strictly. Raises ValueError.

    Refused are aliases (a few lines of them expand to gigabytes), values that PyYAML reads
    differently from how they look, and deep nesting (time grows with the square of its depth).
    """
    import yaml

    if text.count("[") + text.count("{") > MOST_BRACKETS:
        raise ValueError(f"has more than {MOST_BRACKETS} brackets, which no recipe needs")
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has aliases, which no recipe needs")
        for node in _nodes(yaml.compose(text, yaml.SafeLoader)):
            _must_be_plain(node)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _nodes(node: Any) -> Iterator[Any]:
    """A YAML node and all below it."""
    if node is None:
        return
    yield node
    below = chain.from_iterable(node.value) if node.id == "mapping" else node.value
    for child in below if node.id != "scalar" else ():
        yield from _nodes(child)


def _must_be_plain(node: Any) -> None:
    """Raise ValueError for a name given twice, and for a number such as 010, which YAML makes 8."""
    line = node.start_mark.line + 1
    if node.id == "mapping":
        for key, count in Counter(key.value for key, _ in node.value if key.id == "scalar").items():
            if count > 1:
                raise ValueError(f"it names {brief(key)} twice, below line {line}")
    if node.id == "scalar" and node.tag.endswith(":int") and not _DECIMAL.fullmatch(node.value):
        raise ValueError(f"line {line}: {node.value} is no plain number; YAML reads it otherwise")


def _settings(
    document: Mapping[Any, Any], names: Sequence[str], head: str = ""
) -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names, known or not."""
    for key, value in document.items():
        name = f"{head}{key}".replace("-", "_")
        if isinstance(value, dict) and not head and name in names:
            yield from _settings(value, names, f"{name}.")
        else:
            yield name, value


def _raw(value: Any) -> str:
    """A value as --set takes it. YAML reads 1e-4 as text, which --set does not."""
    return value if isinstance(value, str) else json.dumps(value, default=str, skipkeys=True)
