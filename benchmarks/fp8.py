"""Products of frozen weights in FP8: what they cost and gain, by layer, in a step, in a training.

    python benchmarks/fp8.py layers [7b|4b] --out FILE     on a GPU with FP8 products
    python benchmarks/fp8.py step dtype|fp8 NAME --out FILE
    python benchmarks/fp8.py profile dtype|fp8 NAME --out FILE
    python benchmarks/fp8.py losses dtype|fp8|nudged --out FILE     300 steps on 64 fixed samples
    python benchmarks/fp8.py take FILE                     its rows replace those alike in fp8.jsonl
    python benchmarks/fp8.py forecast                      of the steps' memory, into their rows
    python benchmarks/fp8.py table                         docs/fp8.md's tables

Random weights of the true shapes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from forecast import CARD
from profile_step import profile
from tables import put, rows_of
from torch import Tensor
from torch.nn import functional

from advisor.memory.forecast import forecast
from advisor.memory.worst_sample import Worst
from profiles.plan import Plan
from trainer.batch import Batch
from trainer.model.layers import fp8
from trainer.model.layers.fp8 import Fp8Nf4Linear, nf4_codes, quantised, scales_of
from trainer.model.layers.frozen import Nf4Linear, nf4_product, nf4_weight
from trainer.rehearse.dummy_batch import MadeUp
from trainer.rehearse.real import Rehearsal
from trainer.step import training_step

ROOT = Path(__file__).resolve().parents[1]
ROWS_FILE, DOCS = ROOT / "benchmarks" / "fp8.jsonl", ROOT / "docs" / "fp8.md"
ROWS = {"7b": 6720, "4b": 7872}  # tokens of ten samples; of six pictures with four questions
SHAPES = {
    "7b": {"q, k, v, o": (4096, 4096), "gate, up": (11008, 4096), "down": (4096, 11008)},
    "4b": {"q": (4096, 2560), "k, v": (1024, 2560), "o": (2560, 4096), "gate, up": (9728, 2560),
           "down": (2560, 9728)},
}  # fmt: skip
BASE: dict[str, Any] = {
    "model": "7b", "weights": "random", "device": "cuda", "dtype": "bf16",
    "checkpointed_layers": "all", "compile": True, "host_embeddings": True,
}  # fmt: skip
FOUR = {"questions_per_picture": 4}
LINEARS = {"rank": 16, "alpha": 32, "dropout": 0.05, "targets": "all-linear"}
TEN = {"micro_batch": 10, "effective_batch": 20}
COMPILED = {"host_layers": 24}
STREAMED = COMPILED | {"compile": False}
SAYS_WHICH = "kind", "layer", "step", "model", "name", "products", "how", "seed"  # row is meant


@dataclass(frozen=True)
class Timed:
    """A plan whose step is timed under a share of the card's memory."""

    settings: dict[str, Any]
    cap_gib: float = 7.3
    text: str = "96"


STEPS = {
    "7b": Timed(TEN),
    "7b-1": Timed({"micro_batch": 1, "effective_batch": 2}),  # the GPU waits for the CPU
    "7b-k4": Timed(FOUR | {"micro_batch": 8, "effective_batch": 64}, text="192"),
    "4b": Timed({"model": "qwen3-vl-4b", "micro_batch": 8, "effective_batch": 16}, text="76"),
    "4b-k4": Timed(FOUR | {"model": "qwen3-vl-4b", "micro_batch": 6, "effective_batch": 48},
                   text="259"),
    "7b-int8": Timed(TEN | {"quantization": "int8"}, 11.2),
    "7b-none": Timed(TEN | {"quantization": "none"}, 22.5),
    "7b-linears": Timed(TEN | {"lora": LINEARS}, 11.2),
    "7b-host-none": Timed(TEN | STREAMED | {"quantization": "none"}, 9.0),
    "7b-host-int8": Timed(TEN | STREAMED | {"quantization": "int8"}, 9.0),
    "7b-host-none-compiled": Timed(TEN | COMPILED | {"quantization": "none"}, 9.0),
    "7b-host-int8-compiled": Timed(TEN | COMPILED | {"quantization": "int8"}, 9.0),
}  # fmt: skip
# Of the loss curves: all samples, steps, of a step, of a row in the table.
SAMPLES, TRAINED_STEPS, PICTURES, WINDOW = 64, 300, 8, 24
NUDGE = 2**-8  # bf16's last digit


def milliseconds(work: Callable[[], object]) -> float:
    """Median of 30, after three."""
    for _ in range(3):
        work()
    taken = []
    for _ in range(30):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end))
    return round(statistics.median(taken), 4)


def off(made: Tensor, true: Tensor) -> float:
    """Relative error in the 2-norm."""
    return float((made.float() - true.float()).norm() / true.float().norm())


