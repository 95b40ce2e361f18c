"""Rehearse one plan and print its Measurement as JSON: `lisa-advise` calls it in a child process.

python -m trainer.rehearse plan.json [--cap-gib 7.3] [--text-tokens 96] [--steps 8]
python -m trainer.rehearse plan.json --fake [--text-tokens 96] [--compute-capability 8.6]
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from array import array
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from profiles.environment import ALLOCATOR_VARIABLES
from profiles.measurement import DataCounts, Measurement, Timeline
from profiles.pictures import limits_for
from profiles.plan import Plan
from profiles.sizes import GIB
from profiles.streams import tell
from trainer.parallel.launch import end_with_parent
from trainer.process import import_libraries
from trainer.rehearse.real import rehearse, tell_phase
from trainer.rehearse.worst_sample import worst_sample


def main() -> None:
    """Entry point of the child process: one JSON document on stdout."""
    arguments = _parser().parse_args()
    plan = Plan.read(arguments.plan)
    if plan.allocator:
        os.environ.update(dict.fromkeys(ALLOCATOR_VARIABLES, plan.allocator))
    out = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints, stdout holds one document
    import_libraries()
    counts = _take_the_worst_sample(plan, arguments) if arguments.data_dir else None
    shown = plan.model_copy(update=limits_for(plan, arguments.image_tokens))
    measurement = _faked(shown, arguments) if arguments.fake else _rehearsed(shown, arguments)
    seen = {"plan": plan, "image_tokens": shown.profile.most_image_tokens, "data": counts}
    measurement = measurement.model_copy(update=seen)
    print(measurement.model_dump_json(), file=out, flush=True)
    if arguments.fake:
        os._exit(0)  # taking thousands of fake tensors down one by one takes a second


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--cap-gib", type=float, help="limit on the process's tensors")
    parser.add_argument(
        "--text-tokens", type=_least_and_most, default="96", help="of a sample: N, or LEAST:MOST"
    )
    parser.add_argument(
        "--masks", type=int, help="[SEG] tokens of a row; by default one a question"
    )
    parser.add_argument("--answer-tokens", type=int, help="supervised ones of a sample")
    parser.add_argument("--image-tokens", type=int, help="of a picture; by default the plan's most")
    parser.add_argument("--data-dir", type=Path, help="take all four from this data set")
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--save", action="store_true", help="write a checkpoint as well")
    parser.add_argument("--fake", action="store_true", help="count bytes, without a GPU")
    parser.add_argument("--answer", action="store_true", help="with --fake: of one question")
    parser.add_argument("--events", type=Path, help="with --fake: write (block, bytes) as int64")
    parser.add_argument("--timeline", type=Path, help="with --fake: write one step by component")
    parser.add_argument("--compute-capability", default="8.6", help="of the card, with --fake")
    return parser


def _least_and_most(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    return int(least), int(most or least)


def _take_the_worst_sample(plan: Plan, arguments: argparse.Namespace) -> DataCounts:
    """Text, masks and supervised tokens of the data set's largest sample; given ones stay.

    Returns how much there is of the data.
    """
    from trainer.data.findings import DataError

    try:
        worst = worst_sample(plan, arguments.data_dir)
    except DataError as error:
        tell(f"error: {error}")
        raise SystemExit(2) from None
    arguments.text_tokens = worst.text_tokens, worst.text_tokens
    arguments.masks = arguments.masks or worst.masks
    arguments.answer_tokens = arguments.answer_tokens or worst.answer_tokens
    arguments.image_tokens = arguments.image_tokens or worst.image_tokens
    return worst.counts


def _faked(plan: Plan, arguments: argparse.Namespace) -> Measurement:
    """The rehearsal without a GPU; writes --events and --timeline."""
    gc.disable()  # a process of seconds
    from trainer.rehearse.fake import counted, fake_rehearsal
    from trainer.rehearse.fake_answer import fake_answer
    from trainer.rehearse.memory_trace import Unforeseen
    from trainer.rehearse.repeated_layers import NotAlike

    major, _, minor = arguments.compute_capability.partition(".")
    capability = int(major), int(minor or 0)
    text, file = arguments.text_tokens[1], arguments.timeline
    masks = arguments.masks or plan.questions_per_picture

    def write_timeline(line: Timeline) -> None:
        file.write_text(line.model_dump_json(), encoding="utf-8")

    events: Sequence[tuple[int, int]] = ()
    try:
        if arguments.answer:
            measurement, events = fake_answer(plan, text, capability, tell_phase)
        else:
            measurement, events = fake_rehearsal(
                plan, text, masks, capability, tell_phase,
                write_timeline if file else None, arguments.answer_tokens,
            )  # fmt: skip
    except (Unforeseen, NotAlike) as error:
        measurement = counted(plan, text, masks, error=str(error))
    if arguments.events:
        arguments.events.write_bytes(array("q", chain.from_iterable(events)).tobytes())
    return measurement


def _rehearsed(plan: Plan, arguments: argparse.Namespace) -> Measurement:
    """The rehearsal on this machine's GPU."""
    from trainer.process import try_segments

    try:
        try_segments(plan)
    except ValueError as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
    cap = None if arguments.cap_gib is None else round(arguments.cap_gib * GIB)
    return rehearse(
        plan, cap, arguments.text_tokens, arguments.masks or plan.questions_per_picture,
        arguments.steps, arguments.save, arguments.answer_tokens,
    )  # fmt: skip


if __name__ == "__main__":
    end_with_parent()  # a killed lisa-advise would leave a process on the card
    main()
