"""Every setting of the Plan, classified once: what it does to memory, and when it may change.

Code that needs to know "may this change?", "does this need more memory?" or "what did this lever
save?" looks here. A test fails for a setting that is missing from SETTINGS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter, eq, ge, le
from typing import Any, Literal, get_args

from profiles.models import model_profile
from profiles.plan import Plan
from profiles.settings import Encoder
from profiles.text import counted

NoMore = Callable[[Any, Any], bool]  # whether the first value surely takes no more than the second


@dataclass(frozen=True)
class Traits:
    """What is known of one setting.

    saves: which values take less memory on the card: larger ones ("more"), smaller ones ("less"),
        or the names from most memory to least; None for a setting that is no memory lever.
    counts: how `needs_no_more` compares two values; None where it ignores the setting, because it
        moves no peak, or only its slack, or because its table is compared as a whole.
    changes: who may change it for a run that goes on: nobody, as the run would learn something else
        ("never"); the user ("resume"); the fallback after out of memory, too ("fallback").
    priced: where a reason takes the setting's saving and cost from, compared with the value `off`:
        from forecasts, or from two tested rows that differ in nothing else.
    phrase: the setting in a few words, for one line about a plan; empty where nothing need be said.
    unit: what a number counts.
    """

    saves: Literal["more", "less"] | tuple[Any, ...] | None = None
    counts: NoMore | None = None
    changes: Literal["never", "resume", "fallback"] = "never"
    priced: Literal["forecast", "rows"] | None = None
    off: Any = None
    phrase: Callable[[Plan], str] | None = None
    unit: str = ""


def _holds_more(these: Iterable[str], those: Iterable[str]) -> bool:
    return set(these) >= set(those)


def _in_order(*names: Any) -> NoMore:
    """Compares names that are given from most memory to least."""
    return lambda name, other: names.index(name) >= names.index(other)


def _at_most(limit: int | None, other: int | None) -> bool:
    return limit is not None and other is not None and limit <= other


def _as_wide(dtype: str, other: str) -> bool:
    return dtype == other or {dtype, other} == {"bf16", "fp16"}


@cache
def _model(name: str, other: str) -> bool:
    return name == other or model_profile(name).needs_no_more(model_profile(other))


def _adapters(lora: Any, other: Any) -> bool:
    if lora is None or other is None:
        return lora is None
    return _no_more(lora, other, "lora.")


def _dropout(share: float, other: float) -> bool:
    return share == 0 or other > 0  # dropout keeps its mask for the backward pass


def _trained(parts: tuple[str, ...], other: tuple[str, ...]) -> bool:
    whole = {"token_rows", "head"} if "embeddings" in other else set()
    return set(parts) <= {*other, *whole}


def _mixture(mixture: Any, other: Any) -> bool:
    # Other data sets have more masks and longer answers than ReasonSeg.
    return mixture.reason_seg_alone or mixture == other


def _storage(plan: Plan) -> str:
    return f"{plan.dtype if plan.quantization == 'none' else plan.quantization} base"


def _checkpointed(plan: Plan) -> str:
    return f"{plan.checkpointed_layers} of {plan.profile.decoder.layers} layers checkpointed"


def _hosted_layers(plan: Plan) -> str:
    return f"{counted(plan.host_layers, 'layer')} on the host" if plan.host_layers else ""


def _hosted_embeddings(plan: Plan) -> str:
    return "embeddings on the host" if plan.host_embeddings else ""


_STORAGES = ("none", "int8", "nf4")  # also from the best arithmetic to the worst
_TARGETS = ("all-linear", "attention", "qv")
_STATES, _LOGITS = ("fp32", "8bit"), ("all", "supervised")

# What is quick to compare and often differs is first: `needs_no_more` goes through them in
# this order, hundreds of thousands of times for a large table. Reasons keep the order, too.
SETTINGS: dict[str, Traits] = {
    "micro_batch": Traits("less", le, "fallback", phrase=lambda p: f"micro-batch {p.micro_batch}"),
    # Equal alone: dequantised layers take room of their own, so no storage bounds another.
    "quantization": Traits(_STORAGES, eq, "fallback", phrase=_storage),
    "host_layers": Traits(
        "more", ge, "fallback", priced="forecast", off=0, phrase=_hosted_layers, unit="layer"
    ),
    "checkpointed_layers": Traits(
        "more", ge, "fallback", priced="forecast", off=0, phrase=_checkpointed, unit="layer"
    ),
    "host_embeddings": Traits(
        (False, True), ge, "fallback", priced="forecast", off=False, phrase=_hosted_embeddings
    ),
    # Equal alone: what compiled layers save is known for those that were measured.
    "compile": Traits(
        (False, True), eq, "fallback", priced="forecast", off=False,
        phrase=lambda plan: "compiled" if plan.compile else "not compiled",
    ),  # fmt: skip
    "questions_per_picture": Traits(
        "less", le,
        phrase=lambda p: f"{p.questions_per_picture} questions a picture"
        if p.questions_per_picture > 1 else "",
    ),
    "max_pixels": Traits(
        "less", _at_most,
        phrase=lambda p: f"pictures of {p.profile.most_image_tokens} tokens"
        if p.profile.tokens_vary else "",
    ),  # fmt: skip
    "cached_encoders": Traits("more", _holds_more, "resume", priced="rows"),
    "logits": Traits(_LOGITS, _in_order(*_LOGITS), priced="rows"),
    "device": Traits(counts=eq),
    "processes": Traits(counts=eq, changes="resume"),
    "nodes": Traits(changes="resume"),
    "optimizer": Traits(("adamw", "paged_adamw"), eq),
    "optimizer_state": Traits(_STATES, _in_order(*_STATES)),
    "dtype": Traits(counts=_as_wide),
    # Equal alone: codes of activations come, wide weights go.
    "products": Traits(
        counts=eq, changes="resume",
        phrase=lambda plan: "products in FP8" if plan.products == "fp8" else "",
    ),  # fmt: skip
    "mask_loss_resolution": Traits("less", le),
    "model": Traits(counts=_model),
    "train": Traits(counts=_trained),
    "lora": Traits(counts=_adapters),
    "lora.rank": Traits("less", le),
    "lora.dropout": Traits(counts=_dropout),
    "lora.targets": Traits(_TARGETS, _in_order(*_TARGETS)),
    "tokens": Traits(counts=lambda limits, other: _no_more(limits, other, "tokens.")),
    "tokens.max_text_tokens": Traits("less", le),
    "tokens.max_masks": Traits("less", le),
    "mixture": Traits(counts=_mixture),
    "accumulation": Traits(changes="fallback"),  # follows the micro-batch
    "allocator": Traits(changes="resume"),
    "workers": Traits(changes="resume"),
    "weights": Traits(changes="resume"),
} | dict.fromkeys(
    # No lever, not compared, never changed: these make the run what it is.
    ("schema_version", "effective_batch", "min_pixels", "seed", "max_train_samples",
     "max_val_samples", "lora.alpha", "tokens.max_new_tokens", "schedule",
     "schedule.learning_rate", "schedule.shape",
     "schedule.warmup_steps", "schedule.epochs", "schedule.beta1", "schedule.beta2",
     "schedule.weight_decay", "schedule.grad_clip", "schedule.max_skipped_steps",
     "schedule.patience",
     "mixture.reason_seg", "mixture.refer_seg", "mixture.sem_seg", "mixture.vqa",
     "mixture.samples"),
    Traits(),
)  # fmt: skip

# What a resumed run may change, and what the fallback after an out-of-memory error changes by
# itself. A resumed run may also get more schedule.epochs: then it does not learn the same, and says
# so (`trainer/run/resume.py`).
MAY_CHANGE_ON_RESUME = frozenset(n for n, traits in SETTINGS.items() if traits.changes != "never")
MAY_CHANGE_ON_FALLBACK = frozenset(n for n in SETTINGS if SETTINGS[n].changes == "fallback")

# What a relief makes smaller.
Part = Literal["weights", "activations", "optimizer", "answers"]


@dataclass(frozen=True)
class Relief:
    """A change that makes room on the card.

    how: the setting, and its effect. `elsewhere`: what other trainings call it.
    is_left: whether a plan can still make this change.
    """

    parts: tuple[Part, ...]
    how: str
    is_left: Callable[[Plan], bool]
    elsewhere: str = ""

    def text(self, plan: Plan | None = None) -> str:
        """How, with the names of a plan's encoders."""
        return self.how.format(
            encoders=",".join(plan.profile.encoders if plan else get_args(Encoder))
        )


