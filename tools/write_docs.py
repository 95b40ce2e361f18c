"""Write what the docs take from the code: docs/plan.md and docs/advice.svg.

    python tools/write_docs.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from profiles.plan import Lora, Plan, Schedule, TokenLimits

DOCS = Path(__file__).resolve().parents[1] / "docs"


def settings_table() -> str:
    """Every setting of the Plan as a Markdown table."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for prefix, section in (
        ("", Plan),
        ("lora.", Lora),
        ("schedule.", Schedule),
        ("tokens.", TokenLimits),
    ):
        for name, field in section.model_fields.items():
            if prefix or name not in ("lora", "schedule", "tokens"):
                default = str(field.get_default()).replace("|", "\\|")
                rows.append(f"| `{prefix}{name}` | `{default}` | {field.description} |")
    return "\n".join(rows)


def main() -> None:
    """Write both files."""
    text = (
        "# The Plan\n\nEvery setting that can change memory, speed or the result. Override one "
        "with\n`--set key=value`; written by `python tools/write_docs.py`.\n\n"
    )
    (DOCS / "plan.md").write_text(text + settings_table() + "\n", encoding="utf-8")
    program = Path(sys.executable).with_name("lisa-advise")
    picture = str(DOCS / "advice.svg")
    subprocess.run([program, "--model", "7b", "--vram", "8GiB", "--svg", picture], check=True)


if __name__ == "__main__":
    main()
