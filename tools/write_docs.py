"""Write what the docs take from the code and from recorded runs.

    python tools/write_docs.py [plan] [words] [tables] [measured] [schema] [advice]    # or all

plan: docs/plan.md. words: docs/words.md. tables: those of docs/lisa-tiny.md, between their marker
comments. measured: README.md's table and the figures of docs/lean.md's text, from
benchmarks/lean.jsonl, with what is advised beside them, and the figures of all pages' running text
(tools/figures.py). advice: docs/advice.svg.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from figures import PAGES
from kept_rows import rows

from advisor.report.glossary import PARTS
from advisor.report.screen_words import PLAN_WORDS, ROWS, SCORE_WORDS, VERDICTS
from profiles.plan import Plan
from profiles.preferences import Preference
from profiles.settings import Lora, Mixture, Schedule, TokenLimits
from profiles.sizes import GIB
from profiles.text import counted

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


def words_page() -> str:
    """docs/words.md: every word of the advice, as --explain says it."""
    text = "# The words of the advice\n\nAs `lisa-advise --explain NAME` says them; written by\n"
    text += "`python tools/write_docs.py`. Settings are in [plan.md](plan.md).\n"
    parts = {"Verdicts": VERDICTS, "The first screen": ROWS, "Plans": PLAN_WORDS,
             "Scores, data and sizes": SCORE_WORDS, "Memory": PARTS}  # fmt: skip
    for title, words in parts.items():
        text += f"\n## {title}\n\n| word | means |\n|---|---|\n"
        text += "".join(f"| {name} | {meaning} |\n" for name, meaning in words.items())
    return text.replace("\n## ", "\n<!-- words: begin -->\n\n## ", 1) + "\n<!-- words: end -->\n"


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


# Rows of benchmarks/lean.jsonl in README.md, and how they are called there.
SHOWN = {
    "7b-4gb": "7B, 4-bit, LoRA r=8, 20 of 32 layers in host memory",
    "7b-b1-host": "7B, 4-bit, LoRA r=8, embeddings in host memory",
    "7b-r64-host": "7B, 4-bit, LoRA r=64 on all linears, 8 of 32 layers in host memory",
    "speed-compiled-b10-k32": "7B, 4-bit, LoRA r=8, compiled, batch 10",
    "shared-k3-b9": "the same with three questions a picture, batch 9 (H200)",
    "13b-6gb": "13B, 4-bit, LoRA r=8, 20 of 40 layers in host memory",
    "7b-bf16-12gb": "7B, bf16, LoRA r=8, 10 of 32 layers in host memory",
}


def lean_records() -> dict[str, dict[str, Any]]:
    """The kept rows of benchmarks/lean.py by name."""
    lines = (ROOT / "benchmarks/lean.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["name"]: record for record in map(json.loads, lines)}


def measured_table() -> str:
    """README.md's table of what was measured."""
    records = lean_records()
    lines = ["| | peak | questions/s | fits a card of |", "|---|---|---|---|"]
    for name, title in SHOWN.items():
        measurement, card = records[name]["measurement"], records[name]["card_gb"]
        peak = measurement["peak_allocated_bytes"] / GIB
        speed = measurement["samples_per_second"]
        shown = "not timed" if speed is None else f"{speed:.0f}"
        lines.append(f"| {title} | {peak:.1f} | {shown} | {card} GB |")
    return "\n".join([*lines, others_row()])


def others_row() -> str:
    """The same language model and adapters, as they are usually trained (benchmarks/liger.py)."""
    others = [row for row in rows("shared") if row["kind"] == "liger"]
    best = max(others, key=lambda row: float(row["samples_per_second"]))
    peak, speed = best["allocated_gib"], best["samples_per_second"]
    return (
        "| for comparison: transformers + PEFT + bitsandbytes + Liger, no mask decoder, batch "
        f"{best['batch']} (H200) | {peak:.1f} | {speed:.0f} | 8 GB |"
    )


