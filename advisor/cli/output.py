"""What the commands print and write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.exits import EXIT_FAILED, fail
from profiles.files import reason, write_whole
from profiles.places import libraries_caches
from profiles.streams import say, tell
from profiles.text import argument

if TYPE_CHECKING:
    from advisor.advice import Advice
    from advisor.memory.live import LiveForecasts


@contextmanager
def advice_errors() -> Iterator[None]:
    """End with a clear error where the settings, the data or a forecast fail."""
    from advisor.rehearsal import BadQuestion, RehearsalFailed
    from profiles.findings import PlanError

    try:
        yield
    except PlanError as error:
        fail(f"these settings cannot run\n{error}")
    except BadQuestion as error:
        fail(f"this data cannot be used\n{error}")
    except RehearsalFailed as error:
        fail(str(error), EXIT_FAILED)


def with_forecast(advice: Advice, live: LiveForecasts) -> Advice:
    """The advice with a forecast of its own plan, if the plan is for a card and has none yet."""
    forecast, plan = advice.forecast, advice.plan
    if plan is None or plan.device != "cuda" or (forecast and forecast.plan == plan):
        return advice
    text = advice.text_tokens or plan.tokens.max_text_tokens
    return advice.model_copy(update={"forecast": live(plan, text)})


def step_picture(advice: Advice, live: LiveForecasts, kind: str) -> bytes | None:
    """A step of the advised plan as a file of that kind; None where no step can be followed."""
    forecast = advice.forecast
    if not forecast or not forecast.tiers:
        return None
    if not advice.plan or not advice.budget or not advice.needs:
        return None
    step = live.step(advice.plan, forecast.text_tokens)
    if step is None:
        return None
    for name, folder in libraries_caches().items():
        os.environ.setdefault(name, folder)
    from advisor.report.plot import picture

    return picture(step, forecast, advice, kind)


def write_plot(advice: Advice, live: LiveForecasts, path: Path) -> None:
    """Draw a step of the advised plan; a plan on the CPU, or none, has no picture."""
    drawn = step_picture(advice, live, path.suffix.lower().removeprefix("."))
    if drawn is None:
        tell("not drawn: there is no plan on a card whose step can be followed")
    else:
        write(path, drawn)


def within_limits(advice: Advice, hours: float | None, price: float | None) -> Advice:
    """The advice with the epochs that fit into --hours, and the cost at --price an hour."""
    from advisor.cost.duration import within

    if hours is None and price is None:
        return advice
    if advice.duration is None:
        tell("--hours and --price: how long this training takes is not known")
        return advice
    return advice.model_copy(update={"duration": within(advice.duration, hours, price)})


def print_advice(advice: Advice, as_json: bool, why: bool) -> None:
    from advisor.report.text import PlainConsole, print_text, to_json

    if as_json:
        say(to_json(advice))
        for finding in (*advice.findings, *advice.machine.notes):
            tell(str(finding))
    else:
        print_text(advice, PlainConsole(), why)


def saved(advice: Advice, path: Path) -> Advice:
    """The advice with its plan written to `path` and a command that uses it."""
    from advisor.request import lisa_train, weights_needed
    from profiles.skipping import option

    if advice.plan is None or advice.command is None:
        tell(f"not saved: {advice.verdict}, so there is no plan to train")
        return advice
    write(path, advice.plan.to_json())
    plan = advice.plan
    program = lisa_train(plan.nodes, plan.local_processes)
    needed = weights_needed(plan.model, plan.weights)
    command = f"{program} --plan {argument(path)}{needed} --data-dir DIR{option()}"
    return advice.model_copy(update={"command": command})


def write(path: Path, text: str | bytes) -> None:
    """Put `text` into `path` whole, or leave what was there."""
    try:
        write_whole(path, text)
    except OSError as error:
        fail(f"{path}: cannot be written: {reason(error)}")
