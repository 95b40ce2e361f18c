"""Names that no shell, file system or record takes gladly: refused at the start, or they work."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Machine
from advisor.request import Request, command_of
from profiles.text import argument
from tests.conftest import PHOTOS, ROOT
from tests.trainer.answer.test_results import make_run
from trainer.answer.output import stems, write_pictures
from trainer.answer.question import Answer, Question
from trainer.answer.questions import read_questions
from trainer.cli import segment as segment_cli
from trainer.cli import train as cli
from trainer.cli.console import next_steps
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import read_split
from trainer.data.synthetic.dataset import write_dataset
from trainer.run.started import Keeping, Started

ODD = ["-run x", "a'b", "$x", "two\nlines", "--help", "*", "y[/a]", "桌子"]
FEW = ["--set", "tokens.max_new_tokens=2"]
NOT_TEXT = os.fsdecode(b"b\xff")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, seed=0, train=2, val=1, test=0, kinds=("negation",))
    return root


def typed(command: str, **words: str) -> Result:
    """What a command line does that a user copies from the screen."""
    program, *arguments = shlex.split(command)
    arguments = [words.get(one, one) for one in arguments]
    if program == "lisa-segment":
        return CliRunner().invoke(segment_cli.app, [*arguments, *FEW])
    assert program == "lisa-train"
    return CliRunner().invoke(cli.app, arguments)


@pytest.mark.parametrize("name", ODD)
def test_next_commands_work_for_a_run_of_any_name(
    name: str, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, name)
    Started(data, tmp_path, {}).write(Path(name))
    evaluate, segment = next_steps(Path(name))[len("next: ") :].split(", or ")
    picture = str(next(PHOTOS.rglob("*.jpg")))
    done = typed(segment, PICTURE=picture)
    assert done.exit_code in (0, 1), done.output
    if name == ODD[0]:  # the slow one; what all have in common is how they are written
        done = typed(evaluate)
        assert done.exit_code == 0, done.output
        assert Path(name, "evaluation-val", "scores.json").is_file()


@pytest.mark.parametrize("name", ODD)
def test_a_run_of_any_name_is_gone_on_with(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    Started(data, tmp_path, {}, Keeping()).write(folder)
    refused = CliRunner().invoke(cli.app, [f"--output-dir={name}", "--data-dir", str(data)])
    again = re.search(r"or (lisa-train --resume .*) continues the run", refused.output, re.DOTALL)
    assert refused.exit_code == 2 and again, refused.output
    ends = {"before": {}, "after": {}, "epochs": 1, "steps": 1}
    (folder / "summary.json").write_text(json.dumps(ends))
    (folder / "overlay.png").touch()
    done = typed(again[1])
    assert done.exit_code == 0 and "this run is complete" in done.output, done.output
    other = re.search(r"hint: (--output-dir .*); or lisa-train", refused.output, re.DOTALL)
    assert other and shlex.split(other[1])[1].removeprefix("./") == f"{name}-2"


@pytest.mark.parametrize("name", ODD)
def test_an_advised_command_names_data_of_any_name(name: str) -> None:
    asked = Request(
        Machine.model_construct(), None, (), Evidence.shipped(), None, Path(name), None, None
    )
    words = shlex.split(command_of(asked, "tiny"))
    assert words[words.index("--data-dir") + 1].removeprefix("./") == name
    assert not words[words.index("--data-dir") + 1].startswith("-")


def commands(tree: ast.AST) -> Iterator[str]:
    """What is put into command lines that are printed."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        before = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                before += str(part.value)
            elif isinstance(part, ast.FormattedValue):
                called = r"(lisa-(train|advise|segment)|hf upload)( [^;,:\n]*)? $"
                option = r"--(data-dir|output-dir|cache-dir|run|resume|plan|weights|out)[ =]$"
                if re.search(called, before) or re.search(option, before):
                    yield ast.unparse(part.value)
                before += "X"


def test_every_printed_command_quotes_what_it_names() -> None:
    # Of this project's own, or quoted where they are put together.
    own = {"model", "plan.model", "options", "rest", "needed", "request.target.options", "longest",
           "self.name", "' '.join(self.sources)", "program", "command",
           "left", "option", "vram_option(limit)"}  # the last three: sizes  # fmt: skip
    quoted_before = {("request.py", "folder"), ("console.py", "folder")}
    found = {
        (path.name, value)
        for package in ("advisor", "profiles", "trainer")
        for path in (ROOT / package).rglob("*.py")
        for value in commands(ast.parse(path.read_text()))
    }
    bare = {one for one in found - quoted_before if not one[1].startswith("argument(")}
    assert {value for _, value in bare} <= own, bare
    assert ("start.py", "argument(folder)") in found