def advised_text() -> str:
    """What an 8 GiB card is advised, beside the measured row that is another plan."""
    from advisor.machine.gpu import Machine
    from advisor.machine.target import Target
    from advisor.preflight import advise

    def advised(prefer: Preference) -> str:
        target = Target(vram_bytes=8 * GIB)
        advice = advise(Machine(), "7b", (), target, prefer=prefer)
        plan, needs, speed = advice.plan, advice.needs, advice.speed
        if plan is None or needs is None or speed is None:
            raise ValueError(f"no advice for 8 GiB: {advice.summary}")
        storage = plan.dtype if plan.quantization == "none" else plan.quantization
        hosted = f", {plan.host_layers} layers in host memory" if plan.host_layers else ""
        size, rate = needs.bytes / GIB, speed.samples_per_second
        compiled = ", compiled" if plan.compile else ""
        return (
            f"{storage}{hosted}{compiled}, {counted(plan.micro_batch, 'picture')} of up to "
            f"{plan.questions_per_picture} questions\n"
            f"({size:.2f} GiB, {rate:.2g} questions/s on an RTX 3060)"
        )

    return (
        "The advice for 7B on 8 GiB differs from the rows below, as it assumes rows of 512 text "
        f"tokens:\n{advised('usual')}.\nWith `--prefer precision` it is "
        f"{advised('precision')}."
    )


def faster_text() -> str:
    """docs/lean.md: by how much the best row beats the original recipe."""
    rate = {name: r["measurement"]["samples_per_second"] for name, r in lean_records().items()}
    older, best = rate["speed-seed-ckpt-b4"], rate["speed-compiled-b10-k32"]
    return (
        f"The original recipe trains {older:.2f} samples/s there, the best row {best:.2f} under "
        f"the 8 GB card's cap: {best / older:.1f} times as many."
    )


def streaming_text() -> str:
    """docs/lean.md: what streaming costs."""
    rate = {name: r["measurement"]["samples_per_second"] for name, r in lean_records().items()}
    parts = []
    for what, hosted, resident in (
        ("32 quantised layers", "stream-b8", "speed-b8"),
        ("32 layers in bf16, each four times as large,", "stream-bf16-32-b8", "stream-bf16-0-b8"),
        ("10 layers in bf16", "stream-bf16-10-b8", "stream-bf16-0-b8"),
    ):  # fmt: skip
        now, before = rate[hosted], rate[resident]
        parts.append(f"- {what} keep {now:.1f} of {before:.1f} samples/s ({now / before:.0%})")
    return "\n".join(["Speed with layers in host memory, at batch 8:", "", *parts])


def readme(page: str) -> str:
    """README.md with what was measured."""
    return with_table(page, "measured", measured_table())


def lean_page(page: str) -> str:
    """docs/lean.md with the figures of its text."""
    page = with_table(page, "advised", advised_text())
    page = with_table(page, "faster", faster_text())
    return with_table(page, "streaming", streaming_text())


def with_figures(place: str, page: str) -> str:
    """A page, by its path from the repository, with the figures of its running text."""
    for mark, text in PAGES[place].items():
        page = with_table(page, mark, text())
    return page


def advice_schema() -> str:
    """What `lisa-advise --json` prints, as a JSON schema."""
    from advisor.advice import Advice

    return json.dumps(Advice.model_json_schema(mode="serialization"), indent=2) + "\n"


def recipe_schema() -> str:
    """What a recipe may hold, as a JSON schema for editors."""
    schema = Plan.model_json_schema()
    del schema["properties"]["schema_version"]
    about = {"type": "string", "description": "what the recipe is for"}
    schema["properties"] = {"description": about} | schema["properties"]
    schema |= {"title": "Recipe", "description": "Settings of a plan that are kept in a file."}
    return json.dumps(schema, indent=2) + "\n"


def main() -> None:
    """Write the named parts."""
    parts = sys.argv[1:] or ["plan", "words", "tables", "measured", "schema", "advice"]
    if "plan" in parts:
        (DOCS / "plan.md").write_text(settings_page(), encoding="utf-8")
    if "words" in parts:
        (DOCS / "words.md").write_text(words_page(), encoding="utf-8")
    if "schema" in parts:
        (DOCS / "advice.schema.json").write_text(advice_schema(), encoding="utf-8")
        (DOCS / "recipe.schema.json").write_text(recipe_schema(), encoding="utf-8")
    if "tables" in parts:
        page = DOCS / "lisa-tiny.md"
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    if "measured" in parts:
        for page, written in ((ROOT / "README.md", readme), (DOCS / "lean.md", lean_page)):
            page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
        for place in PAGES:
            page = ROOT / place
            text = with_figures(place, page.read_text(encoding="utf-8"))
            page.write_text(text, encoding="utf-8")
    if "advice" in parts:
        program = Path(sys.executable).with_name("lisa-advise")
        picture = str(DOCS / "advice.svg")
        subprocess.run([program, "--gpu", "rtx-3060-12gb", "--svg", picture], check=True)


if __name__ == "__main__":
    main()
