"""`--set key=value`: assignments on a plan's plain data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from profiles.findings import Finding, PlanError
from profiles.text import brief

# What other trainers call their ways of using several cards.
SHARDING = ("parallel", "ddp", "fsdp", "fsdp2", "deepspeed", "zero", "zero2", "zero3", "zero_stage")
SHARDED = (
    "trains on N cards by DDP; weights are not sharded (FSDP2): host_layers=N keeps "
    "them in host memory, once a machine: docs/several-gpus.md"
)

# What other trainers call settings, with the values that are fixed.
OTHER_NAMES = {
    "batch_size": "micro_batch", "train_batch_size": "effective_batch",
    "per_device_train_batch_size": "micro_batch", "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "checkpointed_layers=all", "load_in_4bit": "quantization=nf4",
    "load_in_8bit": "quantization=int8", "fp8": "products=fp8", "bf16": "dtype=bf16",
    "fp16": "dtype=fp16", "torch_compile": "compile=true", "lr": "schedule.learning_rate",
    "num_train_epochs": "schedule.epochs", "num_epochs": "schedule.epochs",
    "lora_r": "lora.rank", "num_workers": "workers", "dataloader_num_workers": "workers",
    "max_length": "tokens.max_text_tokens", "max_seq_length": "tokens.max_text_tokens",
    "max_grad_norm": "schedule.grad_clip", "bs": "micro_batch", "r": "lora.rank",
    "grad_accumulation_steps": "accumulation", "grad_accum": "accumulation",
    "qlora": "quantization=nf4", "precision": "dtype", "seq_len": "tokens.max_text_tokens",
    "model_max_length": "tokens.max_text_tokens", "early_stopping": "schedule.patience",
    "lora_target_modules": "lora.targets", "target_modules": "lora.targets",
    "offload": "host_layers", "cpu_offload": "host_layers",
}  # fmt: skip


def assigned(overrides: Iterable[str]) -> dict[str, str]:
    """The settings that `key=value` texts assign, with their raw values."""
    pairs = (text.partition("=") for text in overrides)
    return {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}


def must_agree(overrides: Iterable[str]) -> None:
    """Raise PlanError for every setting that gets two values, or is set as a whole and in part.

    There is no way to know which value was meant: one may come from an option such as --epochs.
    """
    given: dict[str, str] = {}
    findings = []
    for text in overrides:
        for name, value in assigned([text]).items():
            if _value(given.setdefault(name, value)) != _value(value):
                findings.append(Finding(legible(name), "has two values",
                                        f"{legible(given[name])} and {legible(value)}",
                                        "give it once, by --set or by its own option"))  # fmt: skip
    for name, value in given.items():
        whole = name.partition(".")[0]
        if whole != name and whole in given:
            findings.append(Finding(legible(whole), "is set as a whole and in part",
                                    legible(f"{given[whole]}, and {name}={value}"),
                                    "give one of the two"))  # fmt: skip
    if findings:
        raise PlanError(findings)


def given_settings(
    options: Mapping[str, object], settings: Sequence[str], rank: int | None
) -> list[str]:
    """What the command line sets, each once: `options` by their settings, --lora-r, then --set.

    Raises PlanError for a setting that gets two values.
    """
    found = [f"{name}={value}" for name, value in options.items() if value is not None]
    found += [*of_rank(rank, [*found, *settings]), *settings]
    must_agree(found)
    return list(dict.fromkeys(found))


def of_rank(rank: int | None, given: Iterable[str]) -> list[str]:
    """What --lora-r assigns: the rank, and alpha unless the settings `given` set alpha."""
    if rank is None:
        return []
    named = {"lora", "lora.alpha"} & assigned(given).keys()
    return [f"lora.rank={rank}"] + [f"lora.alpha={2 * rank}"] * (not named)


def legible(name: str) -> str:
    """The name of a setting, or a value of one, as it can be shown."""
    return name if name.isprintable() and len(name) <= 60 else brief(name)


def typed(setting: str) -> str:
    """A setting as --set takes it, with a placeholder where its value is open."""
    return setting if "=" in setting else f"{setting}=VALUE"


def of_another(was: str, model: str) -> str:
    """A note if a plan's `model` is set to another than it `was` chosen for; else ''."""
    if was == model:
        return ""
    return (
        f"note: this plan is of {was}: its batch, storage and placement were not chosen for {model}"
        f"\n    hint: lisa-advise --model {model} --save PLAN chooses them"
    )


def nearest_setting(name: str, settings: Sequence[str]) -> str:
    """The plan's setting that was probably meant, or that does the same as another tool's."""
    import difflib

    if name.partition(".")[0].lower() in SHARDING:
        return f"processes=N {SHARDED}"
    if other := OTHER_NAMES.get(name.lower()):
        return f"--set {typed(other)}"
    close = difflib.get_close_matches(name, settings, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "see docs/plan.md for the settings"


def assign(data: dict[str, Any], text: str, settings: Sequence[str]) -> Finding | None:
    """Apply one `key=value` to `data` in place; a Finding when it is none of the `settings`."""
    key, equals, raw = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key:
        return Finding("--set", "must read key=value", brief(text), "--set micro_batch=4")
    if key not in settings:
        return Finding(legible(key), "no such setting", brief(text), nearest_setting(key, settings))
    value = _value(raw)
    if isinstance(value, str) and key in ("train", "cached_encoders"):
        value = [part.strip() for part in value.split(",") if part.strip()]
    *parents, last = key.split(".")
    for parent in parents:
        if data.get(parent) is None:
            data[parent] = {}
        data = data[parent]
    data[last] = value
    return None


def _value(raw: str) -> Any:
    """What a text means: JSON where it parses, otherwise itself."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw
