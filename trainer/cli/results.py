"""lisa-train evaluate and export: scores of a trained model, and its files for other tools."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.files import made
from profiles.shared_options import TRAINED_HELP, Settings, SkipBroken
from profiles.sizes import MIB
from profiles.streams import say, tell
from profiles.text import one_line
from trainer.cli.console import reporter, sigterm_as_ctrl_c, user_errors
from trainer.cli.segment import planned
from trainer.process import feature_cache, import_libraries, work_offline
from trainer.run.folder import newest_run

if TYPE_CHECKING:
    from trainer.answer.trained_model import Trained
    from trainer.data.formats.reasonseg import Item

Run = Annotated[Path, typer.Argument(help=TRAINED_HELP)]


def evaluate(
    run: Run,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with ReasonSeg data. Default: the run's own.")
    ] = None,
    split: Annotated[str, typer.Option(help="val, test or train.")] = "val",
    generate: Annotated[
        bool, typer.Option(help="Let the model write its answer, instead of giving it [SEG].")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the scores. Default: evaluation-SPLIT in the run's folder, "
            "evaluation-SPLIT-on-NAME for other data than its own."
        ),
    ] = None,
    settings: Settings = None,
    skip_broken: SkipBroken = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Score a model on a split: gIoU and cIoU with 95 % intervals, worst and best pictures."""
    with user_errors():
        from profiles.skipping import read_most
        from trainer.answer.trained_model import find_trained
        from trainer.data.broken import SkippedEntries
        from trainer.data.formats.reasonseg import read_split

        run, most = newest_run(run), read_most(skip_broken)
        if data_dir is None:
            data_dir, its_most = _own_data(run)
            most = its_most if skip_broken is None else most
        leave = SkippedEntries(most)
        items = read_split(data_dir, split, None, leave)
        for one in leave.left_out:
            tell(f"left out: {one}")
        if split != "train":
            _note_trained_on(run, data_dir, items)
        how = "generated" if generate else "teacher-forced"
        facts = {"split": split, "answers": how, "data": str(data_dir), "model": str(run)}
        trained = find_trained(run, settings or ())
        summary, lines, target = _scored(trained, items, run, data_dir, out, generate, facts)
    if as_json:
        say(json.dumps(facts | summary, indent=2))
        return
    say("\n".join([f"{run} on {split} of {one_line(data_dir)}, {how}", *lines]))
    say(f"scores of every question in {target}, the worst and best in {target / 'extremes.png'}")


def _scored(
    trained: Trained, items: list[Item], run: Path, data: Path, out: Path | None, generate: bool,
    facts: dict[str, str],
) -> tuple[dict[str, Any], list[str], Path]:  # fmt: skip
    """Score a model on items and write the scores; their summary, its lines, and the folder."""
    from trainer.answer.questions import question_of, questions_of

    asked = [one for _, one in questions_of(items)] if generate else map(question_of, items)
    plan, _ = planned(trained, [*asked])
    from trainer.answer.evaluate import generated, lines, teacher_forced, write
    from trainer.answer.scored import refuse_others_figures, replaced, scores_folder
    from trainer.answer.segmenter import Segmenter

    base = run if (run / "best").is_dir() else Path()
    target = out or scores_folder(base, run, data, facts["split"], generated=generate)
    with made(target):  # fails before the work, not after it
        refuse_others_figures(target)
        for other in replaced(target, data, run):
            tell(f"note: {target} holds figures of {one_line(other)}, which are replaced; "
                 "--out FOLDER keeps both")  # fmt: skip
        pictures = [item.image_path for item in items]
        with reporter() as display:
            segmenter = Segmenter(trained, pictures, feature_cache(), display, plan)
            found = (generated if generate else teacher_forced)(segmenter, items, display)
            summary = found.summary()
            try:
                write(found, segmenter, target, facts)
            except OSError:  # the work is done: its result is said at least
                tell("\n".join([f"not all is written to {target}:", *lines(summary)]))
                raise
    return summary, lines(summary), target


def _note_trained_on(model: Path, data: Path, items: list[Item]) -> None:
    """Say if a run has learnt from what it is scored on, as after a second import with --test."""
    from trainer.answer.scored import run_of
    from trainer.data.contents import Contents
    from trainer.run.data_digests import trained_on
    from trainer.run.started import CannotResume, Started

    run = run_of(model)
    if run is None:  # an export has no list of its pictures
        return
    with suppress(CannotResume):
        shown = set(Contents(data, feature_cache()).of([one.image_path for one in items]).values())
        if known := trained_on(Started.read(run).digests, shown):
            of = f"{known} of these {len(shown)} pictures"
            hint = "lisa-train import --test 0.1 sets pictures aside before a training"
            tell(f"note: {run} was trained on {of}: the scores do not say what to expect\n"
                 f"    hint: {hint}")  # fmt: skip


def _own_data(run: Path) -> tuple[Path, int]:
    """The data that a run, or the run of a checkpoint, was trained on, and how many of its entries
    may be left out. Raises ValueError."""
    from trainer.answer.scored import run_of
    from trainer.run.folder import RECORD
    from trainer.run.started import Started

    known = run_of(run)
    if known is None:
        if not run.exists():
            raise ValueError(f"{run}: there is no such run")
        what = f"has no {RECORD}, which would name the data to score"
        raise ValueError(f"{run}: {what}\n    hint: --data-dir DIR names it")
    started = Started.read(known)
    tell(f"scoring on the run's own data, {one_line(started.data)}")
    return started.data, started.skip_broken


def export(
    run: Run,
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    merge: Annotated[
        bool, typer.Option(help="Write the whole model, merged and unquantised.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="Also upload DST to this hub repository.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Write the trained parts (or, with --merge, the whole model) and a model card to DST."""
    if push is None:
        work_offline()
    with user_errors(), sigterm_as_ctrl_c():
        from trainer.answer.trained_model import find_trained

        trained = find_trained(newest_run(run), settings or ())
        import_libraries()
        from trainer.convert.export import export_merged, export_trained, upload

        write = export_merged if merge else export_trained
        size = write(trained, target)
        say(f"{target}: {size / MIB:.1f} MiB, card in {target / 'README.md'}")
        if push is not None:
            say(upload(target, push, tell))
