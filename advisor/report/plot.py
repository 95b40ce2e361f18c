"""Memory over one training step by component, as a picture that can be read in grey."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from advisor.advice import Advice
from advisor.choice.search import basis_text
from advisor.memory.forecast import Forecast
from advisor.memory.parts import CACHING
from advisor.report.plan_words import plan_text
from profiles.measurement import Timeline
from profiles.own_files import MARK
from profiles.plan import Plan
from profiles.sizes import GIB, gib
from profiles.text import one_line

# From the bottom up, what lives longest first.
ORDER = ("frozen weights", "encoders", "adapters", "trained rows", "mask decoder", "other trained",
         "optimizer state", "gradient buckets", "cuBLAS workspaces", "gradients",
         "activations kept", "transient")  # fmt: skip
LEAST_SHARE = 0.01  # of the peak: smaller components are shown together
LEAST_WIDTH = 0.07  # of the step: a shorter phase has no name below it
INK = "0.1"
# Dark to light, evenly so for every kind of sight (Nuñez, Anderton and Renslow 2018); of two
# neighbours one is hatched.
COLOURS, HATCHES = "cividis", ("", "//", "", "..", "", "\\\\", "", "xx", "", "--")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 9,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",  # text as text: it can be searched, and read aloud
    "svg.hashsalt": "lisa-advise",  # the same picture is the same bytes
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Level:
    """A number of the advice, drawn as a horizontal line."""

    name: str
    bytes: int
    style: Any
    width: float


def levels(advice: Advice, forecast: Forecast) -> list[Level]:
    """The lines of the picture: what a run may take and what it takes, as in the text.

    The forecast's pool and tensors get lines of their own if they differ from the plan's figure or
    from the step's peak, for example where the figure is a measured row's.
    """
    assert advice.budget is not None and advice.needs is not None
    pool = forecast.tier("pool").bytes
    what = "building the feature cache" if CACHING in advice.parts else "plan needs"
    found = [
        Level("capacity", advice.budget.cap_bytes, "--", 0.9),
        Level("usable", advice.budget.usable.bytes, "-", 2.2),
        Level(f"{what} ({basis_text(advice.needs)})", advice.needs.bytes, ":", 1.8),
    ]
    if advice.needs.bytes != pool:
        found.append(Level("pool of this step (forecast)", pool, "-.", 1.2))
    return found


def figure(step: Timeline, forecast: Forecast, advice: Advice) -> Figure:
    """The picture of a step, with the figures of the advice and of its forecast."""
    parts = shown_parts(step)
    with matplotlib.rc_context(STYLE):
        found = Figure(figsize=(9.6, 5.4), dpi=120)
        axes = found.add_axes((0.07, 0.1, 0.6, 0.75))
        colours = colormaps[COLOURS]([0.02 + 0.96 * n / max(1, len(parts) - 1)
                                      for n in range(len(parts))])  # fmt: skip
        faces = [_face(colour, n) for n, colour in enumerate(colours)]
        totals = _draw_parts(axes, parts, faces)
        place = totals.index(max(totals))
        lines = levels(advice, forecast)
        for level in lines:
            axes.axhline(level.bytes / GIB, color=INK, linestyle=level.style, linewidth=level.width)
        top = max(max(totals), *(level.bytes for level in lines))
        peak = max(totals) / GIB
        axes.plot([place + 0.5], [peak], marker="v", color=INK, markerfacecolor="white",
                  linestyle="", label="peak")  # fmt: skip
        _label_axes(axes, step, len(totals), top / GIB)
        _legends(axes, lines, _peak_name(forecast, max(totals)), peak,
                 {name: sizes[place] for name, sizes in parts.items()}, faces)  # fmt: skip
        first, *below = heads(advice, step.plan)
        found.text(0.07, 0.945, first, fontsize=12, color=INK)
        for height, head in zip((0.905, 0.87), below, strict=True):
            found.text(0.07, height, head, color=INK)
    return found


def picture(step: Timeline, forecast: Forecast, advice: Advice, kind: str) -> bytes:
    """The picture as a file of that kind: png, svg or pdf."""
    file = BytesIO()
    told_by = "Subject" if kind == "pdf" else "Description"
    named: dict[str, Any] = {"Title": ": ".join(heads(advice, step.plan)[:2]), told_by: MARK}
    # Nothing that differs from one run to the next, or names a page of the network.
    bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    undated = {"svg": bare, "pdf": {"CreationDate": None}}.get(kind, {})
    with matplotlib.rc_context(STYLE):
        figure(step, forecast, advice).savefig(file, format=kind, metadata=named | undated)
    return file.getvalue()


def shown_parts(step: Timeline) -> dict[str, list[int]]:
    """The components from the bottom up, the small ones together."""
    order = sorted(step.parts, key=lambda n: ORDER.index(n) if n in ORDER else len(ORDER))
    peak = max(map(sum, zip(*step.parts.values(), strict=True)))
    large = [name for name in order if max(step.parts[name]) >= LEAST_SHARE * peak]
    rest = [step.parts[name] for name in order if name not in large]
    shown = {name: step.parts[name] for name in large}
    if rest:
        shown["others"] = [sum(sizes) for sizes in zip(*rest, strict=True)]
    return shown


def heads(advice: Advice, plan: Plan) -> tuple[str, str, str]:
    """The three lines above the picture, short enough for its width."""
    assert advice.gpu is not None
    shown = "memory over one training step"
    if plan.accumulation > 2:
        shown += f", 2 of {plan.accumulation} passes shown, all alike"
    lines = f"{advice.model} on {advice.gpu.name}", shown, f"{advice.verdict}: {plan_text(plan)}"
    return one_line(lines[0]), shown, one_line(lines[2])


def _face(colour: Any, index: int) -> dict[str, Any]:
    """How the component of that number is filled; hatched in what stands out from it."""
    light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 0.5
    edge = "0.2" if light else "0.85"
    hatch = HATCHES[index % len(HATCHES)]
    return {"facecolor": colour, "edgecolor": edge, "hatch": hatch, "linewidth": 0.4}


def _draw_parts(axes: Axes, parts: dict[str, list[int]], faces: list[dict[str, Any]]) -> list[int]:
    """Stack the components, and return the bytes of all at each moment."""
    moments = len(next(iter(parts.values())))
    base = [0] * moments
    for (name, sizes), face in zip(parts.items(), faces, strict=True):
        upper = [a + b for a, b in zip(base, sizes, strict=True)]
        low, high = ([size / GIB for size in (*edge, edge[-1])] for edge in (base, upper))
        axes.fill_between(range(moments + 1), low, high, step="post", label=name, **face)
        base = upper
    return base


def _label_axes(axes: Axes, step: Timeline, moments: int, top: float) -> None:
    axes.set_xlim(0, moments)
    axes.set_ylim(0, 1.06 * top)
    axes.set_ylabel("GiB on the card")
    axes.spines[["top", "right"]].set_visible(False)
    starts = [first for first, _ in step.phases]
    ends = [*starts[1:], moments]
    axes.set_xticks(starts, [""] * len(starts))
    wide = [(first, end, name) for (first, name), end in zip(step.phases, ends, strict=True)
            if end - first >= LEAST_WIDTH * moments]  # fmt: skip
    axes.set_xticks([(first + end) / 2 for first, end, _ in wide],
                    [name for _, _, name in wide], minor=True)  # fmt: skip
    axes.tick_params(axis="x", which="minor", length=0)


def _peak_name(forecast: Forecast, peak: int) -> str:
    """The label of the highest point: the forecast's tensors, unless they peak elsewhere."""
    tensors = forecast.tier("tensors").bytes
    if gib(peak) == gib(tensors):  # the curve of compiled layers is of plain ones, made to fit
        return "peak of tensors"
    where = max(forecast.phases, key=lambda phase: forecast.phases[phase])
    return f"peak of this step; {where}: {gib(tensors)};"


