"""What a user installs: the wheel, in an environment of its own, run from an empty folder."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.test_docs import script

ROOT = Path(__file__).parents[1]
IGNORED = {"__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache"}
PACKAGES = ("advisor", "profiles", "studio", "trainer")
WHERE = "import importlib.util as u; print(u.find_spec('trainer').origin)"
IN_TURN = """
import glob, json, runpy, sys
for script, *arguments in json.loads(sys.argv[1]):
    picture = next(iter(glob.glob("data/ReasonSeg/val/*.jpg")), "")
    sys.argv = [script, *(picture if word == "PICTURE" else word for word in arguments)]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            sys.exit(f"{sys.argv} ended with {end.code}")
"""


def ended(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command run in `folder`, with none of the checkout's surroundings."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_DATA_HOME": str(folder / "data-home")}
    return subprocess.run([str(part) for part in command], cwd=folder, env=clean, timeout=500,
                          capture_output=True, text=True)  # fmt: skip


def run(command: list[str | Path], folder: Path) -> str:
    """Standard output of a command run in `folder`; what it said, where it fails."""
    done = ended(command, folder)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout


BUILD = "from setuptools.build_meta import build_sdist; build_sdist('..')"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is published as source, from a copy: a build leaves files where it is done."""
    source = tmp_path_factory.mktemp("build") / "checkout"
    leave_out = shutil.ignore_patterns("__pycache__")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=leave_out)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    run([sys.executable, "-c", BUILD], source)
    (built,) = source.parent.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel, built from the sdist alone."""
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps",
         "--no-index", "-w", sdist.parent, sdist], sdist.parent)  # fmt: skip
    (built,) = sdist.parent.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the installed commands.

    The environment borrows this one's libraries. A `.pth` file of the borrowed folder is not
    followed, so the checkout, which is installed there as editable, stays out of reach.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    (Path(paths["purelib"]) / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])
    run([sys.executable, "-m", "pip", "-q", f"--python={Path(paths['scripts']) / 'python'}",
         "install", "--no-deps", "--no-index", wheel], folder)  # fmt: skip
    return Path(paths["scripts"])


def test_every_file_that_the_packages_read_is_in_the_wheel(wheel: Path) -> None:
    there = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and not IGNORED.intersection(path.parts) and path.name != "ruff.toml"
    }
    assert len(there) > 80
    assert there <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_readme_works_from_an_installed_wheel(commands: Path, tmp_path: Path) -> None:
    """The commands of the first pages, in their order, with data that `synthesise` makes."""
    where = run([commands / "python", "-c", "import profiles; print(profiles.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(commands.parent)
    advise, train, segment = (commands / f"lisa-{name}" for name in ("advise", "train", "segment"))
    card = ["--model", "7b", "--vram", "8GiB"]
    said = in_turn([
        [advise, "--vram", "8GiB"],
        [advise, "--gpu", "RTX 3060 12GB"],
        [advise, *card, "--save", "7b.json"],
        [advise, "--model", "tiny", "--vram", "8GiB", "--plot", "step.svg"],  # forecasts, too
        [advise, "forecast", "7b.json", "--vram", "8GiB"],
        [advise, "table", "--source", "seed"],
        [advise, *card, "--json"],
    ], commands, tmp_path)  # fmt: skip
    assert "FITS" in said and "</svg>" in (tmp_path / "step.svg").read_text("utf-8")
    assert json.loads(said[said.index("\n{\n") :])["verdict"] == "FITS"
    for program in (train, segment):
        assert program.name in run([program, "--version"], tmp_path)
    in_turn([
        [train, "synthesise", "data", "--train", "4", "--val", "2"],
        [train, "--check-data", "data"],
        [train, "--auto", "--data-dir", "data", "--output-dir", "run", "--set",
         "schedule.epochs=1"],
        [train, "evaluate", "run", "--data-dir", "data", "--split", "val"],
        [train, "export", "run", "exported"],
        [segment, "PICTURE", "Where is the largest one?", "--run", "run"],
    ], commands, tmp_path)  # fmt: skip


def in_turn(asked: list[list[str | Path]], commands: Path, folder: Path) -> str:
    """What the scripts print, one after the other in one process: each would import torch anew."""
    words = json.dumps([[str(word) for word in command] for command in asked])
    return run([commands / "python", "-P", "-c", IN_TURN, words], folder)


def test_the_metadata_are_whole(sdist: Path, wheel: Path) -> None:
    """As `twine check --strict` would see them, and with what PyPI's page shows."""
    (name,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".dist-info/METADATA"))
    facts = email.message_from_bytes(zipfile.ZipFile(wheel).read(name))
    assert facts["Description-Content-Type"] == "text/markdown" and facts.get_payload()
    assert {"Homepage", "Issues", "Changelog"} <= {
        u.split(",")[0] for u in facts.get_all("Project-URL")
    }
    assert "dev" in facts.get_all("Provides-Extra")
    assert f"-{facts['Version']}." in sdist.name and facts["Keywords"] and facts["Classifier"]


@pytest.mark.parametrize(("text", "said"), [
    ("raise ImportError", "is another package's: "),
    (None, "is gone"),
])  # fmt: skip
def test_another_packages_folder_of_our_name_is_said_in_a_line(
    commands: Path, tmp_path: Path, text: str | None, said: str
) -> None:
    """PyPI's `trainer`, installed later, overwrites our __init__.py; uninstalled, it takes it."""
    there = Path(run([commands / "python", "-c", WHERE], tmp_path).strip())
    kept = there.read_bytes()
    try:
        there.unlink() if text is None else there.write_text(text)
        for name in ("advise", "train", "segment"):
            done = ended([commands / f"lisa-{name}", "--help"], tmp_path)
            error, hint = done.stderr.splitlines()
            assert done.returncode == 2 and error.startswith("error: ") and said in error
            assert hint.startswith("    hint: ")
    finally:
        there.write_bytes(kept)


def test_a_release_has_notes_and_says_what_is_left_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    release = script("tools/release.py", monkeypatch)
    assert release.notes().startswith("### ") and "\n## " not in release.notes()
    assert not [line for line in release.left_to_do() if "another version" in line]
    monkeypatch.setattr(release, "version", lambda: "9.9")
    assert "CITATION.cff: another version" in list(release.left_to_do())
    with pytest.raises(ValueError, match="no part about 9.9"):
        release.notes()
