"""The explanation of an out-of-memory error: of a log, or of the report that lisa-train wrote."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from advisor.oom.causes import Cause, Filled, causes, size, use_of, vram_option
from advisor.oom.elsewhere import in_words
from advisor.oom.log import Log
from advisor.oom.phase import EVERY, phase_of
from advisor.oom.wordings import Message, messages
from profiles.exits import EXIT_UNKNOWN
from profiles.levers import RELIEFS, Part, next_relief
from profiles.plan import Plan
from profiles.records import Frozen
from profiles.shortage import Shortage
from profiles.text import counted


class Explanation(Frozen):
    """What ran out, what filled it, why, and what helps."""

    memory: str | None = Field(None, description="which memory; null: cannot tell")
    summary: str
    message: Message | None = Field(None, description="the first one, which decides")
    phase: str | None = Field(None, description="what the program was doing")
    filled: tuple[Filled, ...] = Field((), description="the card at the error, in bytes")
    causes: tuple[Cause, ...] = ()
    helps: tuple[str, ...] = Field((), description="what to do against the causes")
    reliefs: tuple[str, ...] = Field((), description="what makes a plan smaller, cheapest first")
    command: str | None = Field(None, description="asks for a plan that fits")
    also: tuple[Message, ...] = Field((), description="the first messages of other processes")
    further: int = Field(0, description="messages after the first of their process")
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 explained, 3 cannot tell."""
        return EXIT_UNKNOWN if self.memory is None else 0


CANNOT_TELL = Explanation(
    summary="cannot tell: this text holds no known out-of-memory message",
    helps=(
        "paste the whole message, from 'CUDA out of memory' or 'Killed' on, or the whole log",
        "lisa-advise doctor looks for other reasons on this machine",
    ),
)

_LOOK = "nvidia-smi lists the processes on the card; end what is not needed"
_NO_FIGURES = "the message does not say what filled the card"
_NOT_NVIDIA = "only NVIDIA cards are planned for here; --vram SIZE gives the memory side"


def explain(text: str) -> Explanation:
    """The explanation of the first message of a log, or of lisa-train's own report."""
    if text.lstrip().startswith("{"):
        try:
            return _of_report(Shortage.model_validate_json(text))
        except ValueError:
            pass  # a log may begin with a brace
    log = Log.of(text)
    found = messages(log)
    if not found:
        return CANNOT_TELL
    firsts = _first_of_each(found)
    chosen = _chosen(firsts)
    phase, parts = phase_of(log, chosen)
    explanation = _explained(chosen, _reliefs(parts), log.windows)
    return explanation.model_copy(update={
        "phase": phase,
        "also": tuple(one for one in firsts if one is not chosen),
        "further": len(found) - len(firsts),
    })  # fmt: skip


def _first_of_each(found: Iterable[Message]) -> list[Message]:
    """For each process the message that decides: its first one; certain ones come before others."""
    firsts: dict[str | int | None, Message] = {}
    for one in found:
        process = one.rank or one.gpu  # a log without ranks tells processes apart by their card
        first = firsts.setdefault(process, one)
        if one.sure and not first.sure:
            firsts[process] = one
    return list(firsts.values())


def _chosen(firsts: list[Message]) -> Message:
    """The earliest message, or one with figures from the same process about the same memory."""
    chosen = min(firsts, key=lambda one: (not one.sure, one.line))
    same = (one for one in firsts if (one.rank, one.memory) == (chosen.rank, chosen.memory))
    return chosen if chosen.total_bytes else next((one for one in same if one.total_bytes), chosen)


def _reliefs(parts: Iterable[Part], plan: Plan | None = None) -> tuple[str, ...]:
    """What makes these parts smaller, cheapest first; for a plan, only what it has not done yet."""
    wanted = [one for one in RELIEFS if set(one.parts) & set(parts)]
    if plan is not None:
        return tuple(one.text(plan) for one in wanted if one.is_left(plan))
    return tuple(
        one.text() + (f" (elsewhere: {one.elsewhere})" if one.elsewhere else "") for one in wanted
    )


def _explained(message: Message, reliefs: tuple[str, ...], windows: bool) -> Explanation:
    if message.memory == "card":
        return _of_card(message, reliefs, windows)
    summary, helps = in_words(message)
    limit = message.allowed_bytes if message.memory == "unified" else None
    return Explanation(
        memory=message.memory,
        summary=summary,
        message=message,
        helps=helps,
        command=f"lisa-advise {vram_option(limit)}" if limit else None,
    )


def _of_card(message: Message, reliefs: tuple[str, ...], windows: bool) -> Explanation:
    option = vram_option(message.total_bytes) if message.total_bytes else "--vram SIZE"
    use = use_of(message)
    windows = windows or (use is not None and use.spilled)
    explanation = Explanation(
        memory="card",
        summary=_asked(message),
        message=message,
        command=f"lisa-advise {option}{' --os windows' if windows else ''}",
        notes=(_NOT_NVIDIA,) if " on " in message.wording else (),
    )
    if use is None:
        more = {"helps": (_LOOK,), "reliefs": reliefs, "notes": (*explanation.notes, _NO_FIGURES)}
        return explanation.model_copy(update=more)
    found = causes(message, use, windows)
    return explanation.model_copy(update={
        "filled": tuple(use.parts()),
        "causes": tuple(found),
        "helps": tuple(text for one in found for text in one.helps),
        "reliefs": reliefs if found[-1].name == "tensors" else (),
    })  # fmt: skip


def _asked(message: Message) -> str:
    """What was asked for, and how much was free."""
    asked, free, total = message.requested_bytes, message.free_bytes, message.total_bytes
    if not message.sure:
        return (
            f"the card may have run out of memory; this message of {message.wording} has other "
            "causes, too"
        )
    text = f"{'the card' if message.gpu is None else f'GPU {message.gpu}'} ran out of memory"
    if asked is None and total is None:
        return f"{text} ({message.wording})"
    if asked is not None:
        text += f": {size(asked)} were asked for"
    if total is not None and free is not None:
        text += f", {size(free)} of {size(total)} were free"
    return text


def _of_report(short: Shortage) -> Explanation:
    """The explanation of what lisa-train recorded."""
    torchs = messages(Log.of(short.error))
    unknown = Message(memory="card", wording="PyTorch", text=short.error, line=1)
    explanation = _explained(torchs[0] if torchs else unknown, (), windows=False)
    taken = sorted(short.components.items(), key=lambda item: -item[1])
    left = _reliefs(EVERY, short.plan)
    reliefs = (next_relief(short.plan),) if short.phase == "loading" else left
    return explanation.model_copy(update={
        "phase": f"while {short.phase}, after {counted(short.step, 'step')}",
        "filled": (*explanation.filled, *(Filled(part=name, bytes=held) for name, held in taken)),
        "reliefs": reliefs,
    })  # fmt: skip
