"""A training from Python: what `lisa-train` does for one process, without its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from profiles.files import held, is_vacant, write_whole
from profiles.plan import Plan
from trainer.answer.evaluate import run_sheet
from trainer.answer.segmenter import SILENT
from trainer.data.contents import Contents
from trainer.data.formats.reasonseg import read_split
from trainer.data.mixture import read_training
from trainer.process import feature_cache, use_allocator
from trainer.reporter import Reporter
from trainer.run.data_digests import digests
from trainer.run.folder import OVERLAY
from trainer.run.run import Run
from trainer.run.started import Started


def train(
    plan: Plan, data: Path, folder: Path, cache: Path | None = None, reporter: Reporter = SILENT
) -> dict[str, Any]:
    """Train in this process, in a new run folder; returns the summary, as summary.json has it.

    The folder is a run folder like `lisa-train`'s: `lisa-train --resume` continues it, and every
    command that takes a run takes it. A plan of several processes needs a launcher, with this call
    in each process. Raises FileExistsError for a folder that is not empty, DataError, and whatever
    ends a training, out-of-memory errors included: nothing here tries a smaller plan.
    """
    use_allocator(plan)
    if folder.exists() and not is_vacant(folder):
        raise FileExistsError(f"{folder} is not empty, and runs are not mixed")
    cache = cache or feature_cache()
    items, val = read_training(data, plan), read_split(data, "val", plan.max_val_samples)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        known = digests(items, val, (), Contents(data, cache, reporter.progress))
        write_whole(folder / "plan.json", plan.to_json())
        Started(data, cache, known).write(folder)
        run = Run(plan, items, val, folder, cache, reporter)
        summary = run.train()
        run_sheet(run, folder / OVERLAY, count=6)
    return summary