def _legends(
    axes: Axes,
    lines: list[Level],
    peak_name: str,
    peak: float,
    at_peak: dict[str, int],
    faces: list[dict[str, Any]],
) -> None:
    """Beside the picture: every line and every component with its number, in GiB."""
    keys: list[Any] = [Line2D([], [], color=INK, linestyle=level.style, linewidth=level.width)
                       for level in lines]  # fmt: skip
    keys.append(Line2D([], [], marker="v", color=INK, markerfacecolor="white", linestyle=""))
    names = [f"{level.name}  {level.bytes / GIB:.2f}" for level in lines]
    names.append(f"{peak_name}  {peak:.2f}")
    beside: dict[str, Any] = {"frameon": False, "alignment": "left", "borderaxespad": 0}
    upper = axes.legend(keys, names, title="GiB", loc="upper left",
                        bbox_to_anchor=(1.03, 1), **beside)  # fmt: skip
    axes.add_artist(upper)
    patches = [Patch(**face) for face in faces]
    labels = [f"{name}  {size / GIB:.2f}" for name, size in at_peak.items()]
    beside |= {"handlelength": 2.4, "handleheight": 1.4, "bbox_to_anchor": (1.03, 0.62)}
    axes.legend(patches[::-1], labels[::-1], title="at the peak, GiB", loc="upper left", **beside)
