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
from itertools import chain
from pathlib import Path

from profiles.environment import ALLOCATOR_VARIABLES
from profiles.plan import Plan
from profiles.streams import tell
from trainer.rehearse.real import rehearse, tell_phase, worst_sample


def main() -> None:
    """Entry point of the child process: one JSON document on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--cap-gib", type=float, help="limit on the process's tensors")
    parser.add_argument("--text-tokens", default="96", help="of a sample: N, or LEAST:MOST")
    parser.add_argument("--masks", type=int, help="[SEG] tokens of a sample, 1 by default")
    parser.add_argument("--answer-tokens", type=int, help="supervised ones of a sample")
    parser.add_argument("--data-dir", type=Path, help="take all three from this data set")
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--save", action="store_true", help="write a checkpoint as well")
    parser.add_argument("--fake", action="store_true", help="count bytes, without a GPU")
    parser.add_argument("--answer", action="store_true", help="with --fake: of one question")
    parser.add_argument("--events", type=Path, help="with --fake: write (block, bytes) as int64")
    parser.add_argument("--timeline", type=Path, help="with --fake: write one step by component")
    parser.add_argument("--compute-capability", default="8.6", help="of the card, with --fake")
    arguments = parser.parse_args()
    plan = Plan.read(arguments.plan)
    if plan.allocator:
        os.environ.update(dict.fromkeys(ALLOCATOR_VARIABLES, plan.allocator))
    least, _, most = arguments.text_tokens.partition(":")
    cap = None if arguments.cap_gib is None else round(arguments.cap_gib * 2**30)
    out = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints, stdout holds one document
    text = int(least), int(most or least)
    masks, answers = arguments.masks, arguments.answer_tokens
    if arguments.data_dir:
        from trainer.data.formats.reasonseg import DataError

        try:
            worst = worst_sample(plan, arguments.data_dir)
        except DataError as error:
            tell(f"error: {error}")
            raise SystemExit(2) from None
        text = (worst.text_tokens,) * 2
        masks, answers = masks or worst.masks, answers or worst.answer_tokens
    masks = masks or 1
    if arguments.fake:
        gc.disable()  # a process of seconds, and imports make a million objects
        from trainer.rehearse.fake import cannot_forecast, fake_answer, fake_rehearsal
        from trainer.rehearse.memory_trace import Unforeseen
        from trainer.rehearse.repeated_layers import NotAlike

        major, _, minor = arguments.compute_capability.partition(".")
        capability = int(major), int(minor or 0)
        try:
            file = arguments.timeline
            if arguments.answer:
                measurement, events = fake_answer(plan, text[1], capability, tell_phase)
            else:
                measurement, events = fake_rehearsal(
                    plan, text[1], masks, capability, tell_phase,
                    (lambda line: file.write_text(line.model_dump_json(), encoding="utf-8"))
                    if file else None,
                    answers,
                )  # fmt: skip
        except (Unforeseen, NotAlike) as error:
            measurement, events = cannot_forecast(plan, text[1], masks, str(error)), []
        if arguments.events:
            arguments.events.write_bytes(array("q", chain.from_iterable(events)).tobytes())
    else:
        from trainer.cli.console import try_segments

        try:
            try_segments(plan)
        except ValueError as error:
            raise SystemExit(f"error: {' '.join(str(error).split())}") from None
        options = masks, arguments.steps, arguments.save, answers
        measurement = rehearse(plan, cap, text, *options)
    print(measurement.model_dump_json(), file=out, flush=True)
    if arguments.fake:
        os._exit(0)  # taking thousands of fake tensors down one by one takes a second


if __name__ == "__main__":
    main()
