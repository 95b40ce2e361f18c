"""Write what the docs take from the code and from recorded runs.

    python tools/write_docs.py [plan] [tables] [advice]    # all three by default

plan: docs/plan.md. tables: those of docs/lisa-tiny.md, between their marker comments.
advice: docs/advice.svg.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from profiles.plan import Lora, Mixture, Plan, Schedule, TokenLimits

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LEAST_AFTER, LEAST_GAIN = 0.75, 0.25


def settings_page() -> str:
    """docs/plan.md: every setting of the Plan in a table."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for prefix, section in (
        ("", Plan),
        ("lora.", Lora),
        ("schedule.", Schedule),
        ("tokens.", TokenLimits),
        ("mixture.", Mixture),
    ):
        for name, field in section.model_fields.items():
            if prefix or name not in ("lora", "schedule", "tokens", "mixture"):
                default = str(field.get_default()).replace("|", "\\|")
                rows.append(f"| `{prefix}{name}` | `{default}` | {field.description} |")
    text = (
        "# The Plan\n\nEvery setting that can change memory, speed or the result. Override one "
        "with\n`--set key=value`; written by `python tools/write_docs.py`.\n\n"
    )
    return text + "\n".join(rows) + "\n"


def pretraining_table() -> str:
    """lisa-tiny's IoU by kind of question, the kinds it never saw in the last two columns."""
    record = json.loads((ROOT / "profiles/tiny/pretraining.json").read_text(encoding="utf-8"))
    seen = [f"{kind} | {value:.3f}" for kind, value in record["validation"].items()]
    half = -(-len(seen) // 2)
    held_out = [f"{kind} | {value:.3f}" for kind, value in record["held_out"].items()]
    lines = ["| kind | IoU | kind | IoU | never seen | IoU |", "|---|---|---|---|---|---|"]
    for cells in itertools.zip_longest(seen[:half], seen[half:], held_out, fillvalue=" | "):
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def demo_table() -> str:
    """The latest row of each seed of benchmarks/demo_seeds.jsonl, and whether the target is met."""
    recorded = (ROOT / "benchmarks/demo_seeds.jsonl").read_text(encoding="utf-8").splitlines()
    latest = {row["seed"]: row for row in map(json.loads, recorded)}
    rows = [latest[seed] for seed in sorted(latest)]
    lines = [
        "| seed | gIoU before | after | cIoU before | after | updates | seconds | cores |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scores = (row[f"{score}_{when}"] for score in ("giou", "ciou") for when in _WHEN)
        shown = " | ".join(f"{score:.3f}" for score in scores)
        cost = f"{row['steps']} | {row['seconds']} | {row['cores']}"
        lines.append(f"| {row['seed']} | {shown} | {cost} |")
    missed = [str(row["seed"]) for row in rows if not reached(row)]
    verdict = f"missed by seed {', '.join(missed)}" if missed else "reached by every seed"
    machines = "; ".join(sorted({row["cpu"] for row in rows}))
    lines.append(
        f"\nTarget: gIoU after at least {LEAST_AFTER}, and at least {LEAST_GAIN} above before: "
        f"{verdict}.\nSeconds are those of the whole demo without installing ({machines})."
    )
    return "\n".join(lines)


_WHEN = ("before", "after")


def reached(row: dict[str, Any]) -> bool:
    """Whether a seed learnt what the demo promises."""
    gain = row["giou_after"] - row["giou_before"]
    return bool(row["giou_after"] >= LEAST_AFTER and gain >= LEAST_GAIN)


def with_table(page: str, name: str, table: str) -> str:
    """`page` with `table` between the marker comments called `name`. Raises ValueError."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page lacks {begin.strip()} … {end}")
    return f"{head}{begin}{table}\n{end}{tail}"


def with_tables(page: str) -> str:
    """docs/lisa-tiny.md with its tables as recorded."""
    page = with_table(page, "pretraining", pretraining_table())
    return with_table(page, "demo", demo_table())


def advice_schema() -> str:
    """What `lisa-advise --json` prints, as a JSON schema."""
    from advisor.preflight import Advice

    return json.dumps(Advice.model_json_schema(mode="serialization"), indent=2) + "\n"


def main() -> None:
    """Write the named parts."""
    parts = sys.argv[1:] or ["plan", "tables", "schema", "advice"]
    if "plan" in parts:
        (DOCS / "plan.md").write_text(settings_page(), encoding="utf-8")
    if "schema" in parts:
        (DOCS / "advice.schema.json").write_text(advice_schema(), encoding="utf-8")
    if "tables" in parts:
        page = DOCS / "lisa-tiny.md"
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    if "advice" in parts:
        program = Path(sys.executable).with_name("lisa-advise")
        picture = str(DOCS / "advice.svg")
        subprocess.run([program, "--model", "7b", "--vram", "8GiB", "--svg", picture], check=True)


if __name__ == "__main__":
    main()
