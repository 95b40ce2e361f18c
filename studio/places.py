"""The folders that the page may see, named at its start. A request names a place below one of them.

A place is text such as `work/runs/first`: the folder's name, then the way below it. No request
holds a path of the system. Links are followed from one of the folders into another, and nowhere
else: what is read as a whole, such as a data set or a run, is looked through for links before.
What files name is another matter: a plan names the folder of its weights, a run that of its data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from profiles.splits import located
from profiles.text import is_text, one_line
from trainer.answer.trained_model import ORIGIN
from trainer.data.images import PICTURE_SUFFIXES
from trainer.run.folder import RECORD, TRAINED

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # of what the page itself makes
MOST = 2000  # entries of a folder that are shown
LINKED = "name the folder that it leads to when you start lisa-studio, or put a copy here"
FILES = {".json": "notes", ".jsonl": "notes", ".csv": "notes"}


class NoSuchPlace(ValueError):
    """A place that the page does not see, or that is not there."""


class Places:
    """The folders of the page; it writes below the first one only."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Raises ValueError for one that is no folder."""
        self.roots: dict[str, Path] = {}
        for folder in dict.fromkeys(one.resolve() for one in folders):
            if not folder.is_dir():
                raise ValueError(f"{folder}: no such folder")
            name, number = folder.name or "root", 2
            while name in self.roots:
                name, number = f"{folder.name}-{number}", number + 1
            self.roots[name] = folder

    @property
    def home(self) -> Path:
        """The folder that the page writes into."""
        return next(iter(self.roots.values()))

    def path(self, place: str) -> Path:
        """The path of a place. Raises NoSuchPlace, for links that lead out of the folders too."""
        name, *parts = place.split("/")
        root = self.roots.get(name)
        hidden = any(part.startswith(".") or part == "" for part in parts)
        if root is None or hidden or "\0" in place or "\\" in place or not is_text(place):
            raise NoSuchPlace(f"{one_line(place)[:200]}: the page does not see such a place")
        try:
            path = root.joinpath(*parts).resolve(strict=True)
        except (OSError, RuntimeError):
            raise NoSuchPlace(f"{one_line(place)[:200]}: is not there") from None
        if not self.sees(path):
            raise NoSuchPlace(f"{one_line(place)[:200]}: leads out of the page's folders; {LINKED}")
        return path

    def sees(self, path: Path) -> bool:
        """Whether a path, with its links followed, is in one of the folders."""
        return self.place(path) is not None

    def folder(self, place: str) -> Path:
        """The path of a folder whose whole content may be read. Raises NoSuchPlace, as `around`."""
        self._folder(place)
        return self.around(place)

    def around(self, place: str) -> Path:
        """The path of a place that is read with all that is below it, or beside a file.

        Raises NoSuchPlace, for links in it that lead out of the folders too.
        """
        path = self.path(place)
        link = self.way_out(path if path.is_dir() else path.parent)
        if link is not None:
            where = one_line(f"{place}: {link.parent.name}/{link.name}")[:200]
            raise NoSuchPlace(f"{where} leads out of the page's folders; {LINKED}")
        return path

    def way_out(self, folder: Path) -> Path | None:
        """The first link in a folder that leads out of the page's folders, if any does.

        Hidden folders are passed over, as they are by all that reads data.
        """
        waiting, known = [folder], {folder}
        while waiting:
            for one in _entries(waiting.pop()):
                if one.is_symlink() and not self.sees(Path(one.path)):
                    return Path(one.path)
                if one.name[0] != "." and (one.is_symlink() or one.is_dir()):
                    below = Path(one.path).resolve()
                    waiting += [below] * (below not in known)
                    known.add(below)
        return None

    def _folder(self, place: str) -> Path:
        path = self.path(place)
        if not path.is_dir():
            raise NoSuchPlace(f"{one_line(place)[:200]}: is no folder")
        return path

    def own(self, place: str) -> Path:
        """The path of a folder that the page may write into. Raises NoSuchPlace."""
        path = self.folder(place)
        if not path.is_relative_to(self.home):
            name = next(iter(self.roots))
            raise NoSuchPlace(f"{one_line(place)[:200]}: the page writes below {name} only")
        return path

    def place(self, path: Path) -> str | None:
        """What a path is called here; None for one that the page does not see."""
        try:
            real = path.resolve()
        except (OSError, RuntimeError):  # links in a circle
            return None
        for name, root in self.roots.items():
            if real.is_relative_to(root):
                return "/".join((name, *real.relative_to(root).parts))
        return None

    def new(self, name: str, *below: str) -> Path:
        """A path for something new of that name, below the first folder. Raises ValueError."""
        if not NAME.fullmatch(name):
            allowed = "letters, digits, dots, hyphens and underscores, 64 at most"
            raise ValueError(f"name: got {one_line(name)[:80]!r}; allowed: {allowed}")
        return self.without_links(self.home.joinpath(*below, name))

    def without_links(self, path: Path) -> Path:
        """A path below the first folder to write to. Raises ValueError for links on the way."""
        if path.resolve() != path or not path.is_relative_to(self.home):
            raise ValueError(f"{path}: is a link; the page writes into its own folder alone")
        return path

    def look(self, place: str) -> dict[str, Any]:
        """What a folder is, and what is in it."""
        kind = kind_of(self.path(place)) if place else ""
        return {"kind": kind, "entries": self.listed(place)}

    def listed(self, place: str) -> list[dict[str, str]]:
        """What is in a folder: name, place and kind; the folders of the page for an empty place."""
        if not place:
            return [{"name": name, "place": name, "kind": kind_of(root) or "folder"}
                    for name, root in self.roots.items()]  # fmt: skip
        entries = sorted(self._folder(place).iterdir(), key=lambda one: one.name.lower())[:MOST]
        shown = ((one, kind_of(one)) for one in entries if one.name[0] != "." and is_text(one.name))
        return [{"name": one.name, "place": f"{place}/{one.name}", "kind": kind}
                for one, kind in shown if kind]  # fmt: skip

    def runs(self) -> Iterator[Path]:
        """The run folders: below `runs` of every folder, or one that was named itself."""
        for root in self.roots.values():
            for folder in (root, *folders(root), *folders(root / "runs")):
                if kind_of(folder) == "run" and self.sees(folder) and not self.way_out(folder):
                    yield folder


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where it is none, or cannot be looked into."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones; none where it cannot be looked into."""
    try:
        return sorted(one for one in folder.iterdir() if one.name[0] != "." and one.is_dir())
    except OSError:
        return []


def kind_of(path: Path) -> str:
    """data, run, model, folder, picture or notes; empty for what the page has no use for."""
    try:
        if path.is_dir():
            return _kind_of_folder(path)
    except OSError:  # another user's
        return ""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return "picture"
    return FILES.get(path.suffix.lower(), "")


def _kind_of_folder(path: Path) -> str:
    if (path / RECORD).is_file():
        return "run"
    if (path / TRAINED).is_file() or (path / ORIGIN).is_file():
        return "model"
    return "data" if located(path) else "folder"
