"""The Plan tab: asks `advise`, as lisa-advise does, and lays its answer out for the page."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from advisor.advice import Advice
from advisor.cost.duration import within
from advisor.machine.evidence import Evidence
from advisor.machine.probe import probe
from advisor.machine.target import Target
from advisor.memory.live import live_forecast
from advisor.preflight import advise
from advisor.report.cost_text import cost_lines
from advisor.report.memory_bar import legend
from advisor.report.summary import alternatives, commands, plan_line
from advisor.report.text import plan_lines
from advisor.request import must_have_cards
from profiles.files import write_whole
from profiles.gpus import find_gpus, gpus
from profiles.models import models
from profiles.overrides import assigned
from profiles.preferences import PREFERENCES, Preference
from profiles.records import Frozen
from profiles.sizes import gib, parse_size
from profiles.splits import NEEDED, located
from profiles.streams import tell
from studio.fields import in_fields
from studio.places import Places

HERE = "here"  # this machine's card
PLANS = "plans"  # the folder of saved plans
LONGEST = 200  # letters of a setting


class Wanted(Frozen):
    """What the Plan tab asks for. `data` and `weights` are places."""

    model: str | None = Field(None, max_length=80)
    card: str = Field(HERE, max_length=80)  # `here`, a name of the catalogue, or a size
    windows: bool = False
    prefer: Preference = "usual"
    data: str | None = Field(None, max_length=4000)
    weights: str | None = Field(None, max_length=4000)
    settings: tuple[str, ...] = Field((), max_length=40)
    hours: float | None = Field(None, gt=0, le=1e5)

    def assignments(self, places: Places) -> list[str]:
        """The settings, as `--set` takes them. Raises ValueError."""
        for text in self.settings:
            if len(text) > LONGEST:
                raise ValueError(f"settings: one has {len(text)} letters; allowed: {LONGEST}")
        if "weights" in assigned(self.settings):
            raise ValueError("settings: choose the weights' folder in its own field")
        given, target = list(self.settings), self.target()
        if target is not None and target.count > 1 and "processes" not in assigned(given):
            given.append(f"processes={target.count}")
        if self.weights is None:
            return given
        found = "random" if self.weights == "random" else str(places.folder(self.weights))
        return [*given, f"weights={found}"]

    def target(self) -> Target | None:
        """The card that is meant; None for this machine's. Raises ValueError."""
        if self.card == HERE:
            return None
        with suppress(ValueError):
            return Target(parse_size(self.card), None, self.windows)
        try:
            count, (card, *others) = find_gpus(self.card)
        except ValueError as error:
            raise ValueError(f"card: {error}; or give a size such as 8GiB") from None
        return Target(None, card, self.windows, others=tuple(others), count=count)

    def data_folder(self, places: Places) -> Path | None:
        """The data to plan for. Raises ValueError."""
        folder = None if self.data is None else places.folder(self.data)
        if folder is not None and located(folder) is None:
            raise ValueError(f"{self.data}: holds no ReasonSeg data; needed: {NEEDED}")
        return folder


class Saved(Frozen):
    """A plan to save: what was asked for, and the name of the file."""

    wanted: Wanted
    name: str = Field(max_length=80)


def choices(places: Places) -> dict[str, Any]:
    """What can be chosen on the page."""
    return {
        "models": {name: profile.title for name, profile in models().items()},
        "packaged": [name for name, profile in models().items() if profile.packaged],
        "cards": {name: card.title for name, card in gpus().items()},
        "prefers": PREFERENCES,
        "folders": list(places.roots),
    }


def advice_for(wanted: Wanted, places: Places) -> Advice:
    """The advice. Raises PlanError, BadQuestion, RehearsalFailed."""
    machine, target = probe(), wanted.target()
    data, settings = wanted.data_folder(places), wanted.assignments(places)
    if target is None:
        must_have_cards(machine, settings)
    live = live_forecast(machine, target, data, tell)
    found = advise(machine, wanted.model, settings, target, data=data, live=live,
                   evidence=Evidence.here(), prefer=wanted.prefer)  # fmt: skip
    if wanted.hours is None or found.duration is None:
        return found
    return found.model_copy(update={"duration": within(found.duration, wanted.hours, None)})


def plan(wanted: Wanted, places: Places) -> dict[str, Any]:
    """The advice as the page shows it; `commands` are what a terminal would need instead."""
    advice = advice_for(wanted, places)
    settings, budget = advice.plan, advice.budget
    return {
        "verdict": advice.verdict,
        "summary": advice.summary,
        "model": advice.model,
        "trains": advice.plan is not None and not advice.exit_code,
        "plan": plan_line(settings) if settings else "",
        "hash": settings.content_hash if settings else "",
        "lines": list(plan_lines(settings, advice.duration)) if settings else [],
        "bar": _bar(advice),
        "legend": legend(advice) if advice.needs and budget else "",
        "costs": [line for line in cost_lines(advice) if line[1]],
        "alternatives": list(alternatives(advice)),
        "reasons": [(f"{one.setting} {one.value}", one.because) for one in advice.reasons],
        "commands": commands(advice),
        "findings": [in_fields(str(one)) for one in (*advice.findings, *_notes(advice))],
    }


def _notes(advice: Advice) -> tuple[object, ...]:
    """What this machine lacks, where the plan is for it."""
    return () if advice.what_if else advice.machine.notes


def _bar(advice: Advice) -> dict[str, Any] | None:
    """The memory bar: bytes of its parts, of the limit and of the whole; None without figures."""
    if advice.needs is None or advice.budget is None:
        return None
    needs, usable = advice.needs.bytes, advice.budget.usable.bytes
    return {
        "parts": advice.parts or {"activations": needs},
        "needs": needs,
        "usable": usable,
        "whole": max(advice.budget.free.bytes, needs, 1),
        "words": f"{gib(needs)} of {gib(usable)} usable",
    }


def save(saved: Saved, places: Places) -> dict[str, Any]:
    """Write the advised plan below the first folder. Raises ValueError."""
    advice = advice_for(saved.wanted, places)
    if advice.plan is None or advice.exit_code:
        raise ValueError(f"not saved: {advice.verdict}, so there is no plan to train")
    path = places.new(f"{saved.name}.json", PLANS)
    if path.exists():
        raise ValueError(f"name: {saved.name} is taken; allowed: a new name")
    path.parent.mkdir(exist_ok=True)
    write_whole(path, advice.plan.to_json())
    return {"place": places.place(path)}
