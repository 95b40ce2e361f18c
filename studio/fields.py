"""Puts the names of the page's fields in place of command-line options in messages."""

from __future__ import annotations

import re

# The labels of the page's fields, by the option that each stands for.
FIELDS = {
    "--data-dir": "Data",
    "--encoding": "Encoding",
    "--frame": "Outlines on rotated pictures",
    "--gpu": "Card",
    "--hours": "Hours that you have",
    "--iscrowd": "COCO's iscrowd 1",
    "--model": "Model",
    "--pictures": "Pictures, if elsewhere",
    "--prefer": "Prefer",
    "--questions": "Questions",
    "--set": "Settings",
    "--skip-broken": "Broken entries to skip",
    "--test": "Share for a test",
    "--val": "Share to validate on",
    "--vram": "Card",
    "--weights": "Weights",
}
_OPTION = re.compile(r"(--[a-z-]+)(?: (?:FOLDER|DIR|FILE|NAME))?(?![a-z])")
_COMMAND = re.compile(r"\b(lisa-(advise|train|segment|studio)|convmv|pip|docker) ")


def in_fields(text: str) -> str:
    """The text with fields named instead of options; lines with a command to type stay."""
    return "\n".join(map(_line, text.split("\n")))


def _line(line: str) -> str:
    if _COMMAND.search(line):
        return line
    line = re.sub(r"(--skip-broken \d+(?: \(not just \d+\))?), or all,", r"\1", line)
    return _OPTION.sub(lambda found: f"“{FIELDS[found[1]]}”" if found[1] in FIELDS else found[0],
                       line)  # fmt: skip
