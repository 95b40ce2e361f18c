"""lisa-segment: ask a trained model about pictures."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from profiles.command_line import Commands, Version
from profiles.command_options import given, takes, takes_only
from profiles.environment import own_card
from profiles.exits import fail
from profiles.files import made, refused
from profiles.own_files import refuse_others
from profiles.shared_options import TRAINED_HELP, Settings
from profiles.streams import say, set_streams, tell
from profiles.text import one_line, some
from trainer.cli.console import AGAIN, of_the_system, user_errors
from trainer.process import (
    clear_leftover_variables,
    feature_cache,
    import_libraries,
    must_be_alone,
    try_segments,
    use_allocator,
    use_threads,
    work_offline,
)
from trainer.run.folder import LATEST, newest_run

if TYPE_CHECKING:
    from advisor.inference import Fit
    from profiles.plan import Plan
    from trainer.answer.question import Answer, Question
    from trainer.answer.segmenter import Segmenter
    from trainer.answer.trained_model import Trained

app = Commands()
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # what refuses one answer refuses all
OF_SERVER = {"host", "port"}  # options that say where --serve listens


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """The options of `lisa-segment`, in the order of its help."""

    panels: ClassVar[Mapping[str, str]] = {}

    image: Annotated[Path | None, typer.Argument(help="A picture, or a folder of pictures.")] = None
    question: Annotated[
        str | None, typer.Argument(help="A whole sentence, or a phrase with --phrase.")
    ] = None
    questions: Annotated[
        Path | None,
        typer.Option(
            help="File of questions about IMAGE's pictures, one a line: "
            '{"image": "a.jpg", "question": "What is hot?"}; or a CSV.'
        ),
    ] = None
    run: Annotated[Path, typer.Option(help=TRAINED_HELP)] = LATEST
    out: Annotated[Path, typer.Option(help="Folder for masks and overlays.")] = Path(".")
    phrase: Annotated[bool, typer.Option(help="The question is a noun phrase.")] = False
    explain: Annotated[bool, typer.Option(help="Also ask for the reason.")] = False
    serve: Annotated[
        bool, typer.Option("--serve", help="Answer over HTTP instead, until Ctrl-C.")
    ] = False
    host: Annotated[
        str, typer.Option(help="Address for --serve; others than this machine's need a token.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port for --serve.", min=0, max=65535)] = 8763
    settings: Settings = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False
    version: Version = False


@app.command(
    examples=[
        'lisa-segment PICTURE "What would you drink from?" --run RUN',
        "lisa-segment --serve --run RUN",
    ]
)
@takes(SegmentOptions)
def segment(context: typer.Context, options: SegmentOptions) -> None:
    """Answer QUESTION about IMAGE; write the mask and an overlay. Or --serve.

    Exit codes: 0 every answer has a mask, 1 some have none, a picture cannot be read or the card
    is too small, 2 bad usage.
    """
    must_be_alone("lisa-segment")
    work_offline()
    if options.serve:
        return _served(options)
    if other := given(options) & OF_SERVER:
        fail(f"--{min(other)} needs --serve")
    if options.image is None:
        fail("IMAGE is missing\n    hint: lisa-segment --help; a folder with --questions FILE; "
             "--serve gets pictures over HTTP")  # fmt: skip
    with user_errors(), made(options.out):
        rows, fit = _asked(options, options.image)
    if options.as_json:
        say(json.dumps({"memory": fit.forecast.model_dump(mode="json") if fit else None,
                          "answers": rows}, indent=2, ensure_ascii=False))  # fmt: skip
    if not all(row["masks"] for row in rows):
        raise typer.Exit(1)


def _asked(options: SegmentOptions, image: Path) -> tuple[list[dict[str, Any]], Fit | None]:
    """Ask, and write what is answered; the JSON rows, and the forecast of the model."""
    from trainer.answer.output import stems, written_before
    from trainer.answer.questions import ignored_files_line, read_questions, unreadable
    from trainer.answer.trained_model import find_trained

    asked = read_questions(
        image, options.question, options.questions, options.phrase, options.explain
    )
    left = ignored_files_line(image) if options.questions is None and image.is_dir() else None
    if left is not None:
        tell(left)
    trained = find_trained(newest_run(options.run), options.settings or ())
    broken = unreadable(asked)
    for error in broken.values():
        tell(f"left out: {error}")
    named = list(zip(asked, stems(asked, options.out), strict=True))
    before = written_before(options.out, [stem for one, stem in named if one.image not in broken])
    for one in before:
        refuse_others(one, "an answer")
    segmenter, fit = _loaded(trained, [one for one in asked if one.image not in broken])
    if before:  # and only now: without a model none of them would have been
        tell(f"note: replacing the pictures of earlier answers: {some(map(str, before))}; "
             "another folder for --out keeps both")  # fmt: skip
    rows = _answers(segmenter, named, broken, options.as_json)
    if broken:
        count = sum(one.image in broken for one in asked)
        tell(f"{count} of {len(asked)} questions were skipped: their pictures cannot be read")
    return rows, fit


def _served(options: SegmentOptions) -> None:
    """Answer over HTTP until Ctrl-C."""
    takes_only(options, {"run", "serve", "settings", *OF_SERVER},
               "--serve gets pictures and questions over HTTP")  # fmt: skip
    from trainer.answer.trained_model import find_trained
    from trainer.cli.serve import serve

    assignments = options.settings or ()
    with user_errors():
        chosen = newest_run(options.run)
        serve(find_trained(chosen, assignments), chosen, assignments, options.host, options.port)


def _loaded(trained: Trained, asked: list[Question]) -> tuple[Segmenter | None, Fit | None]:
    """The model, loaded for these questions, and its forecast; None without questions."""
    if not asked:
        return None, None
    plan, fit = planned(trained, asked)
    from trainer.answer.segmenter import Segmenter

    return Segmenter(trained, [one.image for one in asked], feature_cache(), plan=plan), fit


def planned(trained: Trained, asked: list[Question]) -> tuple[Plan, Fit | None]:
    """The plan to answer with, forecast for this card. Raises NoRoom, RehearsalFailed."""

    def largest() -> tuple[int, int]:
        from trainer.answer.segmenter import largest_picture, longest_row
        from trainer.model.build import read_tokenizer

        text = longest_row(asked, read_tokenizer(trained.plan), trained.plan.tokens)
        return text, largest_picture(asked, trained.plan)

    return planned_for(trained, largest)


def planned_for(
    trained: Trained, largest: Callable[[], tuple[int, int]]
) -> tuple[Plan, Fit | None]:
    """As `planned`, for questions and pictures of at most these numbers of tokens."""
    import_libraries()
    if trained.plan.device == "cpu":
        use_threads(trained.plan, tell)
        return trained.plan, None
    from advisor.inference import fitting, worst_question
    from advisor.machine.probe import probe
    from trainer.model.build import check_products

    check_products(trained.plan, own_card())
    worst = worst_question(*largest())
    fit = fitting(trained.plan, trained.may_round, worst, probe(), tell)
    tell(fit.line())
    use_allocator(fit.plan)
    try_segments(fit.plan)
    return fit.plan, fit


def _answers(
    segmenter: Segmenter | None, named: list[tuple[Question, Path]], broken: Mapping[Path, str],
    as_json: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """The JSON rows of all questions, each with the stem of its files, in their order."""
    from trainer.answer.output import row_of_unanswered

    places: dict[Path, list[int]] = {}  # of each picture's questions
    for place, (one, _) in enumerate(named):
        places.setdefault(one.image, []).append(place)
    rows: dict[int, dict[str, Any]] = {}
    why = ""
    try:
        # Picture by picture: what its questions share is computed once.
        for picture, its in places.items():
            these = [named[place] for place in its]
            if segmenter is None or picture in broken:
                done = iter([row_of_unanswered(one, broken[picture]) for one, _ in these])
            else:
                done = _answered(segmenter, these, as_json, several=len(named) > 1)
            for place, row in zip(its, done, strict=True):
                rows[place] = row
    except OSError as error:
        if error.errno not in NO_ROOM or len(named) == 1:
            raise
        why = refused(error)
        answered = {place for place, row in rows.items() if "answer" in row}
        others = [stem for place, (_, stem) in enumerate(named) if place not in answered]
        tell(f"error: {of_the_system(error, AGAIN)}\n{_what_is_there(len(named), others)}")
    return [rows.get(place) or row_of_unanswered(one, why) for place, (one, _) in enumerate(named)]


def _what_is_there(count: int, unanswered: list[Path]) -> str:
    """Which of `count` answers are written, and what an earlier one left under others' names."""
    from trainer.answer.output import written_before

    said = f"{count - len(unanswered)} of {count} answers are written, each whole"
    if left := some(map(str, written_before(unanswered[0].parent, unanswered))):
        return f"{said}; of the others only pictures of earlier answers are left: {left}"
    return f"{said}; of the others nothing is"


