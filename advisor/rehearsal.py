"""The trainer's rehearsal as a child process: its arguments, its output, its failures.

The boundary is needed: an out-of-memory step poisons its process, a fake run can abort a CPU build
of torch, and the advisor itself imports no torch.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from profiles.environment import RANKS, at_home, python_module
from profiles.measurement import Measurement
from profiles.plan import Plan

TIMEOUT_SECONDS = 300


class RehearsalFailed(RuntimeError):
    """The child crashed, hung or printed something else; says in which phase, names its log."""


class BadQuestion(ValueError):
    """Data that cannot be read; says what, where and how to fix it."""


def in_child(
    command: Sequence[str], timeout_seconds: float, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, its output kept; `environment` is laid over this process's.

    The child is no rank of a launch that this process may belong to: it would wait for the others.
    Raises TimeoutExpired.
    """
    own = {name: value for name, value in at_home(os.environ).items() if name not in RANKS}
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_seconds,
        # The child's output is read in this encoding, whatever the user's is.
        env={**own, **environment, "PYTHONIOENCODING": "utf-8:replace"},
    )


def rehearsed(
    plan: Plan,
    options: Sequence[str],
    environment: Mapping[str, str],
    logs: Path,
    timeout_seconds: float | None = None,
) -> Measurement:
    """The measurement that `trainer.rehearse` prints for `plan`.

    `environment` is laid over this process's. Raises RehearsalFailed, with the child's log kept in
    `logs`, and, about the data, BadQuestion.
    """
    timeout = timeout_seconds or TIMEOUT_SECONDS
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "plan.json"
        path.write_text(plan.to_json(), encoding="utf-8")
        command = python_module("trainer.rehearse", str(path), *options)
        try:
            done = in_child(command, timeout, environment)
            said, out, code = done.stderr, done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            said = (error.stderr or b"").decode(errors="replace") + "\ntimed out"
            raise _failed(f"did not end in {timeout:.0f} s", said, logs) from None
    if code == 2:
        raise BadQuestion(said.rpartition("error: ")[2].strip())
    if code < 0:
        raise _failed(f"was ended by signal {-code}", said, logs)
    if code:
        raise _failed(f"ended with code {code}: {_last_line(said)}", said, logs)
    try:
        return Measurement.model_validate_json(out)
    except ValueError as error:
        said += f"\n--- stdout ---\n{out[:2000]}\n{error}"
        raise _failed("printed no measurement", said, logs) from None


def _failed(what: str, log: str, folder: Path) -> RehearsalFailed:
    phases = [line.partition(": ")[2] for line in log.splitlines() if line.startswith("phase: ")]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "last_failure.log"
    path.write_text(log, encoding="utf-8")
    where = phases[-1] if phases else "start"
    return RehearsalFailed(f"the rehearsal {what} (phase: {where})\n    hint: its log is {path}")


def _last_line(log: str) -> str:
    return next((line for line in reversed(log.splitlines()) if line.strip()), "no message")
