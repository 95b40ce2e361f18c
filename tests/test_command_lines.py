"""What all commands have in common: help, examples, version, completion, `python -m`."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from advisor.cli.advise_options import AdviseOptions
from advisor.cli.main import app as advise
from advisor.cli.options import explained_names
from advisor.report.glossary import explain
from profiles.command_line import gpu_names, hyphenated, model_names
from profiles.gpus import find_gpu, gpus
from profiles.models import models
from trainer.cli.segment import app as segment
from trainer.cli.train import app as train
from trainer.cli.train_options import TrainOptions

APPS = {"lisa-advise": advise, "lisa-train": train, "lisa-segment": segment}


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that a user sees, by the words that call it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from commands(below, (*path, name))


EVERY = [
    found for name, app in APPS.items() for found in commands(typer.main.get_command(app), (name,))
]
each = pytest.mark.parametrize(("path", "command"), EVERY, ids=[" ".join(p) for p, _ in EVERY])


@each
def test_help_shows_flags_without_a_type_and_ends_with_examples(path, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = CliRunner().invoke(APPS[path[0]], [*path[1:], "--help"], prog_name=path[0]).stdout
    assert "bool" not in shown.lower() and "--help" in shown
    assert "Examples:" in shown
    for example in command.epilog.split("\n")[2:]:
        assert example in shown, "an example stands in a line of its own"


@pytest.mark.parametrize(
    ("name", "options"), [("lisa-train", TrainOptions), ("lisa-advise", AdviseOptions)]
)
def test_many_options_come_in_groups(name: str, options: Any) -> None:
    shown = CliRunner().invoke(APPS[name], ["--help"], prog_name=name).stdout
    groups = ["Options", *(title for title in options.panels.values() if title), "Commands"]
    places = [shown.index(f"─ {group} ─") for group in groups]
    assert places == sorted(places)
    names = [one.name for one in fields(options)]
    assert [one for one in names if one in options.panels] == list(options.panels)
    assert places[0] < shown.index("--version") < places[1] < shown.index("--recipe") < places[2]


@each
def test_every_example_is_a_command_that_can_be_parsed(path, command):
    examples = command.epilog.split("\n")[2:]
    assert 1 <= len(examples) <= 2
    for example in examples:
        words = shlex.split(example.split("|")[-1])  # behind a pipe
        assert tuple(words[: len(path)]) == path, example
        root = typer.main.get_command(APPS[path[0]])
        context = root.make_context(path[0], words[1:])
        if len(path) > 1:  # a group has read what stands before the name of its command
            for name in path[1:]:
                root = root.commands[name]
            root.make_context(path[-1], words[len(path) :], parent=context)


NOTHING = "no/such\tthing"  # is no number, name, size, file or folder, nor can be written


@each
def test_every_option_says_what_was_got_and_what_is_allowed(path, command, tmp_path, monkeypatch):
    """A bad value or none at all: in our words, with exit code 2."""
    monkeypatch.chdir(tmp_path)
    options = [max(one.opts, key=len) for one in command.params
               if one.param_type_name == "option" and not one.is_flag]  # fmt: skip
    for option in options:
        required = [word for one in command.params if one.required and option not in one.opts
                    for word in (*one.opts[-1:], NOTHING) if word != one.name]  # fmt: skip
        for tried in ([option, NOTHING], [option]):
            result = CliRunner().invoke(
                APPS[path[0]], [*path[1:], *required, *tried], prog_name=path[0]
            )
            said = result.stderr
            assert result.exit_code == 2 and re.search("^error:|^1 finding", said, re.M), (
                tried,
                result.output,
            )
            assert not [word for word in ("Usage:", "Invalid value", "Input should", "Traceback")
                        if word in said], said  # fmt: skip
            if len(tried) == 1 or "lists what it takes" in said:  # else the command refused it
                assert f"error: {option}: " in said and "; " in said, said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("name", "words", "said"), [
    ("lisa-advise", ["--modl", "7b"], "--modl: no such option; did you mean --model?"),
    ("lisa-advise", ["--osx"], "--osx: no such option; did you mean --os?"),
    ("lisa-advise", ["--json=3"], "'--json' does not take a value"),
    ("lisa-advise", ["docter"], "'docter'. Did you mean 'doctor'?"),
    ("lisa-advise", ["report"], "OUT.html is missing"),
    ("lisa-advise", ["--price", "abc"], "--price: got 'abc'; give a number"),
    ("lisa-advise", ["--prefer", "x"], "--prefer: got 'x'; give one of 'usual', 'speed'"),
    ("lisa-train", ["export"], "RUN is missing"),
    ("lisa-train", ["synthesise", "a", "b"], "unexpected extra argument"),
    ("lisa-segment", [], "IMAGE is missing"),
])  # fmt: skip
def test_what_cannot_be_read_is_said_in_a_line_with_a_hint(name, words, said):
    result = CliRunner().invoke(APPS[name], words, prog_name=name)
    first, hint, *rest = result.stderr.splitlines()
    assert first.startswith("error: ") and said in first and not rest
    assert result.exit_code == 2 and hint.startswith(f"    hint: {name}") and "--help" in hint


@pytest.mark.parametrize(("words", "hint"), [
    (["--beta1", "0.5"], "lisa-advise --set schedule.beta1=VALUE"),
    (["--gpu", "4060", "--rank=4"], "lisa-advise --set lora.rank=VALUE"),
    (["--batch-size", "4"], "lisa-advise --set micro_batch=VALUE"),
    (["--plan", "plan.json"], "lisa-advise forecast PLAN or check PLAN"),
    (["--gpu", "4060", "--data-dir", "absent"], "lisa-train import FILES NEW"),
    (["2x RTX 4060"], "lisa-advise --gpu '2x RTX 4060'"),
    (["4060"], "lisa-advise --gpu 4060"),
    (["--gpu", "4060", "--os", "wsl"], "WSL is --os linux"),
    (["--config", "c.yaml"], "lisa-advise --recipe FILE"),
    (["c.yaml"], "lisa-advise --recipe c.yaml"),
    (["gpus"], "lisa-advise --gpu list"),
    (["--zero", "3"], "lisa-advise --gpus N trains on N cards by DDP; weights are not sharded"),
    (["--qlora"], "lisa-advise --set quantization=nf4"),
])  # fmt: skip
def test_a_word_in_the_wrong_place_is_met_with_the_right_one(words, hint):
    result = CliRunner().invoke(APPS["lisa-advise"], words, prog_name="lisa-advise")
    assert result.exit_code == 2 and f"    hint: {hint}" in result.stderr, result.stderr
    assert "did you mean" not in result.stderr


@pytest.mark.parametrize(("name", "words", "hint"), [
    ("lisa-train", ["--report_to", "wandb"], "--tracker NAME"),
    ("lisa-train", ["check", "data"], "--check-data DIR"),
    ("lisa-train", ["resume", "run"], "--resume RUN"),
    ("lisa-train", ["plan.json"], "--plan plan.json"),
    ("lisa-segment", ["a.jpg", "What?", "--model", "run"], "--run RUN"),
])  # fmt: skip
def test_what_others_call_an_option_is_met_with_ours(name, words, hint):
    result = CliRunner().invoke(APPS[name], words, prog_name=name)
    assert result.exit_code == 2 and f"    hint: {name} {hint}; " in result.stderr, result.stderr


@pytest.mark.parametrize("name", ["lisa-advise", "lisa-train"])
def test_underscores_in_options_are_hyphens(name):
    words = ["--lora_r=999", "--data_dir", "x_y"]
    assert hyphenated(["a_b", *words]) == ["a_b", "--lora-r=999", "--data-dir", "x_y"]
    assert hyphenated(["--", "--a_b.png"]) == ["--", "--a_b.png"], "a file's name"
    result = CliRunner().invoke(APPS[name], words, prog_name=name)
    assert result.exit_code == 2 and result.stderr.startswith("error: --lora-r: got "), name


@pytest.mark.parametrize(("name", "words", "said"), [
    ("lisa-advise", ["--recipe", "trial", "--recipe", "published"], "'trial' and 'published'"),
    ("lisa-advise", ["check", "plan.json", "--vram", "8GiB", "--vram", "6GiB"], "--vram: got"),
    ("lisa-train", ["--seed=3", "--seed", "4", "--data-dir", "."], "--seed: got '3' and '4'"),
    ("lisa-train", ["--epochs", "2", "--set", "schedule.epochs=1", "--data-dir", "."], "2 and 1"),
    ("lisa-train", ["--epochs", "2", "--set", "schedule.epochs=1", "--resume", "."], "2 and 1"),
    ("lisa-train", ["--use-lora", "--set", "lora=null", "--data-dir", "."], "give one of the two"),
    ("lisa-train", ["--seed", "3", "evaluate", "run", "--data-dir", "."], "after its name"),
    ("lisa-segment", ["a.jpg", "What?", "--run", "a", "--run", "b"], "'a' and 'b'; give it once"),
])  # fmt: skip
def test_nothing_that_was_given_is_dropped_for_another(name, words, said):
    result = CliRunner().invoke(APPS[name], words, prog_name=name)
    assert result.exit_code == 2 and said in result.stderr, result.output


@pytest.mark.parametrize("words", [[], ["report", "x.html"], ["check", "plan.json"]])
def test_the_cards_are_listed_as_they_are_named(words):
    result = CliRunner().invoke(advise, [*words, "--gpu", "list"], prog_name="lisa-advise")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(gpus())


@pytest.mark.parametrize("name", APPS)
def test_the_version_is_the_package_s(name):
    result = CliRunner().invoke(APPS[name], ["--version"], prog_name=name)
    assert (result.exit_code, result.stdout) == (0, f"{name} {version('lisa-preflight')}\n")


@pytest.mark.parametrize(
    ("package", "name"), [("advisor", "lisa-advise"), ("trainer", "lisa-train")]
)
def test_a_package_runs_its_command(package, name):
    done = subprocess.run(
        [sys.executable, "-m", package, "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"{name} {version('lisa-preflight')}\n"


@pytest.mark.parametrize(
    ("package", "words", "expected"),
    [
        ("advisor", "lisa-advise --gpu rtx-3060-l", ["rtx-3060-laptop-6gb"]),
        ("advisor", "lisa-advise forecast plan.json --gpu h200", ["h200-141gb", "h200-nvl-141gb"]),
        ("advisor", "lisa-advise --model sa2va", ["sa2va-qwen3-vl-2b", "sa2va-qwen3-vl-4b"]),
        ("advisor", "lisa-advise --explain host-", ["host-memory"]),
        ("advisor", "lisa-advise --explain host_", ["host_embeddings", "host_layers"]),
        ("advisor", "lisa-advise ex", ["explain-oom"]),
        ("trainer", "lisa-train --model 13", ["13b", "13b-v1"]),
        ("trainer", "lisa-train convert a b --model 13", ["13b", "13b-v1"]),
    ],
)
def test_values_are_completed(package, words, expected):
    variable = f"_{words.split()[0].replace('-', '_').upper()}_COMPLETE"
    completing = {variable: "complete_bash", "COMP_WORDS": words,
                  "COMP_CWORD": str(len(words.split()) - 1)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", package], capture_output=True, text=True, env=os.environ | completing
    )
    assert sorted(done.stdout.split()) == sorted(expected), done.stderr


def test_what_is_completed_is_accepted():
    for key, _ in gpu_names(""):
        assert find_gpu(key).key == key
    bare = [name for name, _ in gpu_names("40")]
    assert "4090-24gb" in bare and all(find_gpu(name).key.endswith(name) for name in bare)
    assert len(list(gpu_names(""))) == len(gpus())
    assert [name for name, _ in model_names("")] == list(models())
    assert all(explain(name) for name in explained_names(""))
    assert list(explained_names("Pool")) == ["pool"]


@pytest.mark.parametrize("given", [[], ["lora.alpha=8"]])
def test_a_rank_means_the_same_to_both_commands(given: list[str]) -> None:
    """lisa-train left alpha at 16, lisa-advise had it follow."""
    trained = TrainOptions(lora_r=32, settings=given).assignments()
    assert sorted(trained) == sorted(AdviseOptions(lora_r=32, settings=given).assignments())
    assert sorted(trained) == sorted([*(given or ["lora.alpha=64"]), "lora.rank=32"])
