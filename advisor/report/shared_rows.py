"""Tested rows as a block for an issue: what was measured on which card, and nothing personal.

A row's plan may name a folder, and its note may hold an error's whole text: both are left out. The
rows are JSON lines inside the block, so `table import` can read the text of an issue as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from profiles.plan import Plan
from profiles.sizes import gib
from profiles.tested import TestedRow

FENCE = "```"
# Of a row's versions, what memory depends on; nothing else is passed on.
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "lisa-preflight",
            "cuda", "driver")  # fmt: skip


def shared(row: TestedRow) -> TestedRow:
    """A row of the user's without what could name a person, a machine or a folder."""
    settings = {name: value for name, value in row.settings.items() if name != "weights"}
    known = {name: row.versions[name] for name in VERSIONS if name in row.versions}
    whole = row.model_copy(update={"settings": settings, "versions": known, "note": ""})
    facts = whole.model_dump_json(exclude={"id", "title"})
    name = (
        "shared-" + hashlib.sha256(facts.encode()).hexdigest()[:12]
    )  # its own names the card's id
    plan = Plan.parse({**settings, "model": row.model})
    title = f"{row.model} {plan.content_hash}"
    return whole.model_copy(update={"id": name, "title": title})


def block(rows: Sequence[TestedRow]) -> str:
    """Markdown for an issue: a table to read, and the rows as JSON lines."""
    lines = [
        "| card | driver | torch | plan | forecast | measured | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        versions = row.versions
        cells = [row.gpu or "–", versions.get("driver", "–"), versions.get("torch", "–"), row.title,
                 _size(row.forecast_bytes), _size(row.needed_bytes), row.verdict]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    kept = [row.model_dump_json(exclude_defaults=True) for row in rows]
    return "\n".join([*lines, "", f"{FENCE}jsonl", *kept, FENCE])


def rows_of(data: bytes) -> bytes:
    """The JSON lines of a file as exported, or of a text that holds such blocks."""
    begin, end = f"{FENCE}jsonl".encode(), FENCE.encode()
    if begin not in data:
        return data
    kept, inside = [], False
    for line in data.splitlines():
        mark = line.strip()
        inside = mark == begin or (inside and mark != end)
        kept += [line] * (inside and mark != begin)
    return b"\n".join(kept)


def _size(number: int | None) -> str:
    return "–" if number is None else gib(number)
