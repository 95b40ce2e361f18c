"""Finds pictures by the names in annotations. No other module turns such names into paths."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PureWindowsPath

from profiles.text import argument, is_text
from trainer.data.findings import Report
from trainer.data.json_fields import read_sentence
from trainer.data.picture_names import (
    UPLOAD,
    ends_of,
    key_of,
    names_of,
    older_names,
    spellings,
    uploaded,
)

# Folders of annotations only: the pictures are beside them.
_NOTES_FOLDERS = ("annotations", "annotation", "labels", "label", "json", "jsons", "labelme")
_SHOWN = 5  # candidates
_MOST_FILES = 2_000_000  # searched for a name; not a whole disk


def picture_in(
    report: Report, what: str, name: object, *folders: Path, root: Path | None = None
) -> Path | None:
    """The picture called `name` in the first folder that has it; None with a finding added.

    Names cannot leave `root` (by default the folder itself), whatever system they were written
    for, and neither can symbolic links on the way: annotations from elsewhere must not reach other
    files of this machine.
    """
    text = read_sentence(report, what, name)
    if text is None:
        return None
    parts = PureWindowsPath(text)  # understands both separators, and drives
    outside = bool(parts.anchor)
    for folder in () if outside else folders:
        path = os.path.abspath(os.path.join(folder, *parts.parts))
        outside |= _leads_out(path, root or folder)
        found = None if outside else _as_called(path)
        if found and not _leads_out(found, root or folder):
            return Path(found)
    _refuse(report, what, name, root or " or ".join(map(str, folders)), outside)
    return None


class PictureSearch:
    """Finds the pictures that annotations name, by one rule for all formats.

    It looks for the recorded path in each folder, then for the end of that path, then for the base
    name, if only one picture below the folders has it. Paths may be from another machine or
    system, or web addresses. Nothing outside of the folders is ever found.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        *,
        least: int = 1,
        by_name: bool = True,
        strict: bool = False,
        recorded: Iterable[object] = (),
    ) -> None:
        """`recorded`: all names, if known; `strict`: no search for names that lead elsewhere.

        `least`: how many parts of a path must agree.
        """
        self.folders = list(dict.fromkeys(Path(os.path.abspath(folder)) for folder in folders))
        self.least, self.by_name, self.strict = least, by_name, strict
        self.missing = 0  # names that were not found
        self.respelled: dict[str, str] = {}  # names found in other capitals only, and the files'
        self._index: dict[str, list[tuple[Path, Path]]] | None = None
        self._folded: dict[str, list[tuple[Path, Path]]] | None = None  # by keys in small letters
        self._in_bytes: dict[str, tuple[Path, str]] = {}  # names not in UTF-8, as they were meant
        self.register(recorded)

    def register(self, recorded: Iterable[object]) -> None:
        """Register all names that will be searched for, so that none is mistaken for another.

        The end of a path that several of them share is not searched for.
        """
        self._recorded = {text for text in recorded if isinstance(text, str)}
        self._ends: Counter[str] | None = None

    def _is_shared(self, end: str) -> bool:
        """Whether several recorded names end so; all are read when the first is searched for."""
        if self._ends is None:
            self._ends = Counter(end for text in self._recorded for end in ends_of(text))
        return self._ends[end] > 1

    def is_recorded(self, name: object, beside: Path, root: Path) -> bool:
        """Whether the recorded name itself leads to a picture, without a guess."""
        found = self._as_recorded(name, beside, root) if isinstance(name, str) else None
        return isinstance(found, tuple)

    def has(self, name: str, folder: Path) -> bool:
        """Whether a picture of this name is there, even if its file's name is no UTF-8."""
        there = self.is_recorded(name, folder, folder)
        return there or self._misnamed(PureWindowsPath(name).name) is not None

    def find(
        self,
        report: Report,
        what: str,
        name: object,
        beside: Path | None = None,
        root: Path | None = None,
    ) -> tuple[Path, Path] | None:
        """The picture and the folder it was found from; None with a finding added.

        A path that is recorded from the folder `beside` may lead anywhere in `root`.
        """
        text = read_sentence(report, what, name)
        if text is None:
            return None
        exact = self._as_recorded(text, beside, root)
        if isinstance(exact, tuple):
            return exact
        outside = exact
        meant = [PureWindowsPath(spelling) for spelling in spellings(text)]
        if not (self.strict and outside):
            for parts in meant:
                found_there = self._by_end(parts)
                if found_there:
                    return found_there
            # If another entry's picture has the same base name, a search by it would be a guess.
            shared = self._is_shared(key_of(PureWindowsPath(text).name))
            candidates = [] if shared else list(self._candidates(meant))
            candidates = candidates or self._in_other_capitals(PureWindowsPath(text).name)
            if len(candidates) == 1:
                return candidates[0]
            if candidates:
                listed = ", ".join(str(path) for path, _ in candidates[:_SHOWN])
                more = " …" if len(candidates) > _SHOWN else ""
                allowed = f"the name of one picture; this is ambiguous: {listed}{more}"
                fix = "write the path that is meant, or keep one of them there"
                report.add(what, name, allowed, fix)
                return None
        misnamed = None if outside else self._misnamed(PureWindowsPath(text).name)
        self.missing += not self.strict and misnamed is None
        _refuse(report, what, name, " or ".join(map(str, self.folders)), outside, misnamed)
        return None

    def _as_recorded(
        self, text: str, beside: Path | None, root: Path | None
    ) -> tuple[Path, Path] | bool:
        """The picture at the recorded path; else whether that path leaves the folders."""
        outside = False
        places = [(folder, folder) for folder in self.folders]
        if beside is not None:
            places.insert(0, (beside, root or beside))
        for parts in map(PureWindowsPath, spellings(text)):
            if parts.anchor:  # of another machine, most likely: its end will be searched for
                outside |= self.strict
                continue
            for start, border in places:
                path = os.path.abspath(os.path.join(start, *parts.parts))
                if _leads_out(path, border):
                    outside = True
                elif (found := _as_called(path)) and (
                    found is path or not _leads_out(found, border)
                ):
                    return Path(found), border
        return outside

    def _by_end(self, parts: PureWindowsPath) -> tuple[Path, Path] | None:
        """The picture at the longest end of a path that exists in a folder."""
        names = names_of(parts)
        for start in range(len(names) - max(self.least, 1) + 1):
            if self._is_shared(key_of("/".join(names[start:]))):
                return None
            for folder in self.folders:
                path = os.path.abspath(os.path.join(folder, *names[start:]))
                called = None if _leads_out(path, folder) else _as_called(path)
                if called and not _leads_out(called, folder):
                    found = Path(called)
                    # Files with questions name it by its path from the first such folder.
                    return found, next(one for one in self.folders if found.is_relative_to(one))
        return None

    def _candidates(self, meant: list[PureWindowsPath]) -> Iterator[tuple[Path, Path]]:
        """All pictures below the folders with the base name of the first meaning that has any."""
        if not self.by_name:
            return
        if self._index is None:
            self._index = self._walk()
        uploads = [UPLOAD.sub("", parts.name) for parts in meant if UPLOAD.match(parts.name)]
        for name in [parts.name for parts in meant] + [f"/{name}" for name in uploads]:
            if found := self._index.get(key_of(name)):
                exact = [one for one in found if one[0].name == name]
                yield from exact if len(exact) == 1 else found
                return

    def _in_other_capitals(self, name: str) -> list[tuple[Path, Path]]:
        """The pictures whose names differ from this one in capitals alone."""
        if not self.by_name or self._is_shared(f"/{key_of(name).casefold()}"):
            return []
        if self._folded is None:
            self._folded = {}
            for key, found in (self._index or {}).items():
                if not key.startswith("/"):
                    self._folded.setdefault(key.casefold(), []).extend(found)
        found = self._folded.get(key_of(name).casefold(), [])
        if len(found) == 1:
            self.respelled[name] = found[0][0].name
        return found

    def _misnamed(self, name: str) -> tuple[Path, str] | None:
        """The file with this name in another encoding than UTF-8, as old archives leave it."""
        if not self.by_name:
            return None
        if self._index is None:
            self._index = self._walk()
        return self._in_bytes.get(key_of(name))

    def _walk(self) -> dict[str, list[tuple[Path, Path]]]:
        """Every file below the folders by the key of its name, each once; links are not followed.

        If an upload would change the name, also by the key of "/" and the changed name.
        """
        index: dict[str, list[tuple[Path, Path]]] = {}
        known: set[Path] = set()
        for folder in self.folders:
            for place, below, names in os.walk(folder):
                below[:] = sorted(name for name in below if not name.startswith("."))
                for name in sorted(names):
                    path = Path(place, name)
                    hidden = name.startswith(".") or name.lower().endswith(".json")
                    if hidden or path in known or _leads_out(path, folder):
                        continue
                    known.add(path)
                    if not is_text(name):
                        self._in_bytes |= {
                            key_of(meant): (path, encoding) for encoding, meant in older_names(name)
                        }
                    for called in {name, f"/{uploaded(name)}"} - {f"/{name}"}:
                        index.setdefault(key_of(called), []).append((path, folder))
                if len(known) > _MOST_FILES:
                    return index
        return index


