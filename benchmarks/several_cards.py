"""What more cards bring, by the forecast of a step: docs/several-gpus.md's two tables.

python benchmarks/several_cards.py

Needs no GPU. What NCCL takes and how long processes wait comes from benchmarks/ranks.jsonl into
profiles/exchange.json first. The first table has the advised plan of some cards on 1, 2, 4 and 8
of them. The second goes on to 1024, on paper: each GPU takes one forward pass a step, so the batch
grows.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from ranks import ROWS_FILE
from tables import put

from advisor.cost.several import Planned, numbers, several
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Machine
from advisor.machine.target import Target
from advisor.memory.speed import factors, seconds_of
from advisor.preflight import advise
from profiles.exchange import EXCHANGE_FILE, Link, exchange, exchange_seconds, gradient_bytes
from profiles.findings import PlanError
from profiles.gpus import GpuProfile, gpus
from profiles.models import DEFAULT_MODELS
from profiles.plan import Plan
from profiles.settings import PREFIX_TOKENS
from profiles.sizes import GIB, MIB

NAMES = "forecast", "on paper"  # of the marks
PAGE = Path(__file__).resolve().parents[1] / "docs" / "several-gpus.md"
CARDS = "rtx-3060-12gb", "rtx-3090-24gb", "a100-sxm4-80gb", "h100-sxm-80gb"
MODELS = DEFAULT_MODELS[0], "7b"
BATCHES = 20, 64  # questions a step: the usual ones, and what eight cards can share
MOST = 8
RAM_EACH = 64 * 2**30
ON_PAPER = 2, 8, 64, 1024
EACH = 8  # cards of a machine
FABRIC = Link(12.5, 2e-5, "100 Gbit/s")
QUESTION_TOKENS = 60  # of a question and its answer, as in advisor/cost/duration.py


def pairs() -> list[tuple[bool, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Of each plan timed in one process and in two: whether by NVLink, and what each measured."""
    rows = map(json.loads, ROWS_FILE.read_text(encoding="utf-8").splitlines())
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if not row["sharded"] and all(m["verdict"] == "FITS" for m in row["measurements"]):
            found.setdefault(row["name"], {})[row["processes"]] = row
    return [
        (not both[1]["environment"], both[1]["measurements"], both[2]["measurements"])
        for both in found.values()
        if both.keys() >= {1, 2}
    ]


def measured() -> dict[str, Any]:
    """profiles/exchange.json, with what the rows say of NCCL and of the wait."""

    def beside(rank: dict[str, Any]) -> int:
        return int(rank["process_bytes"] - rank["peak_reserved_bytes"])

    nccl: dict[bool, int] = {}
    waits = []
    for by_nvlink, (one,), both in pairs():
        more = max(map(beside, both)) - beside(one)
        nccl[by_nvlink] = max(more, nccl.get(by_nvlink, 0))
        if by_nvlink:
            waits.append(mean(rank["step_seconds"] for rank in both) - one["step_seconds"] / 2)
    other = f" ({nccl[False] / GIB:.2f} without NVLink)" if False in nccl else ""
    return json.loads(EXCHANGE_FILE.read_text(encoding="utf-8")) | {
        "nccl_bytes": nccl[True],
        "nccl_source": f"NCCL, {nccl[True] / GIB:.2f} GiB on each of two H200s{other}",
        "wait_seconds": round(max(0.0, median(waits)), 3),
    }


def planned(model: str, card: GpuProfile, batch: int, count: int = 1) -> Plan | None:
    """The advised plan for so many of the card; None where they cannot share the batch."""
    target = Target(card=card, ram_bytes=count * RAM_EACH)
    settings = f"effective_batch={batch}", "weights=random", f"processes={count}"
    try:
        return advise(Machine(), model, settings, target, evidence=Evidence.shipped()).plan
    except PlanError:
        return None


