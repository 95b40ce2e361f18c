"""Build a release, check it and install it, without publishing: `make release`.

    python tools/release.py

dist/ gets the sdist, the wheel and notes.md, this version's part of CHANGELOG.md. They are built
of what git tracks, and their README's links lead to the repository: PyPI's page has no other file.
Both are checked as PyPI does; the wheel is installed into an empty environment with the newest
versions that its bounds allow, and the sdist into another without them. What is left to do by hand
is listed last.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
PLACES = ("README.md", "pyproject.toml", "CITATION.cff", "zensical.toml", "docs/install.md",
          "docs/advice.md", "notebooks/tour.ipynb")  # fmt: skip


def project() -> dict[str, Any]:
    """The project as pyproject.toml describes it."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    facts: dict[str, Any] = document["project"]
    return facts


def version() -> str:
    """This version."""
    return str(project()["version"])


def for_pypi(text: str) -> str:
    """A README whose relative links and pictures lead to the repository."""
    home = project()["urls"]["Homepage"]
    raw = home.replace("//github.com/", "//raw.githubusercontent.com/")
    text = re.sub(r'(!\[[^\]]*\]\(|src=")(?![a-z]+:)', rf"\1{raw}/main/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?![a-z]+:|#)", rf"\1{home}/blob/main/", text)


def source(folder: Path) -> Path:
    """What git tracks, with the README that PyPI shows, in a folder to build in."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    readme = folder / "README.md"
    readme.write_text(for_pypi(readme.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def notes() -> str:
    """The part of CHANGELOG.md about this version. Raises ValueError if it has none."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        if part.split()[0] == version():
            return part.partition("\n")[2].strip() + "\n"
    raise ValueError(f"CHANGELOG.md has no part about {version()}")


def left_to_do() -> Iterator[str]:
    """What a person must decide before this version is published."""
    if f"## {version()} (unreleased)" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        yield "CHANGELOG.md: this version has no date yet"
    if f"version: {version()}\n" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8"):
        yield "CITATION.cff: another version"
    if found := [p for p in PLACES if "OWNER" in (ROOT / p).read_text(encoding="utf-8")]:
        yield f"OWNER stands for whoever publishes: sed -i s/OWNER/NAME/ {' '.join(found)}"


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Run a command without what Python's variables would add; raises CalledProcessError."""
    print("$", *command, flush=True)
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([str(part) for part in command], cwd=folder, check=True, env=clean)


def environment(folder: Path, *packages: str | Path) -> Path:
    """The folder of programs of a new environment that has packages."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "python", "-m", "pip", "install", "-q", *packages)
    return programs


def main() -> None:
    """Build, check, install."""
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        makers = environment(folder / "makers", "build", "twine")
        run(makers / "python", "-m", "build", "-o", DIST, source(folder / "source"))
        (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
        run(makers / "twine", "check", "--strict", wheel, sdist)
        environment(folder / "of-sdist", "--no-deps", sdist)
        programs = environment(folder / "of-wheel", wheel)
        run(programs / "lisa-advise", "--vram", "8GiB", folder=folder)
        run(programs / "lisa-advise", "doctor", "--offline", folder=folder)
    (DIST / "notes.md").write_text(notes(), encoding="utf-8")
    print(f"\ndist/: {wheel.name}, {sdist.name}, notes.md; nothing was published")
    for line in left_to_do():
        print(f"before it is: {line}")


if __name__ == "__main__":
    try:
        main()
    except (subprocess.CalledProcessError, ValueError) as error:
        sys.exit(str(error))
