"""Pydantic's errors in this project's words: what a value must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ALLOWED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a table of settings",
    "model_attributes_type": "a table of settings",
    "dataclass_type": "a table of settings",
    "dict_type": "a table",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
}

BOUNDS = {"ge": "{:,} or more", "gt": "more than {:,}", "le": "{:,} or less",
          "lt": "less than {:,}"}  # fmt: skip
OUT_OF_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


def range_text(bounds: Mapping[str, float]) -> str:
    """Both ends of what a number may be, by pydantic's names of them; empty without any."""
    if bounds.keys() == {"ge", "le"}:
        return f"{bounds['ge']:,} … {bounds['le']:,}"
    return " and ".join(text.format(bounds[one]) for one, text in BOUNDS.items() if one in bounds)


def allowed(error: Mapping[str, Any]) -> str:
    """The values allowed where pydantic reports `error`; empty where they are not known."""
    context = error.get("ctx", {})
    if error["type"] == "literal_error":
        return str(context["expected"]).replace("'", "")
    return _ALLOWED.get(error["type"], "").format(**context)


def what_is_wrong(error: Mapping[str, Any]) -> str:
    """What a value must be; pydantic's own words for errors that settings cannot cause."""
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        return "is not known"
    if must := allowed(error):
        return f"must be {must}"
    said = str(error["msg"]).removeprefix("Value error, ")
    return said[:1].lower() + said[1:]
