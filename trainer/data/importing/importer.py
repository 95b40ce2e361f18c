"""Writes a user's annotations of LabelMe, COCO, YOLO and others as a ReasonSeg data set.

Each label of a picture becomes one item. Its texts are the questions about it in a separate file,
or without such a file the label itself, as a phrase.
"""

from __future__ import annotations

import codecs
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from profiles.garbage import not_collected
from profiles.text import counted, one_line, some
from trainer.atomic_folder import atomic_folder, forced_meanwhile
from trainer.data import broken
from trainer.data.findings import Finding, Report
from trainer.data.importing.encoding import Conventions
from trainer.data.importing.item_files import FOLDER, ItemFiles
from trainer.data.importing.labels import composed, spelled_differently
from trainer.data.importing.outlines import Drawing
from trainer.data.importing.questions_file import (
    Questions,
    read_questions,
    refuse_unanswered,
    texts_for,
)
from trainer.data.importing.sources import Source
from trainer.data.importing.splits import Splits
from trainer.data.picture_names import stems
from trainer.data.picture_paths import PictureSearch, search_folders
from trainer.prompts import IMAGE_PREFIX, question_for
from trainer.reporter import Progress

_NAMED = 3  # of the pictures without an outline


@dataclass(frozen=True)
class Imported:
    """What was written: items per split, and the numbers of pictures with and without items.

    `broken` holds the findings about the entries that were left out on request.
    """

    items: dict[str, int]
    pictures: int
    left_out: int
    broken: tuple[Finding, ...] = ()
    assumed: tuple[str, ...] = ()  # assumptions about ambiguous files, with counts
    by_name: tuple[str, ...] = ()  # how labels are asked for where nobody wrote questions


@dataclass
class _Items:
    """The items written so far, and all labels and names seen."""

    files: ItemFiles
    conventions: Conventions
    asked: Questions | None
    findings: list[Finding]
    skip_broken: int
    labels: dict[str, list[str]] = field(default_factory=dict)  # by a picture's name
    spellings: dict[str, str] = field(default_factory=dict)  # of labels, by their keys
    names: dict[str, bool] = field(default_factory=dict)  # whether a picture has any item

    def add(self, drawing: Drawing) -> None:
        """Write a picture's items, unless the picture has findings."""
        before = len(self.findings)
        report = Report(drawing.notes, self.findings, f"{drawing.notes}: {drawing.name}")
        self.labels.setdefault(composed(drawing.name), []).extend(drawing.outlined)
        if drawing.name in self.names:
            allowed, fix = "each picture once", "put all its shapes into one entry"
            fix = "take it out of one of the splits" if drawing.split else fix
            report.add("picture", drawing.name, allowed, fix)
        texts = texts_for(drawing, self.asked, self.spellings, report)
        sound = drawing.sound and len(self.findings) == before
        self.names[drawing.name] = self.names.get(drawing.name, False) or (sound and bool(texts))
        if sound and not drawing.outlined:
            self.conventions.leave_out(drawing.name)
        # After too many findings the rest is only checked, not written.
        if texts and sound and broken.may_be_left_out(self.findings, self.skip_broken):
            content = drawing.picture.read_bytes()
            self.files.write(drawing, content, texts, self.asked is not None)

    def by_name(self) -> tuple[str, ...]:
        """A note on how labels are asked for where nobody wrote questions; or none."""
        if self.asked is not None or not self.spellings:
            return ()
        phrase = next(iter(self.spellings.values())).replace("_", " ")
        question = question_for(phrase, False, lambda forms: forms[0]).removeprefix(IMAGE_PREFIX)
        asked = f"the model is asked for each label by its name: {one_line(question)}"
        return (f"no --questions: {asked}",)

    def without_outline(self) -> list[str]:
        """A note that names the pictures without an outline, which become known names; or none."""
        bare = {one: why for one, why in self.conventions.bare.items() if not self.names.get(one)}
        self.names |= dict.fromkeys(bare, False)
        lost = self.conventions.lost
        bare = {one: why for one, why in bare.items() if not lost.has(one)}
        if not bare:
            return []
        whys = Counter(why for why in bare.values() if why)
        of = ", ".join(f"{count} {why}" for why, count in whys.items())
        count = counted(len(bare), "picture") + (f" ({of})" if of else "")
        return [f"{count} left out, without an outline to ask about: {some(bare, _NAMED)}"]

    def check_questions(self, questions: Path, source: Path, search: PictureSearch) -> list[str]:
        """Findings for questions that no label answers; a note on those that follow from others.

        What a source holds that is broken as a whole is unknown, and so is what it answers.
        """
        if any(one.entry is None and one.where != str(questions) for one in self.findings):
            return []
        lost, asked = self.conventions.lost, self.asked or {}
        follow = {key: one.line for key, one in asked.items() if lost.answers(*key)}
        bare = {stem for name in self.conventions.bare for stem in stems(name)}
        own = source if source.is_dir() else source.parent
        refuse_unanswered(
            questions, {key: one for key, one in asked.items() if key not in follow}, self.labels,
            self.findings, lambda name: bool(bare & stems(name)) or search.has(name, own),
        )  # fmt: skip
        if not follow:
            return []
        lines = some(map(str, sorted(follow.values())), _NAMED)
        asked_about = counted(len(follow), "label") + " of broken entries"
        return [f"{questions}: what is asked about {asked_about} goes with them: lines {lines}"]

    def too_few(self) -> str:
        """Why the rest would not do if all that is broken were left out; empty if it may do."""
        left, needed = sum(self.names.values()), self.files.needed
        if left >= len(needed):
            return ""
        return f"{counted(left, 'picture')} would be left for {' and '.join(needed)}"

    def check_count(self, source: Path) -> None:
        """A finding if there are too few different pictures with items for all splits."""
        if self.files.lacks():
            count = self.files.splits.different(self.files.known)
            needed = self.files.needed
            allowed = (
                f"{len(needed)} or more: {', '.join(needed)} need one each, copies not counted"
            )
            fix = "outline and label more pictures, or ask about more"
            what = "pictures with an outline that is asked about"
            Report(source, self.findings).add(what, count, allowed, fix)


