"""Libraries that are newer here than in any tested row: measurements may not hold for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from advisor.machine.cuda_context import LIBRARIES
from profiles.tested import TestedRow

VERSIONS = "versions"  # what a finding about them is about
REMEDY = "lisa-advise --measure tries the plan on this card, and keeps what it takes as a row"


def newer_than_rows(installed: Mapping[str, str], rows: Iterable[TestedRow]) -> str:
    """Libraries whose minor version is newer here than in every row; '' if none."""
    seen = [row.versions for row in rows]
    newer = []
    for name in LIBRARIES:
        newest = max((v[name] for v in seen if _minor(v.get(name, ""))), key=_minor, default="")
        here = installed.get(name, "")
        if newest and _minor(here) > _minor(newest):
            newer.append(f"{name} {_plain(here)} (rows: up to {_plain(newest)})")
    return ", ".join(newer)


@cache  # rows have few versions, and each advice looks at all rows
def _minor(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; none of what is no version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def _plain(version: str) -> str:
    return version.partition("+")[0]
