"""Files that are read and written completely, and folders that only one process may write.

A path from a user may be a pipe, which would block, a device, which may never end, or a file of
gigabytes. A process may be killed between any two file operations, or the power may fail.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from profiles.sizes import MIB

LOCK, HOLDER = ".lock", ".holder.json"
STALE_SECONDS = 3600  # age of a temporary file that no process is writing any more
PATIENCE = 2.0  # seconds that a process just killed, or just ending, may take to let go
LARGEST = 512 << 20  # bytes: a table of 100 000 rows has a third of it
_KINDS = (
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)  # fmt: skip


def read_regular(path: Path, most_bytes: int = LARGEST) -> bytes:
    """The bytes of a regular file of at most `most_bytes`.

    Raises OSError, whose `strerror` says what else it is. A folder raises IsADirectoryError.
    """
    with opened(path) as file:
        known = os.fstat(file.fileno()).st_size
        data = file.read(known + 1) if known <= most_bytes else b""
        if len(data) > known:  # it grows, or is a file of the kernel, without a size
            data += file.read(most_bytes + 1 - len(data))
        if max(known, len(data)) > most_bytes:
            size, most = (f"{number / MIB:.0f} MiB" for number in (known, most_bytes))
            raise OSError(errno.EINVAL, f"has {size}; allowed: at most {most}", str(path))
        return data


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty if it is missing, cannot be read or holds something else."""
    try:
        value = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_ends(path: Path, each_bytes: int) -> tuple[bytes, bytes]:
    """The first and the last bytes of a regular file; of a short one all, and nothing.

    Raises OSError as `read_regular` does.
    """
    with opened(path) as file:
        first = file.read(2 * each_bytes)
        size = os.fstat(file.fileno()).st_size
        if size <= 2 * each_bytes:
            return first, b""
        file.seek(-each_bytes, os.SEEK_END)
        return first[:each_bytes], file.read(each_bytes)


def ends_of(stream: IO[bytes], each_bytes: int) -> tuple[bytes, bytes]:
    """The same of a stream, which is read to its end."""
    first, last, step = stream.read(2 * each_bytes), b"", each_bytes // 4
    while data := stream.read(step):
        last = (last + data)[-each_bytes:]
    if not last:
        return first, b""
    return first[:each_bytes], (first[each_bytes:] + last)[-each_bytes:]


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A regular file, opened without waiting for a pipe's writer. Raises OSError for others."""
    # In case a pipe is put there between a look and the opening.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for test, name in _KINDS if test(mode)), "something else")
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            raise OSError(errno.EINVAL, f"is {kind}; allowed: a regular file", str(path))
        yield file


class Held(ValueError):
    """A folder that another process is writing in; says which."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file by `content`: a reader sees the old or the new content, never a part.

    It has reached the disk when this returns. Raises OSError; what was there is then untouched.
    """
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a write knows no name
        raise
    force(path.parent)


def force(path: Path) -> None:
    """Force what was written to the disk, as far as the system allows it."""
    on_windows = os.name == "nt"
    if on_windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)  # it flushes no other
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: Exception) -> str:
    """What went wrong, in words for a user: no OSError number, no file name, no Python terms."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, UnicodeDecodeError):
        first = error.object[error.start]
        return f"not text in {error.encoding.upper()} (byte {error.start} is {first:#04x})"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error) or "damaged"


def refused(error: OSError) -> str:
    """The error message for a user's file, with the name that the user knows, and a hint.

    An error without a number is this project's own and needs no more words.
    """
    if error.errno is None or error.filename is None:
        return str(error)
    why = reason(error)
    place = _known(Path(os.fsdecode(error.filename)))
    if not isinstance(error, PermissionError):
        return f"{place}: {why}"
    there = next((one for one in (place, *place.parents) if os.path.lexists(one)), place)
    rights = os.R_OK | os.X_OK if there.is_dir() else os.R_OK
    done = "written" if os.access(there, rights) else "read"
    return (
        f"{place}: cannot be {done}: {why}\n    hint: name another, or change the rights of {there}"
    )


def _known(path: Path) -> Path:
    """The visible name behind one of this project's hidden files: the final file, or its folder."""
    for one in (*reversed(path.parents), path):
        if one.name in (LOCK, HOLDER):
            return one.parent
        if aside := re.fullmatch(r"\.(.+)(?:\.part|-\d+)", one.name):
            return one.with_name(aside[1]) if aside[1] not in (LOCK, HOLDER) else one.parent
    return path


def is_aside(path: Path, names: Iterable[str]) -> bool:
    """Whether a killed `write_whole` left this file, on its way to one of `names`."""
    return any(re.fullmatch(rf"\.{re.escape(name)}-\d+", path.name) for name in names)


def sweep(folder: Path, names: Iterable[str], older_seconds: float = 0) -> None:
    """Remove what killed writers of `names` left in a folder.

    If other processes may be writing there now, it removes only files too old to be theirs.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if is_aside(path, names):
            with suppress(FileNotFoundError):  # another process sweeps too
                if time.time() - path.stat().st_mtime >= older_seconds:
                    path.unlink()


def is_vacant(folder: Path) -> bool:
    """Whether a folder is absent, or holds nothing but the record of its last lock."""
    if not folder.exists():
        return True
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK, HOLDER}


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder. If the block raises, remove it and its parents if they are new and empty."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # something is in it
            for one in new:
                one.rmdir()
        raise


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder until the block ends or the process dies; make the folder if it is missing.

    The system's own lock (flock; LockFileEx on Windows), so a killed holder leaves none behind. On
    a network file system it holds between machines only where the server keeps locks (NFS with
    lockd, NFSv4, SMB); where there are none at all, filelock falls back to the file's existence.
    Raises Held, OSError.
    """
    from filelock import FileLock, Timeout

    lock, left = FileLock(folder / LOCK, timeout=PATIENCE), 100
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise Held(f"{folder}: {_holder(folder)} is writing there") from None
        except FileNotFoundError:  # its holder has removed the folder while this one waited
            left -= 1
            if not left:
                raise
            continue
        if _is_at(folder / LOCK, lock._context.lock_file_fd):
            break
        lock.release()  # of a folder that its holder has removed meanwhile
    try:
        own = {"pid": os.getpid(), "host": socket.gethostname(),
               "since": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
        write_whole(folder / HOLDER, json.dumps(own) + "\n")
        yield
    finally:
        lock.release()


def _is_at(path: Path, file: int | None) -> bool:
    """Whether an open file is the one that the path names now."""
    try:
        return file is not None and os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def writer(folder: Path) -> str | None:
    """The process that has locked a folder just now, if one has; nothing is written."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK).is_file():
        return None
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return _holder(folder)
    except OSError:  # not ours to lock
        return None
    lock.release()
    return None


def _holder(folder: Path) -> str:
    """The process that has locked a folder, as it recorded itself."""
    for _ in range(10):  # it may just be about to
        try:
            found = json.loads(read_regular(folder / HOLDER))
            return f"process {found['pid']} on {found['host']} (since {found['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.05)
    return "another process"
