"""A setting of the plan in words: what it is, which values it takes, what it does to memory."""

from __future__ import annotations

import json
from typing import Any

from profiles.levers import RELIEFS, SETTINGS, Traits
from profiles.overrides import OTHER_NAMES
from profiles.plan import Plan, setting_names
from profiles.wrong_values import range_text

_CHANGES = {
    "never": "it is the same from a run's beginning to its end",
    "resume": "--resume accepts another value in plan.json",
    "fallback": "a run changes it by itself after an out-of-memory error",
}
_SAVES = {"more": "a larger value takes less memory on the card",
          "less": "a smaller value takes less memory on the card"}  # fmt: skip


def setting_called(name: str) -> str | None:
    """The setting that `name` means: with hyphens, without its table, or as others call it."""
    wanted = name.strip().lower().replace("-", "_").replace(" ", "_")
    names = setting_names()
    if wanted in names:
        return wanted
    inner = [one for one in names if one.endswith(f".{wanted}")]
    if len(inner) == 1:
        return inner[0]
    return OTHER_NAMES[wanted].partition("=")[0] if wanted in OTHER_NAMES else None


def explain_setting(name: str) -> str:
    """The lines about a setting, by its full name."""
    shape, default = _field(name)
    traits = SETTINGS[name]
    about = shape.get("description") or _inner(name)
    lines = [f"{name}: {about}", f"default {_legible(default)}{_allowed(shape)}"]
    lines += [text for text in (_memory(traits, default), _CHANGES[traits.changes]) if text]
    relief = next((one for one in RELIEFS if f"--set {name}=" in one.how), None)
    if relief is not None:
        elsewhere = f" (elsewhere: {relief.elsewhere})" if relief.elsewhere else ""
        lines.append(relief.text() + elsewhere)
    return "\n  ".join(lines)


def _field(name: str) -> tuple[dict[str, Any], Any]:
    """The part of the plan's schema that is about a setting, and its default."""
    schema = Plan.model_json_schema()
    defaults: Any = Plan().model_dump(mode="json")
    found: dict[str, Any] = schema
    for part in name.split("."):
        found = _resolved(found, schema)["properties"][part]
        defaults = defaults[part]
    return found, defaults


def _resolved(shape: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """What a reference, or the first of several shapes, stands for."""
    shape = next(iter(shape.get("anyOf", ())), shape)
    return schema["$defs"][shape["$ref"].rsplit("/", 1)[-1]] if "$ref" in shape else shape


def _allowed(shape: dict[str, Any]) -> str:
    one = next(iter(shape.get("anyOf", ())), shape)
    many = one.get("items", one)
    if "enum" in many:
        return f"; values: {', '.join(map(str, many['enum']))}"
    named = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    values = range_text({key: one[name] for key, name in named.items() if name in one})
    return f"; values: {values}" if values else ""


def _memory(traits: Traits, default: Any) -> str:
    if isinstance(traits.saves, tuple):
        ordered = ", ".join(map(_legible, traits.saves))
        return f"from most memory to least: {ordered}"
    if isinstance(default, list) and traits.saves == "more":
        return "more of them take less memory on the card"
    return _SAVES.get(traits.saves or "", "")


def _inner(name: str) -> str:
    """A table's settings."""
    inner = [one.removeprefix(f"{name}.") for one in setting_names() if one.startswith(f"{name}.")]
    return f"a table of {', '.join(inner)}"


def _legible(value: Any) -> str:
    """A value as --set takes it."""
    if isinstance(value, list):
        return ",".join(value) or "none"
    if isinstance(value, str):
        return value or "''"
    return json.dumps(value)
