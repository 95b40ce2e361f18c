"""What messages tell the user to type exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import typer

from advisor.cli.main import app as advise
from profiles.extras import install_command
from profiles.plan import Plan
from profiles.settings import Lora, Mixture, Schedule, TokenLimits
from trainer.cli.segment import app as segment
from trainer.cli.train import app as train

ROOT = Path(__file__).parents[1]
OTHERS = {  # options of other programs, as messages name them
    "--gpus": "docker", "--shm-size": "docker", "--ipc": "docker", "--force-reinstall": "pip",
    "--local-dir": "hf download", "--notest": "convmv",
    "--revision": "hf download", "--num_processes": "accelerate launch",
} | dict.fromkeys(
    ("--nnodes", "--nproc_per_node", "--no_python", "--rdzv_backend", "--rdzv_endpoint"),
    "torchrun",
)  # fmt: skip
# Of the children of this project, which nobody types.
INNER = {"--fake", "--answer", "--events", "--timeline", "--text-tokens", "--cap-gib", "--steps",
         "--answer-tokens", "--image-tokens"}  # fmt: skip


def options(command: click.Command) -> Iterator[str]:
    """Every option of a command and of those below it."""
    for parameter in command.params:
        yield from (name for name in (*parameter.opts, *parameter.secondary_opts))
    for below in getattr(command, "commands", {}).values():
        yield from options(below)


def texts() -> Iterator[tuple[Path, str]]:
    """Every string of the packages' code that is no docstring."""
    for package in ("advisor", "trainer", "profiles", "studio"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                text = node.value if isinstance(node, ast.Constant) else None
                if isinstance(text, str) and id(node) not in docs:
                    yield path, text


def test_what_is_to_be_installed_is_on_an_index() -> None:
    """This package is on none: its extras are named by what they need."""
    assert re.fullmatch(r"pip install( '(python-multipart|starlette|uvicorn)>=[0-9.]+'){3}",
                        install_command("serve"))  # fmt: skip
    assert not [one for one in texts() if re.search(r"pip install [^,]*lisa-preflight", one[1])]


def test_every_option_in_a_message_exists() -> None:
    apps = (typer.main.get_command(app) for app in (advise, train, segment))
    known = {name for command in apps for name in options(command)} | OTHERS.keys() | INNER
    seen = [(path.name, name) for path, text in texts()
            for name in re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)]  # fmt: skip
    assert len(seen) > 100, "nothing was looked at"
    assert not [one for one in seen if one[1] not in known and one[1] != "--help"]


def test_every_setting_in_a_message_exists() -> None:
    known = set(Plan.model_fields)
    for prefix, part in (("lora", Lora), ("schedule", Schedule), ("tokens", TokenLimits),
                         ("mixture", Mixture)):  # fmt: skip
        known |= {f"{prefix}.{name}" for name in part.model_fields}
    seen = [(path.name, name) for path, text in texts()
            for name in re.findall(r"--set ([a-z_.]+)=", text)]  # fmt: skip
    assert len(seen) > 10 and not [one for one in seen if one[1] not in known]
