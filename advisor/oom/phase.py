"""What a program was doing when memory ran out, from the traceback before the message."""

from __future__ import annotations

import re

from advisor.oom.log import Log
from advisor.oom.wordings import Message
from profiles.levers import Part

EVERY: tuple[Part, ...] = ("activations", "weights", "optimizer")

_BEFORE = 8000  # letters before a message in which its traceback stands
# A phase's patterns, and the parts of the memory that are large in it. The first match counts: an
# evaluation runs forward passes, and the backward pass runs recomputed layers forward.
_PHASES: tuple[tuple[str, re.Pattern[str], tuple[Part, ...]], ...] = tuple(
    (name, re.compile(pattern), parts)
    for name, pattern, parts in (
        ("while saving", r"save_pretrained|torch\.save\(|save_checkpoint",
         ("weights", "activations")),
        ("in the optimizer's step", r"_init_group|adamw?\.py|(?:optimizer|scaler)\.step\(",
         ("optimizer", "weights", "activations")),
        ("in the backward pass", r"\.backward\(|run_backward", EVERY),
        ("while answering", r"\.generate\(|generation/utils", ("answers", "weights")),
        ("while evaluating", r"evaluation_loop|prediction_step|inevaluate|invalidate", EVERY),
        ("in the forward pass", r"inforward|_call_impl", EVERY),
        ("while loading the model", r"from_pretrained|load_state_dict|_load_pretrained|\.to\("
         r"|\.cuda\(|in_apply|deepspeed\.initialize|deepspeed/__init__", ("weights",)),
    )
)  # fmt: skip


def phase_of(log: Log, message: Message) -> tuple[str | None, tuple[Part, ...]]:
    """The phase, if the log tells, and the parts whose relief helps there."""
    stream = next((one for one in log.streams if one.rank == message.rank), None)
    if stream is None or message.line not in stream.numbers:
        return None, EVERY
    end = stream.starts[stream.numbers.index(message.line)]
    before = stream.text[max(0, end - _BEFORE) : end]
    traceback = before[max(0, before.rfind("Traceback(mostrecent")) :]
    for name, pattern, parts in _PHASES:
        if pattern.search(traceback):
            return name, parts
    return None, EVERY
