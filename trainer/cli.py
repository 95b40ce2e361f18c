"""lisa-train: parse and print. torch is imported inside the commands."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.streams import set_streams
from trainer.console import (
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    ended_politely,
    fail,
    feature_cache,
    stay_at_home,
    tell,
    user_errors,
)
from trainer.results_cli import evaluate, export
from trainer.start_cli import Beginning, begin, go_on, worker

if TYPE_CHECKING:
    from advisor.preflight import Advice
    from profiles.plan import Plan

app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Text = str | None
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a plan setting. Repeatable."),
]


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    auto: Annotated[bool, typer.Option(help="Train with lisa-advise's plan.")] = False,
    plan: Annotated[Path | None, typer.Option(help="Train with this plan.json.")] = None,
    model: Annotated[Text, typer.Option(help="Size: tiny, 7b, 7b-v1, 13b or 13b-v1.")] = None,
    weights: Annotated[
        Text, typer.Option(metavar="FOLDER", help="Model folder of lisa-train convert, or random.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with ReasonSeg and others.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/latest"),
    cache_dir: Annotated[Path | None, typer.Option(help="Feature cache folder.")] = None,
    check_data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check a data folder and stop.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was ended.")
    ] = None,
    save_minutes: Annotated[
        float | None, typer.Option(min=0, help="Between two checkpoints to go on from.  [10]")
    ] = None,
    save_steps: Annotated[
        int | None, typer.Option(min=1, help="The same in optimizer steps.")
    ] = None,
    keep: Annotated[int | None, typer.Option(min=1, help="Such checkpoints to keep.  [2]")] = None,
    wait_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="For memory that other processes took, before less is used."),
    ] = None,
    set_: Settings = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per forward pass.")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Data-loading processes.")] = None,
    no_quantization: Annotated[
        bool, typer.Option("--no-quantization", help="Full-width base weights.")
    ] = False,
    use_lora: Annotated[bool, typer.Option("--use-lora", help="Add LoRA adapters.")] = False,
    lora_r: Annotated[int | None, typer.Option(help="LoRA rank.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="LoRA alpha.")] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="LoRA dropout.")] = None,
    grad_clip: Annotated[float | None, typer.Option(help="Largest gradient norm.")] = None,
    max_train_samples: Annotated[int | None, typer.Option(help="First n to train on.")] = None,
    max_val_samples: Annotated[int | None, typer.Option(help="First n to validate on.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
) -> None:
    """Train LISA on ReasonSeg data: by the advisor's plan (--auto), a plan file, or flags."""
    if context.invoked_subcommand not in ("convert", "export"):  # which may be sent to the hub
        stay_at_home()
    if context.invoked_subcommand:
        return
    if check_data is not None:
        raise typer.Exit(_check_data(check_data))
    if auto and plan is not None:
        fail("--auto and --plan: give one of the two")
    flags = {
        "weights": weights,
        "schedule.epochs": epochs,
        "micro_batch": batch_size,
        "workers": num_workers,
        "lora.rank": lora_r,
        "lora.alpha": lora_alpha,
        "lora.dropout": lora_dropout,
        "schedule.grad_clip": grad_clip,
        "max_train_samples": max_train_samples,
        "max_val_samples": max_val_samples,
        "schedule.learning_rate": lr,
        "seed": seed,
    }
    assignments = [f"{key}={value}" for key, value in flags.items() if value is not None]
    if no_quantization:
        assignments.insert(0, "quantization=none")
    asked = {"minutes": save_minutes, "steps": save_steps, "checkpoints": keep,
             "wait_minutes": wait_minutes}  # fmt: skip
    keeping: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if resume is not None:
        if auto or plan or model or assignments or set_ or use_lora:
            fail("--resume goes on with the run's own plan: leave the other settings out")
        if output_dir != Path("runs/latest"):
            fail("--resume goes on in the run's own folder: leave --output-dir out")
        with user_errors():
            return go_on(resume, data_dir, cache_dir, keeping)
    from trainer.resume import Keeping, Started

    with user_errors():
        assignments += set_ or []
        resolved, advice = _resolve(auto, plan, model, assignments, use_lora, data_dir)
        if data_dir is None:
            fail(
                "--data-dir: name the folder that holds ReasonSeg/{train,val}\n"
                "    hint: lisa-train synthesise DIR writes one to try with"
            )
        held = {text.partition("=")[0].partition(".")[0].replace("-", "_") for text in assignments}
        started = Started(data_dir, cache_dir or feature_cache(), {}, Keeping(**keeping))
        if advice is not None:  # what the user has set stays, whatever is given up for memory
            started = replace(started, pinned=tuple(held), environment=advice.environment)
        begin(Beginning(resolved, _new_folder(output_dir), started, advice))