def search_folders(
    source: Path, pictures: Path | None, elsewhere: Sequence[Path] = ()
) -> list[Path]:
    """Folders to search for an import's pictures: `--pictures`, the annotations' own, `images/`.

    The parent folder is searched only if the annotations' folder has a typical name, such as
    `labels`; a file `instances_val.json` may have its pictures in a folder `val` of these. Last
    come those of `elsewhere`. Raises ValueError if `pictures` is not a folder.
    """
    own = Path(os.path.abspath(source if source.is_dir() else source.parent))
    folders = [own, own / "images"]
    if own.name.lower() in _NOTES_FOLDERS:
        folders += [own.parent / "images", own.parent]
    if pictures is not None:
        if not pictures.is_dir():
            raise ValueError(f"--pictures: {pictures} is no folder")
        folders.insert(0, pictures)
    if source.is_file():
        subset = source.stem.rpartition("_")[2]
        parts = {subset, *([own.name] if elsewhere else [])} - {""}
        folders += [folder / part for folder in (*folders, *elsewhere) for part in sorted(parts)]
    return [folder for folder in (*folders, *elsewhere) if folder.is_dir()]


def _as_called(path: str) -> str | None:
    """The file, or one beside it whose name differs only in Unicode form or case of the suffix.

    Paths are text here: Path takes longer than the system.
    """
    if os.path.isfile(path):
        return path
    folder, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    endings = (suffix, suffix.lower(), suffix.upper(), suffix.capitalize())
    others = (unicodedata.normalize(form, stem + end) for form in ("NFC", "NFD") for end in endings)
    for other in dict.fromkeys(others):
        if other != name and os.path.isfile(os.path.join(folder, other)):
            return os.path.join(folder, other)
    return None


