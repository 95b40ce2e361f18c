"""Bytes and seconds on the GPU: the trainer's rehearsal, run here before a plan is advised.

A trial trains three steps on samples as long as the longest, evaluates and writes a checkpoint, in
a child process. Its outcome becomes a row of the user's table, so one trial serves every run of the
same plan on the same card with the same libraries. Of several processes one is tried, alone on the
card that decides for all.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping

from advisor.advice import Advice
from advisor.choice.candidate import Candidate
from advisor.cost.duration import Timed, with_sparing
from advisor.machine.budget import Bytes, judge
from advisor.machine.cuda_context import library_versions
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Gpu
from advisor.rehearsal import rehearsed
from profiles.exchange import gradient_bytes, rebuilt_bytes
from profiles.findings import Finding
from profiles.gpus import gpu_by_nvml
from profiles.measurement import Measurement
from profiles.places import cache_folder
from profiles.plan import Plan
from profiles.sizes import GIB, gib, mib
from profiles.tested import DataShape, TestedRow, keep, read_table

TRIALS = 2
TRIAL_SECONDS = 900


def measured(advice: Advice, tell: Callable[[str], None], cap_bytes: int | None = None) -> Advice:
    """The advice with a plan that fitted on this machine's card: its own, or the ladder's next.

    `cap_bytes` limits the pool as a smaller card would. Raises RehearsalFailed.
    """
    gpu = advice.machine.gpus and advice.gpu
    if not gpu or advice.exit_code or not advice.considered:
        return advice
    if advice.plan != advice.considered[0].plan:
        return advice  # lisa-tiny instead of the candidates, none of which fits
    tried = []
    for candidate in (advice.considered[0], *advice.ladder)[:TRIALS]:
        row = _trial(_as_tried(candidate, advice), advice, gpu, tell, cap_bytes)
        tried.append(row)
        if row.verdict == "FITS":
            found = _with(advice, candidate, row)
            # Under a cap the advice is for another card, which nobody has timed.
            return found if cap_bytes is not None else _with_time(found, row, gpu)
    last = tried[-1]
    what = "; ".join(f"{row.title}: {row.verdict}, {row.note}" for row in tried)
    fix = "free memory on the card, or lisa-advise --emulate-vram SIZE --save plan.json with what "
    fix += "is free, then lisa-train --plan plan.json"
    finding = Finding(gpu.name, f"{len(tried)} trials failed ({what})", fix=fix)
    update = {"verdict": last.verdict, "command": None, "findings": (*advice.findings, finding),
              "summary": f"{advice.model} on {gpu.name}: {last.note}"}  # fmt: skip
    return advice.model_copy(update=update)


def _as_tried(candidate: Candidate, advice: Advice) -> Candidate:
    """The candidate as one of its processes runs alone, without the exchange of gradients."""
    rest = candidate.needs.bytes - _buckets(candidate.plan)
    needs = candidate.needs.model_copy(update={"bytes": rest})
    update = {"plan": _on_the_data(advice, candidate.plan).of_one_process, "needs": needs}
    return candidate.model_copy(update=update)


def _on_the_data(advice: Advice, plan: Plan) -> Plan:
    """The plan for pictures no larger than the data's: its row then stands for no larger ones."""
    return plan.with_pictures_of(advice.forecast.image_tokens if advice.forecast else None)


def _buckets(plan: Plan) -> int:
    """Bytes of the pool for exchanging gradients, which a trial in one process does not show."""
    return gradient_bytes(plan) + rebuilt_bytes(plan) if plan.processes > 1 else 0


def _trial(
    candidate: Candidate,
    advice: Advice,
    gpu: Gpu,
    tell: Callable[[str], None],
    cap_bytes: int | None,
) -> TestedRow:
    """The row of this trial: a known one, or a new one that is measured and kept now."""
    text, masks, answers = sample = _sample(advice, candidate.plan)
    name = _row_id(candidate.plan, gpu, sample, cap_bytes, library_versions())
    for row in read_table().rows:
        if row.id == name and row.verdict == "FITS":
            tell(f"this plan fitted here on {row.date} (row {name})")
            return row
    tell(f"trying {candidate.plan.model} with {gib(candidate.needs.bytes)} forecast, "
         "three steps on this GPU ...")  # fmt: skip
    # Memory does not depend on values, so no weights are needed.
    plan = candidate.plan.override(["weights=random"])
    options = ["--steps", "3", "--text-tokens", str(text), "--masks", str(masks), "--save"]
    if answers is not None:
        options += ["--answer-tokens", str(answers)]
    if cap_bytes is not None:
        options += ["--cap-gib", f"{cap_bytes / GIB:.6f}"]
    environment = {"CUDA_VISIBLE_DEVICES": gpu.uuid} if gpu.uuid else {}
    found = rehearsed(plan, options, environment, cache_folder(), TRIAL_SECONDS)
    row = _row(name, candidate, found, gpu, text)
    keep(row)
    return row


