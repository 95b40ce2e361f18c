"""What a user installs: the wheel, in an environment of its own, run from an empty folder."""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from profiles.files import HOLDER, LOCK
from tests.test_docs import script
from tests.test_safety import plant

ROOT = Path(__file__).parents[1]
IGNORED = {"__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache"}
PACKAGES = ("advisor", "profiles", "studio", "trainer")
WHERE = "import importlib.util as u; print(u.find_spec('trainer').origin)"
IN_TURN = """
import glob, json, runpy, sys
for script, *arguments in json.loads(sys.argv[1]):
    picture = next(iter(glob.glob("data/ReasonSeg/val/*.jpg")), "")
    sys.argv = [script, *(picture if word == "PICTURE" else word for word in arguments)]
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    print("ended", code, *arguments, file=sys.stderr, flush=True)
"""


def ended(
    command: list[str | Path], folder: Path, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command run in `folder`, with none of the checkout's surroundings, but with `more`."""
    own = ("PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV", "XDG_", "HF_", "TORCH")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    clean |= {"HOME": str(folder / "home"), **(more or {})}
    return subprocess.run([str(part) for part in command], cwd=folder, env=clean, timeout=500,
                          capture_output=True, text=True)  # fmt: skip


def run(command: list[str | Path], folder: Path) -> str:
    """Standard output of a command run in `folder`; what it said, where it fails."""
    done = ended(command, folder)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout


BUILD = "import setuptools.build_meta as backend; backend.build_{}('..')"


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
    run([sys.executable, "-c", BUILD.format("sdist")], source)
    (built,) = source.parent.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel, built from the sdist alone, as pip does, which would start four processes."""
    shutil.unpack_archive(sdist, sdist.parent)
    (unpacked,) = sdist.parent.glob("lisa_preflight-*/")
    run([sys.executable, "-c", BUILD.format("wheel")], unpacked)
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
def test_the_readme_works_from_an_installed_wheel_without_a_network(
    commands: Path, tmp_path: Path
) -> None:
    """The commands of the first pages, in their order, with data that `synthesise` makes.

    In one process, as each would import torch anew, and watched: none asks the network, unless
    told to, and nothing is written but what was named and in the user's cache. No process that
    they start runs code of the folder: it would leave a mark.
    """
    work, marks = tmp_path / "work", tmp_path / "marks"
    for place in (work, marks, tmp_path / "home", tmp_path / "tmp"):
        place.mkdir()
    planted = plant(work, marks)
    where = run([commands / "python", "-Pc", "import profiles; print(profiles.__file__)"], work)
    assert Path(where.strip()).is_relative_to(commands.parent)
    for program in ("lisa-train", "lisa-segment"):
        assert program in run([commands / program, "--version"], work)
    done = watched(WALK, commands, tmp_path)
    said = [line.split() for line in done.stderr.splitlines() if line.startswith("ended ")]
    codes = {" ".join(words[2:]): int(words[1]) for words in said}
    assert len(codes) == len(WALK), done.stderr
    assert codes.pop(" ".join(WALK[-1][1:])) == 2 and "not in the hub's cache" in done.stderr
    assert not any(codes.values()) and "Traceback" not in done.stderr, done.stderr
    assert "FITS" in done.stdout and "</svg>" in (work / "step.svg").read_text("utf-8")
    documents = re.findall(r"^[{[]$.*?^[}\]]$", done.stdout, re.DOTALL | re.MULTILINE)
    advice, doctor = map(json.loads, documents)
    assert advice["verdict"] == "FITS"
    found = {check["name"]: check["status"] for check in doctor["checks"]}
    assert found["a training step of lisa-tiny on cpu"] == "ok" and found["driver"] == "note"
    kept = tmp_path / "home" / ".cache" / "lisa-preflight" / "forecasts"
    assert len(list(kept.glob("*.events"))) == 1, "what was forecast once is known"
    log = (tmp_path / "log").read_text().splitlines()
    assert not [line for line in log if line.startswith("network")]
    assert elsewhere({Path(line[6:]) for line in log if line[:6] == "wrote "}, tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert {path.name for path in work.iterdir()} == LEFT | planted
    assert list(marks.iterdir()) == []
    hidden = {path.name for path in work.rglob(".*")}
    assert hidden <= {LOCK, HOLDER}  # who holds the run folder


CARD = "--model", "7b", "--vram", "8GiB"
WALK: list[tuple[str, ...]] = [
    ("lisa-advise", "--vram", "8GiB"),
    ("lisa-advise", "--gpu", "RTX 3060 12GB"),
    ("lisa-advise", *CARD, "--save", "7b.json"),
    ("lisa-advise", *CARD, "--plot", "step.svg"),  # forecasts the same plan as the next one
    ("lisa-advise", "forecast", "7b.json", "--vram", "8GiB"),
    ("lisa-advise", "table", "--source", "seed"),
    ("lisa-advise", *CARD, "--json"),
    ("lisa-advise", "doctor", "--offline", "--json"),
    ("lisa-train", "synthesise", "data", "--train", "4", "--val", "2", "--test", "2"),
    ("lisa-train", "--check-data", "data"),
    ("lisa-train", "preview", "data"),
    ("lisa-train", "--auto", "--data-dir", "data", "--output-dir", "run", "--set",
     "schedule.epochs=1", "--set", "quantization=nf4"),
    ("lisa-train", "evaluate", "run", "--data-dir", "data", "--split", "val"),
    ("lisa-train", "export", "run", "exported"),
    ("lisa-train", "export", "run", "merged", "--merge"),
    ("lisa-segment", "PICTURE", "Where is the largest one?", "--run", "run", "--out", "answers"),
    ("lisa-train", "convert", "nobody/nothing", "model", "--model", "7b", "--offline"),
]  # fmt: skip
LEFT = {"7b.json", "step.svg", "data", "preview.png", "run", "exported", "merged", "answers"}


def watched(
    asked: list[tuple[str, ...]], commands: Path, place: Path
) -> subprocess.CompletedProcess[str]:
    """The commands one after the other in one process, from a home, a folder and a /tmp of their
    own; what they and their children write and ask of the network is in the file `log`."""
    words = json.dumps([[str(commands / script), *words] for script, *words in asked])
    more = {
        "HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "tests" / "watched"), "WATCHED_LOG": str(place / "log"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    return ended([commands / "python", "-P", "-c", IN_TURN, words], place / "work", more)


def elsewhere(wrote: set[Path], place: Path) -> list[Path]:
    """What was written where no command has a business to. matplotlib keeps its list of fonts."""
    assert place / "work" / "run" / "plan.json" in wrote
    home = place / "home"
    devices = [path for path in Path("/dev").iterdir() if not place.is_relative_to(path)]
    allowed = [place / "work", place / "tmp", *devices, home / ".cache" / "lisa-preflight",
               home / ".local" / "share" / "lisa-preflight", home / ".cache" / "matplotlib",
               home / ".config" / "matplotlib"]  # fmt: skip
    on_the_way = {parent for folder in allowed for parent in folder.parents}
    left = wrote - on_the_way
    left = [path for path in left if not any(path.is_relative_to(one) for one in allowed)]
    return [path for path in left if not path.name.startswith(".lisa-preflight-")]  # a trial


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


def test_pypi_s_page_has_no_link_into_a_folder_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = script("tools/release.py", monkeypatch)
    shown = release.for_pypi((ROOT / "README.md").read_text("utf-8"))
    links = re.findall(r'(?:\]\(|src=")([^)"]*)', shown)
    assert len(links) > 30 and all(link.startswith("https://") for link in links), links
    assert re.search(r"!\[[^]]*\]\(https://raw\.\S+/main/docs/advice\.svg\)", shown)
    assert re.search(r"\(https://github\.com/\S+/blob/main/docs/install\.md\)", shown)


def test_a_release_names_every_place_with_the_address_that_is_not_known_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = script("tools/release.py", monkeypatch).PLACES
    known = "/OWNER/lisa-preflight|OWNER.github.io"
    listed = ["git", "grep", "-lE", known, "--", ":!tests"]
    found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert set(found) in (set(), set(places)), "none where git does not answer"
    for place in places:  # sed may change the word there: it stands for nothing else
        assert "OWNER" not in re.sub(known, "", (ROOT / place).read_text("utf-8")), place
