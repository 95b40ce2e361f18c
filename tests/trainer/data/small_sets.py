"""Data sets of the published mixtures in small: a picture or two of each kind."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tests.conftest import PHOTOS

HEIGHT, WIDTH = 12, 20
SQUARE = [2, 2, 9, 2, 9, 7, 2, 7]  # x, y of four corners


def picture(path: Path, shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (shade, 100, 50)).save(path)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def expected(*corners: tuple[int, int, int, int]) -> np.ndarray[Any, Any]:
    """uint8 [HEIGHT, WIDTH]: 1 in every box (left, top, right, bottom), the latter two outside."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for left, top, right, bottom in corners:
        mask[top:bottom, left:right] = 1
    return mask


def text_runs(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    """COCO's compressed run lengths, as they stand in JSON."""
    runs = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": runs["counts"].decode()}


def plain_runs(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=0)) if flat.any() else np.array([], int)
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def coco(segmentations: list[tuple[int, int, object]], images: int = 2) -> dict[str, Any]:
    """Annotations (image, category, segmentation) on pictures 0.jpg, 1.jpg, …"""
    return {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH}
            for n in range(images)
        ],
        "categories": [{"id": 7, "name": "Trash_can"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "segmentation": shape}
            for n, (image, category, shape) in enumerate(segmentations)
        ],
    }


def reference(number: int, image: int, *said: str, split: str = "train") -> dict[str, Any]:
    sentences = [{"sent": text, "raw": text, "sent_id": n} for n, text in enumerate(said)]
    return {"ann_id": number, "image_id": image, "split": split, "sentences": sentences}


def write_refer_seg(root: Path, name: str = "refcoco", **changes: object) -> Path:
    folder = root / "refer_seg"
    places = {"refclef": ("unc", "saiapr_tc-12"), "refcocog": ("umd", "mscoco/images/train2014")}
    by, images = places.get(name, ("unc", "mscoco/images/train2014"))
    for n in range(2):
        picture(folder / "images" / images / f"{n}.jpg")
    shapes = [(0, 7, [SQUARE]), (0, 8, [text_runs(expected((1, 1, 3, 4)))]), (1, 8, [SQUARE])]
    write(folder / name / "instances.json", coco(shapes) | changes)
    references = [
        reference(0, 0, "The left bin ", "can."),
        reference(1, 0, "a dog"),
        reference(2, 1, "never seen", split="testA"),
    ]
    (folder / name / f"refs({by}).p").write_bytes(pickle.dumps(references, protocol=2))
    return folder / name


def write_coco(root: Path, *shapes: tuple[int, int, object]) -> Path:
    folder = root / "sem_seg" / "things"
    for n in range(2):
        picture(folder / "images" / f"{n}.jpg", 40 * n)
    write(folder / "annotations.json", coco(list(shapes) or [(0, 7, [SQUARE])]))
    return folder


NAMES = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t5\t5\twall\n2\t0.1\t5\t5\tscreen, silver screen\n" \
        "3\t0.1\t5\t5\tScreen\n"  # fmt: skip


def write_ade20k(root: Path, numbers: np.ndarray[Any, Any] | None = None) -> Path:
    folder = root / "ade20k"
    if numbers is None:
        numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
        numbers[:, 5:10], numbers[:4, 10:], numbers[8:, 10:] = 1, 2, 3
    picture(folder / "images" / "training" / "a.jpg", 7)
    picture(folder / "images" / "training" / "void.jpg", 8)
    labels = folder / "annotations" / "training"
    labels.mkdir(parents=True)
    Image.fromarray(numbers).save(labels / "a.png")
    Image.new("L", (WIDTH, HEIGHT)).save(labels / "void.png")
    write(folder / "objectInfo150.txt", NAMES)
    return folder


def talk(*said: str, image: str = "0.jpg") -> dict[str, Any]:
    lines = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
    return {"id": "0", "image": image, "conversations": lines}


def write_vqa(root: Path, *dialogues: dict[str, Any]) -> Path:
    picture(root / "coco" / "train2017" / "0.jpg", 200)
    path = root / "vqa" / "llava_instruct.json"
    usual = talk("<image>\nWhat is it?", "A photo.", "Of what?\n<image>", "Of a cat.")
    write(path, list(dialogues) or [usual])
    return path


def write_all(root: Path) -> Path:
    (root / "ReasonSeg").symlink_to(PHOTOS / "ReasonSeg")
    for name in ("refclef", "refcoco", "refcoco+", "refcocog"):
        write_refer_seg(root, name)
    write_coco(root)
    write_ade20k(root)
    write_vqa(root)
    return root
