"""The figures of docs/forecast.md, from their recorded rows."""

from __future__ import annotations

import statistics
from typing import Any

from kept_rows import rows

from profiles.sizes import GIB, MIB

LARGE = GIB  # bytes of a pool, above which errors are given in per cent
WHOLE_CLOSE = 0.2  # percent off, up to which a whole-segments row is counted as met


def off(row: dict[str, Any], tier: str) -> float:
    """Percent by which a row of benchmarks/forecast.py is off; above zero is too much."""
    return 100 * (float(row["forecast"][tier]) / float(row["measured"][tier]) - 1)


def accuracy() -> str:
    """How far forecasts were off, and what became of plans at a border."""
    found = rows("forecast_rows")
    large = [row for row in found if row["measured"]["pool"] > LARGE]
    plain = [row for row in large if not row["group"].startswith("compiled")]
    compiled = [row for row in large if row["group"].startswith("compiled")]
    unseen = [row for row in compiled if row["group"] != "compiled"]
    drawn = [row for row in plain if row["group"].startswith("drawn")]
    small = [row for row in found if row not in large]
    worst = max(small, key=excess)

    def most(chosen: list[dict[str, Any]], tier: str) -> float:
        return max(abs(off(row, tier)) for row in chosen)

    def of_expandable(chosen: list[dict[str, Any]], tier: str) -> float:
        return most([row for row in chosen if row["segments"] == "expandable"], tier)

    median = statistics.median(abs(off(row, "tensors")) for row in plain)
    return (
        f"The forecast was compared with {len(found)} configurations measured on an H100 and an "
        f"H200. Of the {len(plain)} plain ones above\n1 GiB {len(drawn)} were drawn at random, and "
        "half of these were set aside before anything was tuned. Tensors were off by\n"
        f"{median:.2f} % (median) and {most(plain, 'tensors'):.1f} % (worst), the pool of plans "
        f"with expandable segments by {of_expandable(plain, 'pool'):.1f} % at worst. For "
        f"{len(compiled)} compiled\nplans tensors were off by {most(compiled, 'tensors'):.1f} % at "
        f"worst, for the {len(unseen)} of them that no rule had seen by "
        f"{most(unseen, 'tensors'):.2f} %;\ntheir pool, with expandable segments, by "
        f"{of_expandable(compiled, 'pool'):.1f} %. {len(small)} plans of lisa-tiny are smaller: "
        f"`{worst['name']}` took\n"
        f"{excess(worst):.0f} MiB more than "
        f"its {worst['forecast']['tensors'] / MIB:.0f}, no other one more than "
        f"{max(excess(row) for row in small if row is not worst):.0f} MiB more."
    )


def excess(row: dict[str, Any]) -> float:
    """MiB of tensors that a row took beyond its forecast."""
    return float(row["measured"]["tensors"] - row["forecast"]["tensors"]) / MIB


def explained() -> str:
    """The worst rows."""
    large = [row for row in rows("forecast_rows") if row["measured"]["pool"] > GIB]
    plain = [row for row in large if not row["group"].startswith("compiled")]
    plain_off, compiled_off = (
        sorted(abs(off(row, "pool")) for row in found if row["segments"] == "whole")
        for found in (plain, [row for row in large if row not in plain])
    )
    close, compiled_close = (sum(error < WHOLE_CLOSE for error in errors)
                             for errors in (plain_off, compiled_off))  # fmt: skip
    segments = [row for row in plain if row["segments"] == "expandable"]
    worst = max(segments, key=lambda row: abs(off(row, "pool")))
    host = sorted(rows("forecast_rows"), key=lambda row: off(row, "host"))
    return (
        '- **Plans without expandable segments** (`allocator=""`, "whole" above): one request in '
        "another place may move their pool by\n  a block of hundreds of MiB. "
        f"{close} of {len(plain_off)} plain rows are within {WHOLE_CLOSE} % in the pool, the worst "
        f"is {plain_off[-1]:.1f} % off; of {len(compiled_off)}\n  compiled ones {compiled_close} "
        f"are, and the worst is {compiled_off[-1]:.1f} % off.\n  Plans use "
        "expandable segments by default. A plan without them is TIGHT, not FITS, if it leaves no "
        "room for the error\n  that its pool may have.\n"
        f"- **Plans with expandable segments**: the worst row is {abs(off(worst, 'pool')):.1f} % "
        f"off, `{worst['name']}`, whose pool has "
        f"{worst['measured']['pool'] / MIB:.0f} MiB.\n"
        f"- **Host memory**: the forecast is {-off(host[0], 'host'):.1f} % too low for "
        f"`{host[0]['name']}` and {-off(host[1], 'host'):.1f} % for `{host[1]['name']}`. Why is "
        "not known."
    )


def drawn() -> str:
    """How many rows were drawn, and which of them are missing."""
    compared = {row["name"] for row in rows("forecast_rows")}
    lattice = rows("lattice")
    compiled = [row for row in lattice if row["settings"].get("compile")]
    plain = [row for row in lattice if row not in compiled]
    lisa = [row for row in plain if "vl" not in row["settings"]["model"]]
    missing = [f"`{row['name']}`" for row in lattice if row["name"] not in compared]
    aside = [row["name"] for row in compiled if row["held_out"]]
    without = (
        f" {' and '.join(missing)} are\nmissing: rows ran side by side, and these ran out of "
        "memory because the whole card was full, not at a cap of their own."
    )
    return (
        f"{len(lattice)} were drawn: {len(lisa)} plain ones of LISA, {len(plain) - len(lisa)} of "
        f"Qwen3-VL, and {len(compiled)} compiled ones, of which the {len(aside)}\nfrom "
        f"{aside[0]} on are *set aside*: they were drawn and forecast after the rule was last "
        f"changed.{without if missing else ''}"
    )


def caching() -> str:
    """What building the feature caches takes."""
    took = {row["encoder"]: row for row in rows("encoders") if row["model"] == "7b"}
    sam, clip = took["mask"], took["vision"]
    return (
        "Before training, the feature caches are built. At 7B this takes "
        f"{sam['peak_allocated_bytes'] / GIB:.2f} GiB of tensors "
        f"({sam['peak_reserved_bytes'] / GIB:.2f} of the pool) for SAM and\n"
        f"{clip['peak_allocated_bytes'] / GIB:.2f} for CLIP (`benchmarks/encoders.py`). If a "
        "card has no room for it, the verdict is OOM."
    )
