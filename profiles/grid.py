"""Forecasts at the corners of the usual plans, interpolated in between, without a rehearsal.

The corners are forecasts of the real step (benchmarks/grid.py). Between them tensors are taken as
linear in the micro-batch, the text's length, and the checkpointed or host layers. This is never
too low: a peak is the largest of some phases, each phase is linear in every one of these, and the
largest of linear functions is below its chords. The pool grows by whole pages (20 MiB) and may need
one more than that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from profiles.compiled import saved_bytes
from profiles.exchange import FP32_BYTES, bucket_bytes, rebuilt_bytes
from profiles.host_memory import COMPILER_BYTES, batch_bytes, shared_host_bytes, timing_bytes
from profiles.levers import needs_no_more
from profiles.models import model_profile
from profiles.plan import Plan
from profiles.settings import Lora

GRID_FILE = Path(__file__).with_name("grid.jsonl")
MICRO_BATCHES = (1, 4, 20)
TEXT_TOKENS = (64, 512)
QUESTIONS = (1, 3)  # a picture; two take no more than three
# Without expandable segments the pool is more fragmented: up to 30 % beside the tensors were seen
# (benchmarks/lattice_measured.jsonl). Under a cap the allocator wins most of that back.
WHOLE_SEGMENTS = 1.10
PADDING = 16  # positions of a row, at most, beside image and text
BUFFERS = 2  # layers' worth of them on the card, if any layer is in host memory
# Settings in which a plan may differ from its corners: they give its place between them.
FREE = frozenset({
    "processes", "nodes", "compile", "dtype", "device", "host_embeddings", "host_layers", "tokens",
    "checkpointed_layers", "micro_batch", "accumulation", "quantization", "questions_per_picture",
})  # fmt: skip


def reliefs(model: str, host_embeddings: bool) -> list[tuple[int, int]]:
    """(checkpointed, host) layers of the corners, from most memory to least."""
    layers = model_profile(model).decoder.layers
    path = [(0, 0), (layers // 2, 0), (layers, 0)]
    return [*path, (layers, layers)] if host_embeddings else path


class Estimate(NamedTuple):
    """Bytes that a step takes at most: tensors, the allocator's pool, host memory."""

    tensors_bytes: int
    step_bytes: int  # of the pool in a step
    host_bytes: int
    frozen_bytes: int  # of the tensors: weights that are not trained
    trained_bytes: int  # of the tensors: trained ones, with gradients and the optimizer's state
    caching_bytes: int = 0  # of the pool while feature caches are built, before the model loads

    @property
    def pool_bytes(self) -> int:
        """The most of both phases."""
        return max(self.step_bytes, self.caching_bytes)


class _Place(NamedTuple):
    """Where a number is between two corners: the lower one, the upper one, the fraction between."""

    low: int
    high: int
    share: float


@lru_cache(8192)  # of two preferences or cards a choice asks for the same plans
def estimate(plan: Plan, text_tokens: int) -> Estimate | None:
    """What a step of `plan` takes at most with that many text tokens a row and a mask a question.

    Of several processes: what each takes on its card, and those of one machine in host memory. None
    where the grid does not reach: more questions a picture than QUESTIONS, trained parts or other
    settings that may need more than the usual ones, a longer text, a larger micro-batch. Larger
    adapters are counted on top.
    """
    model = _model_in_grid(plan.model)
    if model is None or plan.questions_per_picture > QUESTIONS[-1]:
        return None
    usual = _default(model)
    if needs_no_more(plan, usual, FREE):
        return _of_a_group(_between(plan, model, text_tokens), plan)
    if plan.lora is None or usual.lora is None or not needs_no_more(plan, usual, FREE | {"lora"}):
        return None
    found = _between(plan, model, text_tokens)
    if found is not None:
        found = _with_adapters(found, plan, usual.lora, text_tokens)
    return _of_a_group(found, plan)


