"""Write the data of the what-if page, docs/whatif/data.js: the advice for every state it can show.

    python tools/write_whatif.py        # 6000 advices: some six minutes on two idle cores

Every answer is `advise()`'s own, with the shipped evidence; the page only looks it up. Answers that
cards share are stored once, and so are their words, and the parts of the times: the page adds them
up for as many pictures and epochs as the reader has.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from advisor.advice import Advice
from advisor.cost.duration import REASON_SEG, Duration
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.memory.forecast import measured_errors
from advisor.preflight import advise
from advisor.report.summary import commands, needed_torch, plan_line
from profiles.gpus import gpus
from profiles.models import DEFAULT_MODELS, model_profile
from profiles.preferences import PREFERENCES, Preference
from profiles.sizes import GIB

DATA = Path(__file__).resolve().parents[1] / "docs" / "whatif" / "data.js"
HEAD = "// Written by tools/write_whatif.py: advise() for every state of the page.\nconst WHATIF = "
MODELS = (*DEFAULT_MODELS, "qwen3-vl-8b", "7b", "13b")
SIZES_GIB = (4, 6, 8, 10, 12, 16, 24, 32, 48, 80)
TEXTS = {128: "short: up to 128 text tokens a sample", 512: "long: up to 512, the plan's limit"}
CARD = "{card}"  # in commands, instead of the options that name it
BATCH = 20  # questions a step, in every plan that is advised
USUAL = {"pictures": REASON_SEG.train_pictures, "validated": REASON_SEG.val_pictures, "epochs": 10}


class State(NamedTuple):
    """What is chosen on the page."""

    card: str
    model: str
    text: int
    prefer: Preference


def targets() -> dict[str, Target]:
    """The page's cards by the name in its address: sizes, then the catalogue."""
    sizes = {f"{size}GiB": Target(vram_bytes=size * GIB) for size in SIZES_GIB}
    return sizes | {key: Target(card=card) for key, card in gpus().items() if not card.rare}


def states() -> list[State]:
    """Every state of the page, in the order of its data."""
    return [State(*one) for one in product(targets(), MODELS, TEXTS, PREFERENCES)]


def advised(state: State) -> Advice:
    """The advice that the page shows in that state."""
    target, evidence = targets()[state.card], Evidence.shipped()
    return advise(Machine(), state.model, (), target, text_tokens=state.text, evidence=evidence,
                  prefer=state.prefer)  # fmt: skip


def shown(state: State) -> tuple[dict[str, Any], list[Any]]:
    """The answer without what only this card has; and that: questions a second, where the figures
    come from, and the time."""
    advice, target = advised(state), targets()[state.card]
    plan, needs, speed, duration = advice.plan, advice.needs, advice.speed, advice.duration
    command = "\n".join(commands(advice)).replace(target.options, CARD) or None
    answer: dict[str, Any] = {"verdict": advice.verdict, "command": command}
    if plan is None or needs is None or speed is None or duration is None:
        return answer | {"why": advice.summary}, []
    error = needs.source
    if needs.basis == "forecast":
        error += f"; such forecasts: {measured_errors(plan).get('pool', 'not measured')}"
    answer |= {
        "plan": plan_line(plan), "hash": plan.content_hash, "needs": needs.bytes,
        "basis": needs.basis, "error": error, "parts": advice.parts, "host": advice.host_bytes,
        "disk": advice.disk and advice.disk.total_bytes,
    }  # fmt: skip
    if (plan.effective_batch, duration.epochs) != (BATCH, USUAL["epochs"]):
        raise ValueError(f"{state}: {plan.effective_batch} questions, {duration.epochs} epochs")
    if advice.verdict != "FITS" and advice.considered:
        answer["why"] = advice.considered[0].why_not
    own = [speed.samples_per_second, speed.source, duration.basis, time_parts(duration)]
    return answer, own


def time_parts(duration: Duration) -> tuple[float, ...]:
    """Seconds of a training's start, of a picture's features and of its validation, of a step, and
    of the rest of an epoch; and the whole's least and most, as shares of it.

    Of pictures with one question each, as `duration` is of ReasonSeg's.
    """
    steps = duration.training_seconds / duration.epochs
    ends = duration.epoch_seconds - steps
    validation = duration.evaluation_seconds - duration.epochs * ends
    whole_steps = -(-duration.questions // BATCH) * duration.step_seconds
    found = (
        duration.start_seconds, duration.picture_seconds, validation / USUAL["validated"],
        duration.step_seconds, steps - whole_steps + ends - validation,
        duration.low_seconds / duration.seconds, duration.high_seconds / duration.seconds,
    )  # fmt: skip
    return tuple(float(f"{seconds:.5g}") for seconds in found)


def title_of(card: str) -> str:
    """What the page calls a card."""
    profile = targets()[card].card
    return profile.title if profile else f"any card of {card.replace('G', ' G')}"


def limits(card: str) -> dict[str, Any]:
    """What the page says of a card, whatever is trained on it."""
    target = targets()[card]
    advice = advised(State(card, "7b", 512, "usual"))
    budget = advice.budget
    return {
        "title": title_of(card),
        "options": target.options,
        "first": needed_torch(advice),
        "size": target.card.memory_gb if target.card else (target.vram_bytes or 0) / GIB,
        "usable": budget.usable.bytes if budget else None,
        "capacity": budget.cap_bytes if budget else None,
        "margin": budget.margin.source if budget else "",
        "host": budget.host.bytes if budget and budget.host else None,
    }


def document() -> dict[str, Any]:
    """The page's data: what can be chosen, cards, answers, and the answer of every state."""
    answers: dict[str, int] = {}
    words: dict[str, int] = {}
    times: dict[tuple[float, ...], int] = {}
    rows: list[list[float | int]] = []
    with ProcessPoolExecutor(2) as pool:
        for answer, own in pool.map(shown, states(), chunksize=50):
            short = {name: words.setdefault(text, len(words)) if isinstance(text, str) else text
                     for name, text in answer.items()}  # fmt: skip
            row: list[float | int] = [answers.setdefault(json.dumps(short), len(answers))]
            if own:
                speed, *texts, parts = own
                row += [float(f"{speed:.4g}"), times.setdefault(parts, len(times))]
                row += [words.setdefault(text, len(words)) for text in texts]
            rows.append(row)
        cards = dict(zip(targets(), pool.map(limits, targets()), strict=True))
    return {
        "models": {name: model_profile(name).title for name in MODELS},
        "texts": TEXTS,
        "prefers": PREFERENCES,
        "usual": USUAL,
        "batch": BATCH,
        "cards": cards,
        "words": list(words),
        "times": list(times),
        "answers": [json.loads(text) for text in answers],
        "states": rows,
    }


def main() -> None:
    """Write the file."""
    DATA.write_text(HEAD + json.dumps(document(), separators=(",", ":")) + ";\n", encoding="utf-8")
    print(f"{DATA}: {DATA.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
