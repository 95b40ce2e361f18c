"""Every place where data come in, as a surface: hostile cases, and what must come of one.

A case is fed to the very function that the command lines call. It ends in a right answer, which is
looked at, or in an exception that the function's own docstring names; a subclass or a relative of
it will not do. Where a function returns findings instead, they are the clear error.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save

from profiles.findings import PlanError
from profiles.models import model_profile
from profiles.plan import Plan, setting_names
from profiles.recipe import read_recipe
from profiles.tested import parse_table
from tests.brush import packed
from tests.conftest import tiny_plan
from tests.fuzz import hostile
from tests.fuzz.hostile import Draw, changed, documents, lines, odd, spaced, spelled, tensor_files
from trainer import adapter_files
from trainer.answer.questions import read_questions
from trainer.answer.trained_model import find_trained
from trainer.convert.checkpoint_folder import Source
from trainer.convert.convert import Conversion, choose, needed_shapes
from trainer.convert.export import card, facts_of
from trainer.convert.tokenizer import convert_tokenizer
from trainer.data.feature_cache import BadEntry, read_entry
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import read_split
from trainer.data.images import LONGEST_SIDE, read_image
from trainer.data.importing.importer import import_annotations
from trainer.data.mixture import check_data
from trainer.data.polygons import paint_mask
from trainer.frame import Frame
from trainer.model.adapter_names import to_peft
from trainer.model.build import build, read_tokenizer
from trainer.model.families.llava_sam.family import FAMILY
from trainer.model.families.llava_sam.names import from_adapter
from trainer.model.families.llava_sam.pictures import clip_pixels
from trainer.model.families.llava_sam.tokenizer import LisaTokenizer
from trainer.model.weights import FolderWeights, ShapesAlone, WeightsError, packaged_folder
from trainer.prompts import Turn
from trainer.run import checkpoint
from trainer.run import shortages as recovery
from trainer.run import start_from_adapter as starting
from trainer.run.checkpoint import CheckpointError
from trainer.run.checkpoint_files import damage
from trainer.run.data_digests import check_data as check_same
from trainer.run.folder import STATE as STATE_TENSORS
from trainer.run.folder import TRAINED as TENSORS
from trainer.run.start_from_adapter import AdapterError
from trainer.run.started import CannotResume, Started

TINY = model_profile("tiny")
WIDTH, HEIGHT = 64, 48
PICTURE = hostile.png(WIDTH, HEIGHT)
SHIPPED = Path(__file__).parents[2] / "profiles" / "tested.jsonl"


class Wrong(AssertionError):
    """An answer that is not the right one."""


@dataclass(frozen=True)
class Surface:
    """`feed(case, folder)` gives True for a right answer, False for findings, or raises `clear`."""

    name: str
    cases: st.SearchStrategy[Any]
    feed: Callable[[Any, Path], bool]
    sound: Any  # a case that must be answered
    clear: tuple[type[Exception], ...] = ()
    share: float = 1.0  # of the cases that other surfaces get

    def try_one(self, case: Any, folder: Path) -> bool:
        """Whether the answer was right; False for a clear error. Raises whatever else came."""
        folder.mkdir()
        try:
            return self.feed(case, folder)
        except Exception as error:
            if type(error) not in self.clear:
                raise
            text = str(error)
            if not text.strip() or len(text) > 100_000:
                raise Wrong(f"an error of {len(text)} letters says nothing") from error
            text.encode()  # must go into any log
            return False
        finally:
            shutil.rmtree(folder)


# --- plans and the tested table ------------------------------------------------------------------

PLAN = json.loads(Plan().to_json())


def feed_plan(data: bytes, folder: Path) -> bool:
    path = folder / "plan.json"
    path.write_bytes(data)
    plan = Plan.read(path)
    again = Plan.from_json(plan.to_json())
    if again != plan or again.content_hash != plan.content_hash:
        raise Wrong("a plan is another one after writing and reading it")
    return True


@st.composite
def assignments(draw: Draw) -> list[str]:
    """Of --set."""
    keys = st.sampled_from([*setting_names(), "", "lora.", "lora.rank.x", "schedule", "a" * 99])
    found = []
    for _ in range(draw(st.integers(0, 3))):
        text = spelled(draw(odd))
        found.append(draw(keys) + draw(st.sampled_from(["=", "=", "=", "", "=="])) + text)
    return found


def feed_assignments(texts: list[str], folder: Path) -> bool:
    plan = Plan().override(texts)
    if Plan.from_json(plan.to_json()) != plan:
        raise Wrong("a plan is another one after writing and reading it")
    return True


ROWS = [json.loads(line) for line in SHIPPED.read_text(encoding="utf-8").splitlines()[:4]]


RECIPE = {"description": "a start", "seed": 3, "schedule": {"epochs": 4, "shape": "constant"}}


@st.composite
def recipes(draw: Draw) -> tuple[str, bytes]:
    """JSON is YAML, too; and lines of TOML."""
    if draw(st.booleans()):
        return "r.yaml", draw(documents(RECIPE))
    keys = st.sampled_from([*setting_names(), "[lora]", "[[schedule]]", "", '"', "a.b.c"])
    text = "\n".join(f"{draw(keys)} = {spelled(draw(odd))}" for _ in range(draw(st.integers(0, 3))))
    return "r.toml", text.encode("utf-8", errors="surrogatepass")


def feed_recipe(case: tuple[str, bytes], folder: Path) -> bool:
    path = folder / case[0]
    path.write_bytes(case[1])
    if not read_recipe(str(path)).keys() <= set(setting_names()):
        raise Wrong("a recipe names settings that there are not")
    return True


def feed_table(data: bytes, folder: Path) -> bool:
    table = parse_table(data, "tested.jsonl")
    told = sum(1 for line in data.split(b"\n") if line.strip())
    if len(table.rows) + len(table.findings) != told:
        raise Wrong(f"{told} lines, {len(table.rows)} rows, {len(table.findings)} findings")
    for row in table.rows:
        row.covers(Plan())
    "\n".join(map(str, table.findings)).encode()
    return not table.findings


# --- ReasonSeg -----------------------------------------------------------------------------------

ANNOTATION = {
    "text": ["the cup to drink from", "what holds coffee?"],
    "is_sentence": True,
    "shapes": [
        {"label": "target", "points": [[5, 5], [40, 8], [30, 40], [4, 30]]},
        {"label": "ignore", "points": [[20, 20], [60, 20], [20, 40], [60, 40.5]]},  # crosses itself
        {"label": "flag", "points": []},
    ],
}
EXPLANATIONS = [
    {"image": "a.png", "query": "What holds coffee? Why?", "outputs": "The cup, it is [SEG]."},
    {"image": "a.png", "query": "Where is it?", "outputs": "There."},
]


def reason_seg(root: Path, annotation: bytes | None = None) -> Path:
    """A split of one picture."""
    folder = root / "ReasonSeg" / "train"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(PICTURE)
    (folder / "a.json").write_bytes(annotation or json.dumps(ANNOTATION).encode())
    return root


@st.composite
def annotations(draw: Draw) -> bytes:
    """Of changed parts, or of many or odd points."""
    if draw(st.booleans()):
        return draw(documents(ANNOTATION))
    coordinate = st.one_of(st.floats(-20, 90), st.sampled_from([-1e6, 1e6, 0, 63, 64, 47.999]))
    corners = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=9)
    shapes = [{"label": draw(st.sampled_from(["target", "ignore", "IGNORED", "x"])),
               "points": points} for points in draw(st.lists(corners, max_size=6))]  # fmt: skip
    times = draw(st.sampled_from([1, 1, 1, 50, 5000]))
    for shape in shapes[:1]:
        shape["points"] = shape["points"] * times
    if shapes and times > 1 and draw(st.booleans()):
        shapes = shapes[:1] + shapes[1:2] * times
    return json.dumps(ANNOTATION | {"shapes": shapes}).encode()


def feed_annotation(data: bytes, root: Path) -> bool:
    (item,) = read_split(reason_seg(root, data), "train")
    mask = paint_mask(item.polygons, HEIGHT, WIDTH)
    if mask.shape != (HEIGHT, WIDTH) or not set(np.unique(mask)) <= {0, 1, 255}:
        raise Wrong("no mask of 0, 1 and 255")
    covered = np.zeros((HEIGHT, WIDTH), bool)
    allowed = np.zeros((HEIGHT, WIDTH), bool)
    for polygon in item.polygons:
        points = np.trunc(polygon.points)
        if len(points) < 50:
            covered |= strictly_inside(points)
        (left, top), (right, bottom) = points.min(0), points.max(0)
        columns, rows = np.arange(WIDTH), np.arange(HEIGHT)[:, None]
        allowed |= (columns >= left) & (columns <= right) & (rows >= top) & (rows <= bottom)
    if (mask[covered] == 0).any() or mask[~allowed].any():
        raise Wrong("the mask is not that of its polygons")
    return True


def strictly_inside(points: np.ndarray) -> np.ndarray:
    """Pixels [HEIGHT, WIDTH] inside by the even-odd rule and a pixel or more from every edge."""
    x, y = np.meshgrid(np.arange(WIDTH, dtype=float), np.arange(HEIGHT, dtype=float))
    odd_side, clear = np.zeros(x.shape, bool), np.ones(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, 0), strict=True):
        if ay != by:
            odd_side ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
        length = (bx - ax) ** 2 + (by - ay) ** 2
        along = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length if length else 0 * x
        along = along.clip(0, 1)
        clear &= np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)) > 1
    return odd_side & clear


def feed_explanations(data: bytes, root: Path) -> bool:
    folder = reason_seg(root) / "ReasonSeg" / "explanatory"
    folder.mkdir()
    (folder / "train.json").write_bytes(data)
    (item,) = read_split(root, "train")
    return all(one.query.strip() and one.answer.strip() for one in item.explanations)


# --- pictures ------------------------------------------------------------------------------------


@st.composite
def named_pictures(draw: Draw) -> tuple[str, bytes]:
    """With an extension, which may be a wrong one."""
    return draw(st.sampled_from(["a.jpg", "a.png", "a.JPEG"])), draw(hostile.pictures())


def feed_picture(case: tuple[str, bytes], folder: Path) -> bool:
    path = folder / case[0]
    path.write_bytes(case[1])
    image = read_image(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise Wrong(f"no picture: {image.dtype} {image.shape}")
    with Image.open(path) as opened:
        if sorted(opened.size) != sorted(image.shape[:2]):
            raise Wrong(f"{opened.size} became {image.shape}")
    _as_encoders_want(image)
    return True


def framed_pixels(image: np.ndarray, side: int) -> np.ndarray:
    return Frame(side).pixels(image)


def _as_encoders_want(image: np.ndarray) -> None:
    for pixels, side in ((clip_pixels, 224), (framed_pixels, 256)):
        shown = pixels(image, side)
        if shown.shape != (3, side, side) or not np.isfinite(shown).all():
            raise Wrong(f"{pixels.__name__} made {shown.shape}")
    if Frame(256).mask(image[:, :, 0] & 1, 256).shape != (256, 256):
        raise Wrong("no mask in SAM's frame")


def _column() -> bytes:
    file = io.BytesIO()
    Image.new("L", (1, 65_000)).save(file, "JPEG")
    return file.getvalue()


LIMIT = Image.MAX_IMAGE_PIXELS or 0
SIDE = int(LIMIT**0.5)
# Few bytes that become as many pixels as Pillow opens, or claim more.
LARGEST: dict[str, Callable[[], bytes]] = {
    "1 bit, as large as allowed": lambda: hostile.png(SIDE, SIDE, 1),
    "16 bits, as large as allowed": lambda: hostile.png(SIDE, SIDE, 16),
    "colour, as large as allowed": lambda: hostile.png(SIDE, SIDE, 8, 2),
    "16 bits with alpha, as large as allowed": lambda: hostile.png(SIDE, SIDE, 16, 6),
    "palette, one row too many": lambda: hostile.png(SIDE, SIDE + 2, 8, 3),
    "twice as large as allowed": lambda: hostile.png(SIDE * 2 - 9, SIDE, 1),
    "a line of all pixels allowed": lambda: hostile.png(LIMIT, 1, 1),
    "a column of all pixels allowed": lambda: hostile.png(1, LIMIT, 1),
    "a line, as long as allowed": lambda: hostile.png(LONGEST_SIDE, 1),
    "strips, as high as allowed": lambda: hostile.png(1300, LONGEST_SIDE, 8, 2),
    "a column of JPEG": _column,
    "claims 4 billion pixels": lambda: hostile.png(65_535, 65_535, 8, 2, rows=1),
    "claims 2^31 columns": lambda: hostile.png(2**31 - 1, 1, 1, rows=0),
    "much larger than it claims": lambda: hostile.png(8, 8, 8, 2, rows=4_000_000),
}


def feed_largest(name: str, folder: Path) -> bool:
    path = folder / "a.png"
    path.write_bytes(LARGEST[name]())
    _as_encoders_want(read_image(path))
    return True


# --- other annotations ---------------------------------------------------------------------------

_MASK = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
_MASK[5:20, 6:30] = 1
RUNS = coco_mask.encode(_MASK)["counts"].decode()
BOX = [5, 5, 40, 8, 30, 40, 4, 30]
COCO: dict[str, Any] = {
    "images": [
        {"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in (1, 2)
    ],
    "categories": [{"id": 1, "name": "trash_can"}, {"id": 2, "name": "bottle:cap"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [BOX], "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "iscrowd": 1,
         "segmentation": {"size": [HEIGHT, WIDTH], "counts": [100, 500, 2472]}},
        {"id": 3, "image_id": 2, "category_id": 1,
         "segmentation": {"size": [HEIGHT, WIDTH], "counts": RUNS}},
    ],
}  # fmt: skip
LABELME: dict[str, Any] = {
    "imagePath": "1.png", "imageHeight": HEIGHT, "imageWidth": WIDTH,
    "shapes": [
        {"label": "cup", "shape_type": "polygon", "points": [[5, 5], [40, 8], [30, 40]]},
        {"label": "cup", "shape_type": "circle", "points": [[20, 20], [25, 20]]},
        {"label": "ignore", "shape_type": "rectangle", "points": [[2, 2], [9, 9]]},
    ],
}  # fmt: skip
LABEL_STUDIO: list[Any] = [
    {"id": number, "data": {"image": f"/data/upload/1/0123abcd-{number}.png"}, "annotations": [
        {"was_cancelled": False, "result": [
            {"type": "polygonlabels", "original_height": HEIGHT, "original_width": WIDTH,
             "value": {"points": [[10, 10], [60, 15], [50, 80]], "polygonlabels": ["cup"]}},
            {"type": "ellipselabels", "original_height": HEIGHT, "original_width": WIDTH,
             "value": {"x": 70, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 30,
                       "ellipselabels": ["trash can"]}},
            {"type": "brushlabels", "original_height": HEIGHT, "original_width": WIDTH,
             "value": {"format": "rle", "rle": packed(_MASK), "brushlabels": ["cup"]}},
        ]},
    ]}
    for number in (1, 2)
]  # fmt: skip
SA2VA: list[Any] = [
    {"image": f"{number}.png", "text": ["Trash can.", "What keeps the paper in?", "cup"],
     "mask": [[BOX, [9, 9, 20, 9, 9, 20]], [[[5, 5], [40, 8], [30, 40]]],
              {"size": [HEIGHT, WIDTH], "counts": RUNS}]}
    for number in (1, 2)
]  # fmt: skip
YOLO: dict[str, Any] = {
    "path": "/home/someone/cups", "train": "../images/train", "val": ["lists/val.txt"], "nc": 2,
    "names": {"0": "trash can", "1": "no"},
}  # fmt: skip
LABELS: list[Any] = [
    [0, 0.1, 0.1, 0.8, 0.15, 0.6, 0.8],
    [1, 0.5, 0.5, 0.9, 0.5, 0.9, 1.02, 0.5, 0.9],
]
LISTED: list[Any] = ["data/images/val/2.png", "./images/val/2.png"]
QUESTIONS = [
    {"picture": "1.png", "label": "trash can", "question": "Where does the paper go?"},
    {"picture": "2.png", "label": "Trash_can", "question": "What is to be emptied?"},
]
SOURCES = ("1.png", "2.png")


def _with_pictures(folder: Path, names: Sequence[str] = SOURCES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(PICTURE + b"\0" * number)  # two contents, or they are one
    (folder.parent / "outside.jpg").write_bytes(PICTURE)
    (folder / "link.jpg").symlink_to(folder.parent / "outside.jpg")
    return folder


def _imported(source: Path, root: Path, **options: Any) -> bool:
    """Imports, and reads what came out; nothing from outside of the source may be in it."""
    done = import_annotations(source, root / "made", val=0.5, **options)
    items = [item for split in done.items for item in read_split(root / "made", split)]
    for item in items:
        note = json.loads(item.json_path.read_bytes())
        if ".." in note["picture"] or note["picture"].startswith(("/", "link")):
            raise Wrong(f"{note['picture']} lies outside")
        if 1 not in paint_mask(item.polygons, HEIGHT, WIDTH):
            raise Wrong(f"{item.name} has no target")
    return sum(done.items.values()) == len(items) > 0


def feed_coco(data: bytes, root: Path) -> bool:
    source = _with_pictures(root / "source") / "instances.json"
    source.write_bytes(data)
    return _imported(source, root)


def feed_labelme(data: bytes, root: Path) -> bool:
    source = _with_pictures(root / "source")
    (source / "1.json").write_bytes(data)
    (source / "2.json").write_bytes(json.dumps(LABELME | {"imagePath": "2.png"}).encode())
    return _imported(source, root)


def feed_label_studio(data: bytes, root: Path) -> bool:
    source = _with_pictures(root / "source") / "tasks.json"
    source.write_bytes(data)
    return _imported(source, root)


def feed_sa2va(data: bytes, root: Path) -> bool:
    source = _with_pictures(root / "source") / "annotations.json"
    source.write_bytes(data)
    return _imported(source, root)


@st.composite
def of_yolo(draw: Draw) -> tuple[str, bytes]:
    """One of a folder's files: the classes, labels of a picture, or the list of a split."""
    if draw(st.booleans()):
        name, rows = draw(st.sampled_from([("labels/train/1.txt", LABELS), ("val.txt", LISTED)]))
        return name, draw(spaced(rows))
    return "data.yaml", draw(documents(YOLO))


