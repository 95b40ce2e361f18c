"""What is wrong with a command line, in this project's words instead of typer's and pydantic's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from profiles.exits import fail
from profiles.overrides import SHARDED, SHARDING
from profiles.text import argument, brief
from profiles.wrong_values import allowed

LIKE = 0.75  # how similar a typed word must be to be suggested: plan is no typing error of explain

# What other trainers, and habits, call options of ours; and words given as a command.
OTHER_OPTIONS = {
    **dict.fromkeys(("config", "config_file", "cfg", "yaml"), "--recipe FILE"),
    **dict.fromkeys(("dataset", "dataset_dir", "data_path", "data_root"), "--data-dir DIR"),
    **dict.fromkeys(("report_to", "log_with", "logger"), "--tracker NAME"),
    **{name: f"--tracker {name}" for name in ("wandb", "mlflow", "tensorboard", "trackio")},
    **dict.fromkeys(("resume_from_checkpoint", "resume_from", "resume"), "--resume RUN"),
    **dict.fromkeys(("num_gpus", "n_gpus", "nproc_per_node", "num_processes"), "--gpus N"),
    **dict.fromkeys(SHARDING, f"--gpus N {SHARDED}"),
    **dict.fromkeys(("exp_name", "run_name", "output", "save_dir"), "--output-dir RUN"),
    **dict.fromkeys(("images", "num_images"), "--pictures N"),
    **dict.fromkeys(("memory", "mem", "gpu_memory"), "--vram SIZE"),
    **dict.fromkeys(("list", "list_gpus", "gpu_list", "gpus", "cards"),
                    "--gpu list names the cards; --gpu '8x NAME' takes several"),
    "windows": "--os windows", "check": "--check-data DIR", "explain": "--explain NAME",
    "checkpoint": "--run RUN", "adapter": "--run RUN", "model": "--run RUN",
}  # fmt: skip

# typer's own class, or click's where typer still uses that.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


@contextmanager
def in_own_words(context: Any) -> Iterator[None]:
    """End with exit code 2 and one clear line where the arguments cannot be read."""
    try:
        yield
    except UsageError as error:
        if context.resilient_parsing or type(error).__name__ == "NoArgsIsHelpError":
            raise  # shell completion, and a command without arguments, which prints its help
        meant = _meant(error, context) or _in_a_command(error, context)
        hint = f"{meant}; --help lists all" if meant else "--help lists what it takes"
        said = _said(error, context, guess=not meant)
        fail(f"{said}\n    hint: {context.command_path} {hint}")


def _said(error: Any, context: Any, guess: bool) -> str:
    """What is wrong; `guess`: with the option that has a similar name."""
    message = error.format_message().rstrip(".")
    if isinstance(error, typer.BadParameter):
        name = _name(error.param)
        if type(error).__name__ == "MissingParameter":
            return f"{name} is missing"
        return f"{name}: {_wrong_value(error).removeprefix(f'{name}: ')}"
    if option := getattr(error, "option_name", ""):
        if "requires an argument" in message:
            return f"{option}: got no value; give one after it"
        if "No such option" in message:
            known = [name for one in context.command.params for name in one.opts]
            close = _close(option, known) if guess else ""
            return f"{brief(option)[1:-1]}: no such option{close}"
    return message[:1].lower() + message[1:]


def _meant(error: Any, context: Any) -> str:
    """What to type for a setting that is no option here, or a card given as a command; else ''."""
    known = {name for one in context.command.params for name in one.opts}
    no_command = re.match("No such command '(.+?)'", error.format_message())
    key = _key(error) or (no_command[1].lower() if no_command else "")
    other = OTHER_OPTIONS.get(key, "")
    if other.partition(" ")[0] in known:
        return other
    if _key(error) and "--set" in known:
        from profiles.overrides import OTHER_NAMES, typed
        from profiles.plan import setting_names

        named = [name for name in setting_names() if name.rpartition(".")[2] == key]
        named += [OTHER_NAMES[key]] if key in OTHER_NAMES and not named else []
        return f"--set {typed(named[0])}" if len(named) == 1 else ""
    for end, option in ((".json", "--plan"), (".yaml", "--recipe"), (".toml", "--recipe")):
        if no_command and key.endswith(end) and option in known:
            return f"{option} {argument(no_command[1])}"
    if no_command and "--gpu" in known:
        from profiles.gpus import find_gpus

        with suppress(ValueError):
            find_gpus(no_command[1])
            return f"--gpu {argument(no_command[1])}"
    return ""


def _in_a_command(error: Any, context: Any) -> str:
    """The commands below this one that take an option which this one does not; else ''."""
    key = _key(error)
    found = []
    for name, command in getattr(context.command, "commands", {}).items():
        takes = [one for one in command.params if one.name == key and not command.hidden]
        found += [f"{name} {_name(one)}" for one in takes]
    return " or ".join(found[:2])


def _key(error: Any) -> str:
    """The option that there is not, as settings are spelled; else ''."""
    return str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_").lower()


def _name(param: Any) -> str:
    """An option's long name, or what an argument is called in the help."""
    options = [name for name in param.opts if name.startswith("-")] if param is not None else []
    if options:
        return str(max(options, key=len))
    return "argument" if param is None else str(param.metavar or param.name.upper())


def _wrong_value(error: Any) -> str:
    """What was got and what is allowed, unless our own parser's message already says it."""
    errors = getattr(error.__cause__, "errors", None)
    if errors is None:
        return str(error.message)
    first = errors(include_url=False)[0]
    got = brief(first["input"])
    if known := allowed(first):
        return f"got {got}; give {known}"
    said = first["msg"].removeprefix("Value error, ").rstrip(".")
    names = said.partition(" is not one of ")[2]
    return f"got {got}; give one of {names}" if names else f"got {got}; {said}"


def _close(name: str, known: list[str]) -> str:
    import difflib

    # Without the dashes, which every option has: --os is not close to --epochs.
    bare = {one.lstrip("-"): one for one in known}
    short = name.lstrip("-")
    found = [one for one in bare if one.startswith(f"{short}-")]
    found = found or difflib.get_close_matches(short, bare, n=1, cutoff=LIKE)
    return f"; did you mean {bare[found[0]]}?" if found else ""
