"""The options of `lisa-train` for a training, as one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from profiles.command_line import MODEL_HELP, Recipe, Version, model_names
from profiles.overrides import given_settings
from profiles.preferences import Preference
from profiles.recipe import with_recipe
from profiles.shared_options import (
    COUNT,
    MINUTES,
    NEWEST,
    NUMBER,
    SHARE,
    SOME,
    Gpus,
    LoraRank,
    Nodes,
    Settings,
    SkipBroken,
    Text,
    Unquantized,
    Weights,
)
from trainer.parallel.launch import started_here
from trainer.run.folder import LATEST
from trainer.run.trackers import TENSORBOARD, TRACKERS, read_trackers


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of `lisa-train`, in the order of its help."""

    panels: ClassVar[Mapping[str, str]] = {
        "plan": "Plan", "weights": "Weights and adapters", "epochs": "Training",
        "check_data": "Data", "save_minutes": "Checkpoints and records", "version": "",
    }  # fmt: skip

    auto: Annotated[
        bool, typer.Option("--auto", help="Train lisa-advise's plan. The default without --plan.")
    ] = False
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None
    model: Annotated[Text, typer.Option(help=MODEL_HELP, autocompletion=model_names)] = None
    output_dir: Annotated[Path, typer.Option(help="Run folder; new or empty.")] = LATEST
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help=f"Continue a run; with --epochs N also one that has ended. {NEWEST}",
        ),
    ] = None
    plan: Annotated[Path | None, typer.Option(help="Train with this plan.json.")] = None
    recipe: Recipe = None
    settings: Settings = None
    prefer: Annotated[
        Preference,
        typer.Option(help="With --auto: what counts first among plans that fit."),
    ] = "usual"
    gpus: Gpus = None
    nodes: Nodes = None
    weights: Weights = None
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Start from this LoRA adapter: PEFT's, or an export."),
    ] = None
    no_quantization: Unquantized = False
    use_lora: Annotated[bool, typer.Option("--use-lora", help="Add LoRA adapters.")] = False
    lora_r: LoraRank = None
    lora_alpha: Annotated[
        float | None, typer.Option(help="LoRA's alpha, if not twice --lora-r.", **NUMBER)
    ] = None
    lora_dropout: Annotated[float | None, typer.Option(help="LoRA dropout.", **SHARE)] = None
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", **SOME)] = None
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", **NUMBER)] = None
    batch_size: Annotated[int | None, typer.Option(help="Samples per forward pass.")] = None
    grad_clip: Annotated[float | None, typer.Option(help="Largest gradient norm.", **NUMBER)] = None
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and dropout.")] = None
    check_data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check a data folder and stop.")
    ] = None
    skip_broken: SkipBroken = None
    max_train_samples: Annotated[
        int | None, typer.Option(help="Train on the first N samples.", **COUNT)
    ] = None
    max_val_samples: Annotated[
        int | None, typer.Option(help="Validate on the first N samples.", **COUNT)
    ] = None
    num_workers: Annotated[int | None, typer.Option(help="Data-loading processes.")] = None
    cache_dir: Annotated[Path | None, typer.Option(help="Feature cache folder.")] = None
    save_minutes: Annotated[
        float | None,
        typer.Option(help="Minutes between checkpoints for --resume.  [10]", **MINUTES),
    ] = None
    save_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps between checkpoints.", **SOME)
    ] = None
    keep: Annotated[int | None, typer.Option(min=1, help="Checkpoints to keep.  [2]")] = None
    tracker: Annotated[
        Text,
        typer.Option(metavar="NAME,...", help=f"Log to: {', '.join(TRACKERS)}.  [{TENSORBOARD}]"),
    ] = None
    wait_minutes: Annotated[
        float | None,
        typer.Option(help="Minutes to wait for memory that other processes took.", **MINUTES),
    ] = None
    version: Version = False

    def assignments(self) -> list[str]:
        """Settings as KEY=VALUE: the recipe's, those with options of their own, those of --set.

        Raises PlanError for a recipe that cannot be read, and for a setting with two values.
        """
        options = {
            "quantization": "none" if self.no_quantization else None,
            **self._processes(),
            "weights": self.weights,
            "schedule.epochs": self.epochs,
            "micro_batch": self.batch_size,
            "workers": self.num_workers,
            "lora.alpha": self.lora_alpha,
            "lora.dropout": self.lora_dropout,
            "schedule.grad_clip": self.grad_clip,
            "max_train_samples": self.max_train_samples,
            "max_val_samples": self.max_val_samples,
            "schedule.learning_rate": self.lr,
            "seed": self.seed,
        }
        given = given_settings(options, self.settings or (), self.lora_r)
        return with_recipe(self.recipe, given, self.model)

    def _processes(self) -> dict[str, int]:
        """What --gpus and --nodes set."""
        if not (self.gpus or self.nodes):
            return {}
        nodes = self.nodes or 1
        return {"processes": (self.gpus or started_here()) * nodes, "nodes": nodes}

    def keeping(self) -> dict[str, Any]:
        """The fields of Keeping that were given. Raises ValueError."""
        trackers = None if self.tracker is None else read_trackers(self.tracker)
        given = {"minutes": self.save_minutes, "steps": self.save_steps, "checkpoints": self.keep,
                 "wait_minutes": self.wait_minutes, "trackers": trackers}  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}
