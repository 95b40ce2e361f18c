"""Python imports this first where its folder leads PYTHONPATH: it refuses the network, and notes in
the file WATCHED_LOG every path that is opened to be written, made, renamed or linked to."""

import os
import socket
import sys

LOG = os.open(os.environ["WATCHED_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
PLACES = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.truncate": 0}


def _watch(event: str, arguments: tuple) -> None:
    if event in NETWORK and getattr(arguments[0], "family", None) != socket.AF_UNIX:
        os.write(LOG, f"network {event} {arguments[1:]!r}\n".encode())
        raise PermissionError("the network is refused in this test")
    if event == "open" and isinstance(arguments[2], int):
        path, _, flags = arguments
        if not isinstance(path, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _note(path)
    elif event in PLACES:
        _note(arguments[PLACES[event]])


def _note(path: object) -> None:
    if not isinstance(path, int):
        os.write(LOG, b"wrote " + os.path.abspath(os.fsencode(path)) + b"\n")


sys.addaudithook(_watch)
