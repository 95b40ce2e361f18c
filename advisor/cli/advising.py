"""From the options of `lisa-advise` and its `report` to the advice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from advisor.cli.options import group_settings, must_be_data, named_card
from advisor.cli.output import advice_errors
from profiles.exits import fail
from profiles.preferences import Preference
from profiles.streams import tell

if TYPE_CHECKING:
    from advisor.advice import Advice
    from advisor.memory.live import LiveForecasts


def advised(
    model: str | None,
    assignments: list[str],
    *,
    gpu: str | None,
    vram: int | None,
    system: str | None,
    ram: int | None,
    gpus: int | None,
    nodes: int | None,
    prefer: Preference,
    data_dir: Path | None,
    skip_broken: str | None,
    exact: bool,
) -> tuple[Advice, LiveForecasts]:
    """The advice for the card that is named or here, and what forecasts plans there.

    Ends with an exit code where options contradict each other, or the settings, the data or a
    forecast fail.
    """
    from advisor.machine.evidence import Evidence
    from advisor.machine.probe import probe
    from advisor.machine.target import pick_gpu
    from advisor.memory.live import live_forecast
    from advisor.preflight import advise
    from advisor.request import must_have_cards
    from profiles.overrides import must_agree

    target = named_card(vram, gpu, system, ram)
    must_be_data(data_dir, skip_broken)
    settings = assignments + group_settings(gpus, nodes, target, assignments)
    with advice_errors():
        must_agree(settings)
    machine = probe()
    if gpus is not None and target is None and pick_gpu(machine) is None:
        what = f"--gpus: got {gpus}, and this machine shows no usable GPU"
        fail(f'{what}\n    hint: --gpu "{gpus}x NAME" advises for cards elsewhere')
    with advice_errors():
        if target is None:
            must_have_cards(machine, settings)
        live = live_forecast(machine, target, data_dir, tell)
        found = advise(
            machine, model, settings, target,
            data=data_dir, live=live, evidence=Evidence.here(), prefer=prefer, exact=exact,
        )  # fmt: skip
    return found, live
