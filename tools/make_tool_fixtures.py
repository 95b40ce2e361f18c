"""Write `tests/tools_made`: annotations made by the exporters of annotation tools themselves.

A maintainer runs this, each tool in an environment of its own (they pin each other's libraries):

    pip install pillow numpy                    # python tools/make_tool_fixtures.py scene
    pip install label-studio-sdk==2.1.2         # python tools/make_tool_fixtures.py label-studio
    pip install datumaro==1.13.12               # python tools/make_tool_fixtures.py datumaro
    pip install supervision==0.31.2 opencv-python-headless      # ... supervision
    pip install labelme==6.3.1                  # ... labelme; again with 4.6.0 and 3.16.7
    pip install --no-deps x-anylabeling-cvhub==4.2.1            # ... x-anylabeling, with what it
    pip install PyQt6==6.9.1 json_repair jsonlines importlib_metadata markdown natsort numpy \\
        openai opencv-python-headless packaging pillow pyyaml qimage2ndarray requests termcolor tqdm

`scene` writes the pictures and the truth, and comes first. Tests only read what was written:
`make test` installs no tool.

The scene is drawn here, in pixels of the upright picture, and what belongs to each object is
computed here as well (`truth`), by no tool. All tools get the same shapes; what they write is left
as it is. Label Studio's tasks are composed here as its editor leaves them: that part is no package.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MADE = Path(__file__).resolve().parents[1] / "tests" / "tools_made"
WIDTH, HEIGHT = 60, 80  # upright
# The picture's name, and the EXIF orientation it is stored with; "茶杯" is a tea cup.
PICTURES = {"upright.jpg": 1, "half turn.jpg": 3, "right.jpg": 6, "left.jpg": 8, "茶杯 1.jpg": 1}
EMPTY = "nothing.jpg"  # nobody outlined anything on it
# How Pillow makes the stored picture of an upright one.
STORE = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90,
         8: Image.Transpose.ROTATE_270}  # fmt: skip

# What is outlined, in upright pixels: corners as an annotator clicks them, on pixels' borders.
CUP = [(6, 8), (26, 8), (26, 14), (14, 14), (14, 34), (6, 34)]
EYES = [[(34, 6), (42, 6), (42, 16), (34, 16)], [(46, 6), (54, 6), (54, 20), (46, 20)]]
BOX = (24, 56, 34, 66)  # left, top, right, bottom: drawn as a rectangle, where the tool has those
CROWD = [(4, 60), (56, 60), (50, 76), (4, 76)]
LABELS = ("tea_cup", "eyes", "ring", "面 包", "people")

Mask = NDArray[np.bool_]


def polygon_mask(corners: list[tuple[int, int]]) -> Mask:
    """Pixels whose middle lies within, by crossings to the right of it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return inside


def ring_mask() -> Mask:
    """A painted ring: it has a hole."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    far = np.hypot(x - 40, y - 40)
    return (far < 14) & (far > 6)


def bread_mask() -> Mask:
    """A painted thing in one piece, without a hole."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return np.hypot((x - 14) / 8, (y - 48) / 6) < 1


def truth() -> dict[str, Mask]:
    masks = (
        polygon_mask(CUP),
        polygon_mask(EYES[0]) | polygon_mask(EYES[1]),
        ring_mask(),
        bread_mask(),
        polygon_mask(CROWD),
    )
    return dict(zip(LABELS, masks, strict=True))


def make_scene() -> None:
    (MADE / "pictures").mkdir(parents=True, exist_ok=True)
    (MADE / "truth").mkdir(exist_ok=True)
    for label, mask in truth().items():
        Image.fromarray(mask).save(MADE / "truth" / f"{label}.png", optimize=True)
    for shade, (name, orientation) in enumerate(PICTURES.items()):
        pixels = np.full((HEIGHT, WIDTH, 3), 60 + 20 * shade, np.uint8)
        for colour, mask in enumerate(truth().values()):
            pixels[mask] = np.roll((250, 40 * colour, 90), colour)
        image, exif = Image.fromarray(pixels), Image.Exif()
        exif[0x0112] = orientation
        if orientation in STORE:
            image = image.transpose(STORE[orientation])
        image.save(MADE / "pictures" / name, exif=exif, quality=90)
    Image.new("RGB", (WIDTH, HEIGHT)).save(MADE / "pictures" / EMPTY)


