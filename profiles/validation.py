"""What is wrong with a document of settings: every problem at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from profiles.batches import with_batch_arithmetic
from profiles.findings import Finding
from profiles.overrides import legible, nearest_setting
from profiles.pictures import with_picture_limits
from profiles.text import brief
from profiles.wrong_values import BOUNDS, OUT_OF_BOUNDS, range_text, what_is_wrong

_BITS = {"nf4": "nf4", "int4": "nf4", "4bit": "nf4", "int8": "int8", "8bit": "int8"}
_FLOATS = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16", "fp32": "fp32",
           "float32": "fp32"}  # fmt: skip
# What was probably meant by a value of another setting, or by another trainer's name of a value.
MEANT = {
    "quantization": {name: f"quantization={bits}" for name, bits in _BITS.items()}
    | {name: f"quantization=none --set dtype={dtype}" for name, dtype in _FLOATS.items()}
    | {"fp8": "products=fp8"},
    "dtype": {name: f"dtype={dtype}" for name, dtype in _FLOATS.items()}
    | {name: f"quantization={bits}" for name, bits in _BITS.items()}
    | {"fp8": "products=fp8"},
    "products": {name: f"products=dtype --set dtype={dtype}" for name, dtype in _FLOATS.items()},
    "optimizer": {"adamw_8bit": "optimizer_state=8bit", "adamw8bit": "optimizer_state=8bit"},
}


def all_findings(
    cls: type[BaseModel], data: dict[str, Any], error: ValidationError, names: list[str]
) -> list[Finding]:
    """Findings of `error`, and of the checks that pydantic skips if a field is bad."""
    findings = _findings(cls, error, names)
    bad = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
    if bad:
        # Cross-field checks run only on a plan whose fields are valid: look at the rest alone.
        # Errors that only follow from a bad batch size are left out.
        sizes = {"questions_per_picture", "effective_batch", "micro_batch", "processes"}
        unknown = bad | ({"accumulation"} if bad & sizes else set())
        rest = {key: value for key, value in data.items() if key not in unknown}
        try:
            cls.model_validate(with_picture_limits(with_batch_arithmetic(rest)))
        except ValidationError as other:
            findings += [f for f in _findings(cls, other, names) if f.where not in bad]
    return findings


def _findings(cls: type[BaseModel], error: ValidationError, names: list[str]) -> list[Finding]:
    result: list[Finding] = []
    for detail in error.errors(include_url=False):
        context = detail.get("ctx", {})
        if detail["type"] == "plan":
            result += context["findings"]
            continue
        names_of = [part for part in detail["loc"] if isinstance(part, str)]  # not places in a list
        where = ".".join(map(legible, names_of)) or "plan"
        if detail["type"] == "extra_forbidden":
            result.append(Finding(where, "no such setting", fix=nearest_setting(where, names)))
            continue
        ends = _range(cls, names_of) if detail["type"] in OUT_OF_BOUNDS else ""
        what = f"must be {ends}" if ends else what_is_wrong(detail)
        meant = MEANT.get(where, {}).get(str(detail["input"]).lower(), "")
        fix = f"--set {meant}" if meant else ""
        result.append(Finding(where, what, brief(detail["input"]), fix))
    return result


def _range(cls: type[BaseModel], names: Sequence[str]) -> str:
    """Both ends of what a setting's number may be, in the unit that its name ends with."""
    *tables, last = names
    for one in tables:
        kind = cls.model_fields[one].annotation
        inner = (kind, *get_args(kind))
        cls = next(t for t in inner if isinstance(t, type) and issubclass(t, BaseModel))
    ends = cls.model_fields[last].metadata
    text = range_text({key: getattr(end, key) for end in ends for key in BOUNDS
                       if hasattr(end, key)})  # fmt: skip
    counts = "_" in last and last.endswith("s")  # max_pixels, warmup_steps
    return f"{text} {last.rpartition('_')[2]}" if text and counts else text