def feed_yolo(case: tuple[str, bytes], root: Path) -> bool:
    source, (name, data) = _with_pictures(root / "source"), case
    files: dict[str, bytes] = {"data.yaml": _json(YOLO), "val.txt": b"images/val/2.png\n"}
    for one in ("train/1", "val/2"):
        files[f"labels/{one}.txt"] = b"0 0.1 0.1 0.8 0.1 0.8 0.8\n"
        files[f"images/{one}.png"] = (source / f"{one[-1]}.png").read_bytes()
    files[name] = data
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    return _imported(source, root)


def feed_questions(case: tuple[str, bytes], root: Path) -> bool:
    source = _with_pictures(root / "source") / "instances.json"
    source.write_bytes(json.dumps(COCO).encode())
    (root / case[0]).write_bytes(case[1])
    return _imported(source, root, questions=root / case[0])


ASKED = [
    {"image": "1.png", "question": "Where does the paper go?", "explain": True},
    {"image": "2.png", "question": "trash can", "phrase": True},
]


def feed_asked(data: bytes, root: Path) -> bool:
    folder = _with_pictures(root / "pictures")
    (root / "asked.jsonl").write_bytes(data)
    asked = read_questions(folder, None, root / "asked.jsonl", False, False)
    inside = all(one.image.resolve().parent == folder.resolve() for one in asked)
    if not inside or not all(one.text and one.turn().question for one in asked):
        raise Wrong("a picture outside, or no question")
    return True


