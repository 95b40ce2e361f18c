"""An answer is never lost to the encoding of a terminal: JSON is UTF-8, text writes ? instead."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from advisor.cli.main import main as advise
from benchmarks.forked import run as forked
from tests.conftest import PHOTOS
from tests.trainer.answer.test_results import make_run
from trainer.cli.segment import main as segment
from trainer.cli.train import main as train
from trainer.data.synthetic.dataset import write_dataset

ENCODINGS = (
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)
NAME = "桌子 ä"
MAIN = {"advisor.cli": advise, "trainer.cli": train, "trainer.cli.segment": segment}


def called(
    folder: Path, module: str, *arguments: object, **environment: str
) -> tuple[int, str, str]:
    """Exit code, stdout read as strict UTF-8, and stderr.

    Forked off this process, which has imported torch, where the environment says no more than how
    the streams are encoded. A locale needs a Python of its own.
    """
    told = environment.get("PYTHONIOENCODING", "" if environment else "utf-8")
    if told:
        return forked_off(folder, module, *map(str, arguments), encoding=told.partition(":")[0])
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONUTF8", "LC_ALL")}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        env=kept | environment | {"OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("latin1")


def forked_off(folder: Path, module: str, *arguments: str, encoding: str) -> tuple[int, str, str]:
    """What `called` promises, with strict streams of an encoding."""
    out, err = folder / "stdout", folder / "stderr"
    for file in (out, err):
        file.unlink(missing_ok=True)

    def work() -> None:
        os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding=encoding, errors="strict")  # type: ignore[union-attr]
        sys.argv = [module, *arguments]
        MAIN[module]()

    code = forked(work, out)
    return code, out.read_bytes().decode("utf-8", "replace"), err.read_bytes().decode("latin1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("environment", ENCODINGS)
def test_answers_come_in_utf8(tmp_path: Path, run: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    shutil.copy(next(PHOTOS.rglob("*.jpg")), folder / f"{NAME}.jpg")
    where = ("--run", run, "--out", tmp_path / "out", "--set", "tokens.max_new_tokens=2")
    asked = (folder, "Wo ist der Stuhl für die Tür, 桌子?", *where)
    code, out, err = called(tmp_path, "trainer.cli.segment", *asked, "--json", **environment)
    assert code in (0, 1) and "Traceback" not in err, err
    row = json.loads(out)["answers"][0]
    assert row["image"] == str(folder / f"{NAME}.jpg") and "für die Tür, 桌子" in row["question"]


@pytest.mark.parametrize("environment", ENCODINGS)
def test_commands_print_names_that_have_no_letter(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    data = tmp_path / NAME
    write_dataset(data, seed=0, train=2, val=1, test=0, kinds=("negation",))
    out = tmp_path / "vorschau 桌.png"
    for module, arguments in (
        ("trainer.cli", ("preview", data, "--out", out, "--count", 2)),
        ("trainer.cli", ("--check-data", data)),
        ("trainer.cli", ("--check-data", data / "nirgends 桌")),  # the error is text too
        ("advisor.cli", ("--vram", "8GiB", "--save", data / "plan.json")),
        ("advisor.cli", ("--vram", "8GiB", "--json")),
        ("advisor.cli", ("table",)),
    ):
        code, said, err = called(tmp_path, module, *arguments, **environment)
        assert code == (2 if "nirgends" in str(arguments) else 0), err
        assert "Traceback" not in err
        if "--json" in arguments:
            json.loads(said)
    assert Image.open(out).size[0] > 0


def test_a_name_that_is_no_text_does_not_break_the_json(tmp_path: Path, run: Path) -> None:
    picture = os.fsencode(tmp_path) + b"/b\xff.jpg"
    try:
        shutil.copy(next(PHOTOS.rglob("*.jpg")), os.fsdecode(picture))
    except OSError:
        pytest.skip("this file system takes text only")
    where = ("--run", run, "--out", tmp_path / "out", "--set", "tokens.max_new_tokens=2")
    code, out, err = called(tmp_path, "trainer.cli.segment", tmp_path, "Where?", *where, "--json")
    assert code in (0, 1) and "Traceback" not in err, err
    assert json.loads(out)["answers"][0]["image"] == os.fsdecode(picture)
