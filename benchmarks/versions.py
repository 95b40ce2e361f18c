"""What was run with which versions: the table of docs/versions.md; and tests with the outermost.

    python benchmarks/versions.py --lowest       tests; a row in benchmarks/versions.jsonl
    python benchmarks/versions.py --newest       the same
    python benchmarks/versions.py --table        writes docs/versions.md

Both install a version of each dependency into a folder that comes first on Python's path, the
lowest that pyproject.toml allows or the newest that there is, except torch (gigabytes), and run
the CPU tests of the launch, the training step, the rehearsal and the command lines with them.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crash_scenes import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tables import put, rows_of

DOCS, ROWS_FILE = ROOT / "docs" / "versions.md", ROOT / "benchmarks" / "versions.jsonl"
MARK = "<!-- benchmarks/versions.py {} -->", "<!-- /benchmarks/versions.py {} -->"
SHOWN = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
TESTS = ("tests/trainer/parallel", "tests/trainer/test_step.py", "tests/trainer/rehearse",
         "tests/test_command_lines.py")  # fmt: skip
LARGE = ("torch", "nvidia", "triton")  # stay as they are installed


def requirements() -> list[Requirement]:
    """What pyproject.toml depends on."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [Requirement(text) for text in document["project"]["dependencies"]]


def install(folder: Path, *wanted: str) -> bool:
    """Install packages, but not what they depend on, into a folder; whether that worked."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target",
               str(folder), *wanted]  # fmt: skip
    return subprocess.run(command, capture_output=True).returncode == 0


def install_lowest(folder: Path) -> None:
    """Each dependency's lowest version, and what these depend on. Raises RuntimeError."""
    for one in requirements():
        if one.name in LARGE:
            continue
        (bound,) = one.specifier
        exact, series = f"{one.name}=={bound.version}", f"{one.name}=={bound.version}.*"
        if not (install(folder, exact) or install(folder, series)):
            raise RuntimeError(f"{exact}: cannot be installed")
    for _ in range(5):  # what is installed now may depend on more
        missing = sorted(set(unmet(folder)))
        if not missing:
            break
        print(f"also {', '.join(missing)}", flush=True)
        for one in missing:
            install(folder, one)


def install_newest(folder: Path) -> None:
    """Each dependency's newest version; raises RuntimeError."""
    for one in requirements():
        if one.name not in LARGE and not install(folder, str(one)):
            raise RuntimeError(f"{one}: cannot be installed")


INSTALL = {"lowest": install_lowest, "newest": install_newest}


def unmet(folder: Path) -> Iterator[str]:
    """What the packages in a folder depend on and do not find, there or as installed."""
    path = [str(folder), *sys.path]
    have = {canonicalize_name(d.name): d.version
            for d in reversed(list(importlib.metadata.distributions(path=path)))}  # fmt: skip
    for found in importlib.metadata.distributions(path=[str(folder)]):
        for one in map(Requirement, found.requires or []):
            if one.name.startswith(LARGE) or (
                one.marker and not one.marker.evaluate({"extra": ""})
            ):
                continue
            version = have.get(canonicalize_name(one.name))
            if version is None or not one.specifier.contains(version, prereleases=True):
                yield f"{one.name}{one.specifier}"


def tested(folder: Path) -> dict[str, str]:
    """What pytest says of each of TESTS with the packages of a folder first."""
    # Plugins of the newer packages may be registered that the older ones do not have.
    first = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    environment = (
        os.environ
        | first
        | {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",
        }
    )
    found = {}
    for tests in TESTS:
        done = subprocess.run([sys.executable, "-m", "pytest", "-rN", "-o", "addopts=", "-m",
                               "not gpu and not launcher", tests], cwd=ROOT, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        last = done.stdout.strip().splitlines()[-1:]
        found[tests] = re.sub(r"=+| in [\d.]+s.*", "", *last).strip() if last else done.stderr
        print(f"{tests}: {found[tests]}", flush=True)
    return found


def outermost(kind: str) -> dict[str, Any]:
    """The row of a test with the lowest or the newest versions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        INSTALL[kind](folder)
        there = {canonicalize_name(d.name): d.version
                 for d in importlib.metadata.distributions(path=[name])}  # fmt: skip
        versions = {one.name: there.get(canonicalize_name(one.name)) or
                    importlib.metadata.version(one.name) for one in requirements()}  # fmt: skip
        about = {"date": datetime.date.today().isoformat(), "python": sys.version.split()[0]}
        return {"kind": kind, **about, "versions": versions, "tests": tested(folder)}


def recorded() -> Iterator[tuple[dict[str, str], str, str]]:
    """Versions, device and benchmark of every row in benchmarks/ that says its versions."""
    for path in sorted((ROOT / "benchmarks").glob("*.jsonl")):
        if path == ROWS_FILE:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            versions = row.get("versions") if isinstance(row, dict) else None
            if isinstance(versions, dict) and "torch" in versions:
                yield versions, str(row.get("gpu") or "CPU"), path.stem


def run_lines() -> list[str]:
    """Markdown: one line for each set of versions and device."""
    found: dict[tuple[str, ...], dict[str, int]] = {}
    for versions, device, name in recorded():
        key = (device, *(versions.get(one, "–") for one in SHOWN))
        counts = found.setdefault(key, {})
        counts[name] = counts.get(name, 0) + 1
    lines = [f"| ran on | {' | '.join(SHOWN)} | rows of benchmarks |",
             f"|{'---|' * (len(SHOWN) + 2)}"]  # fmt: skip
    for key, counts in sorted(found.items()):
        rows = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(f"| {' | '.join(key)} | {rows} |")
    return lines


def last_row(kind: str) -> dict[str, Any]:
    """The last test with the lowest or the newest versions."""
    rows = rows_of(ROWS_FILE)
    found: dict[str, Any] = [row for row in rows if row["kind"] == kind][-1]
    return found


def tested_lines(row: dict[str, Any]) -> list[str]:
    """Markdown: the versions of a test, and what the tests said."""
    names = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    lines = [f"On {row['date']}, Python {row['python']}: {names}.", "", "| tests | result |",
             "|---|---|"]  # fmt: skip
    return [*lines, *(f"| `{name}` | {said} |" for name, said in row["tests"].items())]


def main() -> None:
    """Test, or write the table; exit code 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    for kind in INSTALL:
        what.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind,
                          help=f"test with the {kind} versions")  # fmt: skip
    what.add_argument("--table", action="store_true", help="write docs/versions.md's tables")
    if kind := parser.parse_args().kind:
        row = outermost(kind)
        with ROWS_FILE.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        sys.exit(any("failed" in said or "error" in said for said in row["tests"].values()))
    begin, end = MARK
    put(DOCS, begin.format("runs"), end.format("runs"), run_lines())
    for kind in INSTALL:
        put(DOCS, begin.format(kind), end.format(kind), tested_lines(last_row(kind)))


if __name__ == "__main__":
    main()