# --- data sets that are mixed in -----------------------------------------------------------------

REFERENCES: list[Any] = [
    {"ann_id": 1, "split": "train", "sentences": [{"sent": "the can on the left"}, {"sent": ""}]},
    {"ann_id": 2, "split": "val", "sentences": [{"sent": "a cap"}]},
]
DIALOGUES: list[Any] = [
    {"id": "1", "image": "1.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat is here?"},
        {"from": "gpt", "value": "A cup."}]},
]  # fmt: skip
CLASSES = [{"Idx": "1", "Name": "wall"}, {"Idx": "2", "Name": "cup, mug"}]


class _Calls:
    """Pickles as a call of `os.system`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch run-from-a-pickle",)


BOMB = b"\x80\x04" + b"]" + b"r" + struct.pack("<I", 2**31 - 1) + b"."  # a memo of 32 GiB
LAUGHS = (
    b"\x80\x04]q\0("
    + b"".join(
        b"l" + b"q" + bytes([n]) + b"(" + b"h" + bytes([n]) + b"h" + bytes([n])
        for n in range(1, 60)
    )
    + b"l."
)  # lists of the list before, twice


@st.composite
def references(draw: Draw) -> bytes:
    """A pickle of plain values, changed; or one that calls, grows or goes round."""
    special = draw(st.integers(0, 9))
    if special == 0:
        return draw(st.sampled_from([BOMB, LAUGHS, pickle.dumps([_Calls()]), b"cos\nsystem\n."]))
    data = pickle.dumps(changed(draw, REFERENCES), protocol=draw(st.integers(0, 5)))
    return hostile.damaged(draw, data) if special < 4 else data


def _checked(root: Path) -> bool:
    """Everything below the root is read, decoded and painted; findings are clear errors."""
    _, findings = check_data(reason_seg(root))
    text = "\n".join(map(str, findings))
    text.encode()
    if len(text) > 1_000_000:
        raise Wrong(f"findings of {len(text)} letters")
    if (Path.cwd() / "run-from-a-pickle").exists():
        raise Wrong("a pickle ran")
    return not findings


def feed_refer(data: bytes, root: Path) -> bool:
    _with_pictures(root / "refer_seg" / "images" / "mscoco" / "images" / "train2014")
    folder = root / "refer_seg" / "refcoco"
    folder.mkdir()
    (folder / "instances.json").write_bytes(json.dumps(COCO).encode())
    (folder / "refs(unc).p").write_bytes(data)
    return _checked(root)


def feed_sem(case: tuple[bytes, bytes, bytes], root: Path) -> bool:
    coco, classes, label = case
    folder = root / "sem_seg" / "own"
    _with_pictures(folder / "images")
    (folder / "annotations.json").write_bytes(coco)
    (root / "ade20k" / "images" / "training").mkdir(parents=True)
    (root / "ade20k" / "annotations" / "training").mkdir(parents=True)
    (root / "ade20k" / "objectInfo150.txt").write_bytes(classes)
    (root / "ade20k" / "images" / "training" / "1.jpg").write_bytes(PICTURE)
    (root / "ade20k" / "annotations" / "training" / "1.png").write_bytes(label)
    return _checked(root)


def class_numbers() -> bytes:
    """Half of the picture is of no class, half of the first one."""
    file = io.BytesIO()
    Image.fromarray(_MASK.clip(0, 1)).save(file, "PNG")
    return file.getvalue()


SEM = json.dumps(COCO).encode(), b"Idx\tName\n1\twall\n2\tcup;mug\n", class_numbers()


@st.composite
def sem_sets(draw: Draw) -> tuple[bytes, bytes, bytes]:
    """One of the three files is hostile."""
    case, which = list(SEM), draw(st.integers(0, 2))
    hostile_one = (documents(COCO), lines(CLASSES, "Idx,Name"), hostile.pictures())[which]
    case[which] = draw(hostile_one).replace(b",", b"\t") if which == 1 else draw(hostile_one)
    return case[0], case[1], case[2]


def feed_vqa(data: bytes, root: Path) -> bool:
    _with_pictures(root / "coco" / "train2017")
    (root / "vqa").mkdir()
    (root / "vqa" / "llava.json").write_bytes(data)
    return _checked(root)


# --- tensors: cache, checkpoints, model folders --------------------------------------------------

FEATURES = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
ENTRY = save({"features": FEATURES}, {"key": "clip-1", "crc32": str(zlib.crc32(FEATURES.numpy()))})


def feed_entry(data: bytes, folder: Path) -> bool:
    path = folder / "entry.safetensors"
    path.write_bytes(data)
    features = read_entry(path, "clip-1")
    if features["features"].numpy().tobytes() != FEATURES.numpy().tobytes():
        raise Wrong("altered features were taken for good ones")
    return True


TRAINED = save({"weight": FEATURES[0], "bias": torch.ones(3)})


def feed_trained(data: bytes, folder: Path) -> bool:
    (folder / TENSORS).write_bytes(data)
    model = torch.nn.Linear(4, 3)
    checkpoint.load(folder, model)
    return model.weight.shape == (3, 4) and model.weight.dtype == torch.float32


@cache
def adapted() -> tuple[Plan, Any, dict[str, torch.Tensor]]:
    """A plan with its model, of shapes alone, and an adapter that it can start from."""
    plan = tiny_plan(train=[])
    model = build(plan, read_tokenizer(plan), torch.device("meta"), ShapesAlone())
    shapes = {name: p.shape for name, p in checkpoint.trained_parameters(model).items()}
    return (
        plan,
        model,
        {to_peft(name.removeprefix("llava.")): torch.ones(shape) for name, shape in shapes.items()},
    )


ADAPTER: dict[str, Any] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none",
    "target_modules": ["q_proj", "v_proj"], "use_dora": False, "use_rslora": False,
    "rank_pattern": {}, "init_lora_weights": True, "modules_to_save": None,
    "trainable_token_indices": {"embed_tokens": [3]}, "peft_version": "0.21.0",
}  # fmt: skip


@st.composite
def adapters(draw: Draw) -> tuple[bytes, bytes]:
    """An adapter's configuration and tensors, one of the two changed."""
    config, tensors = _json(ADAPTER), save(adapted()[2])
    if draw(st.booleans()):
        return draw(documents(ADAPTER)), tensors
    return config, draw(tensor_files(tensors))


