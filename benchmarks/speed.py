"""Factors of the time forecast, from profiled and timed steps on an H100 and an H200.

    python benchmarks/speed.py        writes profiles/speed.json and docs/speed.md's tables

The factors of the GPU's work come from profiles (benchmarks/profile.jsonl), the CPU's launches from
timed rows in which the GPU waits for it. All other timed rows (benchmarks/timed.py) are set aside
to tell the error. What a run takes beside its steps comes from benchmarks/encoders.jsonl,
host_costs.jsonl, shared.jsonl and the logs of recovery.py.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tables import put, rows_of
from timed import (
    MACHINES,
    NVLINK,
    ONE,
    WAITING,
    Row,
    machine_of,
    of_one_machine,
    pace_of,
    paces,
    rows_of_two,
    timed_rows,
)

from advisor.cost.duration import duration_of
from advisor.memory import speed
from advisor.memory.speed import Factors, Pace, encoder_seconds, forward_seconds, sheet_time
from profiles.gpus import gpu_by_nvml
from profiles.measurement import DataCounts
from profiles.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
DOCS = ROOT / "docs" / "speed.md"
PLAIN, COMPILED = "stream-b8", "speed-compiled-b10-k32"  # profiled; PLAIN streams its layers
MASKED = "shared-k3-b9"  # profiled, with rows of several questions
ONE_COMPILED = "speed-compiled-b1-k32"  # as ONE
WAITING_FP8 = "fp8-7b-1, fp8"  # as WAITING
PROFILED_FP8 = "4b-k4"  # the 7B's profile came later: its codes take 8 % longer
TUNED_ON = (PLAIN, COMPILED, MASKED, ONE, ONE_COMPILED, WAITING, WAITING_FP8)
LINEARS = {"q, k, v, o": 4, "gate, up": 2, "down": 1}  # of a layer, as benchmarks/fp8.py times them
ROW_TOKENS = 646  # in those runs, about: 576 of a picture, and a short question
LOGS = ("recovery-killed.log", "recovery-robbed.log", "recovery-capped.log")


def step_factors(rows: dict[str, Row]) -> dict[str, float]:
    """The factors of a step; only rows of `TUNED_ON` are looked at."""
    profiles = {record["name"]: record for record in rows_of(HERE / "profile.jsonl")}
    on_paper = {name: sheet_time(rows[name].plan, rows[name].text, rows[name].card)
                for name in TUNED_ON}  # fmt: skip

    def factor(name: str, part: str, *kinds: str) -> float:
        seen = sum(profiles[name]["kinds_ms"][kind] for kind in kinds) / 1e3
        return float(seen / getattr(on_paper[name], part))

    rest = "element-wise", "copy", "optimizer"
    streamed, busy = on_paper[PLAIN], profiles[COMPILED]
    copied = 2 * rows[PLAIN].plan.host_layers * streamed.layer_copy + streamed.head_copy
    copy = profiles[PLAIN]["copy_to_device_ms"] / 1e3 / copied
    idle = (busy["step_ms"] - busy["kernels_busy_ms"]) / 1e3
    fixed = idle - copy * on_paper[COMPILED].head_copy

    def launch(name: str) -> float:
        rest = rows[name].seconds - fixed - copy * on_paper[name].head_copy
        return float(rest / on_paper[name].passes)

    return {
        "matmul": round(factor(COMPILED, "matmul", "matrix product"), 3),
        "attention": round(factor(COMPILED, "attention", "attention"), 2),
        "masked_attention": round(factor(MASKED, "masked_attention", "attention"), 2),
        "dequantisation": round(factor(COMPILED, "dequantisation", "dequantisation"), 3),
        "elementwise": round(factor(PLAIN, "elementwise", *rest), 2),
        "elementwise_compiled": round(factor(COMPILED, "elementwise", *rest), 2),
        "launch_seconds": round(launch(ONE), 5),
        "launch_compiled_seconds": round(launch(ONE_COMPILED), 5),
        "launch_quantised_seconds": round(_quantised(), 5),
        "fixed_seconds": round(fixed, 4),
        "copy": round(copy, 3),
    }


def fp8_factors(rows: dict[str, Row]) -> dict[str, float]:
    """Products from layers alone, codes from a profile."""
    found = rows_of(HERE / "fp8.jsonl")
    times = [r for r in found if "layer" in r and r.get("model", "7b") == "7b"]
    wide, narrow = (sum(LINEARS[r["layer"]] * r["ms"][f"{kind} product alone"] for r in times)
                    for kind in ("bf16", "fp8"))  # fmt: skip
    (profile,) = (r for r in found if r.get("kind") == "profile"
                  and (r["name"], r["products"]) == (PROFILED_FP8, "fp8"))  # fmt: skip
    row = rows[f"fp8-{PROFILED_FP8}, fp8"]
    kinds = profile["kinds_ms"]
    codes = (kinds["codes of FP8"] + kinds.get("dequantisation", 0)) / 1e3
    on_paper = row.plan.accumulation * sheet_time(row.plan, row.text, row.card).codes
    return {"fp8": round(narrow / wide, 3), "fp8_codes": round(codes / on_paper, 2)}


def fp8_launches(rows: dict[str, Row], found: dict[str, float]) -> float:
    """What FP8 adds to the launches of a pass: one plan in both arithmetics waited for one CPU."""
    plain, fast = (
        (rows[name].seconds / rows[name].plan.accumulation - found["fixed_seconds"]
         - found["copy"] * sheet_time(rows[name].plan, rows[name].text, rows[name].card).head_copy)
        for name in (WAITING, WAITING_FP8)
    )  # fmt: skip
    return float(round((fast / plain - 1) * found["launch_compiled_seconds"], 5))


def _quantised() -> float:
    """What the CPU takes longer for a layer in NF4: two rows that answer, token after token."""
    token = {}
    for record in rows_of(HERE / "answering.jsonl"):
        plan = Plan.parse(record["plan"])
        if plan.model == "7b" and not plan.host_layers and not record["recorded"]:
            passes = record["new_tokens"] * plan.profile.decoder.layers
            token[plan.quantization] = statistics.median(record["seconds"]) / passes
    return token["nf4"] - token["none"]


def encoder_factors() -> dict[str, float]:
    """Launches and copies of the encoders, of two rows without much arithmetic."""
    rows = {(r["model"], r["encoder"]): r["seconds"] for r in rows_of(HERE / "encoders.jsonl")}
    pairs = []
    for key in (("7b", "vision"), ("qwen3-vl-8b", "vision")):
        facts = _plan(key[0]).profile.encoders[key[1]]
        moved = speed.PIXEL_BYTES * facts.pixel_values + facts.cached_bytes
        pairs.append((facts.blocks, moved, rows[key]))
    (a, b, s), (c, d, t) = pairs
    byte = (t * a - s * c) / (d * a - b * c)
    launch = (s - b * byte) / a
    return {"launch_encoder_seconds": round(launch, 6), "unpinned_gb_s": round(1e-9 / byte, 2)}


def _plan(model: str) -> Plan:
    return Plan.parse({"model": model, "weights": "random", "device": "cuda"})


def moments(log: str) -> Iterator[tuple[float, str]]:
    """(second, line) of a log of recovery.py."""
    for line in (HERE / log).read_text().splitlines():
        if found := re.match(r" *([\d.]+) s  (.*)", line):
            yield float(found[1]), found[2]


def features_seconds() -> tuple[int, float]:
    """Pictures whose two features a run built, and the seconds."""
    seen = list(moments("recovery-capped.log"))
    began = next(second for second, line in seen if line.startswith("sam features: 0/"))
    ended, line = next(pair for pair in seen if re.match(r"clip features: [1-9]\d* built", pair[1]))
    return int(line.split()[2]), ended - began


def epoch_ends() -> list[float]:
    """Seconds from the last step of an epoch to the end of its evaluation, of six pictures."""
    found = []
    for log in LOGS:
        last = None
        for second, line in moments(log):
            if re.search(r"loss .*: 5/5", line):
                last = second
            elif line.startswith("evaluating: 6/6") and last is not None:
                found.append(second - last)
                last = None
    return found


def worker_starts() -> list[float]:
    """Seconds until the first step of an epoch, beside the steps: data workers start anew."""
    found = []
    for log in LOGS:
        ended, first = None, None
        for second, line in moments(log):
            step = re.search(r"loss .*: (\d)/5", line)
            if line.startswith("plan "):  # of another process
                ended = first = None
            elif re.match(r"epoch \d: ", line):
                ended = second
            elif step and first is None and ended is not None:
                first = second, int(step[1])
            elif step and first is not None and ended is not None:
                each = (second - first[0]) / (int(step[1]) - first[1])
                found.append(first[0] - ended - first[1] * each)
                ended = first = None
    return found


def run_factors(known: Factors) -> dict[str, float]:
    """What a run takes beside its steps, in an H100's machine."""
    card = timed_rows()[ONE].card
    pictures, seconds = features_seconds()
    encoders = sum(encoder_seconds(facts, _plan("7b"), card)
                   for facts in _plan("7b").profile.encoders.values())  # fmt: skip
    loops = [r for r in rows_of(HERE / "shared.jsonl") if r["kind"] == "loop"]
    steady = [r for r in loops if "off_in_turns" in r]  # minutes apart other things differ, too
    rested, in_turns = (
        statistics.mean(r["loop_seconds"] / r["rehearsal_seconds"] for r in chosen)
        for chosen in ([r for r in loops if r["rested"]], steady)
    )
    host = rows_of(HERE / "host_costs.jsonl")
    sample, scoring = (statistics.mean(r[name] for r in host)
                       for name in ("sample_seconds", "scoring_seconds"))  # fmt: skip
    plan = Plan.parse(rows_of(HERE / "recovery.jsonl")[0]["plan"])
    forward = forward_seconds(plan.model_copy(update={"micro_batch": 6}), 64, card)
    scored = 6 * (sample + scoring)
    starts = [next(second for second, line in moments(log) if line.startswith("evaluating"))
              for log in LOGS[:2]]  # fmt: skip
    return {
        "loop": round(rested, 3),
        "trial_loop": round(in_turns, 3),
        "entry_seconds": round((seconds / pictures - encoders) / 2, 4),
        "sample_seconds": round(sample, 3),
        "scoring_seconds": round(scoring, 3),
        "save_seconds": round(statistics.median(epoch_ends()) - forward - scored, 2),
        "workers_seconds": round(statistics.median(worker_starts()), 1),
        "start_seconds": round(statistics.mean(starts), 1),
    }


