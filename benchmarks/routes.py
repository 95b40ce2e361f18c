"""Each way of installing, from an empty environment: its time, its disk, and that it works.

    python benchmarks/routes.py pip demo hook     # these routes; all by default
    python benchmarks/routes.py --table           # writes docs/install.md's table

A route's commands run in an empty folder, in a copy of what git tracks, with an environment of
their own. `docker` runs the Dockerfile's copying and pip steps, as no engine is needed for those.
Rows: benchmarks/routes.jsonl, the last of each route counts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from crash_scenes import ROOT
from tables import put, rows_of

ROWS_FILE, DOCS = ROOT / "benchmarks" / "routes.jsonl", ROOT / "docs" / "install.md"
BEGIN, END = "<!-- benchmarks/routes.py -->", "<!-- /benchmarks/routes.py -->"
ANSWER = 'lisa-advise --gpu "RTX 3060 12GB"'
WORKS = f"{ANSWER} && lisa-advise doctor --offline"  # doctor trains a step of lisa-tiny


def readme_commands() -> list[str]:
    """README's own commands of installing, after the clone."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("## Install")[1].split("```bash\n")[1].split("```")[0]
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if not line.startswith(("git clone", "cd lisa-preflight"))]


def by_pip() -> list[str]:
    """As README says."""
    return [*readme_commands(), WORKS]


def by_wheel() -> list[str]:
    """The built wheel, with the newest versions that its bounds allow."""
    return ["python3 -m venv ~/lisa && . ~/lisa/bin/activate", "pip wheel -q --no-deps -w dist .",
            "pip install dist/*.whl", f"cd / && {WORKS}"]  # fmt: skip


def dockerfile(text: str) -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with its arguments in one line."""
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def by_docker() -> list[str]:
    """The Dockerfile's pip steps, in a folder in the place of `/`; apt and users need an engine."""
    steps = ["python3 -m venv ~/lisa && . ~/lisa/bin/activate", "mkdir -p ~/root/src"]
    for word, rest in dockerfile((ROOT / "Dockerfile").read_text(encoding="utf-8")):
        if word == "COPY":
            source, target = rest.split()
            steps.append(f"mkdir -p ~/root{target} && cp -r {source} ~/root{target}")
        elif word == "RUN" and rest.startswith("pip "):
            # Here a mirror may stand in for the index that is the default.
            rest = rest.replace("/src", "$HOME/root/src")
            steps.append(re.sub(r'--index-url "\$INDEX" +--extra-index-url \S+', "", rest))
        elif word == "CMD":
            steps.append(f"cd ~ && {' '.join(json.loads(rest))} --offline && {ANSWER}")
    return steps


def by_notebook() -> list[str]:
    """The notebook from top to bottom, in an environment with nothing but Jupyter's kernel."""
    return ["python3 -m venv ~/lisa && . ~/lisa/bin/activate", "pip install nbclient ipykernel",
            "pip install -c constraints.txt .",  # the install cell clones, and does this
            "cp notebooks/tour.ipynb ~ && cd ~ && jupyter execute tour.ipynb"]  # fmt: skip


def advice_blocks() -> list[Any]:
    """The YAML of docs/advice.md: the workflow, and the hook."""
    page = (ROOT / "docs" / "advice.md").read_text(encoding="utf-8")
    return [yaml.safe_load(part.split("```")[0]) for part in page.split("```yaml\n")[1:]]


TESTED = "-c $OLDPWD/constraints.txt torch"
PLAN = f"{ANSWER} --model 7b --set weights=random --save plan.json"


def by_workflow() -> list[str]:
    """The workflow's shell steps in a repository with a plan; this checkout is the release."""
    steps = [one["run"] for one in advice_blocks()[0]["jobs"]["plan"]["steps"] if "run" in one]
    install = [step for step in steps if step.startswith("pip ")]
    # torch's own index may be out of reach: the tested version, from where pip finds it.
    here = [re.sub(r"torch --index-url \S+", TESTED, step) for step in install]
    here = [re.sub(r"git\+https://\S+", "$OLDPWD", step) for step in here]
    return ["python3 -m venv ~/lisa && . ~/lisa/bin/activate", "mkdir ~/theirs && cd ~/theirs",
            *here, PLAN, *steps[len(install):]]  # fmt: skip