def feed_adapter(case: tuple[bytes, bytes], folder: Path) -> bool:
    for name, data in zip((adapter_files.CONFIG, adapter_files.TENSORS), case, strict=True):
        (folder / name).write_bytes(data)
    plan, model, sound = adapted()
    return starting.fitting_tensors(folder, plan, model, []).keys() == set(map(from_adapter, sound))


MANIFEST: dict[str, Any] = {TENSORS: "0" * 64, STATE_TENSORS: "0" * 64}
STATE: dict[str, Any] = {
    "step": 3, "best": 0.5, "metrics": None, "records": 10,
    "optimizer": {"state": {"0": {"exp_avg": {"tensor": "a"}}}, "param_groups": [{"lr": 1e-3}]},
}  # fmt: skip
FACTS: dict[str, Any] = {
    "step": 3, "base": "0123456789abcdef", "data": {"train": 4, "val": 2}, "hardware": "a card",
    "metrics": {"giou": 0.5, "ciou": 0.25, "images": 2}, "before": {"giou": 0.1, "ciou": 0.1},
    "versions": {"torch": "2.11"}, "peak_reserved_bytes": 2**30, "forecast_bytes": 2**30,
}  # fmt: skip
RECORD: dict[str, Any] = {
    "data": "/data", "cache": "/cache",
    "digests": {"train": {"a": "0123456789abcdef"}, "val": {"b": "0123456789abcdef"}},
    "keeping": {"minutes": 10.0, "steps": None, "checkpoints": 2, "wait_minutes": 0.0},
    "pinned": ["micro_batch"], "environment": {"CUDA_VISIBLE_DEVICES": "GPU-a"},
}  # fmt: skip
SHORTAGE: dict[str, Any] = {
    "plan": Plan().model_dump(mode="json"), "phase": "training", "step": 3, "error": "no more",
    "gpu": "a card", "limit_bytes": 2**30, "components": {"frozen weights": 2**29},
}  # fmt: skip
NOW = {"train": {"a": "0123456789abcdef"}, "val": {"b": "0123456789abcdef"}}


