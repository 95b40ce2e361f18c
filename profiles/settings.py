"""The Plan's nested settings and the names that its fields may take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from profiles.records import Frozen

Dtype = Literal["bf16", "fp16", "fp32"]


Encoder = Literal["vision", "mask"]


LoraTargets = Literal["qv", "attention", "all-linear"]


Quantization = Literal["nf4", "int8", "none"]
# Bytes of one stored weight, its share of the scales included.
STORED_BYTES: dict[Quantization, float] = {"nf4": 4.127 / 8, "int8": 1.0, "none": 2.0}


TrainedPart = Literal[
    "mask_decoder", "text_hidden_fcs", "projector", "token_rows", "head", "embeddings"
]


MOST = 1_000_000  # of anything counted: more is a typing error, which would take memory
MOST_PROCESSES = 64  # of a plan


# Questions asked at once about a picture that has several, as in LISA's recipe.
TARGETS_PER_PICTURE = 3
EFFECTIVE_BATCH = 20  # questions, as published
PREFIX_TOKENS = 40  # of text that all questions about a picture share, about
MOST_QUESTIONS = 16  # that share the prefix of their picture


class Settings(Frozen):
    """A table of settings: checked by default values too, and finite."""

    model_config = ConfigDict(validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python reads true as 1. Turned into text, it is refused by every number."""
        if isinstance(value, bool):
            kind = cls.model_fields[str(info.field_name)].annotation
            if {int, float} & {kind, *get_args(kind)}:
                return str(value).lower()
        return value


class Lora(Settings):
    """Low-rank adapters on the decoder (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(8, ge=1, le=256, description="rank r of both factors, in channels")
    alpha: float = Field(16, gt=0, description="scale numerator; the adapter is scaled by alpha/r")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout before the adapter, probability")
    targets: LoraTargets = Field(
        "qv",
        description="adapted linears: qv (q and v); attention (q, k, v, o); or all-linear (all "
        "seven of a decoder layer)",
    )


PUBLISHED_WARMUP = 100  # steps of LISA's 5 000 and more
WARMUP_SHARE = 0.05


class Schedule(Settings):
    """Optimisation over time; the values default to LISA's published recipe."""

    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate, per update")
    shape: Literal["linear", "cosine", "constant"] = Field(
        "linear",
        description="decay of the learning rate after its warm-up (transformers' schedules)",
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        le=MOST,
        description="optimizer steps in which the learning rate rises to its peak, at most half of "
        "the run's; null: a twentieth of the run's, at most LISA's 100",
    )
    epochs: int = Field(
        10,
        ge=1,
        le=MOST,
        description="passes over the training data; of a mixture, each of mixture.samples",
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="evaluations in a row without a better gIoU after which the run ends; null: "
        "it runs all its epochs",
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's first-moment decay")
    beta2: float = Field(0.95, ge=0, lt=1, description="Adam's second-moment decay")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled decay, per update")
    grad_clip: float = Field(1.0, gt=0, description="largest global gradient norm")
    max_skipped_steps: int = Field(
        0,
        ge=0,
        le=MOST,
        description="updates that may be skipped because the loss or a gradient is not finite; one "
        "more ends the run before it changes anything",
    )

    def warmup(self, steps: int) -> int:
        """Optimizer steps of the warm-up in a run of `steps`: at most half of them."""
        if self.warmup_steps is None:
            return min(PUBLISHED_WARMUP, round(WARMUP_SHARE * steps))
        return min(self.warmup_steps, steps // 2)


class TokenLimits(Settings):
    """What one sample may hold; a longer one is an error that names the sample."""

    max_text_tokens: int = Field(
        512, ge=32, le=MOST, description="most tokens of a sample beside its image's"
    )
    max_masks: int = Field(8, ge=1, le=MOST, description="most [SEG] tokens of a sample")
    max_new_tokens: int = Field(
        64, ge=1, le=MOST, description="most tokens that are generated for an answer"
    )


# Kinds of data with samples of several masks, or with answers of any length: the plan's limits
# count then, not ReasonSeg's one mask and its short answer.
SEVERAL_MASKS, LONG_ANSWERS = ("refer_seg", "sem_seg"), ("vqa",)


class Mixture(Settings):
    """What training samples are drawn from, in proportion to the rates (LISA's recipe: 1, 3, 9, 3).

    With ReasonSeg alone nothing is drawn: an epoch passes over all of it.
    """

    reason_seg: float = Field(1, ge=0, description="rate at which samples are drawn from ReasonSeg")
    refer_seg: float = Field(
        0,
        ge=0,
        description="rate at which samples are drawn from referring segmentation (RefCOCO, …)",
    )
    sem_seg: float = Field(
        0,
        ge=0,
        description="rate at which samples are drawn from semantic segmentation (ADE20K, COCO, …)",
    )
    vqa: float = Field(
        0,
        ge=0,
        description="rate at which samples are drawn from dialogues without a mask "
        "(LLaVA-Instruct)",
    )
    samples: int = Field(
        10_000,
        ge=1,
        le=MOST,
        description="samples drawn in an epoch; with ReasonSeg alone its own number",
    )

    def draws(self, kinds: Iterable[str]) -> bool:
        """Whether samples are drawn from any of these kinds of data."""
        return any(getattr(self, kind) for kind in kinds)

    @property
    def reason_seg_alone(self) -> bool:
        """Whether nothing but ReasonSeg is trained on."""
        return not self.draws(SEVERAL_MASKS + LONG_ANSWERS)