def _with_adapters(found: Estimate, plan: Plan, usual: Lora, text_tokens: int) -> Estimate:
    """The estimate for the plan's own adapters, which may be larger than the usual ones.

    The trained bytes are exact: factor, gradient and two moments in fp32. Each layer that is not
    recomputed keeps activations for the backward pass, and so does one recomputed layer at a time.
    """
    decoder = plan.profile.decoder
    assert plan.lora is not None
    more = decoder.adapter_values(plan.lora) - decoder.adapter_values(usual)
    trained = max(0, 4 * FP32_BYTES * more)
    kept = max(0, decoder.adapter_bytes(plan.lora) - decoder.adapter_bytes(usual))
    tokens = plan.micro_batch * (plan.profile.most_image_tokens + text_tokens + PADDING)
    extra = trained + kept * tokens * (decoder.layers - plan.checkpointed_layers + 1)
    if plan.compile:
        of_usual = saved_bytes(plan.model_copy(update={"lora": usual}))
        extra += tokens * max(0, of_usual[1] - saved_bytes(plan)[1])
    return _larger(found, extra, trained)


def _larger(found: Estimate, extra: int, trained: int) -> Estimate:
    """The estimate with `extra` bytes of tensors, `trained` of them for what is trained."""
    return found._replace(
        tensors_bytes=found.tensors_bytes + extra,
        step_bytes=found.step_bytes + round(extra * found.step_bytes / found.tensors_bytes),
        trained_bytes=found.trained_bytes + trained,
    )


def _of_a_group(found: Estimate | None, plan: Plan) -> Estimate | None:
    """The estimate with the buckets through which several processes exchange gradients."""
    if found is None or plan.processes == 1:
        return found
    found = _larger(found, bucket_bytes(plan), bucket_bytes(plan))
    return found._replace(step_bytes=found.step_bytes + rebuilt_bytes(plan))


def has_corners(plan: Plan) -> bool:
    """Whether there are figures for the plan's storage of base weights.

    Also true for a model without any figures: another model's stand in for all its storages.
    """
    model = _model_in_grid(plan.model)
    return model is None or (model, plan.quantization) in _storages()


def nearest(plan: Plan, text_tokens: int) -> Estimate | None:
    """What the usual trained parts would take instead of the plan's own.

    A first guess where `estimate` has nothing; it may be above or below what the plan takes. For a
    model without corners, another model's figures are scaled by the weights of their decoders.
    """
    text = min(text_tokens, TEXT_TOKENS[-1])
    model = _model_in_grid(plan.model)
    found = None if model is None else _between(plan, model, text)
    found = found or _by_stand_in(plan, text)
    if found is not None and plan.lora is not None:
        found = _with_adapters(found, plan, Lora(), text)
    return _of_a_group(found, plan)


def _by_stand_in(plan: Plan, text_tokens: int) -> Estimate | None:
    stand_in = next(iter(_corners()))[0]
    there, own = (profile.decoder for profile in (model_profile(stand_in), plan.profile))
    found = _between(plan, stand_in, text_tokens)
    if found is None:
        return None
    share = own.layers * own.layer_weights / (there.layers * there.layer_weights)
    scaled = Estimate(*(round(share * size) for size in found))
    return scaled._replace(caching_bytes=caching_bytes(plan))


def _between(plan: Plan, model: str, text_tokens: int) -> Estimate | None:
    layers = plan.profile.decoder.layers
    if plan.host_layers and not (plan.host_embeddings and plan.checkpointed_layers == layers):
        return None
    if (model, plan.quantization) not in _storages():
        return None
    share = model_profile(model).decoder.layers / layers  # 1, but for a stand-in
    # Any layer in host memory needs two layers' buffers on the card: the first two gain nothing.
    gained = max(0, plan.host_layers - BUFFERS) * layers / (layers - BUFFERS)
    on_card = share * (plan.checkpointed_layers + gained)
    on_host = share * (plan.checkpointed_layers + plan.host_layers)
    mixed = _mixed(
        model, plan.quantization, plan.host_embeddings, plan.questions_per_picture,
        plan.micro_batch, text_tokens, on_card, on_host,
    )  # fmt: skip
    if mixed is None:
        return None
    pool = mixed.pool
    if plan.segments == "whole":
        pool *= WHOLE_SEGMENTS
    less = mixed.compiled_less if plan.compile else 0.0
    shared = shared_host_bytes(plan)
    own = mixed.host - shared + batch_bytes(plan) + _compiling_bytes(plan, text_tokens)
    host = plan.local_processes * own + shared
    standing = round(mixed.frozen), round(mixed.trained)
    step = round(mixed.tensors - less), round(pool - less), round(host)
    return Estimate(*step, *standing, caching_bytes(plan))