@st.composite
def of_a_run(draw: Draw) -> tuple[str, bytes]:
    """One of a run folder's files."""
    files = {"manifest.json": MANIFEST, "state.json": STATE, "facts.json": FACTS,
             "run.json": RECORD, "shortage.json": SHORTAGE}  # fmt: skip
    name = draw(st.sampled_from(sorted(files)))
    return name, draw(documents(files[name]))


def feed_run(case: tuple[str, bytes], folder: Path) -> bool:
    name, data = case
    (folder / TENSORS).write_bytes(TRAINED)
    (folder / STATE_TENSORS).write_bytes(save({"a": FEATURES}))
    (folder / name).write_bytes(data)
    if name == "manifest.json":
        return damage(folder) == ""
    if name == "state.json":
        return isinstance(checkpoint.load_state(folder), dict)
    if name == "facts.json":
        return card(Plan(), facts_of(folder), merged=False).startswith("---\n")
    if name == "shortage.json":
        place = folder / recovery.FOLDER / "001"
        place.mkdir(parents=True)
        (folder / name).rename(place / name)
        return len(recovery.shortages(folder)) == 1  # what cannot be read is left out
    check_same(Started.read(folder), NOW)
    return True


@cache
def tiny_file() -> tuple[str, bytes]:
    """A weights file of lisa-tiny."""
    path = sorted(packaged_folder().glob("*.safetensors"))[0]
    return path.name, path.read_bytes()


