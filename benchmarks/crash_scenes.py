"""The commands that benchmarks/crashes.py kills: what each needs, and how it is begun."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "tests" / "photos"
PLAN = {
    "model": "tiny", "device": "cpu", "dtype": "fp32", "quantization": "none",
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "targets": "qv"}, "mask_loss_resolution": 64,
    "micro_batch": 1, "accumulation": 2, "effective_batch": 2, "workers": 0,
    "max_train_samples": 2, "max_val_samples": 1, "train": ["text_hidden_fcs", "token_rows"],
    "schedule": {"learning_rate": 1e-3, "warmup_steps": 1, "epochs": 2, "shape": "linear"},
}  # fmt: skip
TAKEN = "exists and is not an empty folder"  # it had ended, but for what comes after its last file


@dataclass(frozen=True)
class Scene:
    """A command that writes into its folder, and how it is begun."""

    name: str
    command: Callable[[Path], list[str]]  # lisa-train's arguments, in the scene's folder
    prepare: Callable[[Path, Path], None]  # (folder, what all scenes share)
    run: str = ""  # the run folder in it, if the command trains
    plant: Callable[[Path], None] = lambda folder: None


def begin(keep: int, cache: str = "../../common/cache") -> Callable[[Path], list[str]]:
    """A training that keeps so many checkpoints."""
    return lambda folder: [
        "--plan", str(folder / "plan.json"), "--data-dir", str(PHOTOS), "--output-dir",
        str(folder / "run"), "--cache-dir", str(folder / cache), "--save-steps", "1",
        "--keep", str(keep),
    ]  # fmt: skip


def write_plan(folder: Path, shared: Path) -> None:
    """What `begin` needs."""
    (folder / "plan.json").write_text(json.dumps(PLAN))


def write_begun(folder: Path, shared: Path) -> None:
    """A run that was killed between two renames of its third save."""
    shutil.copytree(shared / "begun", folder / "run")


def copy_run(folder: Path, shared: Path) -> None:
    """A run that has ended."""
    shutil.copytree(shared / "whole", folder / "run")


def write_question(folder: Path, shared: Path) -> None:
    """A run that has ended, and a question to score it on."""
    copy_run(folder, shared)
    split = folder / "in" / "ReasonSeg" / "val"
    split.mkdir(parents=True)
    for name in ("cat_nose.jpg", "cat_nose.json"):
        shutil.copy(PHOTOS / "ReasonSeg" / "val" / name, split)


def write_coco(folder: Path, shared: Path) -> None:
    """Annotations for import, with their pictures."""
    (folder / "in").mkdir()
    pictures, annotations = [], []
    for number, name in enumerate(("cat", "clock", "coffee", "rocket"), 1):
        shutil.copy(PHOTOS / "ReasonSeg" / "train" / f"{name}.jpg", folder / "in")
        pictures.append({"id": number, "file_name": f"{name}.jpg", "width": 0, "height": 0})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "iscrowd": 0,
                            "segmentation": [[9, 9, 60, 9, 60, 50, 9, 50]]})  # fmt: skip
    from PIL import Image

    for entry in pictures:
        with Image.open(folder / "in" / str(entry["file_name"])) as picture:
            entry["width"], entry["height"] = picture.size
    document = {"images": pictures, "annotations": annotations,
                "categories": [{"id": 1, "name": "thing"}]}  # fmt: skip
    (folder / "in" / "annotations.json").write_text(json.dumps(document))


def write_upstream(folder: Path, shared: Path) -> None:
    """Checkpoints under their publishers' names, for convert."""
    shutil.copytree(shared / "upstream", folder / "in")


def runs_out(folder: Path) -> None:
    """Make the second step run out of memory; `finished` starts the process that follows."""
    import torch

    from trainer.run import run as loop

    real, run = loop.training_step, folder / "run"

    def failing(*arguments: Any, **named: Any) -> Any:
        steps = (run / "metrics.jsonl").read_text().count('"loss"')
        if steps == 1 and not list(run.glob("out-of-memory/*/shortage.json")):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return real(*arguments, **named)

    loop.training_step = failing
    os.execv = lambda path, arguments: os._exit(75)  # type: ignore[misc, assignment]


SCENES = [
    Scene("train, --keep 1", begin(1), write_plan, "run"),
    Scene("train, --keep 2", begin(2), write_plan, "run"),
    Scene("train, --keep 3", begin(3), write_plan, "run"),
    Scene("resume", lambda f: ["--resume", str(f / "run")], write_begun, "run"),
    Scene("out of memory", begin(2), write_plan, "run", runs_out),
    Scene("feature cache", begin(2, "cache"), write_plan, "run"),
    Scene("import", lambda f: ["import", str(f / "in" / "annotations.json"), str(f / "out")],
          write_coco),
    Scene("export", lambda f: ["export", str(f / "run"), str(f / "out")], copy_run),
    Scene("export --merge", lambda f: ["export", str(f / "run"), str(f / "out"), "--merge"],
          copy_run),
    Scene("convert", lambda f: ["convert", *map(str, sorted((f / "in").iterdir())),
                                str(f / "out"), "--model", "tiny"], write_upstream),
    Scene("evaluate", lambda f: ["evaluate", str(f / "run"), "--data-dir", str(f / "in"), "--out",
                                 str(f / "out")], write_question),
    Scene("synthesise", lambda f: ["synthesise", str(f / "out"), "--train", "3", "--val", "2",
                                   "--test", "1"], lambda folder, shared: None),
]  # fmt: skip


def scene_of(name: str) -> Scene:
    """The scene called `name`; functions cannot be passed between processes."""
    return next(scene for scene in SCENES if scene.name == name)