def import_annotations(
    source: Path,
    target: Path,
    *,
    questions: Path | None = None,
    pictures: Path | None = None,
    val: float = 0.1,
    test: float = 0.0,
    seed: int = 0,
    skip_broken: int = 0,
    encoding: str | None = None,
    frame: str | None = None,
    iscrowd: str | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Write `target/ReasonSeg/{train,val,test}` from annotations of a tool that `Source` knows.

    `pictures` is the folder of the pictures, if they are not beside the annotations. At most
    `skip_broken` broken entries are left out, and listed in `target/skipped.txt`; by default none.
    A share `val` of the pictures, one at least, goes to val with all their items, and a share
    `test`, if it is not 0, to test; copies of a picture stay together. Each picture is copied once,
    so that later edits of the source do not affect it, and hard-linked for its further labels.

    The target appears when it is complete. Raises DataError with all findings, FileExistsError if
    the target is not empty, ValueError for unusable arguments.
    """
    conventions = _checked_conventions(encoding, frame, iscrowd)
    _check_shares(val, test)
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target}: lies in {source}; name a folder outside of what is read")
    findings: list[Finding] = []
    with not_collected(), atomic_folder(target) as draft, forced_meanwhile():
        asked = None if questions is None else read_questions(questions, findings, conventions)
        files = ItemFiles(draft / FOLDER, Splits(val, test, seed))
        items = _Items(files, conventions, asked, findings, skip_broken)
        search = PictureSearch(search_folders(source, pictures))
        for drawing in Source(source, search, findings, conventions, progress).drawings():
            items.add(drawing)
        bare = [*_respelled(search), *items.without_outline()]
        if questions is not None and asked:
            bare += items.check_questions(questions, source, search)
        if broken.may_be_left_out(findings, skip_broken):
            items.check_count(source)
        elsewhere = "hint: if the pictures lie elsewhere, name their folder with --pictures FOLDER"
        hints = [*[elsewhere] * bool(search.missing), *(f"note: {one}" for one in bare)]
        left_out = broken.accept(findings, skip_broken, hints, items.too_few())
        if progress is not None:
            progress("writing to disk", 1, 1)
        counts = files.settle()
        conventions.notes[:0] = files.splits.notes(files.known)
        if left_out:
            broken.write_list(draft / broken.LIST, left_out)
    with_items = sum(items.names.values())
    without = len(items.names) - with_items
    assumed = tuple(f"{count} {what}" for what, count in conventions.assumed.items())
    assumed += (*spelled_differently(conventions.labels), *bare, *conventions.notes)
    return Imported(counts, with_items, without, left_out, assumed, items.by_name())


def _respelled(search: PictureSearch) -> list[str]:
    """A note on pictures that were found in other capitals than recorded; or none."""
    pairs = [f"{name} is {found}" for name, found in search.respelled.items()]
    what = f"{counted(len(pairs), 'picture')} found by a name in other capitals"
    return [f"{what}: {some(pairs, _NAMED)}"] if pairs else []


def _checked_conventions(
    encoding: str | None, frame: str | None, iscrowd: str | None
) -> Conventions:
    """The user's options for ambiguous files. Raises ValueError."""
    if frame not in (None, "stored", "upright"):
        raise ValueError(f"--frame: got {frame!r}; allowed: stored, upright")
    if iscrowd not in (None, "object", "crowd"):
        raise ValueError(f"--iscrowd: got {iscrowd!r}; allowed: object, crowd")
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except LookupError:
            allowed = "a name that Python knows, such as gbk, shift_jis or cp1252"
            raise ValueError(f"--encoding: got {encoding!r}; allowed: {allowed}") from None
    return Conventions(encoding, frame, iscrowd)


def _check_shares(val: float, test: float) -> None:
    """Raise ValueError unless val gets a share and train the rest."""
    if not 0 < val < 1:
        allowed = "a share above 0 and below 1, such as 0.1: val and train need a picture each"
        raise ValueError(f"--val: got {val}; allowed: {allowed}")
    if not 0 <= test < 1 - val:
        allowed = f"0, or a share below {1 - val:g}: --val takes {val:g}, and train needs some"
        raise ValueError(f"--test: got {test}; allowed: {allowed}")