def step_table(rows: dict[str, Row]) -> tuple[list[str], dict[str, Any]]:
    """The table of the timed rows, and the errors of those that were set aside."""
    table = ["| row | card | | launches | forecast | measured | error | with usual launches |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    known, usual, pace = [], [], paces(rows)
    for name, row in rows.items():
        launches = pace[machine_of(row)]
        said, other = (row.said(Pace(launches=n)) for n in (launches, 1.0))
        error, unknown = (100 * (seconds / row.seconds - 1) for seconds in (said, other))
        used = name in (*TUNED_ON, *MACHINES.values())
        if not used:
            known.append(abs(error))
        if name not in TUNED_ON:
            usual.append(abs(unknown))
        role = "made the factors" if used else "set aside"
        card = row.card.title.partition(" (")[0]
        table.append(
            f"| {name} | {card} | {role} | x {launches:.2f} | {said:.3f} s | {row.seconds:.3f} s | "
            f"{error:+.0f} % | {unknown:+.0f} % |"
        )
    text = (
        f"{len(known)} set-aside steps on an H100 and an H200: median "
        f"{statistics.median(known):.0f} %, worst {max(known):.0f} %, where it is known how fast "
        f"the machine's CPU launches; else worst {max(usual):.0f} %; no other card was timed"
    )
    return table, {
        "launches_least": round(min(pace.values()), 2),
        "launches_most": round(max(pace.values()), 2),
        "timed": sorted({row.card.key for row in rows.values()}),
        "worst": round(max(known) / 100, 3),
        "error": text,
    }


def two_table() -> list[str]:
    """The table of steps of two processes; nothing was fitted to them but the wait."""
    table = ["| row | gradients pass | forecast | measured | error |", "|---|---|---|---|---|"]
    for row in rows_of_two():
        way = "NVLink" if row.link == NVLINK else "host memory"
        said = row.said()
        table.append(f"| {row.name} | {way} | {said:.3f} s | {row.seconds:.3f} s | "
                     f"{100 * (said / row.seconds - 1):+.0f} % |")  # fmt: skip
    return table


def said_of(row: dict[str, Any]) -> float:
    """The forecast of a row's encoder on its card, in seconds a picture."""
    card, plan = gpu_by_nvml(row["gpu"], None), _plan(row["model"])
    assert card is not None
    return encoder_seconds(plan.profile.encoders[row["encoder"]], plan, card)


def encoder_table() -> list[str]:
    """The table of the encoders."""
    table = ["| model | encoder | | forecast | measured | error |", "|---|---|---|---|---|---|"]
    made = {("7b", "vision"), ("7b", "mask"), ("qwen3-vl-8b", "vision")}
    for row in rows_of(HERE / "encoders.jsonl"):
        said = said_of(row)
        error = 100 * (said / row["seconds"] - 1)
        role = "made the factors" if (row["model"], row["encoder"]) in made else "set aside"
        table.append(f"| {row['model']} | {row['encoder']} | {role} | {1e3 * said:.1f} ms | "
                     f"{1e3 * row['seconds']:.1f} ms | {error:+.0f} % |")  # fmt: skip
    return table


def ranges_text(known: Factors) -> str:
    """How far a forecast of time may be off, and where that comes from."""
    whole, half = 1 / known.matmul, 2 / known.matmul
    least, most = known.launches_least, known.launches_most
    return (
        f"No other card was timed. For one, arithmetic is taken to last {whole:.2f} to "
        f"{half:.2f} times the estimate: as if its\nproducts reached the whole of the data sheet's "
        f"rate, or half of it; those of an H100 and an H200 reach {whole:.0%}. Of these\n"
        f"two cards, arithmetic may be {known.worst:.0%} off, as in the worst row. In any machine "
        f"launches are taken to last {least:.2f} to\n{most:.2f} times the usual, as in the "
        "fastest and the slowest machine. These ranges are a policy, not a measurement."
    )


def pace_text() -> str:
    """How much the pace of one machine's CPU changes, and what follows its pace."""
    steps = ", ".join(f"*{row.name}* x {pace_of(row):.2f}" for row in of_one_machine())
    (sam,) = (r for r in rows_of(HERE / "paces.jsonl") if r["kind"] == "sam2")
    pictures, loops = ([1e3 * s for s in sam[f"{n}_seconds"]] for n in ("picture", "loop"))
    ratios = [one / other for one, other in zip(pictures, loops, strict=True)]
    off = max(abs(ratio / statistics.mean(ratios) - 1) for ratio in ratios)
    return (
        "The pace also changes from moment to moment. On one H200's machine, within two "
        f"minutes: {steps}.\n"
        f"A loop of Python alone took {min(loops):.0f} to {max(loops):.0f} ms there, and SAM 2 "
        f"{min(pictures):.0f} to {max(pictures):.0f} ms a picture,\nwhich followed the loop beside "
        f"it to within {off:.0%} (`benchmarks/paces.jsonl`). So the pace of a machine is not kept."
        f"\n{_encoders_again()}"
    )


def _encoders_again() -> str:
    """What the encoders of the table below took on another machine, beside their forecast."""
    ratios = []
    for row in rows_of(HERE / "paces.jsonl"):
        if row["kind"] == "encoder":
            ratios.append(row["picture_seconds"] / said_of(row))
    return (
        f"Another H200's machine encoded a picture in {min(ratios):.2f} to {max(ratios):.2f} times "
        f"the forecast, in the {len(ratios)} rows of the encoders' table."
    )


def whole_epochs(log: str) -> list[float]:
    """Seconds from the end of one evaluation to the end of the next, in one process."""
    ends: list[float] = []
    found = []
    for second, line in moments(log):
        if line.startswith("plan "):
            ends = []
        elif re.match(r"epoch \d: ", line):
            found += [second - ends[-1]] if ends else []
            ends.append(second)
    return found


def epochs_text() -> str:
    """Whole epochs of recovery.py's runs beside their forecast."""
    counts = DataCounts(train_pictures=100, val_pictures=6, epoch_questions=100, val_questions=6,
                        row_tokens=ROW_TOKENS)  # fmt: skip
    took, said = [], set()
    plans = {
        record["run"]: Plan.parse(record["plan"]) for record in rows_of(HERE / "recovery.jsonl")
    }
    for log in LOGS:
        plan = plans[log.removeprefix("recovery-").removesuffix(".log")]
        if seconds := whole_epochs(log):
            took += seconds
            said.add(duration_of(plan, timed_rows()[ONE].card, counts).epoch_seconds)
    least, most, low, high = min(took), max(took), min(said), max(said)
    return (
        f"{len(took)} whole epochs of 7B on an H100, of 100 questions each, took {least:.1f} to "
        f"{most:.1f} s; {low:.1f} to {high:.1f} s are forecast\n(the logs of "
        "`benchmarks/recovery.py`). Their evaluations, saves and starts of data workers made the "
        "factors; their steps\ndid not."
    )


def write(found: dict[str, Any]) -> Factors:
    """Write speed.json; what is not found yet is 0."""
    names = Factors.__dataclass_fields__
    empty: dict[str, Any] = {"error": "", "timed": []}
    whole = {name: found.get(name, empty.get(name, 0.0)) for name in names}
    speed.SPEED_FILE.write_text(json.dumps(whole, indent=2) + "\n")
    speed.factors.cache_clear()
    speed.samples_per_second.cache_clear()
    return speed.factors()


def main() -> None:
    """Write the factors, and the tables of all rows."""
    rows = timed_rows()
    found: dict[str, Any] = step_factors(rows) | encoder_factors()
    found |= fp8_factors(rows)
    found |= {"launch_fp8_seconds": fp8_launches(rows, found)}
    found |= run_factors(write(found))
    write(found)
    table, errors = step_table(rows)
    known = write(found | errors)
    print("\n".join([json.dumps(asdict(known), indent=2), *table, *encoder_table()]))
    tables = {
        "steps": table,
        "two": two_table(),
        "encoders": encoder_table(),
        "pace": [pace_text()],
        "ranges": [ranges_text(known)],
        "epochs": [epochs_text()],
    }
    for mark, content in tables.items():
        begin, end = (f"<!-- {slash}benchmarks/speed.py {mark} -->" for slash in ("", "/"))
        put(DOCS, begin, end, content)


if __name__ == "__main__":
    main()