def made(tool: str, package: str) -> Path:
    """The folder of a tool's files, and its version noted."""
    folder, noted = MADE / tool, MADE / "VERSIONS.json"
    folder.mkdir(parents=True, exist_ok=True)
    versions = json.loads(noted.read_text()) if noted.exists() else {}
    versions[tool] = f"{package} {version(package)}"
    noted.write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n")
    return folder


def _region(kind: str, label: str, value: dict[str, Any]) -> dict[str, Any]:
    """A labelled region as Label Studio's editor leaves it."""
    name = {"polygonlabels": "outline", "brushlabels": "paint", "rectanglelabels": "box"}[kind]
    # The editor asks the browser for the picture's size: that is the upright one.
    return {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0,
            "type": kind, "from_name": name, "to_name": "image", "origin": "manual",
            "id": f"{label}-{len(json.dumps(value))}",
            "value": value | {kind: [label]}}  # fmt: skip


def _outline(label: str, corners: list[tuple[int, int]]) -> dict[str, Any]:
    parts = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in corners]
    return _region("polygonlabels", label, {"points": parts, "closed": True})


def _task(number: int, name: str, result: list[dict[str, Any]]) -> dict[str, Any]:
    upload = f"/data/upload/7/a1b2c3d{number}-{name.replace(' ', '_')}"
    annotation = {"id": number, "completed_by": 1, "was_cancelled": False, "result": result,
                  "created_at": "2026-01-01T00:00:00Z"}  # fmt: skip
    return {"id": number, "annotations": [annotation] if result else [],
            "data": {"image": upload}}  # fmt: skip


def _write_tasks(source: Path, result: list[dict[str, Any]]) -> Path:
    """The same regions on every picture, and a task without any."""
    tasks = [_task(number, picture, result) for number, picture in enumerate(PICTURES, 1)]
    tasks.append(_task(9, EMPTY, []))
    source.write_text(json.dumps(tasks, ensure_ascii=False) + "\n", encoding="utf-8")
    return source


def make_label_studio() -> None:
    """Its editor's tasks, and what its converter makes of them: COCO, and COCO of what was painted.

    COCO twice: with the pictures available, as the server has them, and without.
    """
    from label_studio_sdk.converter import Converter, brush

    folder = made("label-studio", "label-studio-sdk")
    config = (
        '<View><Image name="image" value="$image"/>'
        '<PolygonLabels name="outline" toName="image">{0}</PolygonLabels>'
        '<RectangleLabels name="box" toName="image">{0}</RectangleLabels>'
        '<BrushLabels name="paint" toName="image">{0}</BrushLabels></View>'
    ).format("".join(f'<Label value="{label}"/>' for label in LABELS))

    def paint(label: str, mask: Mask) -> dict[str, Any]:
        rle = brush.mask2rle(mask.astype(np.uint8) * 255)
        return _region("brushlabels", label, {"format": "rle", "rle": rle})

    masks = truth()
    left, top, right, bottom = BOX
    box = {
        "x": 100 * left / WIDTH,
        "y": 100 * top / HEIGHT,
        "width": 100 * (right - left) / WIDTH,
        "height": 100 * (bottom - top) / HEIGHT,
        "rotation": 0,
    }
    outlined = [_outline("tea_cup", CUP), *(_outline("eyes", part) for part in EYES)]
    painted = [paint(label, masks[label]) for label in ("ring", "面 包", "eyes")]
    tasks = _write_tasks(folder / "tasks.json", outlined + painted)
    boxed = _write_tasks(
        folder / "boxed.json", [*outlined, _region("rectanglelabels", "eyes", box)]
    )
    uploads = folder / "upload" / "7"
    uploads.mkdir(parents=True, exist_ok=True)
    for number, name in [*enumerate(PICTURES, 1), (9, EMPTY)]:
        upload = uploads / Path(_task(number, name, [])["data"]["image"]).name
        upload.write_bytes((MADE / "pictures" / name).read_bytes())
    converter = Converter(config, str(folder), upload_dir=str(folder / "upload"))
    converter.convert(str(tasks), str(folder / "coco"), "COCO", is_dir=False)
    converter.convert(str(boxed), str(folder / "coco-boxed"), "COCO", is_dir=False)
    shutil.rmtree(folder / "upload")
    converter.convert(str(tasks), str(folder / "coco-without-pictures"), "COCO", is_dir=False)
    converter.convert(str(tasks), str(folder / "brush"), "BRUSH_TO_COCO", is_dir=False)
    boxed.unlink()
    for images in folder.rglob("images"):
        images.rmdir()


