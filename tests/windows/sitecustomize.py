"""What this project's own code sees of a Windows: its `os`, `signal` and `sys`, no Unix modules.

Libraries see the real system. Paths stay a Unix's, and so do rights, links and locks.
"""

import builtins
import os
import signal
import sys
from types import ModuleType
from typing import Any

MODULES = {"os": os, "signal": signal, "sys": sys}
OURS = ("advisor", "profiles", "studio", "trainer")
UNIX = {"fcntl", "grp", "pwd", "resource", "termios"}
HIDDEN = {
    "os": {"fork", "forkpty", "killpg", "getuid", "geteuid", "getgid", "getpgid", "getpgrp",
           "setsid", "sched_getaffinity", "statvfs", "sync", "mkfifo", "O_NONBLOCK", "O_DIRECTORY",
           "O_NOFOLLOW", "posix_fallocate", "memfd_create", "getloadavg", "uname", "sysconf",
           "register_at_fork", "wait4", "chown", "fchmod", "nice"},
    "signal": {"SIGKILL", "SIGCHLD", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGPIPE", "SIGQUIT", "alarm",
               "setitimer", "pthread_sigmask"},
    "sys": set(),
}  # fmt: skip


def _open(path: Any, flags: int, *others: Any, **named: Any) -> int:
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return os.open(path, flags, *others, **named)


def _fsync(file: int) -> None:
    import fcntl

    if not fcntl.fcntl(file, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR):
        raise OSError(9, "Bad file descriptor")  # FlushFileBuffers needs the right to write
    os.fsync(file)


CHANGED: dict[str, dict[str, Any]] = {
    "os": {"name": "nt", "open": _open, "fsync": _fsync, "O_BINARY": 0},
    "signal": {},
    "sys": {"platform": "win32"},
}


class Windows(ModuleType):
    """A module as it is there."""

    def __getattr__(self, name: str) -> Any:
        whose = self.__name__
        if name in HIDDEN[whose]:
            raise AttributeError(f"module {whose!r} has no attribute {name!r}")
        return CHANGED[whose].get(name, getattr(MODULES[whose], name))


_import = builtins.__import__
_seen = {name: Windows(name) for name in MODULES}


def _as_there(name: str, names: Any = None, *others: Any, **named: Any) -> Any:
    if not str((names or {}).get("__name__", "")).startswith(OURS):
        return _import(name, names, *others, **named)
    if name in UNIX:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _seen.get(name) or _import(name, names, *others, **named)


builtins.__import__ = _as_there
