"""With which memory levers does a trained model answer on this card? Decided by forecasts.

A model answers with the storage of base weights that it was trained on; a whole model may be
rounded. If that does not fit, the embeddings go to host memory, then half of the layers, then all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from advisor.choice.preference import STORAGES
from advisor.machine.budget import margin_for
from advisor.machine.gpu import Machine
from advisor.memory.card import card_for
from advisor.memory.forecast import Forecast, forecast
from advisor.memory.worst_sample import Worst
from profiles.levers import phrases
from profiles.plan import Plan
from profiles.settings import STORED_BYTES
from profiles.sizes import gib

STEP = 64  # tokens between the sizes of questions and pictures that are forecast


class NoRoom(RuntimeError):
    """No plan answers on this card; says what the smallest would take."""


@dataclass(frozen=True)
class Fit:
    """A plan that answers, and its forecast."""

    plan: Plan
    forecast: Forecast

    def line(self) -> str:
        """What it takes, in one line."""
        return f"{self.forecast.verdict}: {_in_words(self.plan)}: {self.forecast.reason}"


def fitting(
    plan: Plan, may_round: bool, worst: Worst, machine: Machine, tell: Callable[[str], None]
) -> Fit:
    """The first plan, from the least lever to the most, that answers on this machine's card.

    `worst`: of `worst_question`. `may_round`: the base weights may be stored in fewer bits.
    Raises NoRoom, RehearsalFailed.
    """
    card = card_for(machine)
    if card.cap_bytes is None:
        raise NoRoom("no GPU with a known memory is visible\n    hint: --set device=cpu")
    smallest: Forecast | None = None
    for candidate in _relieved(plan, may_round):
        if _weights(candidate) > card.cap_bytes:
            continue
        tell(f"forecasting {candidate.model} with {_in_words(candidate)}, some seconds ...")
        found = forecast(candidate, worst, card)
        if found.exit_code == 0:
            return Fit(candidate, found)
        smallest = found
    margin = card.margin_bytes
    if smallest is not None:
        margin = margin_for(smallest.plan, smallest.tier("pool").bytes, margin)
    usable = max(0, card.cap_bytes - margin)
    raise NoRoom(_why_not(plan, smallest, usable))


def worst_question(text_tokens: int, image_tokens: int) -> Worst:
    """The sample to forecast for questions and pictures of at most these numbers of tokens.

    Both are rounded up, so that few different sizes need a forecast.
    """
    text, image = (-(-tokens // STEP) * STEP for tokens in (text_tokens, image_tokens))
    return Worst(text, image_tokens=image, answering=True)


def _relieved(plan: Plan, may_round: bool) -> Iterator[Plan]:
    """The plan, then with one lever more each time."""
    storages = STORAGES[STORAGES.index(plan.quantization) :] if may_round else [plan.quantization]
    layers = plan.profile.decoder.layers
    for hosted, on_host in ((False, 0), (True, 0), (True, layers // 2), (True, layers)):
        for storage in storages:
            if hosted and "embeddings" in plan.train:
                continue  # whole trained tables stay on the card
            update = {"quantization": storage, "host_embeddings": hosted or plan.host_embeddings,
                      "host_layers": max(on_host, plan.host_layers)}  # fmt: skip
            update["checkpointed_layers"] = layers if update["host_layers"] else 0
            yield plan.model_copy(update=update)


def _weights(plan: Plan) -> float:
    """Bytes of the decoder's linears on the card: an estimate that is never too high."""
    decoder = plan.profile.decoder
    on_card = decoder.layers - plan.host_layers
    return on_card * decoder.layer_weights * STORED_BYTES[plan.quantization]


def _in_words(plan: Plan) -> str:
    return phrases(plan, ("quantization", "host_embeddings", "host_layers"))


def _why_not(plan: Plan, smallest: Forecast | None, usable: int) -> str:
    why = f"the smallest way: {smallest.reason}" if smallest else "its weights alone are larger"
    return (
        f"{plan.model} does not answer within {gib(usable)} on this card: {why}\n"
        "    hint: close other programs on the card, or --set device=cpu"
    )