def same_codes(made: Tensor, twin: Tensor) -> int:
    """Codes that differ."""
    return int((made.view(torch.uint8) != twin.view(torch.uint8)).sum())


def layer(model: str, name: str, n: int, k: int) -> dict[str, Any]:
    """Time and error of one linear; how many codes of the kernels are not their twins'."""
    torch.manual_seed(0)
    weight = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02
    rows = ROWS[model]
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    x[:, 7] *= 100  # an outlier channel, as LLaMA's first layers have
    x[5] = 0
    g = torch.randn(rows, n, device="cuda", dtype=torch.bfloat16) * 1e-4
    plain, fast = Nf4Linear(weight), Fp8Nf4Linear(weight)
    stored = fast.bits
    wide = nf4_weight(*stored, n, torch.float32)
    codes, worth = quantised(x)
    there = fast.rows_worth, fast.columns_worth
    made = [nf4_codes(*stored, w, bool(b)) for b, w in enumerate(there)]
    twin = [fp8.codes_of(wide.t() if b else wide, w[:, None]).contiguous()
            for b, w in enumerate(there)]  # fmt: skip
    scales, widened = scales_of(x.abs().amax(1, keepdim=True)), wide.bfloat16()
    true, true_back = x.float() @ wide.t(), g.float() @ wide
    fp8_fields, back = (*stored, *there), torch.ops.lisa_preflight.fp8_nf4_back
    return {
        "layer": name, "model": model, "n": n, "k": k, "rows": rows,
        "codes_off": {"rows": same_codes(codes, fp8.codes_of(x, scales)),
                      "weight": same_codes(made[0], twin[0]),
                      "transposed": same_codes(made[1], twin[1])},
        "error": {"bf16": off(plain(x), true), "fp8": off(fast(x), true),
                  "bf16 back": off(nf4_product(g, *stored, n, True), true_back),
                  "fp8 back": off(back(g, *fp8_fields), true_back)},
        "ms": {"bf16 forward": milliseconds(lambda: plain(x)),
               "bf16 back": milliseconds(lambda: nf4_product(g, *stored, n, True)),
               "fp8 forward": milliseconds(lambda: fast(x)),
               "fp8 forward, shared codes": milliseconds(
                   lambda: fp8.fp8_nf4(x, codes, worth, *fp8_fields)),
               "fp8 back": milliseconds(lambda: back(g, *fp8_fields)),
               "bf16 product alone": milliseconds(lambda: x @ widened.t()),
               "fp8 product alone": milliseconds(
                   lambda: fp8.scaled_product(codes, worth, made[0], there[0], x.dtype)),
               "rows": milliseconds(lambda: quantised(x)),
               "weight": milliseconds(lambda: nf4_codes(*stored, there[0], False)),
               "transposed": milliseconds(lambda: nf4_codes(*stored, there[1], True)),
               "bf16 weight": milliseconds(lambda: nf4_weight(*stored, n, torch.bfloat16))},
    }  # fmt: skip


def layers(model: str = "7b") -> list[dict[str, Any]]:
    """Each linear of a model's layer."""
    return [layer(model, name, *shape) for name, shape in SHAPES[model].items()]


def profiled(products: str, name: str) -> dict[str, Any]:
    """What one plan's training step does on the card, kind by kind."""
    timed = STEPS[name]
    plan = Plan.parse(BASE | timed.settings | {"products": products})
    found = profile(name, plan, int(timed.text), plan.questions_per_picture)
    return {"kind": "profile", "products": products} | found


def step(products: str, name: str) -> dict[str, Any]:
    """One plan's training step under its card's cap."""
    timed = STEPS[name]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "plan.json"
        place.write_text(Plan.parse(BASE | timed.settings | {"products": products}).to_json())
        command = [sys.executable, "-m", "trainer.rehearse", str(place), "--text-tokens",
                   timed.text, "--steps", "8", "--cap-gib", str(timed.cap_gib)]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"step": name, "products": products, "error": done.stderr[-2500:]}
    return {"step": name, "products": products, "measurement": json.loads(done.stdout)}


