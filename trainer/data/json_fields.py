"""JSON files from elsewhere, read with limits on their size and checked field by field."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from profiles.sizes import MIB
from profiles.text import is_text
from trainer.data.findings import Report

JsonT = TypeVar("JsonT")
# For ReasonSeg and LabelMe, whose files hold one picture's polygons (LabelMe's also a copy of it).
LARGEST_FILE = 64 << 20  # bytes


def load_json(
    report: Report,
    kind: type[JsonT],
    allowed: str,
    most_bytes: float = float("inf"),
    text_of: Callable[[bytes], str | bytes] | None = None,
    parse: Callable[[str | bytes], Any] = json.loads,
) -> JsonT | None:
    """The parsed file, in UTF-8 or else cp1252, if it is of `kind`; None with a finding added.

    `text_of` replaces the decoding; it may raise ValueError or LookupError. `parse` replaces the
    parsing, which takes some twenty times the size of the file in memory.
    """
    try:
        if not report.path.is_file():  # reading a pipe would block
            raise FileNotFoundError("no such file")
        if report.path.stat().st_size > most_bytes:
            raise ValueError(f"more than {most_bytes / MIB:.0f} MiB")
        raw = report.path.read_bytes()
        if not raw.strip():
            raise ValueError("it is empty")
        text = (text_of or _published_text)(raw)
        parsed = parse(text)
        if isinstance(parsed, kind):
            return parsed
        report.add("file", parsed, f"JSON, {allowed}", "correct the file or fetch it again")
    except (OSError, ValueError, LookupError, RecursionError) as error:
        fix = "correct the file or fetch it again"
        if "--encoding" in str(error):
            fix = "name its encoding, such as --encoding gbk"
        report.add("file", error, f"JSON in UTF-8 or cp1252, {allowed}", fix)
    return None


def _published_text(raw: bytes) -> str:
    """UTF-8, or else cp1252, as ReasonSeg's published files are."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        with suppress(UnicodeDecodeError):
            return raw.decode("cp1252")
        raise error


def read_sentence(report: Report, what: str, value: object) -> str | None:
    """A stripped string that is not blank; None with a finding added."""
    # JSON can hold half a surrogate pair, on which every tokenizer fails much later.
    whole = isinstance(value, str) and is_text(value)
    if isinstance(value, str) and value.strip() and whole:
        return value.strip()
    report.add(what, value, "text, not blank, in whole characters", "write it or take it out")
    return None