@pytest.mark.parametrize("name", ODD)
def test_an_argument_is_one_word_and_no_option(name: str) -> None:
    (word,) = shlex.split(argument(Path(name)))
    assert Path(word) == Path(name) and not word.startswith("-")


def with_odd_name(root: Path) -> None:
    """Rename a training picture and its annotation to what is no text."""
    first = min((root / "ReasonSeg" / "val").glob("*.json"))
    try:
        for path in (first, first.with_suffix(".jpg")):
            path.rename(path.with_stem(NOT_TEXT))
    except OSError:
        pytest.skip("this file system takes text only")


def test_a_name_that_is_no_text_is_found_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path, seed=0, train=2, val=2, test=0, kinds=("negation",))
    with_odd_name(tmp_path)
    with pytest.raises(DataError, match=r"b\\udcff: name: got .*; allowed: text in UTF-8"):
        read_split(tmp_path, "val")
    asked = ["--check-data", str(tmp_path)]
    checked = CliRunner().invoke(cli.app, asked)
    assert checked.exit_code == 2 and "b\\udcff: name: got" in checked.output
    monkeypatch.chdir(tmp_path)
    left = CliRunner().invoke(cli.app, [*asked, "--skip-broken", "1"])
    assert left.exit_code == 0 and "val: 1 item on 1 picture" in left.output


@pytest.mark.parametrize("option", ["--data-dir", "--output-dir", "--cache-dir", "--weights"])
def test_a_folder_that_is_no_text_is_refused_at_the_start(
    option: str, data: Path, tmp_path: Path
) -> None:
    given = {"--data-dir": str(data), "--output-dir": str(tmp_path / "run")}
    given[option] = str(tmp_path / NOT_TEXT)
    done = CliRunner().invoke(cli.app, [word for pair in given.items() for word in pair])
    assert done.exit_code == 2 and f"{option}: got {tmp_path}/b\\udcff; allowed" in done.output
    assert not (tmp_path / "run").exists()


LONG = ["x" * 246, "x" * 240 + "y" * 6, "桌" * 80 + "ab"]


def test_answers_about_long_names_are_written_and_known_again(tmp_path: Path) -> None:
    for number, name in enumerate([*LONG, "short"]):
        Image.new("RGB", (20, 10 + number)).save(tmp_path / f"{name}.png")
    asked = read_questions(tmp_path, "where?", None, False, False)
    assert len(asked) == 4
    named = stems(asked * 2, tmp_path)
    assert len(set(named)) == 8 and tmp_path / "short" in named
    for question, stem in zip(asked * 2, named, strict=True):
        height = Image.open(question.image).size[1]
        answer = Answer("[SEG]", np.ones((2, height, 20), bool), 0.1)
        assert all(path.is_file() for path in write_pictures(question, answer, stem))
    again = read_questions(tmp_path, "where?", None, False, False)
    assert [one.image for one in again] == [one.image for one in asked]


def test_an_answer_that_cannot_be_written_loses_no_other(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        shutil.copy(next(PHOTOS.rglob("*.jpg")), tmp_path / f"{name}.jpg")

    def full(question: Question, answer: Answer, stem: Path) -> list[Path]:
        if question.image.name == "b.jpg":
            raise OSError(13, "Permission denied", str(stem))  # a full disk ends the command
        return write_pictures(question, answer, stem)

    monkeypatch.setattr("trainer.answer.output.write_pictures", full)
    arguments = [str(tmp_path), "where?", "--run", str(run), "--out", str(tmp_path / "out"), *FEW]
    done = CliRunner().invoke(segment_cli.app, [*arguments, "--json"])
    assert done.exit_code == 1, done.output
    rows = json.loads(done.stdout)["answers"]
    assert [Path(row["image"]).name for row in rows] == ["a.jpg", "b.jpg", "c.jpg"]
    assert "permission denied" in rows[1]["error"] and "b.jpg: " in done.stderr
    assert all("error" not in row for row in (rows[0], rows[2]))
