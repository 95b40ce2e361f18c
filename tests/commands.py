"""The product's commands without seconds of importing torch: forked off a process that has it.

`started("trainer.cli")` stands for `[sys.executable, "-m", "trainer.cli"]`. It is a real process
that gets arguments, folder, environment and streams as any other, and hands them to this worker's
zygote; its exit code or signal is the command's. What a test says of a start itself (imports, path,
signals, another PYTHONPATH) needs a fresh Python instead.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path

ZYGOTE = "--zygote"
PRELOADED = (
    "torch", "trainer.run.run", "trainer.cli.train", "trainer.cli.segment", "advisor.cli.main",
    "trainer.rehearse.fake", "trainer.answer.segmenter", "trainer.convert.export",
)  # fmt: skip


def started(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this project."""
    if not hasattr(os, "pidfd_open"):
        return [sys.executable, "-P", "-m", module, *arguments]
    return [sys.executable, "-I", "-S", __file__, _zygote(), module, *arguments]


@functools.cache
def _zygote() -> str:
    """Where this process's zygote listens; started at the first call, it ends with us."""
    import shutil
    import subprocess
    import tempfile

    folder = tempfile.mkdtemp(prefix="zygote-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = os.path.join(folder, "socket")
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, ZYGOTE, address],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    atexit.register(process.kill)
    return address


# ----------------------------------------------------------------------------- the process in front


def _stand_for(address: str, module: str, arguments: list[str]) -> None:
    """Hand everything over, pass signals on, and end as the command does."""
    wish = {"argv": [module, *arguments], "env": dict(os.environ), "cwd": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)
        content = json.dumps(wish).encode()
        socket.send_fds(line, [b"%9d" % len(content)], [0, 1, 2])
        line.sendall(content)
        answers = line.makefile()
        pid = int(answers.readline())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


# --------------------------------------------------------------------------------------- the zygote


def _serve(address: str) -> list[str]:
    """Fork for each connection until standard input ends; returns in the child: its arguments."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    while server in select.select([server, 0], [], [])[0]:
        line, _ = server.accept()
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _kept(line)
        line.close()
    os._exit(0)


def _kept(line: socket.socket) -> list[str]:
    """Fork the command and stay its parent, who tells how it ended and ends it with who asked."""
    length, streams, _, _ = socket.recv_fds(line, 9, 3)
    wish = json.loads(line.recv(int(length), socket.MSG_WAITALL))
    if (pid := os.fork()) == 0:
        line.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return _become(wish)
    for stream in (*streams, 0, 1, 2):
        os.close(stream)
    line.sendall(b"%d\n" % pid)
    ended = os.pidfd_open(pid)
    if ended not in select.select([ended, line], [], [])[0]:
        os.kill(pid, signal.SIGKILL)  # who asked was killed
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        line.sendall(b"%d\n" % code)
    finally:
        os._exit(0)


def _become(wish: dict) -> list[str]:
    """Take over folder, environment and streams as a new Python would."""
    os.environ.clear()
    os.environ.update(wish["env"])
    os.chdir(wish["cwd"])
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    errors = errors or "strict"
    sys.stdin = open(0, encoding=encoding, errors=errors)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=encoding, errors=errors)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding=encoding, errors="backslashreplace")  # noqa: SIM115
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    return wish["argv"]


def _be_zygote(address: str) -> None:
    sys.path[:] = [place for place in sys.path if place]
    for name in PRELOADED:
        __import__(name)
    import advisor.rehearsal as door

    rehearse = [sys.executable, "-I", "-S", __file__, address]
    door.python_module = lambda *command: [*rehearse, *command]
    gc.freeze()  # or each child would copy what it only looks at
    sys.argv = _serve(address)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1] == ZYGOTE:
        _be_zygote(sys.argv[2])
    else:
        _stand_for(sys.argv[1], sys.argv[2], sys.argv[3:])
