"""Reads the ReasonSeg data set from disk: pictures, questions and hand-drawn polygons.

On disk: ``ROOT/ReasonSeg/{train,val,test}/<name>.jpg`` (or .jpeg, .png; if there is none, any other
kind of picture with that name) beside ``<name>.json``, and optionally
``explanatory/<split>.json`` (upstream has ``train.json`` only) beside the splits.
Polygons are in pixels of the picture AFTER its EXIF orientation is applied: as annotators saw it,
and as ``cv2.imread`` returns it to upstream's code.

All findings are raised at once, or returned by `check_data`; broken items are never skipped without
request. Hidden files (``.DS_Store``, ``._x.jpg``) and other kinds of files are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from profiles.splits import MAKES_DATA, NEEDED, located, remedy
from profiles.text import is_text
from trainer.data.arrays import Size
from trainer.data.contents import digest
from trainer.data.findings import DataError, Finding, Report
from trainer.data.formats.reasonseg_annotation import (
    Explanation,
    read_annotation,
    read_explanations,
)
from trainer.data.images import IMAGE_SUFFIXES, PICTURE_SUFFIXES, load_whole, open_image
from trainer.data.pictures import AskedTurn, Conversation, Paint, random_choice
from trainer.data.polygons import TARGET, Polygon, paint_mask
from trainer.data.threads import in_processes
from trainer.prompts import (
    Choose,
    Turn,
    answer_for,
    evaluation_turn,
    explanatory_answer_for,
    explanatory_question_for,
    question_for,
)
from trainer.reporter import Progress

if TYPE_CHECKING:
    from trainer.data.broken import SkippedEntries

Counts: TypeAlias = dict[str, int | Size]
Summary: TypeAlias = dict[str, Counts]  # by split
_Files: TypeAlias = "tuple[Path, list[Path], list[Path]]"  # of an item: base, pictures, JSON
_Scanned: TypeAlias = "tuple[list[_Look], list[Finding]]"
_Read: TypeAlias = Callable[[Image.Image], object]

EXPLANATION_EVERY = 3  # one in this many visits to a training item asks for its explanation


@dataclass(frozen=True)
class Item:
    """A picture and its question, rephrased in `texts`; without target polygons, no target."""

    name: str
    image_path: Path
    json_path: Path
    texts: tuple[str, ...]
    is_sentence: bool
    polygons: tuple[Polygon, ...]
    explanations: tuple[Explanation, ...] = ()


class _Look(NamedTuple):
    """The result of reading an item: itself if valid, the findings, and (height, width)."""

    item: Item | None
    findings: list[Finding]
    size: Size = (0, 0)
    empty: bool = False  # whether no pixel is a target, if that was checked


def locate(root: Path) -> tuple[Path, list[str]]:
    """The folder that holds the splits, and the splits found. Raises DataError for none."""
    root = Path(root)
    found = located(root)
    if found is not None:
        return found
    report = Report(root)
    got = "a folder without a split" if root.is_dir() else "no such folder"
    fix = f"--data-dir DIR names the folder that holds ReasonSeg, on --resume, too; {MAKES_DATA}"
    report.add("data folder", got, NEEDED, remedy(root) or fix)
    raise DataError(report.findings)


def _pair_up(folder: Path) -> dict[str, tuple[list[Path], list[Path]]]:
    """The (images, JSON files) of each base name, sorted. A valid item has one of each."""
    pairs: dict[str, tuple[list[Path], list[Path]]] = {}
    others: list[Path] = []
    for path in sorted(folder.iterdir()):
        suffix, hidden = path.suffix.lower(), path.name.startswith(".")
        if suffix in (".json", *IMAGE_SUFFIXES) and not hidden and path.is_file():
            pairs.setdefault(path.stem, ([], []))[suffix == ".json"].append(path)
        elif suffix in PICTURE_SUFFIXES and not hidden and path.is_file():
            others.append(path)
    lonely = {name for name, (images, _) in pairs.items() if not images}
    for path in others:  # beside a picture of the usual kinds it is a preview or a copy
        if path.stem in lonely:
            pairs[path.stem][0].append(path)
    return dict(sorted(pairs.items()))


def _look(files: _Files, read: _Read, paint: bool) -> _Look:
    """The item, or None and every finding about it; all of its files are checked."""
    base, images, jsons = files
    report = Report(base, entry=str(base))
    if not is_text(base.name):  # otherwise the figures of it could not be written
        report.add("name", base.name, "text in UTF-8", "rename the picture and its .json")
    for kind, paths in ((" or ".join(IMAGE_SUFFIXES), images), (".json", jsons)):
        if len(paths) != 1:
            got = ", ".join(path.name for path in paths) or "none"
            report.add("files", got, f"one {kind} of this name", "add it or remove what is amiss")
    opened = [open_image(Report(path, report.findings, report.entry), read) for path in images]
    # With two pictures it is unknown which one the polygons were drawn on.
    size = opened[0][0] if len(opened) == 1 and opened[0] is not None else None
    notes = [read_annotation(Report(path, report.findings, report.entry), size) for path in jsons]
    if report.findings or size is None:
        return _Look(None, report.findings)
    item = Item(base.name, images[0], jsons[0], *notes[0])
    return _Look(item, [], size, paint and TARGET not in paint_mask(item.polygons, *size))


def _header(image: Image.Image) -> None:
    """Read nothing more: the header has the size."""


def _scan(
    folder: Path, split: str, limit: int | None, read: _Read, *,
    leave: SkippedEntries | None = None, paint: bool = False, progress: Progress | None = None,
) -> _Scanned:  # fmt: skip
    """The valid items of a split, and all findings except about entries that `leave` knows."""
    pairs = _pair_up(folder / split)
    known = {path.name for images, _ in pairs.values() for path in images}
    report = Report(folder / split)
    if not pairs:
        fix = remedy(folder) or "fetch the split again"
        report.add("folder", None, "pictures, each with its .json", fix)
    extra = folder / "explanatory" / f"{split}.json"
    explanations = read_explanations(Report(extra, report.findings), known)
    looks: list[_Look] = []
    files = [
        (folder / split / name, *pairs[name])
        for name in list(pairs)[:limit]
        if leave is None or not leave.knows(str(folder / split / name))
    ]
    work = partial(_look, read=read, paint=paint)
    # Reading a header takes less time than passing it to a thread.
    looked = map(work, files) if read is _header else in_processes(work, files, len(files))
    for done, look in enumerate(looked, 1):
        report.findings += look.findings
        if look.item is not None:
            answers = explanations.get(look.item.image_path.name, [])
            item = replace(look.item, explanations=tuple(answers))
            looks.append(look._replace(item=item))
        if progress is not None:
            progress(f"checking {split}", done, len(files))
    return looks, report.findings


def read_split(
    root: Path, split: str, limit: int | None = None, leave: SkippedEntries | None = None
) -> list[Item]:
    """The items of a split, sorted by name, or the first `limit` of them.

    Only the headers of pictures are read, so that training starts soon; `check_data` and
    `read_image` report truncated ones. Raises DataError with all findings about items, folder,
    split or limit (>= 1). `leave` accepts broken items: if it may accept any, every picture is
    decoded, unless it knows the broken ones from an earlier start.
    """
    folder, present = locate(root)
    report = Report(folder)
    if split not in present:
        set_aside = "; lisa-train import --test 0.1 sets pictures aside for it, before a training"
        fix = "name one that is there" + set_aside * (split == "test")
        report.add("split", split, ", ".join(present), fix)
    if limit is not None and limit < 1:
        report.add("limit", limit, "1 or more, or none", "leave the limit out to read all")
    if report.findings:
        raise DataError(report.findings)
    read = load_whole if leave is not None and leave.decodes else _header
    return _items(_settled(folder, split, _scan(folder, split, limit, read, leave=leave), leave))


def _settled(
    folder: Path, split: str, scanned: _Scanned, leave: SkippedEntries | None
) -> list[_Look]:
    """The valid items; raises DataError for the others unless `leave` accepts them."""
    looks, findings = scanned
    if findings and leave is None:
        raise DataError(findings)
    if findings and not looks:
        report = Report(folder, findings)
        report.add(split, "no valid item", "one or more", "fix the others")
    if leave is not None:
        leave.accept(findings)
    return looks


def _items(looks: Sequence[_Look]) -> list[Item]:
    return [look.item for look in looks if look.item is not None]


def check_data(root: Path) -> list[Finding]:
    """Every finding about the splits (one at least): all pictures are decoded and painted."""
    return check(root)[1]


def check(root: Path, progress: Progress | None = None) -> tuple[Summary, list[Finding]]:
    """Counts of the valid items of each split, and every finding; each picture is decoded once.

    The counts are of items, pictures, texts, sentences (items that are one), explanations,
    empty_masks; smallest_image and largest_image are (width, height). Without items there are none.
    in_train is how many pictures of another split are in train, too.
    """
    try:
        folder, present = locate(root)
    except DataError as error:
        return {}, list(error.findings)
    summary: Summary = {}
    findings: list[Finding] = []
    train: list[Item] = []
    for split in present:  # train comes first
        looks, broken = _scan(folder, split, None, load_whole, paint=True, progress=progress)
        summary[split] = _counts(looks) if looks else {}
        findings += broken
        if split == "train":
            train = _items(looks)
        elif both := _in_both(train, _items(looks)):
            summary[split]["in_train"] = both
    return summary, findings


def _in_both(some: list[Item], others: list[Item]) -> int:
    """How many pictures two splits share, by their bytes."""
    one, other, together = (len(by_picture(items)) for items in (some, others, some + others))
    return one + other - together


def _counts(looks: Sequence[_Look]) -> Counts:
    items = _items(looks)
    sizes = [(width, height) for height, width in (look.size for look in looks)]
    return {
        "items": len(items),
        "pictures": len(by_picture(items)),
        "texts": sum(len(item.texts) for item in items),
        "sentences": sum(item.is_sentence for item in items),
        "explanations": sum(len(item.explanations) for item in items),
        "empty_masks": sum(look.empty for look in looks),
        "smallest_image": min(sizes, key=math.prod),
        "largest_image": max(sizes, key=math.prod),
    }


@dataclass(frozen=True)
class ReasoningPicture:
    """An item of ReasonSeg for training: one question, one mask.

    With `others`, the further items about the same picture, several questions may be drawn.
    """

    item: Item
    others: tuple[Item, ...] = ()

    @property
    def items(self) -> tuple[Item, ...]:
        """All items about the picture."""
        return self.item, *self.others

    @property
    def name(self) -> str:
        """The item's."""
        return self.item.name

    @property
    def image_path(self) -> Path:
        """The item's."""
        return self.item.image_path

    @property
    def where(self) -> str:
        """The item's annotation."""
        return str(self.item.json_path)

    @property
    def questions(self) -> int:
        """Every text and every explanation, each once."""
        return sum(len({*item.texts}) + len({*item.explanations}) for item in self.items)

    def draw(self, rng: np.random.Generator, most: int) -> list[Conversation]:
        """Up to `most` of the questions, without repeats.

        Each item is asked about once before any is asked about again in other words.
        """
        order = [self.items[n] for n in rng.permutation(len(self.items))]
        asked = [_shuffled_turns(item, rng) for item in order]
        paints = [_painter(item) for item in order]
        rounds = zip_longest(*([AskedTurn(turn, paint) for turn in turns]
                               for turns, paint in zip(asked, paints, strict=True)))  # fmt: skip
        drawn = (turn for one in rounds for turn in one if turn is not None)
        return [[turn] for turn in islice(drawn, most)]

    def draw_one(self, rng: np.random.Generator, most_masks: int = 1) -> Conversation:
        """One of its texts or, sometimes, of its explanations."""
        return [AskedTurn(self._turn(rng), _painter(self.item))]

    def evaluation(self) -> list[Conversation]:
        """Of each item the first text, with the answer of the published evaluation."""
        return [
            [AskedTurn(evaluation_turn(item.texts[0], item.is_sentence), _painter(item))]
            for item in self.items
        ]

    def all_masks(self) -> Iterator[Paint]:
        """One mask an item."""
        return map(_painter, self.items)

    def _turn(self, rng: np.random.Generator) -> Turn:
        item, choose = self.item, random_choice(rng)
        if item.explanations and rng.integers(EXPLANATION_EVERY) == 0:
            explanation = item.explanations[int(rng.integers(len(item.explanations)))]
            return _explaining(explanation, choose)
        text = choose(item.texts)
        return Turn(question_for(text, item.is_sentence, choose), answer_for(choose))


