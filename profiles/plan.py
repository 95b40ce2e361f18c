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

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from profiles.batches import (
    batch_contradictions,
    forget_dependent_batch,
    with_batch_arithmetic,
)
from profiles.families import ModelProfile
from profiles.files import read_regular, reason
from profiles.findings import Finding, PlanError
from profiles.models import models
from profiles.older_plans import as_first_written, modernised
from profiles.overrides import assign, must_agree
from profiles.pictures import (
    LARGEST,
    LEAST,
    forget_other_limits,
    picture_contradictions,
    profile_of,
    with_picture_limits,
)
from profiles.settings import (
    EFFECTIVE_BATCH,
    MOST,
    MOST_PROCESSES,
    MOST_QUESTIONS,
    PUBLISHED_WARMUP,
    TARGETS_PER_PICTURE,
    Dtype,
    Encoder,
    Lora,
    Mixture,
    Quantization,
    Schedule,
    Settings,
    TokenLimits,
    TrainedPart,
)
from profiles.text import brief
from profiles.validation import all_findings


class Plan(Settings):
    """Settings of one training run."""

    schema_version: Literal[2] = Field(2, description="version of this schema")
    model: str = Field(
        "tiny", description="size, a name in models.toml, such as tiny, 7b or qwen3-vl-4b"
    )
    weights: str = Field(
        "default",
        description="'default' (packaged or the published source), 'random' (true shapes, random "
        "values) or a folder of safetensors in this project's layout",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the training step runs")
    processes: int = Field(
        1,
        ge=1,
        le=MOST_PROCESSES,
        description="data-parallel processes over all machines, one per GPU",
    )
    nodes: int = Field(
        1,
        ge=1,
        le=MOST_PROCESSES,
        description="machines that the processes run on, as many on each",
    )
    quantization: Quantization = Field(
        "nf4",
        description="storage of the decoder's frozen linears: nf4 with double quantisation, int8 "
        "with a scale a row, or none",
    )
    dtype: Dtype = Field("bf16", description="compute dtype of frozen weights and activations")
    products: Literal["dtype", "fp8"] = Field(
        "dtype",
        description="arithmetic of the decoder's frozen linears: in dtype, or in FP8 (e4m3, a "
        "scale a row), which is faster from compute capability 8.9 on and rounds more",
    )
    lora: Lora | None = Field(Lora(), description="adapters on the decoder, or none")
    train: tuple[TrainedPart, ...] = Field(
        ("mask_decoder", "text_hidden_fcs", "token_rows"),
        description="trained parts beside LoRA: mask_decoder, text_hidden_fcs, projector, "
        "token_rows (rows of the new tokens in embedding and head), head (the whole output "
        "projection), embeddings (embedding and head, both whole)",
    )
    effective_batch: int = Field(
        EFFECTIVE_BATCH, ge=1, le=MOST, description="questions per optimizer step"
    )
    questions_per_picture: int = Field(
        1, ge=1, le=MOST_QUESTIONS, description="questions in a row, at most: system prompt and "
        "picture come once, and each question is answered as in a row of its own",
    )  # fmt: skip
    micro_batch: int = Field(
        2, ge=1, le=MOST, description="rows, one picture each, per forward pass and process"
    )
    accumulation: int = Field(
        10, ge=1, le=MOST, description="forward passes per optimizer step, of full rows"
    )
    checkpointed_layers: int = Field(
        0, ge=0, description="decoder layers whose activations are recomputed, 0 … all"
    )
    cached_encoders: tuple[Encoder, ...] = Field(
        ("mask", "vision"),
        description="frozen encoders whose features are read from disk: vision (for the "
        "language model), mask (for the mask decoder)",
    )
    host_embeddings: bool = Field(
        False,
        description="embedding table and head stay in host memory: looked up there, the head "
        "streamed in chunks",
    )
    host_layers: int = Field(
        0,
        ge=0,
        description="checkpointed decoder layers whose frozen weights stay in host memory and are "
        "copied to the card one ahead, 0 … checkpointed_layers",
    )
    compile: bool = Field(
        False, description="compile decoder layers with torch.compile (needs Triton on the GPU)"
    )
    logits: Literal["supervised", "all"] = Field(
        "supervised", description="positions at which the head is computed in training"
    )
    mask_loss_resolution: int = Field(
        256, ge=32, le=2048, description="side of the mask loss in the mask decoder's frame, pixels"
    )
    min_pixels: int | None = Field(
        None, ge=LEAST, le=LARGEST,
        description="a picture of fewer pixels is enlarged for the language model, where its "
        "tokens follow from its size; null: the model looks at one size",
    )  # fmt: skip
    max_pixels: int | None = Field(
        None, ge=LEAST, le=LARGEST, description="a picture of more pixels is shrunk for the "
        "language model, where its tokens follow from its size; null: the model looks at one size",
    )  # fmt: skip
    optimizer: Literal["adamw", "paged_adamw"] = Field(
        "adamw",
        description="AdamW, or AdamW whose moments move to host memory where the card is full",
    )
    optimizer_state: Literal["fp32", "8bit"] = Field(
        "fp32", description="precision of Adam's two moments"
    )
    schedule: Schedule = Field(Schedule(), description="learning rate and epochs")
    tokens: TokenLimits = Field(TokenLimits(), description="limits of one sample")
    mixture: Mixture = Field(Mixture(), description="data sets to train on, and their rates")
    allocator: str = Field(
        "expandable_segments:True", description="PyTorch's CUDA allocator settings; '' for none"
    )
    workers: int = Field(0, ge=0, le=64, description="data-loading processes per training process")
    seed: int = Field(0, ge=0, le=2**64 - 1, description="seed of weights, data order and dropout")
    max_train_samples: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="first n training samples (of a mixture: of each data set)",
    )
    max_val_samples: int | None = Field(
        None, ge=1, le=MOST, description="first n validation samples"
    )

    @property
    def most_masks(self) -> int:
        """[SEG] tokens that a training sample holds at most."""
        if self.questions_per_picture > 1:
            return self.questions_per_picture
        several = self.mixture.refer_seg or self.mixture.sem_seg
        return min(TARGETS_PER_PICTURE if several else 1, self.tokens.max_masks)

    @property
    def local_processes(self) -> int:
        """Processes of each machine."""
        return self.processes // self.nodes

    @property
    def of_one_process(self) -> Plan:
        """What each process of the plan does, as a plan of its own."""
        if self.processes == 1:
            return self
        settings = self.model_dump(mode="json", exclude={"effective_batch"})
        return Plan.parse(settings | {"processes": 1, "nodes": 1})

    @property
    def most_answer_tokens(self) -> int | None:
        """Supervised tokens of a training sample at most; None: some five for each mask."""
        return self.tokens.max_text_tokens if self.mixture.vqa else None

    @property
    def profile(self) -> ModelProfile:
        """Shapes of the plan's model, looking at pictures as the plan says."""
        return profile_of(self)

    @model_validator(mode="before")
    @classmethod
    def _of_any_version(cls, data: Any) -> Any:
        """Read what earlier versions wrote."""
        return modernised(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _can_run(self) -> Self:
        """Refuse a combination that cannot run, with all reasons together."""
        findings = list(_contradictions(self))
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
            raise PlanError([Finding(where, f"is not valid JSON: {error}")]) from None
        return cls.parse(data)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """A Plan from a file. Raises PlanError naming the file."""
        try:
            text = read_regular(path).decode("utf-8")
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
        # Plans from before there were these settings keep their hash.
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


def _contradictions(plan: Plan) -> Iterable[Finding]:
    """Every reason why these settings cannot run together."""
    try:
        layers = plan.profile.decoder.layers
    except ValueError as error:
        yield Finding("model", str(error), brief(plan.model))
        layers = None
    yield from batch_contradictions(plan)
    yield from picture_contradictions(plan)
    if plan.processes % plan.nodes:
        yield Finding("nodes", "every machine runs as many processes as the others",
                      f"{plan.processes} processes on {plan.nodes} nodes",
                      f"--set processes=N, a multiple of {plan.nodes}")  # fmt: skip
    if layers is not None and plan.checkpointed_layers > layers:
        yield Finding(
            "checkpointed_layers",
            f"{plan.model} has {layers} decoder layers",
            str(plan.checkpointed_layers),
            f"choose 0 … {layers}, or 'all'",
        )
    yield from _precision_contradictions(plan)
    yield from _training_contradictions(plan)
    yield from _placement_contradictions(plan)


def _precision_contradictions(plan: Plan) -> Iterable[Finding]:
    if plan.device == "cpu" and plan.dtype == "fp16":
        yield Finding("dtype", "fp16 training needs a GPU", "fp16 on cpu", "use fp32")
    if plan.device == "cuda" and plan.products == "fp8" and plan.dtype != "bf16":
        yield Finding("products", "FP8 products have their results in bf16", f"fp8, {plan.dtype}",
                      "--set dtype=bf16, or products=dtype")  # fmt: skip
    if plan.device == "cpu" and plan.optimizer == "paged_adamw":
        yield Finding(
            "optimizer",
            "a paged optimizer moves its state between GPU and host memory",
            "paged_adamw on cpu",
            "use optimizer adamw",
        )


def _placement_contradictions(plan: Plan) -> Iterable[Finding]:
    layers = models()[plan.model].decoder.layers if plan.model in models() else plan.host_layers
    if plan.host_layers > layers:
        yield Finding("host_layers", f"{plan.model} has {layers} decoder layers",
                      str(plan.host_layers), f"choose 0 … {layers}")  # fmt: skip
    elif plan.host_layers > plan.checkpointed_layers:
        yield Finding(
            "host_layers",
            "a layer in host memory is copied again for the backward pass, which then recomputes "
            "it: it must be one of the checkpointed layers",
            f"{plan.host_layers} host, {plan.checkpointed_layers} checkpointed",
            "--set checkpointed_layers=all",
        )
    if plan.host_embeddings and {"head", "embeddings"} & set(plan.train):
        yield Finding(
            "host_embeddings",
            "a matrix that is trained whole must be on the card",
            ", ".join(plan.train),
            "train token_rows instead, or set host_embeddings=false",
        )
    if plan.host_embeddings and plan.logits == "all":
        yield Finding(
            "logits",
            "a head in host memory is streamed for the supervised positions alone",
            "all",
            "--set logits=supervised",
        )
    if plan.compile and plan.device == "cpu":
        yield Finding(
            "compile",
            "pays on a GPU; on the CPU it takes a C++ compiler and minutes",
            "true on cpu",
            "--set compile=false",
        )


def _training_contradictions(plan: Plan) -> Iterable[Finding]:
    mixture = plan.mixture
    if mixture.reason_seg_alone and not mixture.reason_seg:
        yield Finding("mixture", "every rate is 0", fix="--set mixture.reason_seg=1")
    if not plan.train and plan.lora is None:
        yield Finding("train", "nothing is trained", fix="name a part, or add LoRA")
    for inner in sorted({"token_rows", "head"} & set(plan.train)):
        if "embeddings" in plan.train:
            yield Finding(
                "train",
                f"embeddings are trained whole already, so {inner} must not be named beside them",
                f"{inner}, embeddings",
                "keep one of the two",
            )
    tied = plan.model in models() and plan.profile.decoder.tied_head
    if tied and "head" in plan.train:
        yield Finding("train", f"the head of {plan.model} is its embedding table", "head",
                      "train token_rows or embeddings instead")  # fmt: skip
    if plan.model in models() and not plan.profile.has_projector and "projector" in plan.train:
        yield Finding("train", f"{plan.model} has no projector of its own", "projector",
                      "leave it out")  # fmt: skip
    if len(set(plan.train)) < len(plan.train):
        yield Finding("train", "a part is named twice", ", ".join(plan.train))


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
