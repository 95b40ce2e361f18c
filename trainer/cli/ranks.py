"""A run of several ranks that a launcher started: rank 0 decides, the others wait and read.

Plan, run folder and checkpoint are rank 0's. Data, weights and caches are looked for on every
machine, in the folders of its own command line; no disk is assumed to be shared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from profiles.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from profiles.files import refused
from profiles.streams import tell
from profiles.text import counted
from trainer.cli.console import RESUME, LineProgress, user_errors
from trainer.cli.one_process import train_here
from trainer.cli.planned_run import Data, PlannedRun, read_data
from trainer.parallel.launch import is_main
from trainer.parallel.ranks import Ranks, host, launched
from trainer.process import import_libraries
from trainer.run.started import Started

if TYPE_CHECKING:
    from advisor.machine.gpu import Gpu, Machine
    from profiles.plan import Plan

CARD, RUN, READY, SHORTAGES = "card", "run", "ready", "shortages"


def as_launched(plan: Plan, named: Mapping[str, str]) -> Plan:
    """The plan with the launcher's numbers of processes and machines, if a launcher runs.

    `named`: the settings that the user named, which must agree. Raises ValueError, PlanError.
    """
    found = launched()
    if found is None:
        if plan.nodes > 1:
            each = plan.processes // plan.nodes
            raise ValueError(
                f"the plan is for {plan.nodes} machines, and no launcher runs\n    hint: on each "
                f"machine torchrun --nnodes {plan.nodes} --nproc_per_node {each} ... --no_python "
                "lisa-train, or --set nodes=1"
            )
        return plan
    changes = []
    for name, there in zip(("nodes", "processes"), reversed(found), strict=True):
        wanted = getattr(plan, name)
        if wanted != there and name in named:
            raise ValueError(
                f"{name}: got {wanted}, but the launcher started {there}\n    hint: leave it out, "
                "or start as many"
            )
        if wanted != there:
            changes.append(f"{name}={there}")
    if changes and is_main():
        tell(f"as the launcher has started: {', '.join(changes)}")
    return plan.override(changes) if changes else plan


def launch_settings(named: Mapping[str, str]) -> list[str]:
    """The settings that a launcher decides, unless the user has named them."""
    found = launched() or (1, 1)
    both = zip(("processes", "nodes"), found, strict=True)
    return [f"{name}={there}" for name, there in both if there > 1 and name not in named]


def _report_card(ranks: Ranks, machine: Machine) -> None:
    """Tell rank 0 about this rank's card, for --auto."""
    own = ranks.rank - ranks.of_machine.start
    cards = machine.gpus[own : own + 1] or machine.gpus
    ranks.say(CARD, machine.model_copy(update={"gpus": cards}).model_dump_json())


def weakest(machine: Machine) -> Machine:
    """The machine to advise for: the one with the weakest card among all ranks.

    All ranks have the same plan, so it must fit the card with the least free memory; among equals
    the oldest card decides. The result has the cards of that machine's ranks, and the least host
    memory of all machines.
    """
    ranks = Ranks.here()
    if ranks.count == 1:
        return machine
    from advisor.machine.gpu import Machine

    _report_card(ranks, machine)
    heard = [Machine.model_validate_json(text) for text in ranks.hear(CARD)]
    here = len(ranks.of_machine)
    machines = [_joined(heard[first : first + here]) for first in range(0, ranks.count, here)]
    found = min((one for one in machines if one.gpus), key=_weakness, default=machines[0])
    if len({gpu.name for one in machines for gpu in one.gpus}) > 1:
        tell(f"{ranks.count} ranks have different cards; the plan is for the weakest, "
             f"{min(found.gpus, key=_strength).name}")  # fmt: skip
    free = [one.host_available_bytes for one in heard if one.host_available_bytes is not None]
    return found.model_copy(update={"host_available_bytes": min(free, default=None)})


def _joined(heard: list[Machine]) -> Machine:
    """A machine with the cards of its ranks, as each of them sees its own."""
    cards = {gpu.uuid or gpu.index: gpu for one in heard for gpu in one.gpus}
    return heard[0].model_copy(update={"gpus": tuple(cards.values())})


def _weakness(machine: Machine) -> tuple[int, tuple[int, ...]]:
    return min(map(_strength, machine.gpus))


def _strength(gpu: Gpu) -> tuple[int, tuple[int, ...]]:
    return gpu.free_bytes or 0, gpu.compute_capability or ()


@contextmanager
def deciding() -> Iterator[None]:
    """`user_errors` of rank 0: if it ends before it announces a run, the other ranks end too."""
    code, said = 0, "see what it says"
    try:
        with user_errors(RESUME):
            try:
                yield
            except Exception as error:
                said = said if isinstance(error, typer.Exit) else str(error)
                raise
    except Exception as error:
        code = error.exit_code if isinstance(error, typer.Exit) else EXIT_FAILED
        raise
    finally:
        ranks = Ranks.here()
        if ranks.count > 1 and not ranks.has_said(RUN):
            ranks.say(RUN, json.dumps({"code": code, "error": said, "host": host()}))
            if code != EXIT_INTERRUPTED:  # which comes to the others too
                ranks.end_together()


