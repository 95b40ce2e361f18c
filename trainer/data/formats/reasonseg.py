"""Reads the ReasonSeg data set from disk: pictures, questions and hand-drawn polygons.

On disk: ``ROOT/ReasonSeg/{train,val,test}/<name>.jpg`` (or .jpeg, .png; without them any other
kind of picture that has the name) beside ``<name>.json``, and optionally
``explanatory/<split>.json`` (upstream has ``train.json`` only) beside the splits.
Polygons are in pixels of the picture AFTER its EXIF orientation is applied: that is how
annotators saw it, and what ``cv2.imread`` hands to upstream's code.

All findings are raised at once, or returned by `check_data`; nothing broken is skipped unasked.
Hidden files (``.DS_Store``, ``._x.jpg``) and what else lies there are no part of the data set:
passed over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from profiles.splits import NEEDED, located
from profiles.text import brief, counted, is_text, one_line
from trainer.data.threads import in_threads

if TYPE_CHECKING:
    from trainer.data.broken import Leave

FloatArray: TypeAlias = NDArray[np.float64]
ByteArray: TypeAlias = NDArray[np.uint8]
Size: TypeAlias = tuple[int, int]
Counts: TypeAlias = dict[str, int | Size]
T = TypeVar("T")
Summary: TypeAlias = dict[str, Counts]  # by split
Progress: TypeAlias = Callable[[str, int, int], None]  # what, how many are done, of how many
_Files: TypeAlias = "tuple[Path, list[Path], list[Path]]"  # of an item: base, pictures, JSON
_Scanned: TypeAlias = "tuple[list[_Look], list[Finding]]"
_Read: TypeAlias = Callable[[Image.Image], object]
_Notes: TypeAlias = "tuple[tuple[str, ...], bool, tuple[Polygon, ...]]"

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
TARGET, IGNORE = 1, 255
LONGEST_SIDE = 65_535  # pixels; JPEG knows no longer one

# Judged by content, not by extension: pictures gathered from the web often carry a wrong one.
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")
# Public dialogues are about some GIFs called .jpg. Their first frame is taken; as outlines may be
# of another one, pictures with outlines are no GIFs.
_ALL_FORMATS = (*_IMAGE_FORMATS, "GIF")
# Pillow refuses a whole PNG for a colour profile or text beyond 1 MiB, as editors write it.
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20
# Names of pictures, in any case; those of formats that are not read too, so that this is said.
PICTURE_SUFFIXES = frozenset(
    (*IMAGE_SUFFIXES, ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".apng", ".webp", ".bmp", ".dib",
     ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".mpo")
)  # fmt: skip
_MOST_LINES = 100
# Far beyond any picture Pillow agrees to open, and safe in OpenCV's fixed-point arithmetic.
_LARGEST_COORDINATE = 1_000_000
# Of ReasonSeg's and LabelMe's files, which hold one picture's polygons (LabelMe's a copy of it).
LARGEST_FILE = 64 << 20  # bytes
# Every visit to a sample paints its mask again, and OpenCV takes minutes over an outline that
# crosses itself everywhere. In nanoseconds, roughly.
_MOST_PAINTING = 1_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one file or folder, and what to do about it.

    `entry` tells the entry that would have to be left out; None if it is no single one.
    """

    path: Path
    reason: str
    fix: str
    entry: str | None = None

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.reason}. Fix: {self.fix}.")


class DataError(ValueError):
    """The data cannot be used as it is; `findings` has all reasons, `str()` the first hundred."""

    def __init__(self, findings: Sequence[Finding], hints: Sequence[str] = ()) -> None:
        if isinstance(findings, str):
            # torch re-raises a worker's exception as type(message) and falls back on RuntimeError
            # at a TypeError; without this a message would be taken apart into its letters.
            raise TypeError("DataError takes a sequence of Finding, not a string")
        super().__init__(tuple(findings))
        self.findings: tuple[Finding, ...] = tuple(findings)
        self.hints: tuple[str, ...] = tuple(hints)  # lines for all of them together

    def __str__(self) -> str:
        lines = [str(finding) for finding in self.findings[:_MOST_LINES]]
        more = len(self.findings) - len(lines)
        told = [f"… and {counted(more, 'finding')} more"] * bool(more)
        return "\n".join([*lines, *told, *(f"    {hint}" for hint in self.hints)])


