"""The arithmetic of batches: questions, rows, micro-batches and forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import gcd
from typing import Any, Protocol

from profiles.findings import Finding
from profiles.models import model_profile
from profiles.settings import EFFECTIVE_BATCH, MOST, TokenLimits
from profiles.text import counted, some


class Batch(Protocol):
    """The settings of a plan that are batch sizes."""

    @property
    def effective_batch(self) -> int:
        """Questions an optimizer step."""

    @property
    def questions_per_picture(self) -> int:
        """Questions a row, at most."""

    @property
    def micro_batch(self) -> int:
        """Rows a forward pass and process."""

    @property
    def accumulation(self) -> int:
        """Forward passes an optimizer step."""

    @property
    def processes(self) -> int:
        """Data-parallel processes."""

    @property
    def tokens(self) -> TokenLimits:
        """Limits of a row."""


def full_rows(questions: int, per_picture: int) -> int:
    """Rows that `questions` fill, if every picture has at least `per_picture` of them."""
    return -(-questions // per_picture)


def passes(rows: int, micro_batch: int, processes: int) -> int:
    """Forward passes of the process that gets the most of the `rows`."""
    return -(-rows // (micro_batch * processes))


def micro_batches(batch: Batch, most: int) -> list[int]:
    """Micro-batches up to `most` that take the effective batch in even passes.

    Where a row has several questions, only the smallest micro-batch for each number of passes.
    """
    if batch.questions_per_picture == 1:
        share = batch.effective_batch // batch.processes
        return [n for n in range(1, most + 1) if share % n == 0]
    rows = full_rows(batch.effective_batch, batch.questions_per_picture)
    share = full_rows(rows, batch.processes)
    sizes = {full_rows(share, count) for count in range(1, share + 1)}
    return [n for n in sorted(sizes) if n <= most]


def with_batch_arithmetic(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the one of effective batch, micro-batch and accumulation that is not given.

    `checkpointed_layers: "all"` becomes the model's number of layers.
    """
    result = dict(data)
    micro, accumulation, effective, processes, questions = (
        result.get(key) for key in ("micro_batch", "accumulation", "effective_batch", "processes",
                                    "questions_per_picture")
    )  # fmt: skip
    processes, questions = (1 if n is None else n for n in (processes, questions))
    given = [n for n in (micro, accumulation, effective, processes, questions) if n is not None]
    if all(type(n) is int and 0 < n <= MOST for n in given):
        if effective is None and micro:
            accumulation = result["accumulation"] = accumulation or 1
            result["effective_batch"] = micro * accumulation * processes * questions
        elif effective is None and questions > 1:
            effective = result["effective_batch"] = EFFECTIVE_BATCH
        if effective:
            rows = full_rows(effective, questions)
            # With one question a row, every process must get the same number of rows. With several,
            # rows need not be full, so the processes' shares may differ.
            share = int.__floordiv__ if questions == 1 else full_rows
            if micro is None:
                micro = result["micro_batch"] = (
                    max(1, share(rows, accumulation * processes)) if accumulation else 1
                )
            result["accumulation"] = accumulation or max(1, share(rows, micro * processes))
    if result.get("checkpointed_layers") == "all":
        try:
            result["checkpointed_layers"] = model_profile(
                result.get("model", "tiny")
            ).decoder.layers
        except (ValueError, TypeError):
            result["checkpointed_layers"] = 0  # the model's own finding says what is wrong
    return result


def forget_dependent_batch(data: dict[str, Any], given: set[str]) -> None:
    """Drop the batch sizes that depend on the `given` ones, so that they are computed again.

    The effective batch changes only if the user sets it, or sets both micro-batch and accumulation:
    the micro-batch is a memory lever, the effective batch is the user's recipe. If a new number of
    processes does not divide the batch, the micro-batch becomes smaller.
    """
    processes, questions = data["processes"], data["questions_per_picture"]
    if given == {"processes"} and type(processes) is int and processes > 0:
        if questions == 1:
            data["micro_batch"] = gcd(data["micro_batch"], data["effective_batch"] // processes)
        else:
            share = passes(full_rows(data["effective_batch"], questions), 1, processes)
            data["micro_batch"] = min(data["micro_batch"], share)
    if {"micro_batch", "accumulation"} <= given:
        follower = "effective_batch"
    else:
        follower = "micro_batch" if "accumulation" in given else "accumulation"
    if given and follower not in given:
        data.pop(follower)


def shareable(processes: int, questions: int, parts: int = 1) -> int:
    """The usual effective batch, or the next larger one that so many processes can share.

    `questions` a picture at most; `parts`: the micro-batch, or the passes, of each of them.
    """
    if questions == 1:
        even = processes * parts
        return full_rows(EFFECTIVE_BATCH, even) * even
    if full_rows(EFFECTIVE_BATCH, questions) >= processes:
        return EFFECTIVE_BATCH
    return full_rows(questions * (processes - 1) + 1, processes) * processes


def batch_contradictions(plan: Batch) -> Iterator[Finding]:
    """Why these batch sizes contradict each other."""
    questions = plan.questions_per_picture
    if questions == 1:
        if plan.effective_batch % plan.processes:
            more = -(-plan.effective_batch // plan.processes) * plan.processes
            fewer = next(n for n in range(plan.processes, 0, -1) if plan.effective_batch % n == 0)
            yield Finding(
                "processes",
                f"with one question a picture all must get the same number of a step's "
                f"{plan.effective_batch} questions",
                str(plan.processes),
                f"{counted(fewer, 'process', 'processes')}{', one a GPU' * (fewer > 1)}, or "
                f"--set effective_batch={more}, which changes the recipe",
            )
        elif plan.micro_batch * plan.accumulation * plan.processes != plan.effective_batch:
            even = micro_batches(plan, plan.effective_batch // plan.processes)
            yield Finding(
                "accumulation",
                "gradient accumulation × micro-batch × processes must equal the effective batch",
                f"{plan.accumulation} × {plan.micro_batch} × {plan.processes} ≠ "
                f"{plan.effective_batch}",
                f"leave accumulation out, and set micro_batch to {some(map(str, even), 8)}; or set "
                "effective_batch, which changes the recipe",
            )
        return
    rows = full_rows(plan.effective_batch, questions)
    asked = f"{counted(plan.effective_batch, 'question')} in {counted(rows, 'row')}"
    if plan.processes > rows:
        yield Finding(
            "questions_per_picture",
            f"{asked}, and each process needs one",
            f"{questions}, {plan.processes} processes",
            f"--set effective_batch={questions * plan.processes}, or a multiple of it",
        )
    elif plan.accumulation != (needed := passes(rows, plan.micro_batch, plan.processes)):
        processes = counted(plan.processes, "process", "processes")
        yield Finding(
            "accumulation",
            f"{asked} with micro-batch {plan.micro_batch} and {processes} take "
            f"{counted(needed, 'forward pass', 'forward passes')}",
            str(plan.accumulation),
            "leave accumulation out",
        )
    if questions > plan.tokens.max_masks:
        yield Finding(
            "questions_per_picture",
            f"a row holds at most {plan.tokens.max_masks} masks (tokens.max_masks)",
            str(questions),
            f"--set tokens.max_masks={questions}",
        )
