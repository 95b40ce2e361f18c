"""The Plan: every setting that can change the memory, the speed or the result of a training run.

It is the only thing that passes between the advisor, the trainer and the profiles. A Plan is
frozen and valid by construction: `Plan.parse` reports every problem at once, each with what was
got, what is allowed and how to fix it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from profiles.batches import forget_dependent_batch, with_batch_arithmetic
from profiles.contradictions import contradictions
from profiles.files import read_regular, reason
from profiles.findings import Finding, PlanError
from profiles.older_plans import as_first_written, modernised
from profiles.overrides import assign, must_agree
from profiles.pictures import forget_other_limits, with_picture_limits
from profiles.plan_settings import PlanSettings
from profiles.settings import PUBLISHED_WARMUP, Lora, Mixture, Schedule, TokenLimits
from profiles.validation import all_findings


class Plan(PlanSettings):
    """Settings of one training run."""

    @property
    def of_one_process(self) -> Plan:
        """What each process of the plan does, as a plan of its own."""
        if self.processes == 1:
            return self
        settings = self.model_dump(mode="json", exclude={"effective_batch"})
        return Plan.parse(settings | {"processes": 1, "nodes": 1})

    @property
    def segments(self) -> Literal["expandable", "whole"]:
        """How the plan's allocator cuts up its pool."""
        return "expandable" if "expandable_segments:True" in self.allocator else "whole"

    @model_validator(mode="before")
    @classmethod
    def _of_any_version(cls, data: Any) -> Any:
        """Read what earlier versions wrote."""
        return modernised(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _can_run(self) -> Self:
        """Refuse a combination that cannot run, with all reasons together."""
        findings = list(contradictions(self))
        if findings:
            raise PydanticCustomError("plan", "{text}", {"text": "", "findings": findings})
        return self

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Plan:
        """A Plan from plain data. Raises PlanError with every problem, not only the first."""
        if not isinstance(data, Mapping):
            raise PlanError([Finding("plan", "must be a table of settings", type(data).__name__)])
        data = with_picture_limits(with_batch_arithmetic(data))
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise PlanError(all_findings(cls, data, error, setting_names())) from None

    @classmethod
    def from_json(cls, text: str, where: str = "plan") -> Plan:
        """A Plan from a JSON document called `where`. Raises PlanError."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: numbers of 4300 digits, too
            fix = "lisa-advise --save FILE writes a plan; a file of settings goes to --recipe"
            raise PlanError([Finding(where, f"is not valid JSON: {error}", fix=fix)]) from None
        return cls.parse(data)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """A Plan from a file. Raises PlanError naming the file."""
        try:
            text = read_regular(path).decode("utf-8-sig")  # as Notepad may save it
        except (OSError, ValueError) as error:
            fix = "give the path of a plan.json, such as the one in a run folder"
            raise PlanError(
                [Finding(str(path), f"cannot be read: {reason(error)}", fix=fix)]
            ) from None
        return cls.from_json(text, str(path))

    def to_json(self) -> str:
        """The plan as indented JSON; `from_json` gives the same plan back."""
        return self.model_dump_json(indent=2) + "\n"

    @property
    def content_hash(self) -> str:
        """First 16 hex digits of SHA-256 over the canonical JSON: equal settings, equal hash."""
        data = as_first_written(self.model_dump(mode="json"))
        # Plans written before these settings existed keep their hash.
        if self.mixture == Mixture():
            del data["mixture"]
        if self.questions_per_picture == 1:
            del data["questions_per_picture"]
        if self.nodes == 1:
            del data["nodes"]
        if self.products == "dtype":
            del data["products"]
        if self.max_pixels is None:
            del data["min_pixels"], data["max_pixels"]
        if not self.schedule.max_skipped_steps:
            del data["schedule"]["max_skipped_steps"]
        if self.schedule.patience is None:
            del data["schedule"]["patience"]
        # A warm-up by the length of the run moves no byte: rows and hashes of before still count.
        if self.schedule.warmup_steps is None:
            data["schedule"]["warmup_steps"] = PUBLISHED_WARMUP
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def override(self, assignments: Iterable[str]) -> Plan:
        """A plan with `key=value` assignments applied, dotted keys for nested settings.

        Values are read as JSON where they parse (`8`, `true`, `null`, `["mask"]`), otherwise as
        text; for a list, a comma-separated text will do. Raises PlanError, also for a setting
        with two values.
        """
        data = self.model_dump(mode="json")
        assignments = list(assignments)
        must_agree(assignments)
        names = setting_names()
        findings = [f for text in assignments if (f := assign(data, text, names)) is not None]
        if findings:
            raise PlanError(findings)
        given = {text.partition("=")[0].strip().replace("-", "_") for text in assignments}
        batch = {"micro_batch", "accumulation", "effective_batch"}
        forget_dependent_batch(data, given & (batch | {"processes", "questions_per_picture"}))
        forget_other_limits(data, given)
        return Plan.parse(data)

    def refusals(
        self, gpu_name: str, bf16: bool, triton: bool = True, fp8: bool = True
    ) -> list[Finding]:
        """Why this plan cannot run on that card (in that system); empty when it can."""
        findings = []
        if self.device == "cuda" and self.dtype == "bf16" and not bf16:
            findings.append(
                Finding(
                    "dtype",
                    f"{gpu_name} has no bf16 arithmetic (compute capability below 8.0)",
                    "bf16",
                    "--set dtype=fp16",
                )
            )
        if self.device == "cuda" and self.products == "fp8" and not (fp8 and triton):
            lacks = "compute capability 8.9" if not fp8 else "Triton, which runs on Linux"
            what = f"FP8 products on {gpu_name} need {lacks}"
            findings.append(Finding("products", what, "fp8", "--set products=dtype"))
        if self.compile and not triton:
            findings.append(
                Finding(
                    "compile",
                    "needs Triton, which runs on Linux with compute capability 7.0 or later",
                    "true",
                    "--set compile=false",
                )
            )
        return findings


def setting_names() -> list[str]:
    """Every setting's dotted name, in the order of the schema."""
    names: list[str] = []
    nested: dict[str, type[BaseModel]] = {
        "lora": Lora,
        "schedule": Schedule,
        "tokens": TokenLimits,
        "mixture": Mixture,
    }
    for name in Plan.model_fields:
        names.append(name)
        if name in nested:
            names += [f"{name}.{inner}" for inner in nested[name].model_fields]
    return names