@dataclass(frozen=True)
class Polygon:
    """A closed outline; `points` is float64 [N, 2] (x, y) in pixels, N >= 3, not to be changed."""

    label: str
    points: FloatArray


@dataclass(frozen=True)
class Explanation:
    """A question that asks for reasons as well, and the answer in words."""

    query: str
    answer: str


@dataclass(frozen=True)
class Item:
    """A picture and its question, rephrased in `texts`; without target polygons: none is there."""

    name: str
    image_path: Path
    json_path: Path
    texts: tuple[str, ...]
    is_sentence: bool
    polygons: tuple[Polygon, ...]
    explanations: tuple[Explanation, ...] = ()


class _Look(NamedTuple):
    """What was seen of an item: itself if it is sound, what is wrong, and (height, width)."""

    item: Item | None
    findings: list[Finding]
    size: Size = (0, 0)
    empty: bool = False  # whether no pixel is a target, if that was looked at


@dataclass
class Report:
    """Collects the findings about one file.

    `entry`: the one entry that all of them are about. Without it `annotations[5].id` is about that
    entry of the list, and `file` about all.
    """

    path: Path
    findings: list[Finding] = field(default_factory=list)
    entry: str | None = None

    def add(self, what: str, got: object, allowed: str, fix: str) -> None:
        shown = "nothing" if got is None else brief(got, 100)
        listed = re.match(r"\w*\[\d+\]|line \d+(?=:)", what)
        entry = self.entry or (f"{self.path}: {listed[0]}" if listed else None)
        reason = f"{what}: got {shown}; allowed: {allowed}"
        self.findings.append(Finding(self.path, reason, fix, entry))


def read_image(path: Path) -> ByteArray:
    """Read a picture upright as uint8 [H, W, 3], RGB.

    Other modes are converted; alpha is dropped, as OpenCV does; of 16 bits the high byte stays.
    DataError: missing, no picture, truncated, or larger than Pillow's MAX_IMAGE_PIXELS or
    LONGEST_SIDE.
    """
    report = Report(Path(path))
    opened = open_image(report, _to_rgb, _ALL_FORMATS)
    if opened is None:
        raise DataError(report.findings)
    return opened[1]


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name, or else by its first bytes."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return True
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with Image.open(path, formats=_ALL_FORMATS):
            return True
    except Exception:  # anything that is no picture may break Pillow anywhere
        return False


def open_image(
    report: Report, read: Callable[[Image.Image], T], formats: tuple[str, ...] = _IMAGE_FORMATS
) -> tuple[Size, T] | None:
    """The upright size and what `read` made of the upright image; None with a finding added."""
    limit = Image.MAX_IMAGE_PIXELS or float("inf")
    try:
        if not report.path.is_file():  # a pipe would be waited for
            raise FileNotFoundError
        with Image.open(report.path, formats=formats) as opened:
            width, height = opened.size
            # Up to twice its limit Pillow only warns; to lines it gives gigabytes of row pointers.
            if width * height > limit or max(width, height) > LONGEST_SIDE:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            sideways = opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            sideways &= opened.format != "TIFF"  # Pillow turns these by itself, their size as well
            return ((width, height) if sideways else (height, width)), read(opened)
    except FileNotFoundError:
        report.add("image", "no such file", "the path of a picture", "give one that is there")
    except Exception as error:
        # Broad because damaged files make Pillow raise nearly anything, struct.error for one.
        most = f"at most {limit} pixels, {LONGEST_SIDE} a side"
        allowed = f"a complete {', '.join(formats)} file of {most}"
        fix = "fetch or save the picture again, smaller if that is the complaint"
        report.add("image", f"{type(error).__name__} {error}", allowed, fix)
    return None