# In the order in which people would take them: what leaves the arithmetic alone and costs next to
# nothing, then rounding, then layers streamed from the host, then what changes the model.
RELIEFS = (
    Relief(("weights",), "--set cached_encoders={encoders} keeps both encoders off the card",
           lambda plan: set(plan.cached_encoders) != set(plan.profile.encoders)),
    Relief(("weights", "optimizer"), "train token_rows instead of the whole embedding and head",
           lambda plan: bool({"head", "embeddings"} & set(plan.train)),
           "LoRA instead of whole matrices"),
    Relief(("activations",), "--set logits=supervised computes the head where an answer is learnt",
           lambda plan: plan.logits == "all", "a fused cross-entropy"),
    Relief(("activations",), "--set micro_batch=1 makes the same effective batch of smaller passes",
           lambda plan: plan.micro_batch > 1, "a smaller batch, more gradient accumulation"),
    Relief(("activations",), "--set checkpointed_layers=all recomputes activations of all layers",
           lambda plan: plan.checkpointed_layers < plan.profile.decoder.layers,
           "gradient checkpointing"),
    Relief(("weights",), "--set host_embeddings=true keeps embedding and head in host memory",
           lambda plan: not plan.host_embeddings and not {"head", "embeddings"} & set(plan.train)),
    Relief(("weights",), "--set quantization=nf4 stores the frozen weights in 4 bits",
           lambda plan: plan.quantization == "none", "QLoRA, load_in_4bit"),
    Relief(("optimizer",), "--set optimizer_state=8bit rounds Adam's moments",
           lambda plan: plan.optimizer_state == "fp32", "8-bit AdamW"),
    Relief(("weights",), "--set checkpointed_layers=all --set host_layers=N keeps "
           "N decoder layers in host memory",
           lambda plan: True,  # can always be pulled further
           "CPU offload of accelerate or DeepSpeed"),
    Relief(("activations", "optimizer"), "a lower lora.rank, lora.targets=qv or a smaller "
           "max_pixels: these change the model or its input",
           lambda plan: plan.lora is not None or plan.profile.tokens_vary,
           "a lower rank, smaller pictures, shorter texts"),
    Relief(("answers",), "a smaller tokens.max_new_tokens, or a shorter question",
           lambda plan: True, "fewer new tokens"),
)  # fmt: skip


