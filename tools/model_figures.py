"""The figures of docs/models.md, from their recorded rows."""

from __future__ import annotations

from kept_rows import rows

from profiles.models import model_profile
from profiles.sizes import GIB, MIB

SIZES = ("qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b")


def measured() -> str:
    """What Qwen3-VL with SAM 2 took, and how fast it trained."""
    lines = ["| configuration | card | text tokens | allocated | pool | questions/s (MFU) |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows("lean"):
        if not row["name"].startswith("qwen-"):
            continue
        m = row["measurement"]
        size, pool = (m[f"peak_{name}_bytes"] / GIB for name in ("allocated", "reserved"))
        speed = m["samples_per_second"]
        shown = f"{speed:.1f} ({m['model_flops_utilisation']:.0%})" if speed else ""
        title = row["title"].replace(" 1 questions", " 1 question")
        if m["plan"]["compile"] and "compiled" not in title:
            title += ", compiled"
        lines.append(
            f"| {title} | {row['card_gb']} GB | {max(m['text_tokens'])} | {size:.2f} GiB | "
            f"{pool:.2f} | {shown} |"
        )
    return "\n".join(lines)


def beside_lisa() -> str:
    """docs/models.md: Qwen3-VL-4B's memory beside that of LISA's 7B, set alike."""
    took = {row["name"]: row["measurement"] for row in rows("lean")}
    small, large = took["qwen-4b-host"], took["7b-b1-host"]
    sizes = [f"{row['peak_allocated_bytes'] / GIB:.1f}" for row in (small, large)]
    tokens = [model_profile(row["plan"]["model"]).most_image_tokens for row in (small, large)]
    return (
        f"Qwen3-VL-4B trains in {sizes[0]} GiB where LISA's 7B takes {sizes[1]} (NF4, "
        "one question, embeddings in host memory),\nthough the largest picture is "
        f"{tokens[0]} tokens to it and {tokens[1]} to the 7B."
    )


def caches() -> str:
    """What the features of a picture take, and what making them takes."""
    lines = ["| model | encoder | features | pool while they are made | time a picture |",
             "|---|---|---|---|---|"]  # fmt: skip
    for row in rows("encoders"):
        lines.append(
            f"| `{row['model']}` | {row['encoder']} | {row['cached_bytes'] / MIB:.0f} MiB | "
            f"{row['peak_reserved_bytes'] / GIB:.2f} GiB | {1000 * row['seconds']:.0f} ms |"
        )
    return "\n".join(lines)


def forecasts() -> str:
    """How far forecasts were off on the drawn rows of Qwen3-VL."""
    drawn = rows("lattice")
    qwen = model_profile("qwen3-vl-4b").family
    ours = {row["name"]: row["held_out"] for row in drawn
            if model_profile(row["settings"]["model"]).family == qwen}  # fmt: skip
    found = [row for row in rows("forecast_rows") if row["name"] in ours]
    worst = {}
    for tier in ("tensors", "pool", "host"):
        off = [100 * (row["forecast"][tier] / row["measured"][tier] - 1) for row in found]
        worst[tier] = max(off, key=abs)
    apart = sum(ours[row["name"]] for row in found)
    return (
        f"{len(found)} plans were drawn at random, forecast, and measured on an H200; {apart} of "
        f"them were set aside. The forecasts were off\nby at most {abs(worst['tensors']):.2f} % "
        f"of the tensors, {worst['pool']:+.1f} % of the pool and {worst['host']:+.0f} % of host "
        "memory (docs/forecast.md has the rows)."
    )


def sizes() -> str:
    """The largest picture's tokens and what its features take, by default."""
    taken = []
    for name in SIZES:
        profile = model_profile(name)
        total = sum(facts.cached_bytes for facts in profile.encoders.values()) / MIB
        taken.append(f"{total:.0f} MiB at {name.rpartition('-')[2].upper()}")
    return (
        "A picture of the default limit takes "
        f"{model_profile(SIZES[0]).most_image_tokens} tokens, and its features on disk "
        f"{', '.join(taken)}."
    )
