"""Two machines on one: network namespaces with a cable between them, torchrun and gloo on the CPU.

    python benchmarks/two_machines.py [--rows benchmarks/two_machines.jsonl]      needs root
    python benchmarks/two_machines.py --table                 docs/several-gpus.md's table

Each *host* is a namespace with a name, an address, and a folder of its own for runs and cached
features, as if no disk were shared. lisa-tiny trains in one process of each, which must give the
losses of a single process. Then one of the hosts is lost in the middle: its processes are killed
(SIGKILL), or its cable is pulled, so that nothing closes the connections. The other one must end
by itself and say why, and `--resume` on both must end as the undisturbed run does, bit for bit.
At last the second host runs out of memory; `--max-restarts` lets both go on with a smaller plan.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import PHOTOS, PLAN, ROOT, outcome
from tables import put, rows_of

DOCS, ROWS_FILE = ROOT / "docs" / "several-gpus.md", ROOT / "benchmarks" / "two_machines.jsonl"
MARK = "<!-- benchmarks/two_machines.py -->", "<!-- /benchmarks/two_machines.py -->"
LAUNCHER, PORT = "torch.distributed.run", 29400
CLOSE = 1e-4  # of losses, relatively
SILENCE_SECONDS = 20  # LISA_GROUP_TIMEOUT: the usual ten minutes would only make this longer
LAUNCHER_SECONDS = 30  # that torchrun has to end after its processes
PATIENCE = 240  # seconds for anything: longer is a hang
BATCH = {"accumulation": 4, "effective_batch": 4, "max_val_samples": 4, "workers": 0,
         # Dropout, if there is any, is another in every process.
         "lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": "qv"}}  # fmt: skip
# In a namespace of names and of mounts: a host knows its own name and the other's address.
ENTER = 'hostname "$0" && mount --bind "$HOSTS_FILE" /etc/hosts && exec "$@"'
WAYS = {"killed": "its processes are killed", "silent": "its cable is pulled"}


def ip(*words: str) -> None:
    """Run `ip`. Raises CalledProcessError."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


def why_not() -> str:
    """Why this machine cannot be made two; '' if it can."""
    if sys.platform != "linux" or os.geteuid():
        return "network namespaces need Linux and root"
    name = f"lisa-try-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespace can be made here: {error}"
    return ""


@dataclass(frozen=True)
class Host:
    """One of the two: a namespace, and the end of the cable in it."""

    name: str
    cable: str
    place: Path  # of both

    @property
    def home(self) -> Path:
        """Its own folder."""
        return self.place / self.name

    def start(
        self, *arguments: str, restarts: int = 0, **variables: str
    ) -> subprocess.Popen[bytes]:
        """torchrun on this host, with a training of these arguments."""
        torchrun = [sys.executable, "-m", LAUNCHER, "--nnodes", "2", "--nproc-per-node", "1",
                    "--max-restarts", str(restarts), "--rdzv-backend", "c10d", "--rdzv-endpoint",
                    f"{address(0)}:{PORT}", "-m", "trainer.cli"]  # fmt: skip
        enter = ["ip", "netns", "exec", self.name, "unshare", "--uts", "--mount", "sh", "-c",
                 ENTER, self.name]  # fmt: skip
        environment = os.environ | {"HOSTS_FILE": str(self.place / "hosts"), "OMP_NUM_THREADS": "1",
                                    "LISA_GROUP_TIMEOUT": str(SILENCE_SECONDS),
                                    "PYTHONPATH": str(ROOT)} | variables  # fmt: skip
        self.home.mkdir(exist_ok=True)
        command = [*enter, *torchrun, *arguments, "--cache-dir", "cache"]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, cwd=self.home, stdout=log, stderr=log, env=environment)

    @property
    def log(self) -> Path:
        """All that its processes print."""
        return self.place / f"log-{self.name}"

    def processes(self) -> list[int]:
        """The processes in its namespace."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def trainings(self) -> list[int]:
        """Those of them that train: the rest is torchrun."""
        return [pid for pid in self.processes() if LAUNCHER not in words_of(pid)]

    def kill(self) -> None:
        """End all its processes by SIGKILL."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def plug(self, state: str) -> None:
        """Put its cable "up" or "down"."""
        ip("-n", self.name, "link", "set", self.cable, state)