def make_datumaro() -> None:
    """COCO as CVAT exports it, which goes through Datumaro, and CVAT's own XML.

    CVAT's attributes are there twice: with "occluded", which CVAT always writes, and without any.
    """
    from datumaro.components.annotation import Mask as Painted
    from datumaro.components.annotation import Polygon
    from datumaro.components.dataset import Dataset
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image as Picture

    folder = made("datumaro", "datumaro")
    masks = truth()

    def shapes(attributes: dict[str, Any]) -> list[Any]:
        def outline(name: str, corners: list[tuple[int, int]], group: int, **more: Any) -> Any:
            flat = [float(value) for corner in corners for value in corner]
            return Polygon(flat, label=LABELS.index(name), group=group,
                           attributes=attributes | more)  # fmt: skip

        def painted(name: str) -> Any:
            return Painted(masks[name], label=LABELS.index(name), attributes=dict(attributes))

        eyes = [outline("eyes", part, 1) for part in EYES]  # grouped: one object of two parts
        crowd = outline("people", CROWD, 0, is_crowd=True)
        return [outline("tea_cup", CUP, 0), *eyes, painted("ring"), painted("面 包"), crowd]

    for name, attributes in (("coco", {"occluded": False}), ("coco-bare", {})):
        items = []
        for picture in PICTURES:
            media = Picture.from_file(path=str(MADE / "pictures" / picture))
            items.append(DatasetItem(Path(picture).stem, media=media, subset="default",
                                     annotations=shapes(attributes)))  # fmt: skip
        empty = Picture.from_file(path=str(MADE / "pictures" / EMPTY))
        items.append(DatasetItem(Path(EMPTY).stem, media=empty, subset="default"))
        dataset = Dataset.from_iterable(items, categories=list(LABELS))
        dataset.export(str(folder / name), "coco_instances", save_media=False)
    dataset.export(str(folder / "cvat"), "cvat", save_media=False)
    dataset.export(str(folder / "own"), "datumaro", save_media=False)
    dataset.export(str(folder / "panoptic"), "coco_panoptic", save_media=False)
    written = folder / "own" / "annotations" / "default.json"
    here = f"{MADE}/"  # no path of the machine that this was made on
    written.write_text(written.read_text(encoding="utf-8").replace(here, ""), encoding="utf-8")


def make_supervision() -> None:
    """COCO of masks, as `DetectionDataset.as_coco` writes it; Roboflow's notebooks use it."""
    import supervision

    folder, masks = made("supervision", "supervision"), truth()
    inside = np.stack([masks[label] for label in LABELS])
    boxes = supervision.mask_to_xyxy(inside)
    paths = [str(MADE / "pictures" / name) for name in PICTURES]
    found = {
        path: supervision.Detections(xyxy=boxes, mask=inside, class_id=np.arange(len(LABELS)))
        for path in paths
    }
    empty = str(MADE / "pictures" / EMPTY)
    found[empty] = supervision.Detections.empty()
    dataset = supervision.DetectionDataset(list(LABELS), [*paths, empty], found)
    dataset.as_coco(annotations_path=str(folder / "annotations.json"))


