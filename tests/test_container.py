"""The image's recipe: linted, and each of its files and folders is where it looks for it.

No engine runs here; `python benchmarks/routes.py docker` runs its steps in an empty environment.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.test_docs import script

ROOT = Path(__file__).parents[1]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    routes = script("benchmarks/routes.py", monkeypatch)
    found: list[tuple[str, str]] = routes.dockerfile((ROOT / "Dockerfile").read_text("utf-8"))
    return found


def values(steps: list[tuple[str, str]], word: str) -> list[str]:
    """The arguments of one kind of instruction."""
    return [rest for name, rest in steps if name == word]


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile"], capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stdout, done.stdout


def test_what_pip_needs_is_copied(steps: list[tuple[str, str]]) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = document["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {*(name.rstrip("*") for name in packages), "pyproject.toml", "README.md", "LICENSE"}
    assert not needed & set(ignored) and ".*" in ignored, "history and environments stay outside"
    assert values(steps, "COPY") == ["constraints.txt /src/", ". /src"]


def test_the_user_is_not_root_and_what_is_large_stays(steps: list[tuple[str, str]]) -> None:
    (user,), (volume,) = values(steps, "USER"), values(steps, "VOLUME")
    assert f"{user.removeprefix('$')}=1000" in values(steps, "ARG")
    assert [name for name, _ in steps].index("USER") > [name for name, _ in steps].index("VOLUME")
    (made,) = (rest for rest in values(steps, "RUN") if rest.startswith("useradd"))
    assert {"--non-unique", "--no-log-init"} <= set(made.split()), "also for 0 and for 10 digits"
    kept = dict(pair.split("=") for rest in values(steps, "ENV") for pair in rest.split())
    assert {"HF_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"} <= kept.keys()
    assert all(folder.startswith(volume) for folder in kept.values())
    assert all("constraints.txt" in rest for rest in values(steps, "RUN") if "pip install" in rest)


def test_compose_gives_the_gpu_the_folder_and_the_cache(steps: list[tuple[str, str]]) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    (service,) = compose["services"].values()
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
    (folder,), (volume,) = values(steps, "WORKDIR"), values(steps, "VOLUME")
    assert (
        service["volumes"] == [f".:{folder}", f"cache:{volume}"] and "cache" in compose["volumes"]
    )
    arguments = {rest.partition("=")[0] for rest in values(steps, "ARG")}
    assert service["build"]["args"].keys() == arguments
