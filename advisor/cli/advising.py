"""From the options of `lisa-advise` and its `report` to the advice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advisor.cli.options import group_settings, must_be_data, named_card
from advisor.cli.output import advice_errors, within_limits
from profiles.exits import fail
from profiles.streams import tell

if TYPE_CHECKING:
    from advisor.advice import Advice
    from advisor.cli.advise_options import AskedOptions
    from advisor.memory.live import LiveForecasts


def advised(
    options: AskedOptions, exact: bool, emulated: int | None = None
) -> tuple[Advice, LiveForecasts]:
    """The advice, and what forecasts plans for its card.

    The card is the one that the options name, one of `emulated` bytes, or this machine's. Ends with
    an exit code if options contradict each other, or the settings, the data or a forecast fail.
    """
    from advisor.machine.evidence import Evidence
    from advisor.machine.probe import probe
    from advisor.machine.target import pick_gpu
    from advisor.memory.live import live_forecast
    from advisor.preflight import advise
    from advisor.request import must_have_cards
    from profiles.overrides import must_agree

    gpus, data = options.gpus, options.data_dir
    with advice_errors():
        assignments = options.assignments()
    target = named_card(options.vram or emulated, options.gpu, options.system, options.ram)
    must_be_data(data, options.skip_broken)
    settings = assignments + group_settings(gpus, options.nodes, target, assignments)
    with advice_errors():
        must_agree(settings)
    machine = probe()
    if gpus is not None and target is None and pick_gpu(machine) is None:
        what = f"--gpus: got {gpus}, and this machine shows no usable GPU"
        fail(f'{what}\n    hint: --gpu "{gpus}x NAME" advises for cards elsewhere')
    with advice_errors():
        if target is None:
            must_have_cards(machine, settings)
        live = live_forecast(machine, target, data, tell)
        found = advise(
            machine, options.model, settings, target,
            data=data, live=live, evidence=Evidence.here(), prefer=options.prefer, exact=exact,
            size=options.size(),
        )  # fmt: skip
    return within_limits(found, options.hours, options.price), live
