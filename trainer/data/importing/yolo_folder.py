"""What a folder of Ultralytics' YOLO holds: classes, label files, their pictures and splits.

`data.yaml` names the classes, and the pictures of each split as folders or as lists of paths. Tools
put `images` and `labels` above the splits (Ultralytics, CVAT) or below them (Roboflow), or write
`classes.txt` and no YAML (Label Studio). Paths in the YAML may be another machine's: only their
ends count. A label file is called as its picture, in the folder `labels` instead of `images`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from profiles.files import read_regular
from profiles.recipe import MOST_BRACKETS
from trainer.data.findings import Report
from trainer.data.images import PICTURE_SUFFIXES
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.labels import composed
from trainer.data.importing.outlines import visible
from trainer.data.importing.splits import split_of_folders
from trainer.data.picture_names import stems

_CLASSES = "classes.txt"
_FIRST = ("data.yaml", "dataset.yaml")  # of several YAML files with classes
_SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # keys of the YAML
_LARGEST = 1 << 20  # bytes of a YAML file
_BESIDE = frozenset(("images", "labels"))  # folders that stand for one another


@dataclass(frozen=True)
class YoloFolder:
    """A folder, and the file that names its classes; everything else is looked up when needed."""

    root: Path
    classes: Path

    @cached_property
    def _paths(self) -> list[Path]:
        return [path for path in visible(self.root) if path.is_file()]

    @cached_property
    def labels(self) -> list[Path]:
        """The label files: in a folder called `labels`, or called as a picture beside them."""
        beside = {one.with_suffix("") for one in self.pictures}
        return [path for path in self._paths if path.suffix.lower() == ".txt"
                and path.name.lower() != _CLASSES
                and ("labels" in self.folders(path) or path.with_suffix("") in beside)]  # fmt: skip

    @cached_property
    def pictures(self) -> list[Path]:
        """The pictures in the folder."""
        return [path for path in self._paths if path.suffix.lower() in PICTURE_SUFFIXES]

    def folders(self, path: Path) -> tuple[str, ...]:
        """The folders between the root and a file; none for a file elsewhere."""
        below = path.is_relative_to(self.root)
        return path.parent.relative_to(self.root).parts if below else ()

    def place(self, path: Path) -> tuple[tuple[str, ...], str]:
        """What a label file and its picture have in common."""
        folders = tuple(one for one in self.folders(path) if one not in _BESIDE)
        return folders, composed(path.stem).casefold()

    def names(self, report: Report, conventions: Conventions) -> dict[int, str]:
        """The classes' names by their numbers; none with a finding added."""
        try:
            found = _names(self.classes, conventions)
        except (OSError, ValueError, LookupError) as error:
            fix = "correct it, or export the dataset again"
            report.add(self.classes.name, error, "YOLO's names of classes", fix)
            return {}
        if self.classes.name != _CLASSES and "kpt_shape" in _yaml(self.classes):
            allowed, fix = "labels of outlines", "export the dataset for segmentation"
            report.add(f"{self.classes.name}: kpt_shape", "labels of key points", allowed, fix)
            return {}
        if not found:
            fix = "write the classes' names there, in the order of their numbers"
            report.add(f"{self.classes.name}: names", "no name", "a name for each class", fix)
        return found

    def split_of(self, picture: Path) -> str | None:
        """The one split that has the picture, by the YAML or else by its folders."""
        claims = {split for split, ends in self._splits.items() if self._has(ends, picture)}
        if claims:
            return claims.pop() if len(claims) == 1 else None
        return split_of_folders(PurePath(*self.folders(picture), picture.name))

    @cached_property
    def _splits(self) -> dict[str, _Ends]:
        """Where the YAML says that the pictures of each split are; nothing without a YAML."""
        found: dict[str, _Ends] = {}
        for key, value in _yaml(self.classes).items() if self.classes.name != _CLASSES else ():
            if key in _SPLITS:
                ends = found.setdefault(_SPLITS[key], _Ends())
                for one in value if isinstance(value, list) else [value]:
                    self._add(ends, str(one))
        return found

    def _add(self, ends: _Ends, entry: str) -> None:
        """A folder of pictures, or a text file that lists their paths."""
        parts = _parts(entry)
        if not entry.lower().endswith(".txt"):
            ends.folders.add(parts)
            return
        for listed in (path for path in self._paths if path.name == parts[-1]):
            lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
            ends.files |= {_parts(line)[-2:] for line in lines if line.strip()}

    def _has(self, ends: _Ends, picture: Path) -> bool:
        folders = self.folders(picture)
        if (*folders, picture.name)[-2:] in ends.files or (picture.name,) in ends.files:
            return True
        above = (folders[:count] for count in range(1, len(folders) + 1))
        return any(end[-len(one) :] == one for one in above for end in ends.folders)


