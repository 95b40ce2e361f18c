"""Time, money and disk of a training, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from advisor.report.fp8_text import fp8_text
from profiles.grid import caching_bytes
from profiles.sizes import GIB, MIB, gib
from profiles.text import counted, time_text, two_digits

if TYPE_CHECKING:
    from advisor.advice import Advice
    from advisor.cost.disk import Disk
    from advisor.cost.duration import Duration
    from advisor.cost.several import Several
    from profiles.plan import Plan


MUCH_CACHE = 100 * GIB  # policy: from here on the screen names the plan without it
# CPUs differ more than cards do, and the few runs that were timed were all on one model of CPU.
UNTIMED = "not forecast on a CPU; lisa-train shows what is left after the first steps"


def cost_lines(advice: Advice) -> Iterator[tuple[str, str]]:
    """(title, text) of what the advised training takes; nothing where that is not known."""
    if advice.plan is None:
        return
    if advice.duration is not None:
        yield "time", _time(advice.duration)
        if less := sparing_text(advice.duration, advice.disk):
            yield "", less
        if extra := _asked(advice.duration):
            yield "", extra
        if text := fp8_text(advice):
            yield "FP8", text
    elif advice.plan.device == "cpu":
        yield "time", UNTIMED
    if advice.several is not None:
        yield "cards", _cards(advice.several)
        if note := _gain(advice.several, advice.plan):
            yield "", note
    if advice.disk is not None:
        yield "disk", _disk(advice.disk)
        if text := _without_cache(advice.disk):
            yield "", text
        if advice.plan.cached_encoders:
            yield "features", _features(advice.plan, advice.disk, advice.duration)


def speed_text(advice: Advice) -> str:
    """Questions a second and the rows that they are for; the time row's rate, if it differs."""
    speed, plan = advice.speed, advice.plan
    assert speed is not None and plan is not None
    most = plan.questions_per_picture
    text = f"{two_digits(speed.samples_per_second)} questions/s"
    text += f" with {most} a picture" if most > 1 else ""
    text += f" at {tokens} text tokens a sample" if (tokens := advice.text_tokens) else ""
    text += f" (ranks plans), {speed.source}"
    if (found := advice.duration) is not None:
        times = plan.effective_batch / found.step_seconds
        each = found.questions / max(1, found.pictures)
        whose = "your data" if found.counted else "ReasonSeg"
        text += f"; {two_digits(times)} for {whose}: {two_digits(each)} a picture, usual texts "
        text += "(gives the time)"
    return text


def shorter(advice: Advice) -> list[tuple[str, str]]:
    """Lines of the costs that can be said in fewer words, with those; the least missed first."""
    found = []
    if (several := advice.several) is not None:
        found.append((_cards(several), _cards(several, speeds=False)))
    if (duration := advice.duration) is not None:
        found.append((_asked(duration), _asked(duration, ways=False)))
        found.append((_time(duration), _time(duration, parts=False)))
    return found


def _time(duration: Duration, parts: bool = True) -> str:
    """How long a training takes, in all and in its `parts`."""
    spent = (
        ("start", duration.start_seconds),
        ("features", duration.features_seconds),
        ("training", duration.training_seconds),
        ("evaluation", duration.evaluation_seconds),
    )
    each = ", ".join(f"{name} {time_text(seconds)}" for name, seconds in spent if seconds)
    what = counted(duration.pictures, "picture")
    if duration.questions != duration.pictures:
        what += f" and {counted(duration.questions, 'question')}"
    whose = "" if duration.counted else " (ReasonSeg's)"
    low, high = time_text(duration.low_seconds), time_text(duration.high_seconds)
    card = f" if as fast as {_article(duration.card)} {duration.card}" if duration.stand_in else ""
    return (
        f"{counted(duration.epochs, 'epoch')} of {what}{whose}: about {time_text(duration.seconds)}"
        f" ({low} to {high}){card}" + f"; {each}" * parts
    )


def sparing_text(duration: Duration, disk: Disk | None) -> str:
    """What fewer pictures to validate on save, where evaluation takes much of the time."""
    less = duration.sparing
    if less is None or less.data is None or duration.data is None:
        return ""
    number, took = less.data.val_pictures, time_text(less.seconds)
    if took == time_text(duration.seconds):
        return ""
    text = f"{took} with max_val_samples={number}, a rougher score"
    saved = (duration.data.val_pictures - number) * (disk.picture_bytes if disk else 0)
    return text + (f", {saved / GIB:.1f} GiB less of disk" if saved else "")