def _to_rgb(image: Image.Image) -> ByteArray:
    """uint8 [H, W, 3], upright, of a picture in any of Pillow's modes."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        # Heights or distances in a TIFF: Pillow would clip them to what looks like a picture.
        raise ValueError("floating-point values are no colours")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255, which turns 16-bit pictures white.
        deep = np.clip(np.asarray(image), 0, 65535) >> 8
        return np.repeat(deep.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB warns
    return np.array(image.convert("RGB"), dtype=np.uint8)


def load_whole(image: Image.Image) -> None:
    """Decode all of a picture. Raises nearly anything where it is damaged."""
    if image.format == "JPEG":
        # An eighth of its size: all of the file is read and decoded, but for the last transform.
        image.draft("L", (1, 1))
        image.load()
    else:
        _to_rgb(image)  # which has more to refuse


def _paint(mask: ByteArray, polygon: Polygon, value: int) -> ByteArray:
    """Paint a polygon with its outline into mask uint8 [H, W], in place."""
    points = [polygon.points.astype(np.int32)]
    cv2.polylines(mask, points, True, value, 1)
    cv2.fillPoly(mask, points, value)
    return mask


def painted_area(polygon: Polygon, height: int, width: int) -> int:
    """Pixels that the polygon would cover on its own."""
    # On a canvas of the part of the picture that it may reach, since there may be thousands.
    points = polygon.points.astype(np.int32)
    start = points.min(axis=0).clip(0, (width, height))
    columns, rows = (points.max(axis=0) + 1).clip(0, (width, height)) - start
    if min(rows, columns) <= 0:
        return 0
    moved = Polygon(polygon.label, polygon.points.astype(np.int32) - start)
    return int(np.count_nonzero(_paint(np.zeros((rows, columns), dtype=np.uint8), moved, 1)))


@dataclass
class Budget:
    """What may still be spent on painting the polygons of one picture."""

    left: int = _MOST_PAINTING

    def covers(self, report: Report, what: str, points: FloatArray, size: Size) -> bool:
        """Whether one more polygon [N, 2] can be painted; if not, a finding is added."""
        self.left -= _effort(points, size)
        if self.left < 0:
            allowed = "outlines that are painted in a few seconds, all of a picture together"
            fix = "redraw what crosses itself again and again, or take shapes out"
            report.add(what, f"{len(points)} points, too much to paint", allowed, fix)
        return self.left >= 0


def _effort(points: FloatArray, size: Size) -> int:
    """What painting a polygon takes: its box in the picture, the rows of its edges, and crossings.

    Of these at most as many as there are pairs of edges in the row that most of them pass.
    """
    height, width = size
    box = (points.max(0).clip(0, (width, height)) - points.min(0).clip(0, (width, height))).prod()
    y = np.trunc(points[:, 1]).clip(None, height)
    edges = np.sort([y, np.roll(y, -1)], axis=0)
    edges = edges[:, edges[0] < edges[1]]  # OpenCV leaves level ones out
    rows = (edges[1] - edges[0]).sum()
    # As many rows as tell enough: from end to end there may be a million of them.
    top, scale = y.min(), 4096 / max(4096, np.ptp(y))
    passing = np.zeros(4098, int)
    np.add.at(passing, ((edges[0] - top) * scale).astype(int), 1)
    np.add.at(passing, ((edges[1] - top) * scale).astype(int), -1)
    return int(box / 2 + 5 * rows) + 250 * int(passing.cumsum().max()) ** 2


def paint_mask(polygons: Sequence[Polygon], height: int, width: int) -> ByteArray:
    """Paint the ground truth uint8 [height, width]: 0 background, 1 target, 255 ignore.

    The largest painted area comes first, so that small polygons stay visible on large ones. Of
    equal areas the one listed first in the file ends on top, as with upstream's reversed sort.
    Coordinates are truncated towards zero; parts outside the picture are cut off.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    areas = [painted_area(polygon, height, width) for polygon in polygons]
    for index in np.argsort(areas, kind="stable")[::-1]:
        polygon = polygons[index]
        _paint(mask, polygon, IGNORE if "ignore" in polygon.label.lower() else TARGET)
    return mask