@dataclass
class _Ends:
    """Folders of pictures, and the last two parts of single pictures' paths."""

    folders: set[tuple[str, ...]] = field(default_factory=set)
    files: set[tuple[str, ...]] = field(default_factory=set)


def yolo_folder(source: Path) -> YoloFolder | None:
    """The folder whose labels a source means: itself, or its file of classes; else None."""
    whole = source.is_dir()
    root = Path(os.path.abspath(source if whole and source.name != "labels" else source.parent))
    named = sorted(root.iterdir()) if whole else [source]
    yamls = [path for path in named if path.suffix.lower() in (".yaml", ".yml")]
    yamls = [path for path in yamls if path.is_file()]
    known = [path for path in yamls if "names" in _yaml(path)]
    known.sort(key=lambda path: path.name not in _FIRST)
    broken = [path for path in yamls if path.name in _FIRST and path not in known]
    texts = [root / _CLASSES, root / "labels" / _CLASSES] if whole else [source]
    texts = [path for path in texts if path.name == _CLASSES and path.is_file()]
    for classes in (*known, *texts, *broken):  # of a broken one `names` says what is wrong
        found = YoloFolder(root, classes)
        if found.labels:
            return found
    return None


def _names(path: Path, conventions: Conventions) -> dict[int, str]:
    """Raises OSError, ValueError and LookupError."""
    text = conventions.text(read_regular(path))
    if path.name == _CLASSES:
        lines = text.rstrip().splitlines()
        return {number: line.strip() for number, line in enumerate(lines)}
    names = _parsed(text).get("names")
    if isinstance(names, dict):
        return {int(number): str(name) for number, name in names.items()}
    return dict(enumerate(map(str, names))) if isinstance(names, list) else {}


def _yaml(path: Path) -> dict[str, Any]:
    """A YAML file's fields; none if it cannot be read, which `names` reports."""
    try:
        return _parsed(read_regular(path, _LARGEST).decode("utf-8-sig", "replace"))
    except (OSError, ValueError):
        return {}


def _parsed(text: str) -> dict[str, Any]:
    """The fields, whose values stay text: a class may be called `no`. Raises ValueError."""
    import yaml

    if text.count("[") + text.count("{") > MOST_BRACKETS:
        raise ValueError(f"more than {MOST_BRACKETS} brackets")
    try:
        found = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    return found if isinstance(found, dict) else {}


def _parts(path: str) -> tuple[str, ...]:
    """The folders and the file of a path, of any system."""
    found = PureWindowsPath(path.strip())
    return tuple(part for part in found.parts if part not in (found.anchor, "..", "."))


def matched(folder: YoloFolder, elsewhere: list[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Each label file with its picture: none if it is missing, several if that is not clear.

    `elsewhere`: pictures outside the folder, which are matched by name alone.
    """
    at: dict[tuple[tuple[str, ...], str], list[Path]] = {}
    called: dict[str, list[Path]] = {}
    for picture in folder.pictures:
        at.setdefault(folder.place(picture), []).append(picture)
    for picture in elsewhere:
        called.setdefault(composed(picture.stem).casefold(), []).append(picture)
    alike = Counter(path.name for path in folder.labels)
    for path in folder.labels:
        names = stems(path.name) if alike[path.name] == 1 else ()
        alone = [one for name in names for one in called.get(name, [])]
        yield path, at.get(folder.place(path)) or alone
