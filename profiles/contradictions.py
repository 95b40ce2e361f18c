"""Settings that are valid by themselves and cannot run together."""

from __future__ import annotations

from collections.abc import Iterable

from profiles.batches import batch_contradictions
from profiles.findings import Finding
from profiles.models import models
from profiles.pictures import picture_contradictions
from profiles.plan_settings import PlanSettings
from profiles.text import brief


def contradictions(plan: PlanSettings) -> Iterable[Finding]:
    """Every reason why a plan's settings cannot run together, with a fix."""
    try:
        layers = plan.profile.decoder.layers
    except ValueError as error:
        yield Finding("model", str(error), brief(plan.model))
        layers = None
    yield from batch_contradictions(plan)
    yield from picture_contradictions(plan)
    if plan.processes % plan.nodes:
        yield Finding("nodes", "every machine must run the same number of processes",
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


def _precision_contradictions(plan: PlanSettings) -> Iterable[Finding]:
    if plan.device == "cpu" and plan.dtype == "fp16":
        yield Finding("dtype", "fp16 training needs a GPU", "fp16 on cpu", "use fp32")
    if plan.device == "cuda" and plan.products == "fp8" and plan.dtype != "bf16":
        yield Finding("products", "FP8 products give their results in bf16", f"fp8, {plan.dtype}",
                      "--set dtype=bf16, or products=dtype")  # fmt: skip
    if plan.device == "cpu" and plan.optimizer == "paged_adamw":
        yield Finding(
            "optimizer",
            "a paged optimizer moves its state between GPU and host memory",
            "paged_adamw on cpu",
            "use optimizer adamw",
        )


def _placement_contradictions(plan: PlanSettings) -> Iterable[Finding]:
    layers = models()[plan.model].decoder.layers if plan.model in models() else plan.host_layers
    if plan.host_layers > layers:
        yield Finding("host_layers", f"{plan.model} has {layers} decoder layers",
                      str(plan.host_layers), f"choose 0 … {layers}")  # fmt: skip
    elif plan.host_layers > plan.checkpointed_layers:
        yield Finding(
            "host_layers",
            "the backward pass recomputes a layer in host memory, so it must be checkpointed",
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
            "a head in host memory is computed at the supervised positions only",
            "all",
            "--set logits=supervised",
        )
    if plan.compile and plan.device == "cpu":
        yield Finding(
            "compile",
            "saves time only on a GPU; on the CPU it needs a C++ compiler and takes minutes",
            "true on cpu",
            "--set compile=false",
        )


def _training_contradictions(plan: PlanSettings) -> Iterable[Finding]:
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
