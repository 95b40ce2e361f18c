"""What comes from elsewhere is shown as text: no order to a terminal, no line of its own."""

from __future__ import annotations

import ast
import io
import json
import os
import pty
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from advisor.cli.main import main as advise
from advisor.report.text import PlainConsole
from benchmarks.forked import end, fork
from profiles.plan import Plan
from profiles.streams import say, tell
from profiles.tested import shipped_table
from profiles.text import printable
from tests.conftest import ROOT
from tests.fuzz.surfaces import FACTS
from tests.trainer.answer.test_results import make_run
from trainer.answer.trained_model import find_trained
from trainer.cli.console import reporter
from trainer.cli.segment import main as segment
from trainer.cli.train import main as train
from trainer.convert.export import card, export_trained, facts_of
from trainer.data.synthetic.dataset import write_dataset
from trainer.run.checkpoint_files import altered

# Sets a title, fills the clipboard, moves up, in C1's spelling too; turns the direction of writing.
ORDERS = "\x1b]0;owned\x07\x1b]52;c;aGk=\x07\x1b[1A\x9b2J\u202e\u2066"
FORGED = "FORGED: all is well"
PLANTED = f"a{ORDERS}\n{FORGED}\r[/a][red]"
COMMAND = {"train": train, "advise": advise, "segment": segment}


def on_a_terminal(command: str, *arguments: object, cwd: Path, **environment: str) -> str:
    """All that a command shows on a terminal, rich's colours left out."""
    ours, theirs = pty.openpty()

    def on_it() -> None:
        os.chdir(cwd)
        sys.argv = [f"lisa-{command}", *map(str, arguments)]
        COMMAND[command]()

    place = Path(os.ttyname(theirs))
    child = fork(on_it, place, {"COLUMNS": "200", "TERM": "xterm"} | environment)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so at the end
            break
        if not part:
            break
        said += part
    end(child)
    os.close(ours)
    # A terminal's own carriage returns, and what rich does with colours, cursor and lines.
    text = said.decode().replace("\r\n", "\n")
    return re.sub("\x1b\\[(?:[0-9;]*m|\\?25[hl]|2K|1A)|\r(?=\x1b|$)", "", text)


def must_be_harmless(said: str) -> None:
    """Nothing planted has become an order, or a line of its own."""
    bad = re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", said)
    assert not bad, (bad, said)
    assert not re.search(rf"^{FORGED}", said, re.MULTILINE), said
    assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose names and questions are planted, and one that is broken as well."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, seed=0, train=2, val=1, test=0, kinds=("negation",))
    folder = root / "ReasonSeg" / "train"
    first = min(folder.glob("*.json"))
    notes = json.loads(first.read_text())
    planted = folder / PLANTED.replace("/", "")
    first.with_suffix(".jpg").rename(f"{planted}.jpg")
    first.unlink()
    Path(f"{planted}.json").write_text(json.dumps(notes | {"text": [PLANTED]}))
    return root


def test_a_preview_lists_questions_in_a_line_each(data: Path, tmp_path: Path) -> None:
    said = on_a_terminal("train", "preview", data, cwd=tmp_path)
    assert FORGED in said
    must_be_harmless(said)


def test_the_check_of_data_names_a_planted_file(data: Path, tmp_path: Path) -> None:
    broken = data / "ReasonSeg" / "val" / (PLANTED.replace("/", "") + ".jpg")
    broken.write_text(PLANTED)
    try:
        for leave in ([], ["--skip-broken", "all"]):
            said = on_a_terminal("train", "--check-data", data, *leave, cwd=tmp_path)
            assert (FORGED in said) == (not leave)
            must_be_harmless(said)
        assert len((tmp_path / "skipped.txt").read_text().splitlines()) == 3
    finally:
        broken.unlink()