def load_json(
    report: Report,
    kind: type[T],
    allowed: str,
    most_bytes: float = float("inf"),
    text_of: Callable[[bytes], str] | None = None,
) -> T | None:
    """The parsed file, UTF-8 or else cp1252, if of this kind; None with a finding added.

    `text_of` decodes otherwise, and raises ValueError or LookupError.

    Parsing takes some twenty times the memory that the file has bytes.
    """
    try:
        if not report.path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("no such file")
        if report.path.stat().st_size > most_bytes:
            raise ValueError(f"more than {most_bytes / 2**20:.0f} MiB")
        raw = report.path.read_bytes()
        text = (text_of or _published_text)(raw)
        parsed = json.loads(text)
        if isinstance(parsed, kind):
            return parsed
        raise ValueError(f"content {brief(parsed)}")
    except (OSError, ValueError, LookupError, RecursionError) as error:
        got, fix = f"{type(error).__name__} {error}", "correct the file or fetch it again"
        if "--encoding" in str(error):
            fix = "name its encoding, such as --encoding gbk"
        report.add("file", got, f"JSON in UTF-8 or cp1252, {allowed}", fix)
    return None


def _published_text(raw: bytes) -> str:
    """UTF-8, or else cp1252, as ReasonSeg's published files are."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252")


def read_sentence(report: Report, what: str, value: object) -> str | None:
    """A stripped string that is not blank; None with a finding added."""
    # JSON can spell half a surrogate pair, on which every tokenizer fails much later.
    whole = isinstance(value, str) and is_text(value)
    if isinstance(value, str) and value.strip() and whole:
        return value.strip()
    report.add(what, value, "text, not blank, in whole characters", "write it or take it out")
    return None


def read_points(report: Report, what: str, value: object, least: int = 3) -> FloatArray | None:
    """float64 [N, 2] of a list of pairs, N >= least; None with a finding added."""
    fix = "redraw the polygon or take the shape out"
    # OpenCV would paint a dot or a line for fewer points; nobody means that as an answer.
    if not isinstance(value, list) or len(value) < least:
        report.add(what, value, f"a list of {least} or more points [x, y]", fix)
        return None
    for number, pair in enumerate(value):
        numeric = isinstance(pair, list) and [type(x) in (int, float) for x in pair] == [True] * 2
        # Compared as they are: JSON's whole numbers may not fit a float. NaN is never below.
        if not numeric or not all(abs(x) <= _LARGEST_COORDINATE for x in pair):
            allowed = f"two finite numbers [x, y], at most {_LARGEST_COORDINATE} in size"
            report.add(f"{what}[{number}]", pair, allowed, fix)
            return None
    return np.array(value, dtype=np.float64)


def _read_shapes(report: Report, value: object, size: Size | None) -> list[Polygon]:
    """The sound polygons; `flag` shapes are dropped, unchecked."""
    if not isinstance(value, list):
        report.add("shapes", value, "a list of {label, points}", "correct the file")
        return []
    polygons: list[Polygon] = []
    budget = Budget()
    for index, shape in enumerate(value):
        what = f"shapes[{index}]"
        fields = shape if isinstance(shape, dict) else {}
        label = fields.get("label")
        if isinstance(label, str) and label.lower() == "flag":
            continue  # a leftover of the annotation tool, which upstream passes over as well
        if not isinstance(label, str):
            report.add(f"{what}.label", label, "text", "name the shape 'target' or 'ignore'")
        points = read_points(report, f"{what}.points", fields.get("points"))
        if points is None or not isinstance(label, str):
            continue
        if size is not None and not budget.covers(report, f"{what}.points", points, size):
            break
        polygons.append(Polygon(label, points))
        if size is not None and painted_area(polygons[-1], *size) == 0:
            (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
            got = f"x {left:g} to {right:g}, y {top:g} to {bottom:g}, wholly outside"
            allowed = f"some part within width {size[1]}, height {size[0]}"
            report.add(f"{what}.points", got, allowed, "redraw it on the upright picture")
    return polygons


def _read_annotation(report: Report, size: Size | None) -> _Notes:
    """(texts, is_sentence, polygons), as far as sound; a finding for all that is not."""
    parsed = load_json(report, dict, "{shapes, text, is_sentence}", LARGEST_FILE)
    if parsed is None:
        return (), False, ()
    text, is_sentence = parsed.get("text"), parsed.get("is_sentence")
    listed = [text] if isinstance(text, str) else text
    if not isinstance(listed, list) or not listed:
        report.add("text", text, "a list of one string or more", "write the question")
        listed = []
    texts = [read_sentence(report, f"text[{index}]", text) for index, text in enumerate(listed)]
    if not isinstance(is_sentence, bool):
        report.add("is_sentence", is_sentence, "true or false", "correct or add it")
    polygons = _read_shapes(report, parsed.get("shapes"), size)
    sound = tuple(text for text in texts if text is not None)
    return sound, is_sentence is True, tuple(polygons)


def _read_explanations(report: Report, known: set[str]) -> dict[str, list[Explanation]]:
    """Explanations by file name of the image, from a file that need not be there."""
    found: dict[str, list[Explanation]] = {}
    entries = load_json(report, list, "a list of objects") if report.path.exists() else None
    for index, entry in enumerate(entries or ()):
        what, fix = f"[{index}]", "correct the entry or take it out"
        fields, keys = entry if isinstance(entry, dict) else {}, ("image", "query", "outputs")
        image, query, answer = (read_sentence(report, f"{what}.{k}", fields.get(k)) for k in keys)
        if image is not None and image not in known:
            # Only bare names of files that are there: no way out of the data folder.
            report.add(f"{what}.image", image, "the file name of an image of this split", fix)
        elif image is not None and query is not None and answer is not None:
            found.setdefault(image, []).append(Explanation(query, answer))
    return found


def _locate(root: Path) -> tuple[Path, list[str]]:
    """The folder that holds the splits, and the splits that are there; DataError if none are."""
    root = Path(root)
    found = located(root)
    if found is not None:
        return found
    report = Report(root)
    got = "none of them" if root.is_dir() else "no such folder"
    fix = "name the folder into which ReasonSeg was unpacked, or moved since"
    fix += " (of a training, --resume too: --data-dir DIR)"
    report.add("data folder", got, NEEDED, fix)
    raise DataError(report.findings)


def _pair_up(folder: Path) -> dict[str, tuple[list[Path], list[Path]]]:
    """The (images, JSON files) of each base name, sorted. Sound is: one of each."""
    pairs: dict[str, tuple[list[Path], list[Path]]] = {}
    others: list[Path] = []
    for path in sorted(folder.iterdir()):
        suffix, hidden = path.suffix.lower(), path.name.startswith(".")
        if suffix in (".json", *IMAGE_SUFFIXES) and not hidden and path.is_file():
            pairs.setdefault(path.stem, ([], []))[suffix == ".json"].append(path)
        elif suffix in PICTURE_SUFFIXES and not hidden and path.is_file():
            others.append(path)
    lonely = {name for name, (images, _) in pairs.items() if not images}
    for path in others:  # beside a picture of the usual kinds it is a preview, or somebody's copy
        if path.stem in lonely:
            pairs[path.stem][0].append(path)
    return dict(sorted(pairs.items()))


def _look(files: _Files, read: _Read, paint: bool) -> _Look:
    """The item, or None and every finding about it; all files that are there are looked at."""
    base, images, jsons = files
    report = Report(base, entry=str(base))
    if not is_text(base.name):  # which no figures can be written about, hours later
        report.add("name", base.name, "text in UTF-8", "rename the picture and its .json")
    for kind, paths in ((" or ".join(IMAGE_SUFFIXES), images), (".json", jsons)):
        if len(paths) != 1:
            got = ", ".join(path.name for path in paths) or "none"
            report.add("files", got, f"one {kind} of this name", "add it or remove what is amiss")
    opened = [open_image(Report(path, report.findings, report.entry), read) for path in images]
    # Of two pictures nobody can say which the polygons were drawn on.
    size = opened[0][0] if len(opened) == 1 and opened[0] is not None else None
    notes = [_read_annotation(Report(path, report.findings, report.entry), size) for path in jsons]
    if report.findings or size is None:
        return _Look(None, report.findings)
    item = Item(base.name, images[0], jsons[0], *notes[0])
    return _Look(item, [], size, paint and TARGET not in paint_mask(item.polygons, *size))


def _header(image: Image.Image) -> None:
    """All that is needed is known before the pixels are."""


def _scan(
    folder: Path, split: str, limit: int | None, read: _Read, *, leave: Leave | None = None,
    paint: bool = False, progress: Progress | None = None,
) -> _Scanned:  # fmt: skip
    """What is sound in a split, and every finding about all else but what `leave` knows."""
    pairs = _pair_up(folder / split)
    known = {path.name for images, _ in pairs.values() for path in images}
    report = Report(folder / split)
    if not pairs:
        report.add("folder", None, "pictures, each with its .json", "fetch the split again")
    extra = folder / "explanatory" / f"{split}.json"
    explanations = _read_explanations(Report(extra, report.findings), known)
    looks: list[_Look] = []
    files = [
        (folder / split / name, *pairs[name])
        for name in list(pairs)[:limit]
        if leave is None or not leave.knows(str(folder / split / name))
    ]
    work = partial(_look, read=read, paint=paint)
    # A header is read sooner than handed to a thread.
    looked = map(work, files) if read is _header else in_threads(work, files)
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
    root: Path, split: str, limit: int | None = None, leave: Leave | None = None
) -> list[Item]:
    """The items of a split, sorted by name, or the first `limit` of them.

    Of pictures only the headers are read, to start a training soon; `check_data` and `read_image`
    report truncated ones. DataError: all findings about items, folder, split or limit (>= 1).
    `leave`: takes broken items; where it may take any, every picture is decoded, unless it knows
    them from before.
    """
    folder, present = _locate(root)
    report = Report(folder)
    if split not in present:
        report.add("split", split, ", ".join(present), "name one that is there")
    if limit is not None and limit < 1:
        report.add("limit", limit, "1 or more, or none", "leave the limit out to read all")
    if report.findings:
        raise DataError(report.findings)
    read = load_whole if leave is not None and leave.decodes else _header
    return _items(_settled(folder, split, _scan(folder, split, limit, read, leave=leave), leave))


def _settled(folder: Path, split: str, scanned: _Scanned, leave: Leave | None) -> list[_Look]:
    """What is sound; DataError for the rest, as far as `leave` does not take it."""
    looks, findings = scanned
    if findings and leave is None:
        raise DataError(findings)
    if findings and not looks:
        report = Report(folder, findings)
        report.add(split, "no sound item", "one or more", "mend the others")
    if leave is not None:
        leave.settle(findings)
    return looks


def _items(looks: Sequence[_Look]) -> list[Item]:
    return [look.item for look in looks if look.item is not None]


def check_data(root: Path) -> list[Finding]:
    """Every problem of the splits that are there (one at least): all is decoded and painted."""
    return check(root)[1]


def check(root: Path, progress: Progress | None = None) -> tuple[Summary, list[Finding]]:
    """What `summarise` says of the sound items, and every problem; each picture is decoded once.

    Of a split without a sound item there are no counts.
    """
    try:
        folder, present = _locate(root)
    except DataError as error:
        return {}, list(error.findings)
    summary: Summary = {}
    findings: list[Finding] = []
    for split in present:
        looks, broken = _scan(folder, split, None, load_whole, paint=True, progress=progress)
        summary[split] = _counts(looks) if looks else {}
        findings += broken
    return summary, findings


def summarise(root: Path, leave: Leave | None = None) -> Summary:
    """Per split: items, texts, sentences (items that are one), explanations, empty_masks, and
    smallest_image and largest_image as (width, height); DataError as from `read_split`."""
    folder, present = _locate(root)
    scans = {split: _scan(folder, split, None, load_whole, paint=True) for split in present}
    return {split: _counts(_settled(folder, split, scan, leave)) for split, scan in scans.items()}


def _counts(looks: Sequence[_Look]) -> Counts:
    items = _items(looks)
    sizes = [(width, height) for height, width in (look.size for look in looks)]
    return {
        "items": len(items),
        "texts": sum(len(item.texts) for item in items),
        "sentences": sum(item.is_sentence for item in items),
        "explanations": sum(len(item.explanations) for item in items),
        "empty_masks": sum(look.empty for look in looks),
        "smallest_image": min(sizes, key=math.prod),
        "largest_image": max(sizes, key=math.prod),
    }