def announce(run: PlannedRun, data: Data, checkpoint: Path | None) -> None:
    """Tell the other ranks of the run, and wait until all are ready. Raises typer.Exit."""
    from trainer.model.weights import weight_source

    ranks = Ranks.here()
    if ranks.count == 1:
        return
    document = {
        "plan": run.plan.model_dump(mode="json"),
        "folder": str(run.folder),
        "started": json.loads(replace(run.started, digests={}).to_json()),
        "resumes": run.resumes,
        "checkpoint": checkpoint and str(checkpoint),
        "data": _digest(run.started),
        "samples": [len(data.train), len(data.val)],
        "base": weight_source(run.plan).fingerprint,
        "host": host(),
    }
    ranks.say(RUN, json.dumps(document))
    _all_ready(ranks, "")


def collect_shortages(run: Path) -> None:
    """In rank 0, before a run is resumed: take in the other machines' out-of-memory reports."""
    from profiles.files import write_whole
    from profiles.shortage import Shortage
    from trainer.run.shortages import REPORT, new_place, shortages

    ranks = Ranks.here()
    if ranks.count == 1:
        return
    known = list(shortages(run).values())
    for heard in ranks.hear(SHORTAGES, range(1, ranks.count)):
        for text in json.loads(heard):
            if (short := Shortage.model_validate_json(text)) not in known:
                known.append(short)
                write_whole(new_place(run) / REPORT, text + "\n")


def join(run: Path, data: Path | None, cache: Path | None) -> None:
    """A rank other than 0: waits for the run, and trains with it. Raises typer.Exit.

    `run`: the folder of its command line, where it may have reported that it ran out of memory.
    """
    import_libraries()
    from advisor.machine.probe import probe
    from profiles.plan import Plan
    from trainer.run.shortages import shortages

    ranks = Ranks.here()
    if ranks.is_first:  # of another machine than rank 0's, whose log would stay empty
        first, last = ranks.of_machine[0], ranks.of_machine[-1]
        own = f"ranks {first} to {last}" if last > first else f"rank {first}"
        tell(f"{host()}: {own} of {ranks.count}; rank 0 on {os.environ['MASTER_ADDR']} decides, "
             "reports and saves")  # fmt: skip
    reports = [short.model_dump_json(indent=2) for short in shortages(run).values()]
    ranks.say(SHORTAGES, json.dumps(reports))
    _report_card(ranks, probe())
    (text,) = ranks.hear(RUN, range(1))
    sent = json.loads(text)
    if "code" in sent:  # rank 0 has ended before the run began
        if sent["code"] and ranks.is_first and sent["host"] != host():
            tell(f"error: {sent['host']}, rank 0: {sent['error']}")
        ranks.end_together()
        raise typer.Exit(sent["code"])
    started = Started.parse(json.dumps(sent["started"]))
    started = replace(started, data=data or started.data, cache=cache or started.cache)
    plan, folder = Plan.parse(sent["plan"]), Path(sent["folder"])
    begun = PlannedRun(plan, folder, started, resumes=sent["resumes"])
    os.environ.update({k: v for k, v in started.environment.items() if k not in os.environ})
    problem, found = "", None
    try:
        found = read_data(begun)
        _check_machine(begun, found, sent, ranks)
    except OSError as error:
        problem = refused(error)
    except ValueError as error:
        problem = str(error)
    _all_ready(ranks, problem)
    assert found is not None
    train_here(begun, found, sent["checkpoint"] and Path(sent["checkpoint"]))


def _check_machine(run: PlannedRun, data: Data, sent: Mapping[str, object], ranks: Ranks) -> None:
    """Raise ValueError if this machine has other data or weights than rank 0's.

    The first of a machine's ranks compares all pictures; on rank 0's this has been done.
    """
    from trainer.data.contents import Contents
    from trainer.model.weights import weight_source
    from trainer.run.data_digests import digests

    if (base := weight_source(run.plan).fingerprint) != sent["base"]:
        raise ValueError(
            f"{run.plan.weights}: base weights {base}; rank 0 on {sent['host']} has {sent['base']}"
            "\n    hint: copy its folder to this machine"
        )
    if run.started.adapter is not None:
        from trainer.run.start_from_adapter import check_adapter

        check_adapter(run.started.adapter, run.plan)
    if not ranks.is_first:
        return
    contents = Contents(run.started.data, run.started.cache, LineProgress(patience=10))
    now = digests(data.train, data.val, data.left_out, contents)
    if _digest(replace(run.started, digests=now)) != sent["data"]:
        here = counted(len(data.train), "training sample"), len(data.val)
        raise ValueError(
            f"{run.started.data}: not the data of rank 0 on {sent['host']}, which has "
            "{} and {}; here are {} and {}\n    hint: copy them from there".format(
                *sent["samples"],
                *here,  # type: ignore[misc]
            )
        )


def _digest(started: Started) -> str:
    """One digest of all data: of 100 000 pictures the digests are too long for the store."""
    text = json.dumps({split: sorted(items.items()) for split, items in started.digests.items()})
    return hashlib.sha256(text.encode()).hexdigest()


def _all_ready(ranks: Ranks, problem: str) -> None:
    """Return when all ranks are ready. Raises typer.Exit if one has a problem; each machine's
    first rank names it, and its host."""
    said = ranks.exchange(READY, json.dumps([host(), problem]))
    found = dict.fromkeys(tuple(json.loads(text)) for text in said)
    wrong = [f"{name}: {text}" for name, text in found if text]
    if not wrong:
        return
    if ranks.is_first:
        tell("error: " + "\n  ".join(wrong))
    ranks.end_together()
    raise typer.Exit(EXIT_USAGE)