def _row(name: str, candidate: Candidate, found: Measurement, gpu: Gpu, text: int) -> TestedRow:
    settings = candidate.plan.model_dump(mode="json", exclude={"schema_version", "model"})
    fits = found.verdict == "FITS"
    return TestedRow(
        id=name,
        title=f"{candidate.plan.model} {candidate.plan.content_hash}",
        source="user",
        status="measured",
        model=candidate.plan.model,
        settings=settings,
        gpu=gpu.name,
        gpu_memory_gib=None if gpu.total_bytes is None else gpu.total_bytes / GIB,
        cap_bytes=found.cap_bytes or gpu.free_bytes,
        peak_allocated_bytes=found.peak_allocated_bytes if fits else None,
        peak_reserved_bytes=found.peak_reserved_bytes if fits else None,
        forecast_bytes=candidate.needs.bytes if candidate.needs.basis == "forecast" else None,
        step_seconds=found.step_seconds,
        verdict=found.verdict,
        versions=found.versions,
        data_shape=DataShape(image_tokens=candidate.plan.profile.most_image_tokens,
                             text_tokens=text),
        date=datetime.date.today(),
        note=found.error or "three steps, an evaluation and a checkpoint",
    )  # fmt: skip


def _with(advice: Advice, candidate: Candidate, row: TestedRow) -> Advice:
    buckets = _buckets(candidate.plan)
    peak = (row.peak_reserved_bytes or 0) + buckets
    source = f"on this GPU, row {row.id}"
    source += f", and {mib(buckets)} for gradients of several processes" if buckets else ""
    needs = Bytes(bytes=peak, basis="measured", source=source)
    budget = advice.budget
    verdict = judge(peak, budget, spills=False) if budget is not None else row.verdict
    seconds = f", {row.step_seconds:.2f} s a step" if row.step_seconds else ""
    summary = f"{advice.model}: fits on this GPU with {gib(peak)}{seconds}"
    rest = tuple(rung for rung in advice.ladder if rung.needs.bytes < candidate.needs.bytes)
    return advice.model_copy(update={"plan": candidate.plan, "needs": needs, "summary": summary,
                                     "verdict": verdict, "ladder": rest})  # fmt: skip


def _with_time(advice: Advice, row: TestedRow, gpu: Gpu) -> Advice:
    """The advice with the time of its plan, whose steps take as long as the trial's."""
    was = advice.duration
    if was is None or was.data is None or advice.plan is None:
        return advice
    plan, card = _on_the_data(advice, advice.plan), gpu_by_nvml(gpu.name, gpu.total_bytes)
    found = with_sparing(plan, card, was.data, _timed(row, plan.of_one_process))
    return advice.model_copy(update={"duration": found})


def known_trial(advice: Advice, gpu: Gpu, evidence: Evidence) -> Timed | None:
    """The step's time from an earlier trial of the advised plan on this card, if there is one."""
    if advice.plan is None or not evidence.own_rows:
        return None
    plan = _on_the_data(advice, advice.plan).of_one_process
    name = _row_id(plan, gpu, _sample(advice, plan), None, evidence.versions)
    fitted = (row for row in evidence.own_rows if row.id == name and row.verdict == "FITS")
    return next((_timed(row, plan) for row in fitted), None)


def _timed(row: TestedRow, plan: Plan) -> Timed | None:
    """The step of a trial's row."""
    if not row.step_seconds or row.data_shape is None:
        return None
    return Timed(plan, row.data_shape.text_tokens, row.step_seconds)


def _sample(advice: Advice, plan: Plan) -> tuple[int, int, int | None]:
    """Text tokens, masks and answer tokens of a trial's samples; None: those of short answers."""
    text, longest = advice.text_tokens or plan.tokens.max_text_tokens, advice.forecast
    if longest is None:
        return text, plan.questions_per_picture, None
    return text, longest.masks, longest.answer_tokens


def _row_id(
    plan: Plan,
    gpu: Gpu,
    sample: tuple[int, int, int | None],
    cap_bytes: int | None,
    versions: Mapping[str, str],
) -> str:
    """One name for a plan, a card, what samples hold, and versions."""
    text, *more = sample
    facts = [plan.content_hash, gpu.uuid, gpu.name, text, cap_bytes, list(versions.values())]
    facts += [] if more == [1, None] else more
    return "user-" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
