"""The address that a server listens on."""

from __future__ import annotations

import socket

from profiles.files import reason


def taken(host: str, port: int, waiting: bool = False) -> socket.socket:
    """The address, taken but not yet answering; port 0 takes a free one. Raises ValueError.

    A client that connects now is refused, or waits if `waiting`.
    """
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # On Windows SO_REUSEADDR would let two processes have one port. Elsewhere it only frees it
    # at once after its process has ended.
    alone = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR if alone is None else alone, 1)
        place.bind((host, port))
        if waiting:
            place.listen()
    except OSError as error:
        place.close()
        fix = "--port N takes another port, --host an address of this machine"
        raise ValueError(f"--host {host} --port {port}: {reason(error)}\n    hint: {fix}") from None
    return place


def url(host: str, place: socket.socket) -> str:
    """The address for a browser; the machine's name if the server listens on all addresses."""
    port = place.getsockname()[1]
    host = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