def _epochs_within(duration: Duration, with_ways: bool) -> str:
    """How many epochs fit into the hours, and what would make more of them fit."""
    found, less = duration.epochs_within or 0, duration.sparing
    given = duration.hours or 0
    given_text = f"in {round(given, 2):g} h" if given >= 1 else f"in {two_digits(60 * given)} min"
    text = f"{given_text}: {counted(found, 'epoch')}"
    if found >= duration.epochs:
        return text
    if not found:
        first = duration.seconds - (duration.epochs - 1) * duration.epoch_seconds
        text = f"{given_text}: no epoch, as the first takes {time_text(first)}"
    if not with_ways:
        return text
    ways = ["--why says what trains faster"]
    if less is not None and less.data is not None and (less.epochs_within or 0) > found:
        ways.insert(0, f"{less.epochs_within} with max_val_samples={less.data.val_pictures}")
    return f"{text} ({'; '.join(ways)})"


def _asked(duration: Duration, ways: bool = True) -> str:
    """What --hours and --price ask for: epochs in the given time, and the cost."""
    found = []
    if duration.hours is not None:
        found.append(_epochs_within(duration, ways))
    if duration.price is not None:
        found.append(_price(duration, duration.price))
    return "; ".join(found)


def _price(duration: Duration, whole: float) -> str:
    """What the training costs, and before it what the epochs do that fit into the hours."""
    costs = []
    if duration.epochs_within and duration.epochs_within < duration.epochs:
        left = (duration.epochs - duration.epochs_within) * duration.epoch_seconds
        costs.append((duration.epochs_within, 1 - left / duration.seconds))
    costs.append((duration.epochs, 1.0))
    low, high = duration.low_seconds / duration.seconds, duration.high_seconds / duration.seconds
    prices = (
        f"{counted(epochs, 'epoch')} cost {whole * share:.2f} "
        f"({whole * share * low:.2f} to {whole * share * high:.2f})"
        for epochs, share in costs
    )
    return f"{', '.join(prices)} at {duration.price_per_hour:g} an hour"


def _cards(several: Several, speeds: bool = True) -> str:
    """Time, and speed if wanted, on one card and on more, each with its own best plan."""
    parts = []
    for row in several.rows:
        number = counted(row.cards, "card") + ("" if row.best else " with this plan")
        speed = f", {two_digits(row.samples_per_second)} questions/s" if speeds else ""
        speed += f" ({row.efficiency:.0%} each)" if row.cards > 1 else ""
        parts.append(f"{number} {time_text(row.seconds)}{speed}")
    return f"{'; '.join(parts)} ({several.basis}; {several.link})"


def _gain(several: Several, plan: Plan) -> str:
    """Whether the most cards are worth it, and how to ask for them."""
    most = several.rows[-1].cards
    if several.worth == 1:
        return f"more cards save less than a tenth with {plan.effective_batch} questions a step"
    if several.worth < most:
        return f"more than {several.worth} cards save less than a tenth of the time"
    return f"--gpus {most} plans for all of them" if plan.processes == 1 else ""


def _article(name: str) -> str:
    return "an" if name[:1] in "AEFHLMNRSX" and not name.startswith("Titan") else "a"


def _disk(disk: Disk) -> str:
    parts = (
        ("download", disk.download_bytes),
        ("converted", disk.converted_bytes),
        ("features", disk.cache_bytes),
        ("run folder", disk.run_bytes),
    )
    digits = 1 if disk.total_bytes >= GIB else 2
    spent = ", ".join(f"{name} {size / GIB:.{digits}f}" for name, size in parts if size)
    return f"{disk.total_bytes / GIB:.{digits}f} GiB: {spent}"


def _without_cache(disk: Disk) -> str:
    """How to train without cached features, where they take more disk than many machines have."""
    if disk.cache_bytes < MUCH_CACHE:
        return ""
    left = gib(disk.total_bytes - disk.cache_bytes)
    return f"{left} if every step computes the features: --set cached_encoders="


def _features(plan: Plan, disk: Disk, duration: Duration | None) -> str:
    """What a picture's features take, and the peak while they are built."""
    names = " and ".join(plan.profile.encoders[name].name for name in plan.cached_encoders)
    each = f"{two_digits(disk.picture_bytes / MIB)} MiB a picture"
    if duration is not None:
        each += f" in {two_digits(duration.picture_seconds)} s"
    peak, pictures = caching_bytes(plan), disk.cache_bytes // disk.picture_bytes
    beside = f", at a peak of {gib(peak)} before the model loads" if peak else ""
    return f"{names}: {each}, built once for {pictures} pictures, validation included{beside}"