def next_relief(plan: Plan) -> str:
    """What to do next if the weights are too large for the card."""
    return next(one for one in RELIEFS if "weights" in one.parts and one.is_left(plan)).text(plan)


def priced(by: Literal["forecast", "rows"]) -> list[str]:
    """The settings whose cost is given `by` forecasts or tested rows, in the order of reasons."""
    return [name for name, traits in SETTINGS.items() if traits.priced == by]


def from_most_to_least(name: str) -> tuple[Any, ...]:
    """A lever's values, from most memory to least. Raises TypeError where they are numbers."""
    values = SETTINGS[name].saves
    if not isinstance(values, tuple):
        raise TypeError(f"{name} has no list of values")
    return values


def phrases(plan: Plan, names: Iterable[str]) -> str:
    """The settings called `names` in one line; what need not be said is left out."""
    texts = (phrase(plan) for name in names if (phrase := SETTINGS[name].phrase) is not None)
    return ", ".join(text for text in texts if text)


def value_text(name: str, value: Any) -> str:
    """One setting's value for a reader."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    unit = SETTINGS[name].unit
    return counted(value, unit) if unit else str(value)


def needs_no_more(plan: Plan, other: Plan, apart: frozenset[str] = frozenset()) -> bool:
    """Whether `plan` is sure to peak at no more bytes than `other`, by the direction of each lever.

    Settings `apart` are not compared. False means "not known", not "more".
    """
    return _no_more(plan, other, "", apart)


def no_more_by(names: Sequence[str], plan: Plan, other: Plan) -> bool:
    """What `needs_no_more` says of these settings alone."""
    for name in names:  # a loop, as below: a search asks for each row and kind of plan
        no_more = SETTINGS[name].counts
        if no_more is not None and not no_more(getattr(plan, name), getattr(other, name)):
            return False
    return True


def _no_more(settings: Any, other: Any, table: str, apart: frozenset[str] = frozenset()) -> bool:
    for name, no_more in _compared(table, apart):
        value, bound = getattr(settings, name), getattr(other, name)
        if value is not bound and not no_more(value, bound):
            return False
    return True


@cache
def _compared(table: str, apart: frozenset[str] = frozenset()) -> tuple[tuple[str, NoMore], ...]:
    """The compared settings of a table ("" for the Plan itself, "lora."), by their inner names."""
    inner = {n.removeprefix(table): t.counts for n, t in SETTINGS.items() if n.startswith(table)}
    return tuple((name, no_more) for name, no_more in inner.items()
                 if no_more is not None and "." not in name and name not in apart)  # fmt: skip


def memory_key(plan: Plan) -> object:
    """A key: of two plans with equal keys, `needs_no_more` says the same about any third plan."""
    return _key()(plan)


@cache
def _key() -> Callable[[Plan], object]:
    return attrgetter(*(name for name, _ in _compared("")))
