"""A step of a fake rehearsal by component: what lives at its peak, and moment by moment."""

from __future__ import annotations

from collections.abc import Mapping

from profiles.measurement import Timeline
from profiles.plan import Plan
from trainer.rehearse.memory_trace import INSIDE, MemoryTrace

# The component of a tensor at the peak, by the phase that made it.
BORN = {"forward": "activations kept", "backward": "transient", "clipping": "transient",
        "optimizer": "transient", "evaluation": "transient", INSIDE: "transient",
        "load": "frozen weights", "answer": "keys and values"}  # fmt: skip
ACTIVATIONS = "activations kept", "transient"  # where compiled layers save
ENCODER = " encoder"  # ends the name of a phase in which one looks at a picture
POINTS = 400  # moments of a step in a timeline


def components(trace: MemoryTrace) -> dict[str, int]:
    """Bytes at the peak by what they are."""
    live: dict[str, int] = {}
    for label, size in trace.live_at_peak().items():
        component = "encoders" if label.endswith(ENCODER) else BORN.get(label, label)
        live[component] = live.get(component, 0) + size
    return live


def timeline(plan: Plan, trace: MemoryTrace, saved: Mapping[str, int]) -> Timeline:
    """The last step by component, less what compiled layers save in each phase."""
    by_label, phases, parts_of_phases = trace.last_step(POINTS)
    moments: list[dict[str, int]] = [{} for _ in next(iter(by_label.values()))]
    for label, sizes in by_label.items():
        name = BORN.get(label, label)
        for moment, size in zip(moments, sizes, strict=True):
            moment[name] = moment.get(name, 0) + size
    ends = [first for first, _ in parts_of_phases[1:]] + [len(moments)]
    spans = [(*span, end) for span, end in zip(parts_of_phases, ends, strict=True)]
    for part, most in saved.items():
        places = [n for first, name, end in spans if name == part for n in range(first, end)]
        for place, moment in zip(places, _less(moments, places, most), strict=True):
            moments[place] = moment
    parts = {name: [moment[name] for moment in moments] for name in moments[0]}
    return Timeline(plan=plan, parts=parts, phases=tuple(phases))


def _less(moments: list[dict[str, int]], places: list[int], saved: int) -> list[dict[str, int]]:
    """A phase's moments, `saved` bytes below their peak and by share where less is kept."""
    phase = [moments[place] for place in places]
    peak = max(phase, key=lambda moment: sum(moment.values()))
    top, whole = sum(peak.values()) - saved, _activations(peak)
    found = []
    for moment in phase:
        share = saved * min(1.0, _activations(moment) / whole) if whole else 0
        found.append(_lessened(moment, max(round(share), sum(moment.values()) - top)))
    return found


def _activations(live: Mapping[str, int]) -> int:
    return sum(live.get(name, 0) for name in ACTIVATIONS)


def _lessened(live: Mapping[str, int], saved: int) -> dict[str, int]:
    """The live bytes minus what compiled layers save, first taken from kept activations."""
    found = dict(live)
    for name in ACTIVATIONS:
        less = min(saved, found.get(name, 0))
        saved -= less
        if less:
            found[name] -= less
    return found
