"""Files that a user names are read whole: only regular ones, and only up to a size.

A pipe would be waited for, a device may never end, and gigabytes would take the memory of the run.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LARGEST = 512 << 20  # bytes: a table of 100 000 rows has a third of it
_KINDS = (
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)  # fmt: skip


def read_regular(path: Path, most_bytes: int = LARGEST) -> bytes:
    """The bytes of a regular file of at most `most_bytes`.

    Raises OSError, whose `strerror` says what else it is. A folder raises IsADirectoryError.
    """
    # Without waiting for a pipe's writer, in case it is put there between a look and the opening.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            kind = next((name for test, name in _KINDS if test(found.st_mode)), "something else")
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            raise OSError(errno.EINVAL, f"is {kind}; allowed: a regular file", str(path))
        data = file.read(most_bytes + 1) if found.st_size <= most_bytes else b""
        if max(found.st_size, len(data)) > most_bytes:
            size, most = (f"{number / 2**20:.0f} MiB" for number in (found.st_size, most_bytes))
            raise OSError(errno.EFBIG, f"has {size}; allowed: at most {most}", str(path))
        return data
