"""The measured figures of the docs' running text, each from its recorded rows.

`PAGES` has, by page and mark, what stands between `<!-- MARK: begin -->` and `<!-- MARK: end -->`.
`python tools/write_docs.py measured` writes them, tests/test_docs.py compares.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import advice_figures
import forecast_figures
import model_figures
from kept_rows import ROOT, rows

from profiles.models import model_profile
from profiles.plan import Plan
from profiles.sizes import GIB, MIB

SAM_BYTES = CLIP_BYTES = 2  # of a cached feature's number: bf16


def answering() -> str:
    """docs/inference.md: what answering takes on a small card."""
    row = next(row for row in rows("answering")
               if row["card_gb"] == 6 and row["plan"]["quantization"] == "nf4")  # fmt: skip
    of = ("7b", "six tokens", "now")
    timed = next(row for row in rows("fast_answers")
                 if (row["model"], row["what"], row["code"]) == of)  # fmt: skip
    return (
        f"A 7B in NF4 answers on a {row['card_gb']} GB card: "
        f"it takes {row['peak_reserved_bytes'] / GIB:.1f} GiB. A usual answer takes "
        f"{statistics.median(timed['seconds']):.1f} s on an H200"
    )


SHARED = (  # row of benchmarks/lean.jsonl, and what it is
    ("shared-k1-b10", "7B NF4, compiled"),
    ("shared-k2-b9", "7B NF4, compiled"),
    ("shared-k3-b9", "7B NF4, compiled"),
    ("shared-k4-b7", "7B NF4, compiled"),
    ("shared-k6-b6", "7B NF4, compiled"),
    ("shared-k8-b5", "7B NF4, compiled"),
    ("shared-plain-k3-b9", "7B NF4, not compiled"),
    ("shared-stream-k1-b8", "7B bf16, all layers in host memory"),
    ("shared-stream-k4-b8", "7B bf16, all layers in host memory"),
    ("shared-13b-k1-b4", "13B NF4, 20 of 40 layers in host memory"),
    ("shared-13b-k4-b4", "13B NF4, 20 of 40 layers in host memory"),
)


def shared() -> str:
    """docs/speed.md: questions a second, by how many share the prefix of their picture."""
    measured = {row["name"]: row["measurement"] for row in rows("lean")}
    lines = [
        "| | pictures x questions | questions/s | allocated GiB |",
        "|---|---|---|---|",
    ]
    for name, title in SHARED:
        m, plan = measured[name], measured[name]["plan"]
        shape = f"{plan['micro_batch']} x {plan['questions_per_picture']}"
        lines.append(
            f"| {title} | {shape} | {m['samples_per_second']:.1f} | "
            f"{m['peak_allocated_bytes'] / GIB:.2f} |"
        )
    others = [row for row in rows("shared") if row["kind"] == "liger"]
    lines += [
        f"| transformers + PEFT + bitsandbytes + Liger, no mask decoder | {row['batch']} x 1 | "
        f"{row['samples_per_second']:.1f} | {row['allocated_gib']:.2f} |"
        for row in others
    ]
    return "\n".join(lines)


def sharing() -> str:
    """docs/lean.md: what rows of three questions gain."""
    rate = {row["name"]: row["measurement"]["samples_per_second"] for row in rows("lean")}
    others = max(r["samples_per_second"] for r in rows("shared") if r["kind"] == "liger")
    three, six, one = (rate[f"shared-{name}"] for name in ("k3-b9", "k6-b6", "k1-b10"))
    return (
        "Questions about one picture can share what is computed for it (`questions_per_picture`, "
        "[speed.md](speed.md)). Under an 8 GB\ncard's cap on an H200, LISA 7B trains "
        f"{one:.0f} questions a second if each has the picture to itself, {three:.0f} if three "
        f"share it,\nand {six:.0f} if six do. transformers, PEFT and bitsandbytes with Liger's "
        f"kernels train the same language model, without any\nmask decoder, at {others:.0f}."
    )


def looped() -> str:
    """docs/speed.md: the training loop beside the rehearsal of its step."""
    parts = []
    for row in (row for row in rows("shared") if row["kind"] == "loop"):
        off_by = row["loop_seconds"] / row["rehearsal_seconds"] - 1
        how = ", whose card rested between its steps," if row["rested"] else ""
        how = " in turns with it" if "off_in_turns" in row else how
        parts.append(
            f"The loop of `lisa-train`, with {row['rows']} pictures of "
            f"{row['questions_per_picture']} questions each, took {row['loop_seconds']:.3f} s from "
            f"update to update,\nits rehearsal{how} {row['rehearsal_seconds']:.3f} s a step: "
            f"{off_by:+.1%}."
        )
    return "\n".join(parts)


def saved() -> str:
    """docs/recovery.md: a step and a save beside those of the code before crash points counted."""
    found = {
        tree: [statistics.median(row[what] for row in rows("save_times") if row["tree"] == tree)
               for what in ("step_seconds", "save_seconds")]
        for tree in ("old", "new")
    }  # fmt: skip
    (step, save), (was, had) = found["new"], found["old"]
    (commit,) = {row["commit"] for row in rows("save_times") if row["tree"] == "old"}
    return (
        f"All this costs no time: a step of lisa-tiny took {1000 * step:.0f} ms and a save "
        f"{1000 * save:.0f}; by the code before\nany of it (commit {commit}) {1000 * was:.0f} and "
        f"{1000 * had:.0f} (`python benchmarks/save_times.py`, three runs of each in turn)."
    )


def scaler() -> str:
    """docs/recovery.md: fp16 on a GPU, resumed midway, beside what two whole runs differ by."""
    row = rows("fp16_resume")[-1]
    whole, resumed = row["whole_apart"], row["resumed_apart"]
    scale, its = row["scaler"]["scale"], row["scaler_resumed"]["scale"]
    return (
        f"fp16's gradient scaler goes on where it was ({row['gpu']}, torch {row['torch']}). A run "
        f"of {row['steps']} steps that ended after {row['ended_after']}\nand was resumed had the "
        f"scale {its:g} at its end, an undisturbed run {scale:g}. Its trained values differ by "
        f"{resumed['trained']:g}\nand its losses by {resumed['loss']:g}; those of two undisturbed "
        f"runs by {whole['trained']:g} and {whole['loss']:g} (`python benchmarks/fp16_resume.py`, "
        "with\nsums in one order)."
    )


def masked() -> str:
    """docs/speed.md: the largest cost of a shared step beside the products, and what was tried."""
    (step,) = (row for row in rows("profile") if row["name"] == "shared-k3-b9")
    (flex,) = (row for row in rows("shared") if row["kind"] == "flex")
    (usual,) = (row["measurement"] for row in rows("lean") if row["name"] == "shared-k3-b9")
    return (
        "The largest cost of such a step that is no matrix product is attention with its mask: "
        f"{step['kinds_ms']['attention']:.0f} of the {step['kernels_busy_ms']:.0f} ms in\nwhich "
        "the GPU is busy, in cuDNN's kernels (`benchmarks/profile_step.py shared-k3-b9`). "
        "FlexAttention with a block mask in the\ncompiled layers was slower: "
        f"{flex['samples_per_second']:.1f} questions a second instead of "
        f"{usual['samples_per_second']:.1f}."
    )


def learnt() -> str:
    """docs/speed.md: what lisa-tiny learns from rows of one and of three questions."""
    found = [row for row in rows("shared") if row["kind"] == "demo"]
    lines = [
        "| scenes | seed | questions a picture | steps | gIoU | cIoU | processor time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        lines.append(
            f"| {row['scenes']} | {row['seed']} | {row['way']} | {row['steps']} "
            f"| {row['giou']:.3f} | {row['ciou']:.3f} | {row['processor_seconds']} s |"
        )

    def mean(name: str, way: str, scenes: str) -> float:
        return statistics.mean(
            row[name] for row in found if (row["scenes"], row["way"]) == (scenes, way)
        )

    def giou(way: str, scenes: str = "one target") -> str:
        return f"{mean('giou', way, scenes):.3f}"

    def time(way: str, scenes: str = "one target") -> str:
        spent, usual = (mean("processor_seconds", each, scenes) for each in (way, "one"))
        return f"{spent / usual:.0%}"

    small, several = "three, small steps", "several targets"
    return "\n".join(lines) + (
        "\n\nMeans of three seeds. Small steps are updates of four questions with a learning rate "
        "of 7e-4; the demo's are of eight, with 1e-3.\n\n"
        f"- **Several targets**: three questions at once reach {giou('three', several)} in "
        f"{time('three', several)} of the time of one question ({giou('one', several)}), and in "
        f"small steps {giou(small, several)}\n  in {time(small, several)}. One question gains "
        f"nothing from small steps ({giou('one, small steps', several)}).\n"
        "- **One target**: three at once learn less from the same number of questions: "
        f"{giou('three')} instead of {giou('one')}, in {time('three')} of the time. An\n  update "
        "of eight questions is then about three pictures, and asked in other words a target "
        f"teaches little more. In small steps they\n  reach {giou(small)} in {time(small)} of the "
        f"time. One question in such steps reaches {giou('one, small steps')} in "
        f"{time('one, small steps')}.\n\n"
        "lisa-tiny saves little time, since its mask decoder, which works for each question, is "
        "a large part of it. Its advice stays at one\nquestion a picture."
    )


def profiled() -> str:
    """docs/lean.md: what of a streamed step is hidden, and where a compiled step goes."""
    by_name = {row["name"]: row for row in rows("profile")}
    seconds = {row["name"]: row["measurement"]["step_seconds"] for row in rows("lean")}
    streamed, step = by_name["stream-b8"], by_name["speed-compiled-b10-k32"]
    longer = 1e3 * (seconds["stream-b8"] - seconds["speed-b8"])
    copies, kinds = streamed["copy_to_device_ms"], step["kinds_ms"]
    order = ("matrix product", "element-wise", "dequantisation", "attention")
    parts = ", ".join(f"{kind} {kinds[kind]:.0f}" for kind in order)
    idle = step["step_ms"] - step["kernels_busy_ms"]
    return (
        f"With quantised layers in host memory a step takes {longer:.0f} ms longer and copies for "
        f"{copies:.0f} ms, so {1 - longer / copies:.0%} of the\n"
        f"copying time is hidden. In the profile only {streamed['copy_beside_kernels']:.0%} of the "
        "copying ran beside a kernel: the profiler slows the host,\n"
        f"which left the GPU idle for {streamed['step_ms'] - streamed['kernels_busy_ms']:.0f} of "
        f"{streamed['step_ms']:.0f} ms, and some copies fell into these gaps.\n\n"
        "**Where a step goes** (`python benchmarks/profile_step.py`, kept in "
        "`benchmarks/profile.jsonl`), compiled,\n"
        f"batch 10, {step['step_ms']:.0f} ms: {parts}, idle {idle:.0f}, the longest\n"
        f"gap {max(step['idle_ms']):.0f} ms where the loss is read. After the matrix products, the "
        "largest cost is element-wise work that\n"
        "is already fused; it includes LoRA's dropout (a mask for each of q and v, in both passes)."
    )


def reading() -> str:
    """docs/data.md: what cached features and annotations take."""
    shapes = model_profile("7b")
    sam = SAM_BYTES * shapes.sam.output_channels * shapes.sam.embedding_pixels**2
    clip = CLIP_BYTES * shapes.clip.image_tokens * shapes.clip.hidden
    took = {row["what"]: row for row in rows("reading")}
    outlined, dialogues = took["outlined pictures"], took["dialogues"]
    numbered = took["numbered pictures"]
    return (
        "Features are cached before the model loads, for all pictures that the plan will draw in "
        f"any epoch:\n{(sam + clip) / MIB:.1f} MiB a picture at 7B. Every process reads the "
        f"annotations, which takes {outlined['seconds']:.0f} s of processor time for\n"
        f"{outlined['count']} pictures with seven polygons each, {dialogues['seconds']:.0f} s for "
        f"{dialogues['count']} dialogues and "
        f"{1e3 * numbered['seconds'] / numbered['count']:.1f} ms for a picture of class\nnumbers "
        "(`python benchmarks/reading.py`)."
    )


def importing() -> str:
    """docs/own-data.md: how long an import takes."""
    row = next(row for row in rows("reading") if row["what"] == "imported pictures")
    large = rows("large_import")[-1]
    worked = large["user_seconds"] + large["system_seconds"]
    return (
        f"{row['count']} pictures of 640 × 480 with seven polygons each took "
        f"{row['seconds']:.0f} s of one processor (`python benchmarks/reading.py`).\n"
        f"A COCO file of {large['annotations']} annotations took {large['seconds']:.0f} s on "
        f"{large['cores']} cores that other work shared (load {large['load']:.1f} before it), and "
        f"{worked:.0f} s of\nprocessor time; the longest time without a line of progress was "
        f"{large['silent_seconds']:.0f} s, the largest process took "
        f"{large['peak_bytes'] / GIB:.1f} GiB\n(`python benchmarks/large_import.py`)."
    )


def emulated() -> str:
    """docs/advice.md: whether advised plans held under the caps of smaller cards."""
    found = rows("emulate")
    held = [row for row in found if row["measured"]["verdict"] == "FITS"]
    shares = [row["measured"]["peak_reserved_bytes"] / row["usable_bytes"] for row in held]
    others = (row for row in found if not still_advised(row))
    changed = sorted((row["size_gib"], row["model"]) for row in others)
    names = ", ".join(f"{model} on {size} GiB" for size, model in changed)
    since = f"\nAnother plan is advised since then for {names}." if changed else ""
    return (
        f"Trained for {found[0]['steps']} steps under the caps of smaller cards on one "
        f"{found[0]['measured']['gpu']} (`python benchmarks/emulate.py`), with\n"
        "random weights of the true shapes and "
        f"{found[0]['text']} text tokens: {len(held)} of {len(found)} fitted, and took "
        f"{100 * min(shares):.0f}–{100 * max(shares):.0f} % of the usable memory.{since}"
    )


def still_advised(row: dict[str, Any]) -> bool:
    """Whether a row of benchmarks/emulate.py ran what is advised for that card today."""
    plan = advice_figures.advised(row["size_gib"], row["model"]).plan
    return plan is not None and plan.content_hash == Plan.parse(row["plan"]).content_hash


def tiny() -> str:
    """docs/lisa-tiny.md: the packaged model's size, from its file."""
    from safetensors import safe_open

    path = ROOT / "profiles/tiny/model.safetensors"
    with safe_open(path, framework="np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    count = sum(math.prod(shape) for shape in shapes)
    return (
        f"The packaged model: {count / 1e6:.2f} M parameters, "
        f"{path.stat().st_size / 1e6:.1f} MB of bf16 safetensors, "
        "the same modules as 7B (CLIP,\nprojector, LLaMA, SAM), each small."
    )


def pretraining() -> str:
    """docs/lisa-tiny.md: how long the packaged model was made."""
    record = json.loads((ROOT / "profiles/tiny/pretraining.json").read_text(encoding="utf-8"))
    return (
        "The tokenizer is a byte-level BPE of 768 tokens. Pretraining trained all parts, the "
        f"encoders too,\nfor {record['steps']} steps of "
        f"{record['scenes_per_step']} generated scenes × {record['questions_per_scene']} questions "
        f"({record['seconds']} s on one {record['device']}), with auxiliary "
        "heads that\nare not part of the packaged model."
    )


def bf16_size() -> str:
    """docs/weights.md: the disk space of a converted folder."""
    from trainer.convert.convert import needed_shapes

    count = sum(shape.numel() for shape in needed_shapes(model_profile("7b")).values())
    return f"The folder takes the size of the model in bf16, {2 * count / GIB:.1f} GiB at 7B."


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/lean.md": {"profiled": profiled, "sharing": sharing},
    "docs/inference.md": {"answering": answering},
    "docs/data.md": {"reading": reading},
    "docs/own-data.md": {"importing": importing},
    "docs/advice.md": {
        "emulated": emulated,
        "orders": advice_figures.orders,
        "adapters": advice_figures.adapters,
    },
    "docs/speed.md": {"shared": shared, "looped": looped, "learnt": learnt, "masked": masked},
    "docs/forecast.md": {
        "accuracy": forecast_figures.accuracy,
        "caching": forecast_figures.caching,
        "drawn": forecast_figures.drawn,
        "explained": forecast_figures.explained,
    },
    "docs/recovery.md": {"saved": saved, "scaler": scaler},
    "docs/lisa-tiny.md": {"tiny": tiny, "making": pretraining},
    "docs/weights.md": {"size": bf16_size},
    "docs/models.md": {
        "beside": model_figures.beside_lisa,
        "measured": model_figures.measured,
        "caches": model_figures.caches,
        "forecasts": model_figures.forecasts,
        "sizes": model_figures.sizes,
    },
}