def by_hook() -> list[str]:
    """The pre-commit hook, by the URL of a repository; this checkout is the release."""
    (repository,) = advice_blocks()[1]
    git = "git -c user.name=a -c user.email=a@b.c"
    url, tag = "file://$HOME/release", repository["rev"]
    commit = f"git init -q . && git add . && {git} commit -qm release"
    configuration = json.dumps({"repos": [repository | {"repo": "URL"}]})
    return [f"cp -r . ~/release && cd ~/release && {commit} && git tag {tag}",
            "python3 -m venv ~/lisa && . ~/lisa/bin/activate", "pip install pre-commit",
            "export PIP_CONSTRAINT=~/release/constraints.txt",  # a CPU build, where pip finds one
            "mkdir ~/theirs && cd ~/theirs && git init -q .",
            f"echo '{configuration}' | sed \"s,URL,{url},\" > .pre-commit-config.yaml",
            "pre-commit install-hooks", f"~/.cache/pre-commit/repo*/py_env-*/bin/{PLAN}",
            "git add . && pre-commit run --all-files"]  # fmt: skip


def by_demo() -> list[str]:
    """`make demo`, which installs for itself."""
    return ["make demo"]


ROUTES: Mapping[str, tuple[str, Callable[[], list[str]]]] = {
    "pip": ("Linux, WSL: README's commands", by_pip),
    "wheel": ("the wheel of `make release`, newest versions", by_wheel),
    "docker": ("the Dockerfile's pip steps", by_docker),
    "notebook": ("the notebook, top to bottom", by_notebook),
    "workflow": ("the workflow for your repository", by_workflow),
    "hook": ("the pre-commit hook", by_hook),
    "demo": ("`make demo`", by_demo),
}


def copy_of_the_checkout(folder: Path) -> Path:
    """What git tracks, as it is here."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    source = folder / "lisa-preflight"
    for name in filter(None, listed.stdout.decode().split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    return source


def surroundings(home: Path) -> dict[str, str]:
    """The environment of someone who just logged in."""
    kept = ("LANG", "PIP_CERT", "PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
    path = os.pathsep.join(
        [str(Path(sys.base_prefix) / "bin"), "/usr/local/bin", "/usr/bin", "/bin"]
    )
    ours = {"HOME": str(home), "PATH": path, "PIP_NO_CACHE_DIR": "1"}
    return {name: os.environ[name] for name in kept if name in os.environ} | ours


def disk_bytes(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if not path.is_dir())


def measured(route: str) -> dict[str, Any]:
    """A route, run; raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        source = copy_of_the_checkout(home)
        before = disk_bytes(home)
        start, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        script = "\n".join(["set -e", *ROUTES[route][1]()])
        subprocess.run(["bash", "-c", script], cwd=source, env=surroundings(home), check=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime
        return {"route": route, "date": datetime.date.today().isoformat(),
                "wall_seconds": time.monotonic() - start, "cpu_seconds": seconds,
                "load_average": round(os.getloadavg()[1], 1),
                "disk_bytes": disk_bytes(home) - before, "torch": torch_version(home)}  # fmt: skip


def torch_version(home: Path) -> str:
    """Which torch a route installed."""
    (found,) = home.glob("**/site-packages/torch-*.dist-info")
    return found.name.removeprefix("torch-").removesuffix(".dist-info")


def write_table(rows: Sequence[dict[str, Any]]) -> None:
    """docs/install.md's table: the last row of each route, and the routes without one."""
    last = {row["route"]: row for row in rows}
    lines = [
        "| route | date | torch | seconds | of the processor | load | disk |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (title, _) in ROUTES.items():
        if row := last.get(name):
            load = row.get("load_average", "")
            spent = f"{row['wall_seconds']:.0f} | {row['cpu_seconds']:.0f} | {load}"
            size = f"{row['disk_bytes'] / 2**30:.1f} GiB"
            lines.append(f"| {title} | {row['date']} | {row['torch']} | {spent} | {size} |")
        else:
            lines.append(f"| {title} | not run | | | | | |")
    put(DOCS, BEGIN, END, lines)


def main() -> None:
    """Run the named routes, or write the table; exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("routes", nargs="*", choices=[*ROUTES, []], help="all by default")
    parser.add_argument("--table", action="store_true", help="write docs/install.md's table")
    arguments = parser.parse_args()
    for route in arguments.routes or ([] if arguments.table else ROUTES):
        row = measured(route)
        with ROWS_FILE.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    write_table(rows_of(ROWS_FILE))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failed:
        sys.exit(f"a route failed with exit code {failed.returncode}")
