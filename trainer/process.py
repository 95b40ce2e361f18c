"""Sets up a process before a plan runs in it: allocator, threads, variables, folders."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from profiles.exits import EXIT_USAGE, fail
from profiles.places import cache_folder
from profiles.streams import tell

if TYPE_CHECKING:
    from profiles.plan import Plan

NO_COMPILER = "TORCHDYNAMO_DISABLE"  # makes torch.compile return the function as it is


def feature_cache() -> Path:
    """The user's folder for encoders' features."""
    return cache_folder() / "features"


def use_environment(plan: Plan, environment: Mapping[str, str]) -> None:
    """Called before the libraries are imported, which look for cards: which card, and its pool."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    use_allocator(plan)


def use_allocator(plan: Plan) -> None:
    """Make torch use the plan's allocator settings, which the forecast assumes, not the shell's."""
    if plan.device != "cuda":
        return
    from profiles.environment import ALLOCATOR_VARIABLES
    from trainer.parallel.launch import is_main

    for name in ALLOCATOR_VARIABLES:
        shells = os.environ.get(name, "")
        if shells != plan.allocator:
            os.environ[name] = plan.allocator
            if shells and is_main():
                tell(f"the plan's allocator {plan.allocator!r} replaces {name}={shells} of this "
                     f"shell; --set allocator={shells} keeps that")  # fmt: skip
    if "torch" in sys.modules:
        _set_allocator(plan.allocator or "expandable_segments:False")


def _set_allocator(settings: str) -> None:
    """Tell torch itself: it reads the variables once, as soon as the libraries are imported."""
    import torch

    if torch.backends.cuda.is_built():
        newest = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
        (newest or torch.cuda.memory._set_allocator_settings)(settings)


def try_segments(plan: Plan) -> None:
    """Try one allocation with the plan's expandable segments, before anything takes long.

    No query reports whether they work: a virtual GPU may have any name. Raises ValueError if they
    do not; errors of the card itself are raised unchanged.
    """
    if plan.device != "cuda" or plan.segments == "whole":
        return
    import torch

    from profiles.environment import own_card

    if not torch.cuda.is_available():
        return  # reported elsewhere
    device = own_card()
    torch.cuda.mem_get_info(device)  # without the allocator: fails if the card or its driver does
    try:
        torch.empty(1 << 21, dtype=torch.uint8, device=f"cuda:{device}")
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"expandable segments do not work on this GPU: {said}\n"
            "    hint: --set allocator= does without them, with a pool up to a tenth larger"
        ) from None


def clear_leftover_variables() -> None:
    """Called first: remove variables of an earlier session that would override the plan."""
    from profiles.environment import refused
    from trainer.parallel.launch import is_main, without_leftovers

    main = is_main()
    if (leftovers := without_leftovers(os.environ)) and (main or is_main()):
        tell(f"ignoring {', '.join(leftovers)} of this shell: the plan decides")
    for name, allowed in refused(os.environ).items():
        value = os.environ.pop(name)
        if main or is_main():
            tell(f"ignoring {name}={value} of this shell: allowed: {allowed}")


def must_be_alone(what: str) -> None:
    """End with exit code 2 if a launcher started several processes for a single-process command.

    Each would do all the work, and write the same files.
    """
    from trainer.parallel.launch import is_launched, is_main

    if not is_launched(os.environ) or os.environ["WORLD_SIZE"] == "1":
        return
    if is_main():
        fail(f"{what} runs in one process, and a launcher started {os.environ['WORLD_SIZE']}\n"
             "    hint: leave the launcher out; or unset RANK, LOCAL_RANK and WORLD_SIZE, if they "
             "are left over in this shell")  # fmt: skip
    raise typer.Exit(EXIT_USAGE)


def use_threads(plan: Plan, say: Callable[[str], None]) -> None:
    """On the CPU, use a thread for each core of this process, unless the user set a number."""
    if plan.device != "cpu":
        return
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        from profiles.environment import threads_for, usable_cores

        torch.set_num_threads(threads_for(usable_cores(), plan.processes, plan.workers))
    say(f"CPU threads: {torch.get_num_threads()} (OMP_NUM_THREADS sets another number)")


def work_offline() -> None:
    """Called before torch is imported: use neither the network nor folders of other users."""
    from profiles.environment import at_home

    os.environ.update(at_home(os.environ))


def _import_torch() -> None:
    """Raises ValueError for names in TORCH_LOGS that torch does not know."""
    try:
        import torch  # noqa: F401
    except ValueError:
        if "TORCH_LOGS" not in os.environ:
            raise
        raise ValueError(
            f"TORCH_LOGS={os.environ['TORCH_LOGS']}: torch does not know it; allowed: names that "
            "torch lists with TORCH_LOGS=help\n    hint: unset TORCH_LOGS"
        ) from None


def import_libraries() -> None:
    """Import what a model needs, in three seconds: two shortcuts save a third.

    The imports make a million objects that stay, so the garbage collector skips them now and later.
    And bitsandbytes may not prepare four fallback functions for torch's compiler, which would load
    500 more modules; they work without it, too.
    """
    if sys.flags.optimize > 1:
        raise ValueError(
            "PYTHONOPTIMIZE=2 or -OO: transformers needs docstrings; allowed: 0 and 1\n"
            "    hint: unset PYTHONOPTIMIZE"
        )
    before = os.environ.get(NO_COMPILER)
    os.environ[NO_COMPILER] = "1"
    gc.disable()
    _import_torch()
    import trainer.model.build  # noqa: F401

    gc.freeze()
    gc.enable()
    del os.environ[NO_COMPILER]
    if before is not None:
        os.environ[NO_COMPILER] = before