def words_of(pid: int) -> list[str]:
    """The command of a process; that of torchrun if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return [LAUNCHER]


def address(number: int) -> str:
    """Of a host, on the cable."""
    return f"10.87.0.{number + 1}"


@contextmanager
def two_hosts(place: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other, and nothing else; gone at the end, with what runs there."""
    mine = os.getpid()
    first, second = (Host(f"lisa-{mine}-{n}", f"lisa{mine}-{n}"[-15:], place) for n in "ab")
    names = [f"{address(n)} {host.name}" for n, host in enumerate((first, second))]
    (place / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
    with ExitStack() as stack:
        for host in (first, second):
            ip("netns", "add", host.name)
            stack.callback(ip, "netns", "del", host.name)
            stack.callback(host.kill)
        ip("link", "add", first.cable, "netns", first.name, "type", "veth",
           "peer", "name", second.cable, "netns", second.name)  # fmt: skip
        for number, host in enumerate((first, second)):
            ip("-n", host.name, "addr", "add", f"{address(number)}/24", "dev", host.cable)
            ip("-n", host.name, "link", "set", "lo", "up")
            host.plug("up")
        yield first, second


def begin(place: Path, run: str) -> list[str]:
    """Arguments of a training into the folder `run` of each host."""
    return ["--plan", str(place / "plan.json"), "--data-dir", str(PHOTOS), "--output-dir", run,
            "--save-steps", "1"]  # fmt: skip


def together(hosts: tuple[Host, Host], *arguments: str) -> None:
    """Train on both to the end. Raises RuntimeError."""
    wait_for_both(hosts, [host.start(*arguments) for host in hosts])


def wait_for_both(hosts: tuple[Host, Host], started: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the end of both. Raises RuntimeError."""
    codes = [process.wait(PATIENCE) for process in started]
    if any(codes):
        raise RuntimeError(f"exit codes {codes}: {hosts[0].log.read_text()[-1500:]}")


def losses(run: Path) -> list[float]:
    """Of every step so far; the last line may be half written."""
    if not (run / "metrics.jsonl").exists():
        return []
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def wait_until(done: Callable[[], bool]) -> None:
    """Look ten times a second. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened for {PATIENCE} s")
        time.sleep(0.1)


def lose(hosts: tuple[Host, Host], victim: int, way: str, name: str, after: int) -> dict[str, Any]:
    """Lose a host after so many steps; how the other one ends, and what is left of it."""
    other, run = hosts[1 - victim], hosts[0].home / name
    before = other.log.stat().st_size if other.log.exists() else 0
    started = [host.start(*begin(hosts[0].place, name)) for host in hosts]
    torchrun = started[1 - victim]
    wait_until(lambda: len(losses(run)) >= after or torchrun.poll() is not None)
    since = time.monotonic()
    if way == "killed":
        hosts[victim].kill()
    else:
        hosts[victim].plug("down")
    wait_until(lambda: not other.trainings())
    seconds = time.monotonic() - since
    with suppress(subprocess.TimeoutExpired):
        torchrun.wait(LAUNCHER_SECONDS)
    code, left = torchrun.poll(), len(other.trainings())
    for host in hosts:  # a silent one is switched off before its cable is repaired
        host.kill()
    hosts[victim].plug("up")
    for process in started:
        process.wait(PATIENCE)
    said = [line for line in other.log.read_bytes()[before:].decode(errors="replace").splitlines()
            if line.startswith(("error: ", "    hint: "))]  # fmt: skip
    return {"steps": len(losses(run)), "seconds": round(seconds, 1), "code": code, "left": left,
            "said": said}  # fmt: skip


def run_short(hosts: tuple[Host, Host], name: str) -> dict[str, Any]:
    """The second host runs out of memory in its third pass; torchrun starts both again."""
    path = os.pathsep.join([str(ROOT / "benchmarks" / "starved"), str(ROOT)])
    starved = f"trainer.step,accumulate,3,1,{hosts[0].place / 'once'}"
    started = [host.start(*begin(hosts[0].place, name), restarts=1, PYTHONPATH=path,
                          STARVED=starved) for host in hosts]  # fmt: skip
    before = hosts[0].log.stat().st_size
    wait_for_both(hosts, started)
    printed = hosts[0].log.read_bytes()[before:].decode(errors="replace").splitlines()
    said = [line for line in printed if line.startswith("continuing")]
    return {"said": said, "left": sum(len(host.processes()) for host in hosts)}


def train_alone(place: Path) -> list[float]:
    """The losses of a single process."""
    (place / "plan.json").write_text(json.dumps(PLAN | BATCH))
    arguments = [*begin(place, str(place / "one")), "--cache-dir", str(place / "cache-alone")]
    command = [sys.executable, "-P", "-m", "trainer.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True)
    return losses(place / "one")


def write_plan_of_two(place: Path) -> None:
    """The same training by two processes on two machines."""
    two = {"processes": 2, "nodes": 2, "accumulation": 2}
    (place / "plan.json").write_text(json.dumps(PLAN | BATCH | two))


def scenes(place: Path) -> Iterator[dict[str, Any]]:
    """All of them, one after the other."""
    alone = train_alone(place)
    write_plan_of_two(place)
    with two_hosts(place) as hosts:
        together(hosts, *begin(place, "whole"))
        both = losses(hosts[0].home / "whole")
        off = max(abs(a / b - 1) for a, b in zip(both, alone, strict=True))
        yield {"scene": "undisturbed", "steps": len(both), "losses_off": off}
        known = outcome(hosts[0].home / "whole")
        for number, (way, victim) in enumerate((w, v) for w in WAYS for v in range(2)):
            name = f"run-{number}"
            row = lose(hosts, victim, way, name, after=2 + number % 2)
            together(hosts, "--resume", name)
            same = outcome(hosts[0].home / name) == known
            yield {"scene": way, "host": victim, **row, "same": same}
        row = run_short(hosts, "short")
        same = outcome(hosts[0].home / "short") == known
        yield {"scene": "short", "host": 1, **row, "code": 0, "same": same}


def table_of(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: one line a scene."""
    lines = ["| what happens to a machine | the other's training ended after | "
             "exit code of its torchrun | processes left | resumed as undisturbed |",
             "|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        if row["scene"] in WAYS:
            where = "first" if row["host"] == 0 else "second"
            code = "torchrun waited on" if row["code"] is None else row["code"]
            lines.append(f"| {WAYS[row['scene']]} (the {where} machine's) | {row['seconds']:.0f} s "
                         f"| {code} | {row['left']} "
                         f"| {'bit for bit' if row['same'] else 'NO'} |")  # fmt: skip
        elif row["scene"] == "short":
            lines.append("| it runs out of memory, `--max_restarts 1` | both went on with a "
                         f"smaller plan | {row['code']} | {row['left']} "
                         f"| {'bit for bit' if row['same'] else 'NO'} |")  # fmt: skip
    return lines


def write_table(rows: list[dict[str, Any]]) -> None:
    """Into docs/several-gpus.md."""
    put(DOCS, *MARK, table_of(rows))


def main() -> None:
    """Run them all; exit code 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, help="a file to write a line for each scene to")
    parser.add_argument("--table", action="store_true", help="write docs/several-gpus.md's table")
    arguments = parser.parse_args()
    if arguments.table:
        return write_table(rows_of(ROWS_FILE))
    if why := why_not():
        sys.exit(why)
    from trainer.hardware import versions

    about = {"date": datetime.date.today().isoformat(), "versions": versions()}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"XDG_DATA_HOME": f"{name}/data", "XDG_CACHE_HOME": f"{name}/kept"}
        for row in scenes(Path(name)):
            rows.append(row | about)
            print(json.dumps(row), flush=True)
    if arguments.rows:
        arguments.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    right = rows[0]["losses_off"] < CLOSE and all(r["same"] and not r["left"] for r in rows[1:])
    # A torchrun whose store was on a machine that fell silent waits until TCP gives up.
    sys.exit(not right or any(row["code"] == 0 for row in rows if row["scene"] in WAYS))


if __name__ == "__main__":
    main()