def test_an_import_names_what_a_tool_wrote(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    shape = {"label": PLANTED, "shape_type": PLANTED, "points": [[1, 2], [3, PLANTED]]}
    notes = {"imagePath": PLANTED, "shapes": [shape]}
    place = tmp_path / "labels" / (PLANTED.replace("/", "") + ".json")
    place.write_text(json.dumps(notes))
    said = on_a_terminal("train", "import", "labels", "out", cwd=tmp_path)
    assert FORGED in said
    must_be_harmless(said)


def test_answers_name_pictures_in_a_line_each(data: Path, run: Path, tmp_path: Path) -> None:
    pictures = data / "ReasonSeg" / "train"
    asked = ("segment", pictures, "where?", "--run", run, "--set", "tokens.max_new_tokens=2")
    said = on_a_terminal(*asked, cwd=tmp_path)
    assert FORGED in said
    must_be_harmless(said)


def test_a_table_with_planted_rows_is_listed_as_text(tmp_path: Path) -> None:
    row = json.loads(shipped_table().rows[0].model_dump_json())
    odd = {"source": "user", "id": "mine [/a]", "title": "[red]x[/a]"}
    rows = [row | odd | {"versions": {PLANTED: PLANTED}},
            row | {"id": PLANTED}, row | {"title": PLANTED}]  # fmt: skip
    home = tmp_path / "lisa-preflight"
    home.mkdir()
    (home / "tested.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for arguments in (["table"], ["table", "--json"], ["table", "--model", PLANTED]):
        said = on_a_terminal("advise", *arguments, cwd=tmp_path, XDG_DATA_HOME=str(tmp_path))
        assert ("[red]x[/a]" in said) == (len(arguments) < 3)
        assert said.count("skipped a damaged row") == 2 * (len(arguments) < 3)
        must_be_harmless(said)


def test_markup_and_orders_are_text_to_every_console() -> None:
    shown = io.StringIO()
    table = Table(title=PLANTED)
    table.add_column(PLANTED)
    table.add_row(PLANTED)
    table.add_row(Text(PLANTED))
    PlainConsole(file=shown, width=400).print(PLANTED, table, ":smile:")
    said = shown.getvalue()
    assert said.count("[/a][red]") == 5 and ":smile:" in said
    must_be_harmless(said.replace(f"\n{FORGED}", "").replace(FORGED, ""))  # a cell may have lines


def test_progress_on_a_terminal_shows_names_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown, name = Terminal(), "y[/a]\x1b]0;owned\x07\x9b2J"
    monkeypatch.setattr(sys, "stderr", shown)
    with reporter() as speaker:
        speaker.line(name)
        speaker.progress(name, 1, 2)
    said = re.sub("\x1b\\[(?:[0-9;]*m|\\?25[hl]|2K|1A)|\r", "", shown.getvalue())
    assert said.count("y[/a]\\u001b]0;owned\\u0007") >= 2
    must_be_harmless(said)


def test_what_is_said_is_text_and_json_stays_what_it_says(capsys: pytest.CaptureFixture) -> None:
    say(PLANTED)
    tell(PLANTED)
    captured = capsys.readouterr()
    for said in captured:
        must_be_harmless(said.replace(f"\n{FORGED}", ""))
    say(json.dumps([PLANTED, "\U000e0041", "桌子"], ensure_ascii=False))
    said = capsys.readouterr().out
    assert json.loads(said) == [PLANTED, "\U000e0041", "桌子"] and "桌子" in said
    must_be_harmless(said)


@pytest.mark.parametrize("text", ["桌子 ä", "می‌خواهم", "👩‍🚀", "a\tb\nc", "résumé", ""])
def test_what_people_write_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


def writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines where something is written to a terminal, other than through `say` and `tell`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("print", "input", "Console", "rich.print") or re.fullmatch(
                r"(typer|click)\.(echo|secho|echo_via_pager|prompt|confirm)"
                r"|sys\.(stdout|stderr|__stdout__|__stderr__)(\.buffer)?\.write(lines)?"
                r"|os\.write|.*from_markup|.*[cC]onsole\.(log|out|input|rule)|warnings\.warn",
                called,
            ):
                yield node.lineno, ast.unparse(node)


# One JSON document for the process that asked, a row of the table, and what `say` is made of.
ALLOWED = {
    ("profiles/streams.py", "print(printable(text), flush=True)"),
    ("profiles/streams.py", "print(printable(text), file=sys.stderr, flush=True)"),
    ("profiles/tested.py", "os.write(handle, lines)"),
    ("trainer/data/importing/item_files.py", "os.write(file, content)"),  # an item's file
    ("trainer/rehearse/__main__.py", "print(measurement.model_dump_json(), file=out, flush=True)"),
    ("trainer/rehearse/selftest.py", "print(json.dumps(facts(sys.argv[1])), file=out, flush=True)"),
    ("trainer/cli/console.py", "Console(stderr=True)"),  # of `reporter`, which is given plain text
}


def test_nothing_is_written_beside_the_seam() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), call)
        for package in ("advisor", "profiles", "trainer")
        for path in (ROOT / package).rglob("*.py")
        for _, call in writes(ast.parse(path.read_text()))
    }
    assert found == ALLOWED
    for wrong in ("print(x)", "typer.echo(x)", "sys.stderr.write(x)", "Console().print(x)"):
        assert list(writes(ast.parse(wrong)))


HOSTILE = (
    "x\n---\nlicense: evil\n---\n<img src=x onerror=alert(1)> [a](http://e.vil) www.e.vil `b` a|b"
)


def test_a_card_shows_records_as_text(tmp_path: Path) -> None:
    planted = {
        "hardware": HOSTILE,
        "base": HOSTILE,
        "versions": {HOSTILE: HOSTILE, "torch": "2.1.0"},
    }
    (tmp_path / "facts.json").write_text(json.dumps(FACTS | planted))
    text = card(Plan(), facts_of(tmp_path), merged=False)
    assert "| after | 0.500" in text and "torch 2.1.0" in text  # the rest is told
    assert text.count("\n---\n") == 1 and "\nlicense" not in text
    shown = re.sub(r"\\[!-/:-@\[-`{-~]", "", text.partition("## Training")[2])
    assert not re.search(r"[<>\[\]|]|https?:|www\.", shown), shown


def test_figures_of_an_altered_record_are_left_out(run: Path, tmp_path: Path) -> None:
    where = tmp_path / "run"
    where.mkdir()
    for path in (run / "best").iterdir():
        (where / path.name).write_bytes(path.read_bytes())
    assert facts_of(where)["hardware"] == "a test"
    facts = json.loads((where / "facts.json").read_text())
    (where / "facts.json").write_text(json.dumps(facts | {"hardware": "a better card"}))
    assert altered(where, {"facts.json"})
    export_trained(find_trained(where), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "better" not in text and "0.500" not in text and "No figures" in text
