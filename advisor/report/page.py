"""The advice as one HTML file that can be sent to a colleague: no network, no script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from advisor.advice import Advice
from advisor.machine.cuda_context import LIBRARIES, installed
from advisor.report.cost_text import cost_lines, speed_text
from advisor.report.plan_words import changes
from advisor.report.run_folder import Measured, Run
from advisor.report.summary import commands, needed_torch
from advisor.report.text import plan_lines
from profiles.own_files import MARK
from profiles.sizes import GIB, gib
from profiles.tested import TestedRow
from profiles.text import printable

LEAST_SHARE = 0.02  # of the bar: smaller components are shown together


@dataclass(frozen=True)
class Segment:
    """A stretch of the memory bar, in percent of it."""

    name: str
    bytes: int
    start: float
    width: float


def page(
    advice: Advice, picture: bytes | None, rows: tuple[TestedRow, ...], run: Run | None
) -> str:
    """The HTML file; `picture` is the SVG of a step, `rows` the table that the advice is from."""
    environment = Environment(
        loader=PackageLoader("advisor", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    return environment.get_template("page.html").render(
        advice=advice,
        first=needed_torch(advice),
        commands="\n".join(commands(advice)),
        plan_lines=list(plan_lines(advice.plan, advice.duration)) if advice.plan else [],
        memory=list(_memory(advice)),
        costs=list(cost_lines(advice)),
        bar=bar(advice),
        speed=speed_text(advice) if advice.speed else "",
        usable=_usable_share(advice),
        picture=None if picture is None else _inline(picture),
        ladder=[(rung, changes(rung.plan, advice.plan)) for rung in advice.ladder],
        evidence=quoted(advice, rows),
        run=run,
        compared=list(compared(advice, run)) if run else [],
        same=run is not None and advice.plan is not None
        and run.plan.content_hash == advice.plan.content_hash,
        versions=versions(advice, run),
        gib=gib,
        mark=MARK,
    )  # fmt: skip


def bar(advice: Advice) -> list[Segment]:
    """What fills the card at the peak, by component, and what stays free of what is usable."""
    forecast, budget = advice.forecast, advice.budget
    if forecast is None or not forecast.tiers or budget is None:
        return []
    pool, tensors = forecast.tier("pool").bytes, forecast.tier("tensors").bytes
    whole = max(budget.cap_bytes, pool, 1)
    live = sorted(forecast.live_at_peak.items(), key=lambda item: -item[1])
    large = [(name, size) for name, size in live if size >= LEAST_SHARE * whole]
    rest = tensors - sum(size for _, size in large)
    parts = [*large, ("others", rest), ("gaps of the pool", pool - tensors)]
    parts.append(("stays free", max(0, budget.usable.bytes - pool)))
    found, start = [], 0.0
    for name, size in parts:
        if size > 0:
            found.append(Segment(name, size, start, 100 * size / whole))
            start += 100 * size / whole
    return found


def compared(advice: Advice, run: Run) -> Iterator[tuple[str, str, str, str]]:
    """(what, forecast, measured, error) of a run; the forecast only where it is of its plan."""
    forecast, seen = advice.forecast, run.measured
    same = advice.plan is not None and run.plan.content_hash == advice.plan.content_hash
    tensors = forecast.tier("tensors").bytes if same and forecast and forecast.tiers else None
    pool = forecast.tier("pool").bytes if same and forecast and forecast.tiers else None
    if pool is None and same and advice.needs is not None:
        pool = advice.needs.bytes
    yield _compared("tensors, GiB", tensors, seen.peak_allocated_bytes, GIB)
    yield _compared("pool, GiB", pool, seen.peak_reserved_bytes, GIB)
    speed = advice.speed.samples_per_second if same and advice.speed else None
    yield _compared("questions a second", speed, _rate(run, seen), 1)


def quoted(advice: Advice, rows: tuple[TestedRow, ...]) -> list[TestedRow]:
    """The rows of the table that the advice names."""
    texts = [reason.because for reason in advice.reasons]
    texts += [advice.needs.source] if advice.needs else []
    named = {name for text in texts for name in re.findall(r"\brow ([\w.-]*\w)", text)}
    first = {row.id: row for row in reversed(rows) if row.id in named}
    return list(first.values())[::-1]


def versions(advice: Advice, run: Run | None) -> dict[str, str]:
    """The versions that the figures are for: the run's, else the forecast's, else those here."""
    if run is not None and run.versions:
        return run.versions
    if advice.forecast is not None and advice.forecast.versions:
        return advice.forecast.versions
    here = {name: installed(name) for name in LIBRARIES}
    return here | {"lisa-preflight": version("lisa-preflight")}


def _memory(advice: Advice) -> Iterator[tuple[str, str, str, str]]:
    """(name, GiB, basis, source), as the text has them."""
    budget = advice.budget
    if budget is None:
        return
    rows = [("free", budget.free), ("less context", budget.context), ("less margin", budget.margin),
            ("usable", budget.usable), ("plan needs", advice.needs)]  # fmt: skip
    for name, number in rows:
        if number is not None:
            yield name, gib(number.bytes), number.basis, number.source
    if budget.host is not None and advice.host_bytes is not None:
        source = f"of {gib(budget.host.bytes)}: {budget.host.source}"
        yield "host memory", gib(advice.host_bytes), "forecast", source


def _usable_share(advice: Advice) -> float:
    """Where the limit is on the bar, in percent."""
    forecast, budget = advice.forecast, advice.budget
    if forecast is None or not forecast.tiers or budget is None:
        return 0.0
    return 100 * budget.usable.bytes / max(budget.cap_bytes, forecast.tier("pool").bytes, 1)


def _compared(
    what: str, forecast: float | None, measured: float | None, unit: int
) -> tuple[str, str, str, str]:
    texts = [f"{number / unit:.2f}" if number is not None else "not known"
             for number in (forecast, measured)]  # fmt: skip
    off = f"{forecast / measured - 1:+.1%}" if forecast and measured else ""
    return what, *texts, off  # type: ignore[return-value]


def _rate(run: Run, seen: Measured) -> float | None:
    return run.plan.effective_batch / seen.step_seconds if seen.step_seconds else None


def _inline(picture: bytes) -> Markup:
    """An SVG file as an element of a page: without its prolog, as wide as the page."""
    text = picture.decode("utf-8")
    element = re.sub(
        r'^<svg\b([^>]*?) height="[^"]*"', r"<svg\1", text[text.index("<svg") :], count=1
    )
    element = re.sub(r'^<svg\b([^>]*?) width="[^"]*"', r'<svg\1 width="100%"', element, count=1)
    return Markup(element)  # drawn here: matplotlib has escaped its texts


def _shown(value: object) -> object:
    """What a template prints: text from outside without control characters."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
