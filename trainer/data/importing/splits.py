"""Which split an imported picture belongs to: the source's own, or else one drawn by a hash.

Copies of a picture form a group, and a group is never in two splits, so that nothing is validated
that was trained on. If the split is drawn here, the versions that Roboflow made of a picture form a
group, too. In Roboflow's own split they need not: it splits first and makes versions afterwards, so
equal names in two of its splits are different pictures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

from profiles.splits import SPLITS
from profiles.text import counted, some

_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val",
          "validation": "val", "test": "test", "testing": "test"}  # fmt: skip
# Roboflow exports IMG_1.jpg as IMG_1_jpg.rf.HASH.jpg, and each augmented version with another hash.
_VERSION = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{16,}\.\w+")
_NAMED = 3
_STRONGEST = ("test", "val", "train")  # which split keeps a group that is in several


class Known(NamedTuple):
    """A picture: its content's hash, its name, and its split in the source, if any."""

    sha: str
    name: str
    own: str | None = None


def split_of_folders(path: PurePath) -> str | None:
    """The split that the last such folder of a path is called after."""
    found = [_NAMES[part.lower()] for part in path.parts[:-1] if part.lower() in _NAMES]
    return found[-1] if found else None


def split_of_file(path: PurePath) -> str | None:
    """The split of a file of many pictures, such as instances_val2017.json or valid/x.json."""
    words = re.findall("[a-z]+", path.stem.lower())
    found = [_NAMES[word] for word in words if word in _NAMES]
    return found[-1] if found else split_of_folders(path)


@dataclass(frozen=True)
class Splits:
    """The shares of val and test, and the seed of what is drawn.

    Groups are ordered by a hash of seed and content, so their splits rarely change when others
    are added. Val takes the beginning and test the end, so that neither share affects the other
    while some pictures are left for train.
    """

    val: float
    test: float
    seed: int

    def likely(self, known: Known) -> str:
        """Where a picture most likely belongs, before all are known."""
        place = int.from_bytes(self._place(known.sha)[:6]) / 2**48
        drawn = "val" if place < self.val else "test" if place >= 1 - self.test else "train"
        return known.own or drawn

    def _place(self, sha: str) -> bytes:
        return hashlib.sha256(f"{self.seed} {sha}".encode()).digest()

    def assign(self, pictures: Sequence[Known]) -> list[str | None]:
        """The split of each picture; None for a copy of one in a stronger split of the source."""
        own = _own(pictures)
        groups = _groups(pictures, versions=not own)
        members: dict[int, list[Known]] = {}
        for group, one in zip(groups, pictures, strict=True):
            members.setdefault(group, []).append(one)
        first = {group: _strongest(one.own for one in those) if own else "train"
                 for group, those in members.items()}  # fmt: skip
        free = [group for group, split in first.items() if split == "train"]
        free.sort(key=lambda group: min(self._place(one.sha) for one in members[group]))
        total, there = len(first), len(free)
        tested = 0 if not self.test or "test" in own else max(1, round(self.test * total))
        tested = min(tested, there - 2)
        validated = 0 if "val" in own else max(1, round(self.val * total))
        validated = min(validated, there - 1 - max(tested, 0))
        last = first | dict.fromkeys(free[: max(validated, 0)], "val")
        last |= dict.fromkeys(free[there - max(tested, 0) :], "test")
        return [last[group] if not own or one.own == first[group] else None
                for group, one in zip(groups, pictures, strict=True)]  # fmt: skip

    def different(self, pictures: Sequence[Known]) -> int:
        """How many pictures there are, copies and versions of one counted once."""
        return len(set(_groups(pictures, versions=not _own(pictures))))

    def notes(self, pictures: Sequence[Known]) -> list[str]:
        """What the source's own split, or Roboflow's versions, mean for the split."""
        if own := _own(pictures):
            return [self._kept(own), *self._left_out(pictures)]
        found, named = list[str](), {one.own for one in pictures if one.own}
        if len(named) > 1:
            found.append(f"folders are called {' and '.join(sorted(named))}, but not all pictures "
                         "are in one of them: the split is drawn")  # fmt: skip
        origins = [origin for one in pictures if (origin := _origin(one.name))]
        if len(set(origins)) < len(origins):
            found.append(f"{len(origins)} pictures are Roboflow's versions of {len(set(origins))}; "
                         "those of one picture are in one split")  # fmt: skip
        return found

    def _kept(self, own: set[str]) -> str:
        shares = {"val": self.val, "test": self.test}
        drawn = [split for split, share in shares.items() if share and split not in own]
        rest = f"{' and '.join(drawn)} drawn from its train" if drawn else (
            "--val and --test are not used")  # fmt: skip
        kept = ", ".join(split for split in SPLITS if split in own)
        return f"the source's own split is kept ({kept}); {rest}"

    def _left_out(self, pictures: Sequence[Known]) -> Iterator[str]:
        ends = zip(pictures, self.assign(pictures), strict=True)
        if twice := [one.name for one, split in ends if split is None]:
            yield (f"{counted(len(twice), 'picture')} left out, since the source has a copy in "
                   f"val or test: {some(twice, _NAMED)}")  # fmt: skip
        if several := _in_several(pictures):
            yield (f"Roboflow's versions called alike are in several splits of the source: "
                   f"{some(several, _NAMED)}; if they show one picture, scores are too "
                   "good")  # fmt: skip


def _own(pictures: Sequence[Known]) -> set[str]:
    """The splits of the source, if it says one for each picture and can be trained on."""
    named = {one.own for one in pictures}
    known = {split for split in named if split is not None}
    return known if len(known) == len(named) > 1 and "train" in known else set()


def _groups(pictures: Sequence[Known], *, versions: bool) -> list[int]:
    """A number for each picture, the same for copies, and for versions, of one."""
    parent = list(range(len(pictures)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    seen: dict[str, int] = {}
    for index, one in enumerate(pictures):
        for key in filter(None, (one.sha, _origin(one.name) if versions else None)):
            parent[root(index)] = root(seen.setdefault(key, index))
    return [root(index) for index in range(len(pictures))]


def _in_several(pictures: Sequence[Known]) -> list[str]:
    """The originals' names that have versions in several of the source's splits."""
    splits: dict[str, set[str | None]] = {}
    for one in pictures:
        if origin := _origin(one.name):
            splits.setdefault(origin, set()).add(one.own)
    return [origin.removeprefix("of ") for origin, those in splits.items() if len(those) > 1]


def _strongest(splits: Iterable[str | None]) -> str:
    return min((one for one in splits if one), key=_STRONGEST.index)


def _origin(name: str) -> str | None:
    """What Roboflow made a picture from, in a spelling that is no content's hash."""
    found = _VERSION.fullmatch(name.rpartition("/")[2])
    return f"of {found[1]}" if found else None
