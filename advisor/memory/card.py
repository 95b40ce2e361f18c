"""A card with its budget: what a forecast is judged by."""

from __future__ import annotations

from dataclasses import dataclass

from advisor.machine.budget import HostBudget, budget_of
from advisor.machine.cuda_context import OTHERS, Context, measure_context
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Machine
from advisor.machine.target import Target, best_gpus, cards_text, gpu_for
from profiles.exchange import nccl_bytes
from profiles.plan import Plan

ASSUMED = (8, 6)  # compute capability where no card says its own


@dataclass(frozen=True)
class Card:
    """The card that a forecast is judged by; no cap where there is none."""

    title: str = "no card"
    cap_bytes: int | None = None  # what the pool may take
    margin_bytes: int = 0
    compute_capability: tuple[int, int] = ASSUMED
    context: Context = OTHERS
    host: HostBudget | None = None  # what a machine's processes may take

    def cap_for(self, plan: Plan) -> int | None:
        """What each process of the plan may take for its pool, beside NCCL's buffers."""
        return None if self.cap_bytes is None else max(0, self.cap_bytes - nccl_bytes(plan))


def card_for(
    machine: Machine,
    target: Target | None = None,
    measure: bool = False,
    count: int = 1,
    nodes: int = 1,
) -> Card:
    """This machine's best card, or `target`, with what a run's pool may take there.

    If `count` cards run together in each of `nodes` machines, it is the worst of them. `measure`
    measures this machine's context unless that was done. Raises RehearsalFailed.
    """
    gpu = gpu_for(machine, target, count)
    if measure and gpu is not None and target is None:
        measure_context(gpu, machine)
    ram = target.host_bytes(count) if target is not None else None
    evidence = Evidence.here()  # the user's own rows count towards the margin, as in the advice
    budget = budget_of(gpu, machine, ram, evidence) if gpu is not None else None
    if gpu is None or budget is None:
        return Card()
    here = best_gpus(machine, count)
    names = [target.title] * count if target is not None else [one.name for one in here]
    return Card(
        title=cards_text(names, nodes),
        cap_bytes=budget.cap_bytes,
        margin_bytes=budget.margin.bytes,
        compute_capability=gpu.compute_capability or ASSUMED,
        context=evidence.context(gpu, machine),
        host=budget.host,
    )