def _compiling_bytes(plan: Plan, text_tokens: int) -> int:
    """Bytes of host memory that compiling takes in one process; no corner is compiled."""
    length = plan.profile.most_image_tokens + text_tokens + PADDING
    return plan.compile * COMPILER_BYTES + timing_bytes(plan, plan.micro_batch * length)


class _Mixed(NamedTuple):
    """Bytes between the corners."""

    tensors: float
    pool: float
    compiled_less: float
    host: float
    frozen: float
    trained: float


@lru_cache(8192)  # every choice asks for the same places many times
def _mixed(
    model: str,
    quantization: str,
    host_embeddings: bool,
    questions: int,
    micro_batch: int,
    text_tokens: int,
    on_card: float,
    on_host: float,
) -> _Mixed | None:
    """What a place between the corners takes; None outside them.

    `on_card` and `on_host` count the layers relieved (checkpointed plus in host memory).
    """
    questions = next((n for n in QUESTIONS if n >= questions), QUESTIONS[-1])
    points = [sum(point) for point in reliefs(model, host_embeddings)]
    micro = _place(micro_batch, MICRO_BATCHES)
    text = _place(max(text_tokens, TEXT_TOKENS[0]), TEXT_TOKENS)
    card, host = _place(on_card, points), _place(on_host, points)
    if micro is None or text is None or card is None or host is None:
        return None

    def corners(relief: _Place) -> list[tuple[dict[str, Any], float]]:
        return [
            (_corners()[model, quantization, host_embeddings, questions, m, t, r], a * b * c)
            for (m, a), (t, b), (r, c) in product(_ends(micro), _ends(text), _ends(relief))
        ]

    def mixed(near: list[tuple[dict[str, Any], float]], column: str) -> float:
        return sum(share * corner[column] for corner, share in near)

    near = corners(card)
    tensors = mixed(near, "tensors_bytes")
    # The pool's fragmentation is not linear: the worst of the corners is used.
    pool = tensors * max(corner["pool_bytes"] / corner["tensors_bytes"] for corner, _ in near)
    less = mixed(near, "compiled_less_bytes")
    beside = mixed(corners(host), "host_bytes")
    return _Mixed(tensors, pool, less, beside, mixed(near, "frozen_bytes"),
                  mixed(near, "trained_bytes"))  # fmt: skip


def caching_bytes(plan: Plan) -> int:
    """What the pool takes while the plan's feature caches are built, before the model loads."""
    encoders = plan.profile.encoders
    return max((encoders[name].caching_bytes for name in plan.cached_encoders), default=0)


@cache
def _model_in_grid(name: str) -> str | None:
    """The model whose corners serve for plans of the model `name`: the same, or a larger one."""
    profile, known = model_profile(name), dict.fromkeys(key[0] for key in _corners())
    return next((other for other in known if profile.needs_no_more(model_profile(other))), None)


@cache
def _default(model: str) -> Plan:
    return Plan.parse({"model": model})


@cache
def _corners() -> dict[tuple[Any, ...], dict[str, Any]]:
    corners = {}
    for line in GRID_FILE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        row.setdefault("questions_per_picture", 1)
        key = ("model", "quantization", "host_embeddings", "questions_per_picture", "micro_batch",
               "text_tokens")  # fmt: skip
        relief = row["checkpointed_layers"] + row["host_layers"]
        corners[(*(row[name] for name in key), relief)] = row
    return corners


@cache
def _storages() -> set[tuple[str, str]]:
    """Models with the storages of their base weights for which there are corners."""
    return {key[:2] for key in _corners()}


def _place(value: float, corners: Sequence[int]) -> _Place | None:
    for low, high in zip(corners, corners[1:], strict=False):
        if low <= value <= high:
            return _Place(low, high, (value - low) / (high - low))
    return None


def _ends(place: _Place) -> list[tuple[int, float]]:
    ends = [(place.low, 1 - place.share), (place.high, place.share)]
    return [(corner, share) for corner, share in ends if share]