@cache
def layout() -> dict[str, Any]:
    """Of a model folder in small: some tensors of the layout."""
    return {name: torch.ones(shape) for name, shape in list(needed_shapes(TINY).items())[:4]}


def feed_weights(data: bytes, folder: Path) -> bool:
    (folder / "model.safetensors").write_bytes(data)
    source = FolderWeights(folder)
    for name, value in layout().items():
        got = source.get(name, value.shape, torch.device("cpu"), torch.float32)
        if got.shape != value.shape:
            raise Wrong(f"{name} has shape {got.shape}")
    source.finish(layout())
    return True


TURN = Turn("<image>\nWhat is here?", "It is [SEG].")


@cache
def tokenizer_document() -> dict[str, Any]:
    """lisa-tiny's tokenizer."""
    text = (packaged_folder() / "tokenizer.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


@st.composite
def tokenizer_files(draw: Draw) -> bytes:
    """The vocabulary is long, so most changes are made around it."""
    document = dict(tokenizer_document())
    model = document.pop("model")
    if draw(st.booleans()):
        names = ("vocab", "merges")
        small = changed(draw, {k: v for k, v in model.items() if k not in names})
        return spelled(document | {"model": small | {k: model.get(k) for k in names}}).encode(
            "utf-8", errors="replace"
        )
    around = changed(draw, document)
    text = spelled(around | {"model": model} if isinstance(around, dict) else around)
    data = text.encode("utf-8", errors="replace")
    return hostile.damaged(draw, data) if draw(st.integers(0, 4)) == 0 else data


def feed_tokenizer(data: bytes, folder: Path) -> bool:
    (folder / "tokenizer.json").write_bytes(data)
    tokenizer = LisaTokenizer.read(folder, 4)
    encoded = tokenizer.encode([TURN])
    return len(encoded.input_ids) == len(encoded.labels) > 0


CONVERSION: dict[str, Any] = {"model": "tiny", "dtype": "bf16", "used": {}}


@st.composite
def model_folders(draw: Draw) -> tuple[str, bytes]:
    """conversion.json of a whole model, or the plan.json of an export."""
    name = draw(st.sampled_from(["conversion.json", "plan.json"]))
    return name, draw(documents(CONVERSION if name == "conversion.json" else PLAN))


def feed_model_folder(case: tuple[str, bytes], folder: Path) -> bool:
    (folder / case[0]).write_bytes(case[1])
    if case[0] == "plan.json":
        (folder / TENSORS).write_bytes(TRAINED)
    plan = find_trained(folder).plan
    return plan.processes == 1 and plan.accumulation == 1


CONFIG: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
    "text_config": {"rms_norm_eps": 1e-6, "num_attention_heads": 4}, "transformers_version": "4.0",
}  # fmt: skip
PUBLISHED = {
    "llava.model.language_model.embed_tokens.weight": "language_model.model.embed_tokens.weight",
    "llava.model.language_model.norm.weight": "language_model.model.norm.weight",
    "llava.lm_head.weight": "language_model.lm_head.weight",
}
INDEX: dict[str, Any] = {"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}
ADDED: dict[str, Any] = {"[SEG]": 5}


@st.composite
def sources(draw: Draw) -> tuple[str, bytes]:
    """One of a published checkpoint's files."""
    files = {"config.json": CONFIG, "model.safetensors.index.json": INDEX,
             "added_tokens.json": ADDED}  # fmt: skip
    name = draw(st.sampled_from([*files, "model.safetensors", "pytorch_model.bin",
                                 "tokenizer.json"]))  # fmt: skip
    if name == "model.safetensors":
        return name, draw(tensor_files(save(published())))
    if name == "tokenizer.json":
        return name, draw(tokenizer_files())
    if name == "pytorch_model.bin":
        return name, draw(binaries())
    return name, draw(documents(files[name]))


@cache
def published() -> dict[str, Any]:
    """Some tensors of a LLaVA, by their published names."""
    shapes = needed_shapes(TINY)
    return {there: torch.ones(shapes[here]) for here, there in PUBLISHED.items()}


@cache
def binary(old: bool) -> bytes:
    """As torch writes them, in the present format and the old one."""
    file = io.BytesIO()
    torch.save({"state_dict": published()}, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


@st.composite
def binaries(draw: Draw) -> bytes:
    """Pickles with tensors, damaged or of other things."""
    which = draw(st.integers(0, 7))
    if which == 0:
        return pickle.dumps(_Calls())
    if which == 1:
        return draw(references())
    return hostile.damaged(draw, binary(which == 2))


def feed_source(case: tuple[str, bytes], folder: Path) -> bool:
    name, data = case
    if name != "pytorch_model.bin":
        (folder / "model.safetensors").write_bytes(save(published()))
    shutil.copy(packaged_folder() / "tokenizer.json", folder)
    (folder / name).write_bytes(data)
    source = Source.read(folder, FAMILY)
    report = Conversion("tiny", [source.facts()])
    json.dumps(report.sources)
    needed = {here: published()[there].shape for here, there in PUBLISHED.items()}
    choose([source], needed, "tiny", report)
    convert_tokenizer(folder, folder / "converted.json", 4096, FAMILY.tokenizer)
    return bool(report.used)


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _lines(rows: Sequence[Any]) -> bytes:
    return b"\n".join(map(_json, rows))


_CSV = st.tuples(st.just("q.csv"), lines(QUESTIONS, "picture,label,question"))
_JSONL = st.tuples(st.just("q.jsonl"), lines(QUESTIONS))
SURFACES = (
    Surface("plan.json", documents(PLAN), feed_plan, _json(PLAN), (PlanError,)),
    Surface("--set", assignments(), feed_assignments, ["lora.rank=4"], (PlanError,)),
    Surface("recipe", recipes(), feed_recipe, ("r.yaml", _json(RECIPE)), (PlanError,)),
    Surface("tested table", lines(ROWS), feed_table, _lines(ROWS)),
    Surface("ReasonSeg annotation", annotations(), feed_annotation, _json(ANNOTATION),
            (DataError,), 2.0),
    Surface("ReasonSeg explanations", documents(EXPLANATIONS), feed_explanations,
            _json(EXPLANATIONS), (DataError,)),
    Surface("pictures", named_pictures(), feed_picture, ("a.jpg", PICTURE), (DataError,), 2.0),
    Surface("largest pictures", st.sampled_from(sorted(LARGEST)), feed_largest, "a column of JPEG",
            (DataError,), 0.05),
    Surface("COCO import", documents(COCO), feed_coco, _json(COCO), (DataError,)),
    Surface("LabelMe import", documents(LABELME), feed_labelme, _json(LABELME), (DataError,)),
    Surface("Label Studio import", documents(LABEL_STUDIO), feed_label_studio,
            _json(LABEL_STUDIO), (DataError,)),
    Surface("YOLO import", of_yolo(), feed_yolo, ("data.yaml", _json(YOLO)), (DataError,)),
    Surface("Sa2VA import", documents(SA2VA), feed_sa2va, _json(SA2VA), (DataError,)),
    Surface("import's questions", _CSV | _JSONL, feed_questions, ("q.jsonl", _lines(QUESTIONS)),
            (DataError,)),
    Surface("lisa-segment's questions", lines(ASKED), feed_asked, _lines(ASKED),
            (ValueError, DataError)),
    Surface("refer_seg pickle", references(), feed_refer, pickle.dumps(REFERENCES)),
    Surface("sem_seg", sem_sets(), feed_sem, SEM),
    Surface("vqa", documents(DIALOGUES), feed_vqa, _json(DIALOGUES)),
    Surface("cache entry", tensor_files(ENTRY), feed_entry, ENTRY, (BadEntry,)),
    Surface("trained tensors", tensor_files(TRAINED), feed_trained, TRAINED, (CheckpointError,)),
    Surface("PEFT adapter", adapters(), feed_adapter, (_json(ADAPTER), save(adapted()[2])),
            (AdapterError, CheckpointError, WeightsError), 0.5),
    Surface("run folder", of_a_run(), feed_run, ("run.json", _json(RECORD)),
            (CheckpointError, CannotResume)),
    Surface("model weights", tensor_files(save(layout())), feed_weights, save(layout()),
            (WeightsError,)),
    Surface("model tokenizer", tokenizer_files(), feed_tokenizer, _json(tokenizer_document()),
            (WeightsError,), 0.5),
    Surface("model folder", model_folders(), feed_model_folder,
            ("conversion.json", _json(CONVERSION)), (PlanError, ValueError)),
    Surface("convert's sources", sources(), feed_source, ("added_tokens.json", _json(ADDED)),
            (WeightsError,), 0.5),
)  # fmt: skip