def _answered(
    segmenter: Segmenter, asked: list[tuple[Question, Path]], as_json: bool, several: bool
) -> Iterator[dict[str, Any]]:
    """Ask about one picture, write and print the answers; their JSON rows.

    An error costs the answer that cannot be written, or the picture's remaining answers.
    Raises OSError where no other could be written either.
    """
    from trainer.answer.output import row_of_unanswered

    most = segmenter.plan.tokens.max_masks
    answers = segmenter.ask_all([question for question, _ in asked], most)
    why = ""
    for question, stem in asked:
        try:
            row = _written(question, next(answers), stem, as_json, several)
        except StopIteration:  # it ended with the error printed before
            row = row_of_unanswered(question, why)
        except (OSError, ValueError) as error:
            if not several or getattr(error, "errno", None) in NO_ROOM:
                raise
            why = refused(error) if isinstance(error, OSError) else str(error)
            tell(f"error: {one_line(question.image)}: {why}")
            row = row_of_unanswered(question, why)
        yield row


def _written(
    question: Question, answer: Answer, stem: Path, as_json: bool, several: bool
) -> dict[str, Any]:
    """Write an answer's pictures and print it; its JSON row."""
    from trainer.answer.output import row_of, write_pictures

    files = write_pictures(question, answer, stem)
    if answer.left_out:
        kept, total = len(answer.masks), len(answer.masks) + answer.left_out
        tell(
            f"{one_line(question.image)}: the answer holds {total} masks, more than training "
            f"used: the first {kept} are kept\n    hint: --set tokens.max_masks={total} "
            "keeps all; a model trained longer gives fewer"
        )
    if not as_json:
        say(one_line(f"{question.image.name}: {answer.text}") if several else answer.text)
        if files:
            share = answer.mask.mean()
            tell(f"{', '.join(map(one_line, files))}: {share:.1%} of the picture, "
                  f"{answer.seconds:.1f} s")  # fmt: skip
        else:
            tell(f"{one_line(question.image)}: the answer has no [SEG], so there is no mask")
    return row_of(question, answer, files)


def main() -> None:
    """Entry point of `lisa-segment`."""
    set_streams()
    clear_leftover_variables()
    app(prog_name="lisa-segment")


if __name__ == "__main__":
    main()