def forecast_table() -> list[str]:
    """Questions a second on 1, 2, 4 and 8 cards, and how well each is used."""
    head = "| card | model | questions a step | " + " | ".join(map(str, numbers(MOST))) + " |"
    lines = [head, "|---|---|---|" + "---|" * len(numbers(MOST))]
    for card in (gpus()[key] for key in CARDS):
        for model in MODELS:
            for batch in BATCHES:
                plans = (planned(model, card, batch, count) for count in numbers(MOST))
                told = several(Planned(plan, card) for plan in plans if plan is not None)
                assert told is not None
                found = {row.cards: row for row in told.rows}
                cells = [f"{found[n].samples_per_second:.2g} ({found[n].efficiency:.0%})"
                         if n in found else "" for n in numbers(MOST)]  # fmt: skip
                lines.append(f"| {card.title} | {model} | {batch} | {' | '.join(cells)} |")
    lines.append(
        "\nA cell has the questions a second of the best plan for so many cards, with ReasonSeg's "
        "texts and one question a picture, as in the advised time, and in brackets the share of a "
        "lone card's speed that each of them keeps. Link: "
        f"{exchange().within.source}. In an empty cell so many cards cannot share the batch. Above "
        "100%, the plan advised for one card is not its fastest."
    )
    return lines


def on_paper_table() -> list[str]:
    """Bytes, seconds and what each machine reads, up to 1024 GPUs."""
    card, model = gpus()["h100-sxm-80gb"], MODELS[0]
    plan = planned(model, card, BATCHES[1])
    assert plan is not None
    text = PREFIX_TOKENS + QUESTION_TOKENS * plan.questions_per_picture
    compute = factors().loop * seconds_of(plan, text, card)
    rows, size = plan.micro_batch, gradient_bytes(plan)
    asked = rows * plan.questions_per_picture
    lines = [
        "| GPUs | questions a step | sent by each | exchange, 10 Gbit/s | efficiency | "
        "100 Gbit/s | efficiency | questions/s | read by a machine | cores that read |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for count in ON_PAPER:
        links = (exchange().between, FABRIC) if count > EACH else (exchange().within,) * 2
        waits = [exchange().wait_seconds + exchange_seconds(size, count, link) for link in links]
        steps = [compute + wait for wait in waits]
        sent = 2 * (count - 1) / count * size / MIB
        local = min(count, EACH) * rows / steps[1]  # rows a second of a machine
        read = local * _features(plan) / 1e6
        cells = [
            count, count * asked, f"{sent:.0f} MiB",
            f"{waits[0] * 1e3:.0f} ms", f"{compute / steps[0]:.0%}", f"{waits[1] * 1e3:.0f} ms",
            f"{compute / steps[1]:.0%}", f"{count * asked / steps[1]:.0f}",
            f"{read:.0f} MB/s", f"{local * factors().sample_seconds:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines.append(
        f"\n{model} on H100s, {EACH} in a machine: one forward pass of {rows} pictures with "
        f"{plan.questions_per_picture} questions takes {compute:.2f} s on each. Up to {EACH} GPUs "
        f"the link is {exchange().within.source}; each step also waits "
        f"{exchange().wait_seconds * 1e3:.0f} ms for the slowest GPU, as measured with two."
    )
    return lines


def _features(plan: Plan) -> int:
    """Bytes on disk of one picture's features."""
    return sum(plan.profile.encoders[name].cached_bytes for name in plan.cached_encoders)


def marks(name: str) -> tuple[str, str]:
    """Where a table begins and ends in the page."""
    script = f"benchmarks/several_cards.py {name} -->"
    return f"<!-- {script}", f"<!-- /{script}"


def main() -> None:
    """Write the figures and both tables."""
    EXCHANGE_FILE.write_text(json.dumps(measured(), indent=2) + "\n", encoding="utf-8")
    exchange.cache_clear()
    for name, lines in zip(NAMES, (forecast_table(), on_paper_table()), strict=True):
        put(PAGE, *marks(name), lines)


if __name__ == "__main__":
    main()
