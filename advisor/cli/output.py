"""What the commands print and write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from profiles.exits import fail
from profiles.files import reason, write_whole
from profiles.streams import say, tell
from profiles.text import argument

if TYPE_CHECKING:
    from advisor.advice import Advice


def plot_step(advice: Advice, path: Path) -> None:
    """Draw a step of the advised plan; a plan on the CPU, or none, has no picture."""
    from advisor.memory.forecast import timeline
    from advisor.memory.worst_sample import Worst
    from advisor.report.plot import draw

    if advice.plan is None or advice.gpu is None or advice.budget is None or not advice.needs:
        tell("not drawn: there is no plan on a card")
        return
    tell(f"following a step of {advice.plan.model}, some seconds ...")
    told = advice.forecast
    masks, answers = (told.masks, told.answer_tokens) if told else (None, None)
    text = advice.text_tokens or advice.plan.tokens.max_text_tokens
    worst = Worst(text, masks, answer_tokens=answers)
    found = timeline(advice.plan, worst, advice.gpu.compute_capability or (8, 6))
    title = f"{advice.model} on {advice.gpu.name}: one step, micro-batch {advice.plan.micro_batch}"
    if advice.plan.accumulation > 2:
        title += f" (2 of {advice.plan.accumulation} shown, all alike)"
    try:
        draw(found, title, advice.needs.bytes, advice.budget.usable.bytes, path)
    except OSError as error:
        fail(f"{path}: cannot be written: {reason(error)}")


def within_limits(advice: Advice, hours: float | None, price: float | None) -> Advice:
    """The advice with what fits into so many hours, and with what it costs at a price an hour."""
    from advisor.cost.duration import within

    if hours is None and price is None:
        return advice
    if advice.duration is None:
        tell("--hours and --price: how long this training takes is not known")
        return advice
    return advice.model_copy(update={"duration": within(advice.duration, hours, price)})


def print_advice(advice: Advice, as_json: bool) -> None:
    from advisor.report.text import PlainConsole, print_text, to_json

    if as_json:
        say(to_json(advice))
        for finding in (*advice.findings, *advice.machine.notes):
            tell(str(finding))
    else:
        print_text(advice, PlainConsole())


def saved(advice: Advice, path: Path) -> Advice:
    """The advice with its plan written to `path` and a command that uses it."""
    from advisor.request import weights_needed
    from profiles.skipping import option

    if advice.plan is None or advice.command is None:
        tell(f"not saved: {advice.verdict}, so there is no plan to train")
        return advice
    write(path, advice.plan.to_json())
    needed = weights_needed(advice.plan.model, advice.plan.weights)
    command = f"lisa-train --plan {argument(path)}{needed} --data-dir DIR{option()}"
    return advice.model_copy(update={"command": command})


def write(path: Path, text: str) -> None:
    """Put `text` into `path` whole, or leave what was there."""
    try:
        write_whole(path, text)
    except OSError as error:
        fail(f"{path}: cannot be written: {reason(error)}")