def _painter(item: Item) -> Paint:
    return partial(paint_mask, item.polygons)


def _explaining(explanation: Explanation, choose: Choose) -> Turn:
    question = explanatory_question_for(explanation.query, choose)
    return Turn(question, explanatory_answer_for(explanation.answer, choose))


def _shuffled_turns(item: Item, rng: np.random.Generator) -> list[Turn]:
    """Texts and explanations of an item without repeats, first ones as likely as in `draw_one`."""
    choose = random_choice(rng)
    texts = [Turn(question_for(text, item.is_sentence, choose), answer_for(choose))
             for text in dict.fromkeys(item.texts)]  # fmt: skip
    texts = [texts[n] for n in rng.permutation(len(texts))]
    reasons = [_explaining(one, choose) for one in dict.fromkeys(item.explanations)]
    reasons = [reasons[n] for n in rng.permutation(len(reasons))]
    turns = []
    while texts or reasons:
        explains = reasons and (not texts or rng.integers(EXPLANATION_EVERY) == 0)
        turns.append((reasons if explains else texts).pop())
    return turns


def by_picture(items: Iterable[Item]) -> list[ReasoningPicture]:
    """Items about the same picture together, in order of first appearance.

    An import links a picture once for every item about it, or copies it where it cannot: pictures
    are the same if their files are, or have the same bytes.
    """
    items = list(items)
    files = [_file(item.image_path) for item in items]
    of_size: dict[int, set[_File]] = {}
    for file in files:
        of_size.setdefault(file.size, set()).add(file)
    found: dict[object, list[Item]] = {}
    for item, file in zip(items, files, strict=True):
        alike = len(of_size[file.size]) > 1
        key = _content(item.image_path, file) if alike else file
        found.setdefault(key, []).append(item)
    return [ReasoningPicture(first, tuple(others)) for first, *others in found.values()]


class _File(NamedTuple):
    """Identifies a file under any of its names."""

    size: int
    changed: int  # ns
    device: int
    number: int | str


def _file(path: Path) -> _File:
    seen = path.stat()
    # Some file systems have no file numbers.
    return _File(seen.st_size, seen.st_mtime_ns, seen.st_dev, seen.st_ino or str(path))


@lru_cache(maxsize=1_000_000)
def _content(path: Path, file: _File) -> str:
    """The digest of a file, read once while it stays the same."""
    del file
    return digest(path)
