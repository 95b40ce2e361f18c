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
