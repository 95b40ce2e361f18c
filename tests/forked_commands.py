"""A shell's commands as forks of the test's process, which has torch: a start takes seconds."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.forked import end, fork, here
from profiles import start
from trainer.process import import_libraries

COMMANDS = {"lisa-advise": start.advise, "lisa-train": start.train, "lisa-segment": start.segment}
before: list[object] = []  # streams of the server, which would close their numbers as they go
# It hands its streams, place and words over, and waits for the exit code.
STUB = """#!{python} -SE
import json, os, socket, sys
asked = json.dumps([sys.argv, os.getcwd(), dict(os.environ)])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [asked.encode()], [0, 1, 2])
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(9) or 1))
"""


@contextmanager
def commands(folder: Path) -> Iterator[Path]:
    """A folder for PATH; its commands run until the block ends."""
    address = str(folder / "socket")
    for name in COMMANDS:
        (folder / name).write_text(STUB.format(python=sys.executable, address=address))
        (folder / name).chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        server = fork(lambda: _serve(listener), folder / "log")
        try:
            yield folder
        finally:
            os.kill(server, signal.SIGKILL)
            end(server)


def _serve(listener: socket.socket) -> None:
    import_libraries()  # where no test has done so
    while True:
        asking = listener.accept()[0]
        pid = os.fork()
        if not pid:
            try:
                asking.send(str(_called(asking)).encode())
            finally:
                os._exit(0)
        asking.close()
        os.waitpid(pid, 0)  # a shell's commands come one after the other


def _called(asking: socket.socket) -> int:
    data, streams, *_ = socket.recv_fds(asking, 1 << 20, 3)
    while more := asking.recv(1 << 20):
        data += more
    sys.argv, place, environment = json.loads(data)
    before.extend((sys.stdout, sys.stderr))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    code = here(COMMANDS[Path(sys.argv[0]).name])
    sys.stdout.flush()
    return code