@app.command()
def synthesise(
    folder: Annotated[Path, typer.Argument(help="Where ReasonSeg/ is written.")],
    train_: Annotated[int, typer.Option("--train", help="Training questions.")] = 640,
    val: Annotated[int, typer.Option(help="Validation questions.")] = 120,
    test: Annotated[int, typer.Option(help="Test questions.")] = 120,
    kind: Annotated[
        list[str] | None, typer.Option(help="Question kind; repeatable. Default: negation.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of scenes and questions.")] = 0,
) -> None:
    """Write a synthetic data set in ReasonSeg's format."""
    from trainer.data.synthetic import write_dataset

    with user_errors():
        kinds = tuple(kind or ["negation"])  # one that lisa-tiny has never seen
        where = write_dataset(folder, seed=seed, train=train_, val=val, test=test, kinds=kinds)
    print(f"{train_} + {val} + {test} questions ({', '.join(kinds)}) in {where}")


@app.command()
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SRC...", help="Checkpoints: folders, or OWNER/NAME[@REVISION]."),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    model: Annotated[str, typer.Option(help="Size to make: 7b, 7b-v1 or 13b.")],
    shard_gib: Annotated[float, typer.Option(min=0.001, help="Largest file written.")] = 2.0,
    offline: Annotated[
        bool, typer.Option(help="Of the hub, only what lies in its cache. Or HF_HUB_OFFLINE=1.")
    ] = False,
) -> None:
    """Turn published checkpoints (LLaVA, LISA, SAM, CLIP) into a folder for --weights DST."""
    from trainer.convert import convert as run
    from trainer.hub import checkpoint_folder

    with user_errors(), ended_politely():
        folders = [checkpoint_folder(source, tell, offline) for source in sources]
        report = run(folders, target, model, tell, int(shard_gib * 2**30))
    print("\n".join([*report.lines(), f"{model} in {target}; its conversion.json lists all"]))


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder of LabelMe's JSON, or COCO's JSON.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    questions: Annotated[
        Path | None, typer.Option(help="CSV or JSONL: picture, label, question.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder of COCO's pictures.")] = None,
    val: Annotated[float, typer.Option(help="Share of pictures to validate on.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of pictures to keep for a test.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
) -> None:
    """Turn LabelMe or COCO annotations into ReasonSeg data for --data-dir DST."""
    from trainer.data.own import import_annotations

    with user_errors(), ended_politely():
        done = import_annotations(
            source, target, questions=questions, pictures=pictures, val=val, test=test, seed=seed
        )
    items = ", ".join(f"{split} {count}" for split, count in done.items.items())
    print(f"{target}: {items} items on {done.pictures} pictures; {done.left_out} without any")


@app.command()
def preview(
    data: Annotated[Path, typer.Argument(help="Folder with ReasonSeg data.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Items to show.")] = 12,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("preview.png"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice.")] = 0,
) -> None:
    """Draw some items of a data set: pictures, questions, targets and ignored regions."""
    from trainer.preview import write_preview

    with user_errors():
        lines = write_preview(data, split, count, seed, out)
    print("\n".join([*lines, f"{out}: target blue, ignored yellow"]))


def _resolve(
    auto: bool,
    path: Path | None,
    model: Text,
    assignments: list[str],
    use_lora: bool,
    data: Path | None,
) -> tuple[Plan, Advice | None]:
    """The plan that the command line asks for, and with --auto its reasons. Raises PlanError."""
    from profiles.plan import Plan

    if auto:
        from advisor.dryrun import measured
        from advisor.preflight import advise, live_forecast
        from advisor.probe import probe

        machine = probe()
        live = live_forecast(machine, None, data, tell)
        advice = advise(machine, model, tuple(assignments), data=data, live=live)
        advice = measured(advice, tell)
        if advice.plan is None or advice.exit_code:
            print(f"{advice.verdict}: {advice.summary}", file=sys.stderr)
            raise typer.Exit(advice.exit_code)
        print(f"{advice.verdict}: {advice.summary}", file=sys.stderr)
        return advice.plan, advice
    if path is not None:
        base = Plan.read(path)
        return base.override(assignments + ([f"model={model}"] if model else [])), None
    return _seed_plan(model, assignments, use_lora), None


def _seed_plan(model: Text, assignments: list[str], use_lora: bool) -> Plan:
    """The plan of plain flags: NF4 without LoRA unless asked, no accumulation."""
    from advisor.probe import probe
    from profiles.plan import Lora, Plan

    gpu = any(gpu.lost is None for gpu in probe().gpus)
    wants_lora = use_lora or any(text.startswith("lora.") for text in assignments)
    base = Plan.parse(
        {
            "model": model or ("7b" if gpu else "tiny"),
            "device": "cuda" if gpu else "cpu",
            "dtype": "bf16" if gpu else "fp32",
            "lora": Lora().model_dump() if wants_lora else None,
            "train": ["mask_decoder", "text_hidden_fcs", "projector", "token_rows"],
            "micro_batch": 1,
            "accumulation": 1,
        }
    )
    micro = [text.partition("=")[2] for text in assignments if text.startswith("micro_batch=")]
    batch = [f"effective_batch={micro[-1]}"] if micro else []
    return base.override(batch + assignments)


def _new_folder(wanted: Path) -> Path:
    """`wanted`, or where there is a run already, the first free `wanted-N`."""
    from trainer.launch import is_main

    if not is_main() or not (wanted / "plan.json").exists():
        return wanted
    folder = next(
        candidate
        for n in range(2, 10_000)
        if not (candidate := wanted.with_name(f"{wanted.name}-{n}")).exists()
    )
    tell(f"the run folder is taken: writing to {folder}")
    return folder


app.command()(evaluate)
app.command()(export)


app.command(hidden=True)(worker)


def _check_data(folder: Path) -> int:
    from trainer.data.mixture import check_data
    from trainer.data.reasonseg import summarise

    others, findings = check_data(folder)
    for finding in findings:
        print(f"  - {finding}", file=sys.stderr)
    if findings:
        print(f"{len(findings)} findings in {folder}", file=sys.stderr)
        return EXIT_USAGE
    counts_of = summarise(folder)
    for split, counts in counts_of.items():
        print(f"{split}: " + ", ".join(f"{name} {value}" for name, value in counts.items()))
    for data_set in others:
        masks = sum(1 for picture in data_set.pictures for _ in picture.paints())
        left_out = f", left out {data_set.left_out}: no picture" if data_set.left_out else ""
        print(f"{data_set.name}: pictures {len(data_set.pictures)}, masks {masks}{left_out}")
    print(f"{folder}: no findings")
    missing = [split for split in ("train", "val") if split not in counts_of]
    if missing:
        tell(f"note: there is no {' and no '.join(missing)} split, which a training needs")
    return 0


def hyphenated(arguments: list[str]) -> list[str]:
    """Options spelled with underscores, as the seed's commands have them, spelled with hyphens."""
    result: list[Any] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        result.append(
            name.replace("_", "-") + equals + value if name.startswith("--") else argument
        )
    return result


def main() -> None:
    """Entry point of `lisa-train`, also `accelerate launch -m trainer.cli`."""
    set_streams()
    # On CPUs with AVX512-BF16 it asks for a package that would fetch code from a hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        app(args=hyphenated(sys.argv[1:]), prog_name="lisa-train")
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