def fixed_samples(samples: MadeUp) -> list[Batch]:
    """Micro-batches with 64 samples in all, each with a mask of smooth blobs."""
    torch.manual_seed(0)
    found = []
    for _ in range(SAMPLES // PICTURES):
        batch = samples.batch()
        blobs = torch.randn(len(batch.targets), 1, 6, 6)
        wide = functional.interpolate(blobs, size=batch.targets.shape[-2:], mode="bicubic")
        found.append(replace(batch, targets=(wide[:, 0] > 0.5).to(torch.uint8)))
    return found


def losses(how: str) -> dict[str, Any]:
    """The losses of a random 7B that learns 64 fixed samples by heart, at a constant rate.

    "nudged" is in dtype, too, from values of LoRA's A that are NUDGE larger: how far two trainings
    in one arithmetic come apart.
    """
    products = "dtype" if how == "nudged" else how
    settings = BASE | {"micro_batch": PICTURES, "effective_batch": PICTURES, "products": products}
    trial = Rehearsal(Plan.parse(settings), (96, 96), masks=1)
    for name, factor in trial.model.named_parameters():
        if how == "nudged" and "lora_A" in name:
            factor.data.mul_(1 + NUDGE)
    samples = fixed_samples(trial.samples)
    parts_of_step = trial.optimizer, trial.plan, trial.accelerator
    curve = []
    for number in range(TRAINED_STEPS):
        made = training_step(trial.model, [samples[number % len(samples)]], *parts_of_step)
        parts = made.loss, made.ce, made.bce, made.dice
        curve.append([round(float(part), 5) for part in parts])
        if number % 25 == 0:
            print(how, number, curve[-1], flush=True)
    return {"kind": "losses", "how": how, "curve": curve}


def take(path: Path) -> None:
    """Rows measured elsewhere replace those alike; what is new comes last."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in SAYS_WHICH)

    taken = {key(row): row for row in rows_of(path)}
    rows = [taken.pop(key(row), row) for row in rows_of(ROWS_FILE)] + [*taken.values()]
    ROWS_FILE.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def forecasts() -> None:
    """Write into each measured step's row what is forecast for it."""
    rows = rows_of(ROWS_FILE)
    for row in rows:
        if (measured := row.get("measurement")) and measured["verdict"] == "FITS":
            worst = Worst(text_tokens=measured["text_tokens"][1], masks=measured["masks"])
            found = forecast(Plan.parse(measured["plan"]), worst, CARD)
            row["forecast"] = {tier: found.tier(tier).bytes for tier in ("tensors", "pool")}
            print(row["step"], row["products"], row["forecast"], flush=True)
    ROWS_FILE.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def steps_table(rows: list[dict[str, Any]]) -> list[str]:
    """Each measured step, and what was forecast for its memory."""
    lines = ["| plan | products | questions/s | tensors, GiB | forecast | pool, GiB | forecast |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        m = row.get("measurement")
        if m and m["verdict"] == "FITS":
            cells = [row["step"], row["products"], f"{m['samples_per_second']:.1f}"]
            for tier, name in (("tensors", "allocated"), ("pool", "reserved")):
                took, said = m[f"peak_{name}_bytes"], row["forecast"][tier]
                cells += [f"{took / 2**30:.2f}", f"{said / took - 1:+.2%}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def losses_table(rows: list[dict[str, Any]]) -> list[str]:
    """The mean loss of every WINDOW steps; of FP8's and the nudged start's, the difference."""
    curves = {row["how"]: [parts[0] for parts in row["curve"]]
              for row in rows if row.get("kind") == "losses"}  # fmt: skip
    lines = ["| steps | in dtype | in FP8 | in dtype, nudged |", "|---|---|---|---|"]
    for start in range(0, TRAINED_STEPS, WINDOW):
        mean = {how: statistics.mean(curve[start : start + WINDOW])
                for how, curve in curves.items()}  # fmt: skip
        off = [f"{mean[how] / mean['dtype'] - 1:+.1%}" if how in mean else "not run"
               for how in ("fp8", "nudged")]  # fmt: skip
        last = min(start + WINDOW, TRAINED_STEPS) - 1
        lines.append(f"| {start} – {last} | {mean['dtype']:.3f} | {' | '.join(off)} |")
    return lines


def profiles_table(rows: list[dict[str, Any]]) -> list[str]:
    """A profiled step: how long the GPU was at work, and at what."""
    lines = ["| plan | products | step | GPU at work | products | attention | widening, codes | "
             "other |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in sorted(rows, key=lambda row: (row.get("name", ""), row.get("products", ""))):
        if row.get("kind") == "profile":
            kinds = dict(row["kinds_ms"])
            said = [kinds.pop(kind) for kind in ("matrix product", "attention")]
            said += [kinds.pop("dequantisation", 0) + kinds.pop("codes of FP8", 0)]
            times = [row["step_ms"], row["kernels_busy_ms"], *said, sum(kinds.values())]
            cells = [row["name"], row["products"], *(f"{ms:.0f} ms" for ms in times)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def profile_beside(rows: list[dict[str, Any]]) -> list[str]:
    """What the profiles gain in FP8, and why the 4B's gains less as it was timed."""
    shown = {(r["name"], r["products"]): r for r in rows if r.get("kind") == "profile"}
    timed = {r["products"]: 1e3 * r["measurement"]["step_seconds"]
             for r in rows if r.get("step") == "4b-k4"}  # fmt: skip

    def gain(name: str, part: str) -> str:
        return f"{shown[name, 'dtype'][part] / shown[name, 'fp8'][part] - 1:.0%}"

    fast = shown["4b-k4", "fp8"]
    waits = (time - fast["kernels_busy_ms"] for time in (fast["step_ms"], timed["fp8"]))
    idle, waited = (f"{ms:.0f} ms" for ms in waits)
    above = f"{timed['dtype'] / timed['fp8'] - 1:.0%}"
    text = (
        f"FP8 gains {gain('7b', 'step_ms')} of the 7B's step and {gain('4b-k4', 'step_ms')} of "
        f"the 4B's, of the GPU's own work {gain('7b', 'kernels_busy_ms')} and "
        f"{gain('4b-k4', 'kernels_busy_ms')}; the rest is how long it waits for the CPU. In the "
        f"table of steps the 4B gains {above}: in FP8 the GPU waits {idle} here, in the fastest "
        f"of three steps, and {waited} there, in the median of eight, if its kernels took as "
        f"long. All are of one machine, minutes apart; count on {above}."
    )
    return textwrap.wrap(text, 140)


def all_rows() -> list[dict[str, Any]]:
    """This script's rows, those of fp8_learning.py, and of shared_demo.py what they go beside."""
    found = rows_of(ROWS_FILE)
    for row in rows_of(ROOT / "benchmarks" / "shared.jsonl"):
        if row["kind"] == "demo" and (row["scenes"], row["way"]) == ("one target", "one"):
            found.append(row | {"products": "dtype"})
    return found


def written_lines(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """docs/fp8.md's tables, by their marks."""
    layers = ["| model | linears | bf16 forward, back | FP8 | shared | product alone bf16, FP8 | "
              "error forward bf16, FP8 | back |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    learning = ["| seed | gIoU, in dtype | in FP8 | cIoU, in dtype | in FP8 |",
                "|---|---|---|---|---|"]  # fmt: skip
    demo = {(row["products"], row["seed"]): row for row in rows if row.get("kind") == "demo"}
    for seed in sorted(seed for products, seed in demo if products == "fp8"):
        plain, fast = demo["dtype", seed], demo["fp8", seed]
        learning.append(f"| {seed} | {plain['giou']:.3f} | {fast['giou']:.3f} | "
                        f"{plain['ciou']:.3f} | {fast['ciou']:.3f} |")  # fmt: skip
    for row in rows:
        if "layer" in row:
            ms, error = row["ms"], row["error"]
            layers.append(
                f"| {row['model']} | {row['layer']} | "
                f"{ms['bf16 forward']:.2f}, {ms['bf16 back']:.2f} ms | "
                f"{ms['fp8 forward']:.2f}, {ms['fp8 back']:.2f} ms | "
                f"{ms['fp8 forward, shared codes']:.2f} ms | {ms['bf16 product alone']:.2f}, "
                f"{ms['fp8 product alone']:.2f} ms | {error['bf16']:.1%}, {error['fp8']:.1%} | "
                f"{error['bf16 back']:.1%}, {error['fp8 back']:.1%} |"
            )
    names = {"dtype": "{}", "fp8": "FP8, else {}"}
    gradients = ["| arithmetic | relative error | cosine |", "|---|---|---|"]
    for row in rows:
        for one in row["errors"] if row.get("kind") == "gradients" else []:
            name = names[one["products"]].format(one["dtype"])
            gradients.append(f"| {name} | {one['relative']:.1%} | {one['cosine']:.4f} |")
    return {"steps": steps_table(rows), "layers": layers, "learning": learning,
            "gradients": gradients, "losses": losses_table(rows),
            "profile": [*profiles_table(rows), "", *profile_beside(rows)]}  # fmt: skip


def main() -> None:
    """Layers, one step, or the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", choices=["layers", "step", "profile", "losses", "take", "forecast", "table"]
    )
    parser.add_argument("which", nargs="*")
    parser.add_argument("--out", type=Path, default=ROWS_FILE)
    asked = parser.parse_args()
    if asked.what == "table":
        for name, lines in written_lines(all_rows()).items():
            put(DOCS, f"<!-- benchmarks/fp8.py {name} -->", f"<!-- /benchmarks/fp8.py {name} -->",
                lines)  # fmt: skip
        return
    if asked.what == "take":
        take(Path(*asked.which))
        return
    if asked.what == "forecast":
        forecasts()
        return
    makers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "layers": lambda: layers(*asked.which),
        "step": lambda: [step(*asked.which)],
        "profile": lambda: [profiled(*asked.which)],
        "losses": lambda: [losses(*asked.which)],
    }
    rows = makers[asked.what]()
    facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
             "date": datetime.date.today().isoformat()}  # fmt: skip
    with asked.out.open("a") as file:
        for row in rows:
            file.write(json.dumps(row | facts) + "\n")
            print(json.dumps(row)[:3000], flush=True)


if __name__ == "__main__":
    main()