def make_labelme() -> None:
    """One file a picture, as `LabelFile.save` writes it, the picture within and beside.

    Named by the first number of the version: older ones write otherwise.
    """
    package = "labelme"
    number = version(package).split(".")[0]
    folder = made(f"labelme-{number}", package)
    from labelme import utils

    try:
        from labelme._label_file import LabelFile  # 6 and later
    except ImportError:
        from labelme.label_file import LabelFile
    masks = truth()

    def shape(label: str, kind: str, points: list[tuple[int, int]], mask: Any = None) -> Any:
        fields = {"label": label, "points": [list(map(float, point)) for point in points],
                  "group_id": None, "shape_type": kind, "flags": {}}  # fmt: skip
        if int(number) >= 5:
            fields |= {"description": "", "mask": mask}
        return fields

    def painted(label: str) -> Any:
        rows, columns = np.nonzero(masks[label])
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        part = masks[label][top : bottom + 1, left : right + 1]
        code = utils.img_arr_to_b64(part.astype(np.uint8))
        return shape(label, "mask", [(left, top), (right, bottom)], code)

    shapes = [shape("tea_cup", "polygon", CUP)]
    shapes += [shape("eyes", "rectangle", [part[0], part[2]]) for part in EYES]
    shapes += [painted(label) for label in ("ring", "面 包")] if int(number) >= 5 else []
    shapes.append(shape("__ignore__", "polygon", CROWD))
    for n, name in enumerate(PICTURES):
        beside = f"..\\pictures\\{name}" if n % 2 else f"../pictures/{name}"  # Windows; others
        data = LabelFile.load_image_file(str(MADE / "pictures" / name))
        width, height = Image.open(BytesIO(data)).size
        within = data if n < 2 else None  # by default in older versions
        target = str(folder / f"{Path(name).stem}.json")
        LabelFile().save(target, shapes, beside, height, width, within)


def make_x_anylabeling() -> None:
    """As its `LabelFile.save` writes: shapes in pixels of the picture as stored.

    Its editor shows a picture as stored, unless the user lets it turn the file itself.
    """
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    from anylabeling.views.labeling.label_file import LabelFile
    from anylabeling.views.labeling.shape import Shape
    from PyQt6.QtCore import QPointF

    folder = made("x-anylabeling", "x-anylabeling-cvhub")
    for name, orientation in PICTURES.items():
        width, height = (HEIGHT, WIDTH) if orientation in (6, 8) else (WIDTH, HEIGHT)

        def stored(x: int, y: int, orientation: int = orientation) -> QPointF:
            return {1: QPointF(x, y), 3: QPointF(WIDTH - x, HEIGHT - y),
                    6: QPointF(y, WIDTH - x), 8: QPointF(HEIGHT - y, x)}[orientation]  # fmt: skip

        shapes = []
        for label, kind, corners in (
            ("tea_cup", "polygon", CUP), ("eyes", "rectangle", EYES[0]),
            ("eyes", "rotation", EYES[1]), ("people", "quadrilateral", CROWD),
        ):  # fmt: skip
            shape = Shape(label=label, shape_type=kind)
            shape.points = [stored(*corner) for corner in corners]
            shapes.append(shape.to_dict())
        target = str(folder / f"{Path(name).stem}.json")
        LabelFile().save(target, shapes, name, height, width, None)


MAKERS: dict[str, Callable[[], None]] = {
    "scene": make_scene,
    "label-studio": make_label_studio,
    "datumaro": make_datumaro,
    "supervision": make_supervision,
    "labelme": make_labelme,
    "x-anylabeling": make_x_anylabeling,
}

if __name__ == "__main__":
    os.umask(0o022)
    if len(sys.argv) != 2 or sys.argv[1] not in MAKERS:
        sys.exit(f"usage: python {sys.argv[0]} {{{','.join(MAKERS)}}}")
    MAKERS[sys.argv[1]]()
