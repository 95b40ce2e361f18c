"""A shim between a process and its files: it counts file operations and kills the process.

Nothing of the product knows of it. It stands in for Python's own functions, and for the one of
safetensors that writes, and sees those that touch a watched folder. Torn: what the last operations
wrote and nobody forced to disk is gone as well, as after a power cut.
"""

from __future__ import annotations

import builtins
import io
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Fatal = int | tuple[str, int] | None  # an operation: its number, or what it does and which of those
Copies = Mapping[int, Sequence[tuple[Path, bool]]]  # where to, and whether torn, by operation
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Shim:
    """Kills this process just before its `fatal` operation on files below `root`.

    Or copies what a kill would leave there before others, and lets the process go on.
    """

    def __init__(
        self, root: Path, fatal: Fatal, torn: bool, log: Path | None, copies: Copies | None
    ) -> None:
        self.root = os.path.abspath(root)
        self.fatal, self.torn, self.log = fatal, torn, log
        self.count, self.copies = 0, copies or {}
        self.seen = Counter[str]()
        self.safe: dict[str, int] = {}  # bytes of a file that have been forced to disk

    def at(self, kind: str, path: object, folder: int | None = None) -> str | None:
        """An operation is about to be done; the path if it is watched."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif folder is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
        where = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
        if not where.startswith(self.root + os.sep):
            return None
        what = f"{kind} {where[len(self.root) + 1 :]}"
        self.count += 1
        self.seen[what] += 1
        if self.log:
            with real_open(self.log, "a") as file:
                file.write(f"{self.count} {what}\n")
        if self.fatal in (self.count, (what, self.seen[what])):
            self.die()
        for target, torn in self.copies.get(self.count, ()):
            self.copy(target, torn)
        return where

    def die(self) -> None:
        """Leave what a power cut would leave, if asked to, then SIGKILL."""
        if self.torn:
            self.tear(self.root)
        os.kill(os.getpid(), signal.SIGKILL)

    def tear(self, root: str | Path) -> None:
        """Cut off what a power cut would, of the watched folder or of its copy."""
        for path, size in self.safe.items():
            there = os.path.join(root, os.path.relpath(path, self.root))
            if os.path.isfile(there) and os.path.getsize(there) > size:
                real_truncate(there, size)

    def copy(self, target: Path, torn: bool) -> None:
        """What a kill would leave now."""
        shutil.copytree(self.root, target, symlinks=True)
        if torn:
            self.tear(target)

    def halves(self) -> bool:
        """Whether something happens at the next operation, so that a write is done in two parts."""
        return self.count + 1 == self.fatal or self.count + 1 in self.copies

    def written(self, path: str) -> None:
        """Note a file opened for writing: nothing of it is on disk yet, unless it existed."""
        self.safe.setdefault(path, os.path.getsize(path) if os.path.exists(path) else 0)

    def forced(self, path: str) -> None:
        """A file has reached the disk."""
        if os.path.isfile(path):
            self.safe[path] = os.path.getsize(path)

    def moved(self, old: str, new: str) -> None:
        """A file or folder has another name."""
        for path in [p for p in self.safe if p == old or p.startswith(old + os.sep)]:
            self.safe[new + path[len(old) :]] = self.safe.pop(path)

    def install(self) -> None:
        """Stand in for every function that changes files."""
        builtins.open = io.open = self._open  # type: ignore[assignment]
        for name in ("unlink", "remove", "rmdir", "mkdir", "truncate", "ftruncate", "symlink"):
            setattr(os, name, self._counted(name))
        for name in ("rename", "replace", "link"):
            setattr(os, name, self._two(name))
        os.open, os.write, os.fsync = self._os_open, self._os_write, self._fsync
        os.sendfile = self._sendfile  # copying files
        import safetensors.torch

        self._serialize = safetensors.torch.serialize_file
        safetensors.torch.serialize_file = self._safetensors

    def _counted(self, name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def counted(path: Any, *rest: Any, **named: Any) -> Any:
            self.at(name, path, named.get("dir_fd"))
            return real(path, *rest, **named)

        return counted

    def _two(self, name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def counted(old: Any, new: Any, **named: Any) -> Any:
            where = self.at(name, new)
            done = real(old, new, **named)
            if where and name != "link":
                self.moved(os.path.abspath(os.fsdecode(old)), where)
            return done

        return counted

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
              errors: str | None = None, newline: str | None = None, closefd: bool = True,
              opener: Any = None) -> Any:  # fmt: skip
        # An opener, as tempfile's, opens the file by os.open, which counts.
        if isinstance(file, int) or opener is not None or not set(mode) & set("wax+"):
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        where = self.at("open", file)
        if where is None:
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(self, where, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    def _os_open(self, path: Any, flags: int, *rest: Any, **named: Any) -> int:
        where = self.at("open", path, named.get("dir_fd")) if flags & WRITING else None
        if where:
            self.written(where)
        return real_os_open(path, flags, *rest, **named)

    def _os_write(self, handle: int, data: Any) -> int:
        self.at("write", handle)
        return real_write(handle, data)

    def _sendfile(self, out: int, *rest: Any) -> int:
        self.at("write", out)
        return real_sendfile(out, *rest)

    def _fsync(self, handle: Any) -> None:
        where = self.at("fsync", handle if isinstance(handle, int) else handle.fileno())
        real_fsync(handle)
        if where:
            self.forced(where)

    def _safetensors(self, tensors: Any, filename: Any, metadata: Any = None) -> None:
        where = self.at("open", filename)
        if where:
            self.written(where)
        self._serialize(tensors, filename, metadata)
        halved = where and self.halves()
        if where and halved:  # in the middle of writing
            real_truncate(where, os.path.getsize(where) // 2)
        self.at("write", filename)
        if halved:
            self._serialize(tensors, filename, metadata)


class _Raw(io.FileIO):
    """A watched file: every write that reaches the system counts; the fatal one is half done."""

    def __init__(self, shim: Shim, path: str, mode: str) -> None:
        shim.written(path)
        super().__init__(path, mode)
        self.shim = shim

    def write(self, data: Any) -> int:
        """As FileIO's."""
        done = super().write(bytes(data)[: len(data) // 2]) if self.shim.halves() else 0
        self.shim.at("write", self.name)
        return done + super().write(bytes(data)[done:] if done else data)


real_open, real_os_open, real_write, real_fsync, real_truncate, real_sendfile = (
    io.open, os.open, os.write, os.fsync, os.truncate, os.sendfile
)  # fmt: skip
