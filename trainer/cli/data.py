"""lisa-train's commands about data: synthesise, import, preview, and the check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from profiles.exits import EXIT_USAGE, fail
from profiles.files import refused
from profiles.shared_options import COUNT, SHARE, SOME, SkipBroken, Text
from profiles.streams import say, tell
from profiles.text import counted
from trainer.cli.console import LineProgress, sigterm_as_ctrl_c, user_errors


def synthesise(
    folder: Annotated[Path, typer.Argument(help="Folder to write ReasonSeg/ into.")],
    train_: Annotated[int, typer.Option("--train", help="Training questions.", **SOME)] = 640,
    val: Annotated[int, typer.Option(help="Validation questions.", **SOME)] = 120,
    test: Annotated[int, typer.Option(help="Test questions.", **COUNT)] = 120,
    kind: Annotated[
        list[str] | None, typer.Option(help="Question kind; repeatable. Default: negation.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of scenes and questions.")] = 0,
) -> None:
    """Write a synthetic data set in ReasonSeg's format."""
    from trainer.data.synthetic.dataset import write_dataset

    with user_errors():
        kinds = tuple(kind or ["negation"])  # one that lisa-tiny has never seen
        where = write_dataset(folder, seed=seed, train=train_, val=val, test=test, kinds=kinds)
    say(f"{train_} + {val} + {test} questions ({', '.join(kinds)}) in {where}")


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="Folder of LabelMe or YOLO; JSON of COCO, Label Studio or Sa2VA."
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    questions: Annotated[
        Path | None,
        typer.Option(help="CSV or JSON lines, with picture (or image), label and question."),
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder of the pictures.")] = None,
    val: Annotated[
        float, typer.Option(help="Share of pictures to validate on, if SRC has no split.", **SHARE)
    ] = 0.1,
    test: Annotated[
        float, typer.Option(help="Share of pictures to set aside for a test.", **SHARE)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    skip_broken: SkipBroken = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of files that are not UTF-8, such as gbk.")
    ] = None,
    frame: Annotated[
        str | None, typer.Option(help="Frame of outlines on rotated pictures: stored or upright.")
    ] = None,
    iscrowd: Annotated[
        str | None, typer.Option(help="What iscrowd 1 means in a COCO file: object or crowd.")
    ] = None,
) -> None:
    """Turn annotations of LabelMe, COCO, YOLO, Label Studio or Sa2VA into ReasonSeg data in DST."""
    from profiles.skipping import read_most
    from trainer.data import broken
    from trainer.data.importing.importer import import_annotations

    with user_errors(), sigterm_as_ctrl_c():
        done = import_annotations(
            source, target, questions=questions, pictures=pictures, val=val, test=test, seed=seed,
            skip_broken=read_most(skip_broken), encoding=encoding, frame=frame,
            iscrowd=iscrowd, progress=LineProgress(patience=2, pause=2),
        )  # fmt: skip
    items = ", ".join(f"{split} {count}" for split, count in done.items.items())
    whole = counted(done.pictures, "picture")
    without = counted(done.left_out, "picture")
    say(f"{target}: {items} items on {whole}; {without} without an item")
    for what in (*done.by_name, *done.assumed):
        say(f"note: {what}")
    if done.broken:
        say(broken.left_out_line(done.broken, target / broken.LIST))


def preview(
    data: Annotated[Path, typer.Argument(help="Folder with ReasonSeg data.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Items to show.")] = 12,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("preview.png"),
    seed: Annotated[int, typer.Option(min=0, help="Seed that chooses the items.")] = 0,
    skip_broken: SkipBroken = None,
) -> None:
    """Draw some items of a data set: pictures, questions, targets and ignored regions."""
    from profiles.skipping import read_most
    from trainer.data.broken import SkippedEntries
    from trainer.data.preview import write_preview

    with user_errors():
        leave = SkippedEntries(read_most(skip_broken))
        lines = write_preview(data, split, count, seed, out, leave)
    for one in leave.left_out:
        tell(f"left out: {one}")
    say("\n".join([*lines, f"{out}: target blue, ignored violet"]))


def _in_words(counts: Mapping[str, Any]) -> str:
    """What a split holds."""
    least, most = ("{} x {}".format(*counts[name]) for name in ("smallest_image", "largest_image"))
    pictures = counted(counts["pictures"], "picture")
    pictures += f" of {least}" if least == most else f" of {least} to {most}"
    words = [
        f"{counted(counts['items'], 'item')} on {pictures}",
        f"{counted(counts['texts'], 'text')}, whole sentences for "
        f"{counted(counts['sentences'], 'item')}",
    ]
    if counts["explanations"]:
        words.append(counted(counts["explanations"], "explanation"))
    if counts["empty_masks"]:
        words.append(counted(counts["empty_masks"], "empty mask"))
    return "; ".join(words)


def check_data_folder(folder: Path, skip_broken: Text = None) -> int:
    from profiles.skipping import read_most
    from trainer.data import broken
    from trainer.data.findings import grouped
    from trainer.data.mixture import check, nothing_left

    with user_errors():
        most = read_most(skip_broken)
        counts_of, others, findings = check(folder, LineProgress(patience=10))
    if not broken.may_be_left_out(findings, most):
        for finding in grouped(findings):
            tell(f"  - {finding}")
        tell(f"{counted(len(findings), 'finding')} in {folder}")
        for line in broken.hint(findings, most, nothing_left(counts_of)):
            tell(line)
        return EXIT_USAGE
    if rest := nothing_left(counts_of):
        fail(f"{folder}: {rest}\n    hint: fix some")
    for split, counts in counts_of.items():
        say(f"{split}: {_in_words(counts)}")
    for data_set in others:
        masks = sum(1 for picture in data_set.pictures for _ in picture.all_masks())
        left_out = f", left out {data_set.left_out} without a picture" if data_set.left_out else ""
        pictures = counted(len(data_set.pictures), "picture")
        say(f"{data_set.name}: {pictures}, {counted(masks, 'mask')}{left_out}")
    if findings:
        listed = Path(broken.LIST)  # here: a folder of data may be another's
        try:
            broken.write_list(listed, findings)
        except OSError as error:
            say(f"{folder}: {broken.left_out_line(findings)}")
            tell(f"note: {refused(error)}\n    hint: without --skip-broken they are shown")
        else:
            say(f"{folder}: {broken.left_out_line(findings, listed)}")
    else:
        say(f"{folder}: no findings")
    for split, counts in counts_of.items():
        if isinstance(both := counts.get("in_train"), int):
            shared = counted(both, "picture")
            tell(f"note: {split} and train share {shared}: the scores will not say what to expect\n"
                 "    hint: move their items into one of the two")  # fmt: skip
    missing = [split for split in ("train", "val") if split not in counts_of]
    if missing:
        tell(f"note: no {' and no '.join(missing)} split; a training needs both train and val")
    return 0