def _refuse(
    report: Report,
    what: str,
    name: object,
    where: object,
    outside: bool,
    misnamed: tuple[Path, str] | None = None,
) -> None:
    allowed = f"the path of a picture in {where}"
    if misnamed is not None:
        path, encoding = misnamed
        fix = (
            f"the file is there, but its name is no UTF-8: rename {path.name}, or all of them "
            f"with convmv -r -f {encoding} -t utf8 --notest {argument(path.parent)}"
        )
        report.add(what, name, allowed, fix)
    elif outside:
        fix = "put the picture itself there and correct the name"
        allowed += "; there is no such file, and none outside of it is read"
        report.add(what, name, allowed, fix)
    else:
        fix = "fetch the picture, correct its name, or take the entry out"
        report.add(what, name, f"{allowed}; there is no such file", fix)


def _leads_out(path: str | Path, border: str | Path) -> bool:
    """Whether a path, or the file that it links to, is not below a folder."""
    inside, folder = os.path.abspath(path), os.path.abspath(border)
    if not _is_below(inside, folder):
        return True
    if not _has_link(inside, folder) or not os.path.isfile(path):
        return False
    return not _is_below(os.path.realpath(inside), os.path.realpath(folder))


def _has_link(path: str, folder: str) -> bool:
    """Whether anything on the way from a folder to a path below it may be a symbolic link.

    Looking takes a tenth of the time of `realpath`, which begins at the root.
    """
    if os.name == "nt":
        return True  # junctions are links too, and Python 3.11 does not recognise them
    while len(path) > len(folder):
        if os.path.islink(path):
            return True
        path = os.path.dirname(path)
    return False


def _is_below(path: str, folder: str) -> bool:
    """Like `is_relative_to` for absolute paths, in a tenth of its time."""
    path, folder = os.path.normcase(path), os.path.normcase(folder)
    return path == folder or path.startswith(os.path.join(folder, ""))
