"""What the pool of a run takes at most: as its advice said, or forecast when the page asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advisor.machine.probe import probe
from advisor.memory.live import live_forecast
from profiles.files import read_object
from profiles.findings import PlanError
from profiles.plan import Plan
from profiles.streams import tell
from studio.places import NoSuchPlace, Places
from studio.processes import Processes
from studio.records import number
from studio.training import Chosen
from trainer.run.started import CannotResume, Started


def plan_of(folder: Path) -> Plan | None:
    """The plan in a folder, if it has one that can be read."""
    try:
        return Plan.read(folder / "plan.json")
    except (PlanError, OSError, ValueError):
        return None


def data_of(folder: Path, places: Places) -> str | None:
    """The data that a run trains on, if the page sees it."""
    try:
        return places.place(Started.read(folder).data)
    except CannotResume:
        return None


def advised(folder: Path, plan: Plan | None) -> dict[str, Any] | None:
    """The advice's figures: what the pool takes, and what it may take.

    None without advice, and for a run that continued with another plan than the advised one.
    """
    advice = read_object(folder / "advice.json")
    needs, budget = advice.get("needs"), advice.get("budget")
    if plan is None or not isinstance(needs, dict) or not isinstance(budget, dict):
        return None
    try:
        if Plan.parse(advice.get("plan", {})) != plan:
            return None
    except (ValueError, TypeError):
        return None
    return {"needs": number(needs, "bytes"), "usable": number(budget.get("usable"), "bytes")}


def forecast(chosen: Chosen, places: Places, processes: Processes) -> dict[str, Any]:
    """The forecast of a run's plan at the largest sample of its data, in some seconds.

    If the page does not see the data, at the largest sample that the plan allows. What may be taken
    is left out, since the run itself takes memory now. Raises ValueError, RehearsalFailed.
    """
    folder = processes.folder_of(chosen.run)
    plan = plan_of(folder)
    if plan is None or plan.device == "cpu":
        raise ValueError(f"{folder.name}: memory is forecast for plans on a card alone")
    place, data = data_of(folder, places), None
    if place is not None:
        try:
            data = places.folder(place)
        except NoSuchPlace:
            data = None
    found = live_forecast(probe(), None, data, tell)(plan, None)
    if not found.tiers:
        raise ValueError(found.reason)
    return {"needs": found.tier("pool").bytes, "usable": None, "plan": plan.content_hash}
