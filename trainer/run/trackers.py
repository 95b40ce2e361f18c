"""Where a run's figures go beside metrics.jsonl: trackers by accelerate's names.

Nothing is sent anywhere unless the user's own environment says so: TensorBoard and trackio write
files, MLflow too by default, and wandb is put into its offline mode.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

TENSORBOARD: Literal["tensorboard"] = "tensorboard"
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]  # each is its package's name, too
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)
PROJECT = "lisa-preflight"  # under which the others list a user's runs, where none is named
QUIET = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false",
         "MLFLOW_DISABLE_TELEMETRY": "true"}  # fmt: skip


def read_trackers(text: str) -> tuple[Tracker, ...]:
    """The trackers of a `--tracker wandb,mlflow`. Raises ValueError."""
    named = [name.strip() for name in text.split(",") if name.strip()]
    names = tuple(name for name in TRACKERS if name in named)
    if not names or set(named) - set(TRACKERS):
        known = ", ".join(TRACKERS)
        raise ValueError(f"--tracker: got {text!r}; allowed: {known}, with commas between several")
    must_be_installed(names)
    return names


def is_installed(name: str) -> bool:
    """Whether the package is installed: a folder with a tracker's files has the same name."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def must_be_installed(names: tuple[Tracker, ...]) -> None:
    """Raise ValueError with the command that installs what is missing."""
    if missing := [name for name in names if not is_installed(name)]:
        raise ValueError(
            f"--tracker: not installed: {', '.join(missing)}\n"
            f"    hint: pip install {' '.join(missing)}"
        )


def made_for(run: Path, names: tuple[Tracker, ...]) -> list[str | GeneralTracker]:
    """What accelerate is to log with: TensorBoard's files go into the run's own folder.

    Accelerate leaves out what is not installed: raises ValueError.
    """
    must_be_installed(names)
    from accelerate.tracking import TensorBoardTracker

    return [TensorBoardTracker(TENSORBOARD, run) if name == TENSORBOARD else name for name in names]


def start_trackers(accelerator: Accelerator, run: Path, settings: dict[str, Any]) -> None:
    """Begin a run called like its folder in each tracker. Raises ValueError if one refuses."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    name = run.resolve().name
    own = {"wandb": {"name": name, "dir": str(run)}, "trackio": {"name": name},
           "mlflow": {"run_name": name}}  # fmt: skip
    try:
        accelerator.init_trackers(os.environ.get("WANDB_PROJECT") or PROJECT, init_kwargs=own)
        for tracker in accelerator.trackers:
            if tracker.name != TENSORBOARD:
                tracker.store_init_configuration(settings)
    except Exception as error:
        names = ", ".join(one.name for one in accelerator.trackers if one.name != TENSORBOARD)
        if not names:
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"--tracker: {names} did not start: {said}\n    hint: --tracker {TENSORBOARD}"
        ) from None
