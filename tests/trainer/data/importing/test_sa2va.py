"""Sa2VA's annotations for fine-tuning, as its loader reads them and as its users write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from advisor.cli.main import app
from tests.conftest import ROOT
from tests.trainer.data.importing.test_tool_conventions import BOX, STORE, UPRIGHT, overlap, picture
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import Item, read_split
from trainer.data.importing.importer import Imported, import_annotations
from trainer.data.polygons import paint_mask

LEFT, TOP, RIGHT, BOTTOM = BOX
FLAT = [LEFT, TOP, RIGHT, TOP, RIGHT, BOTTOM, LEFT, BOTTOM]
PAIRS = [[LEFT, TOP], [RIGHT, TOP], [RIGHT, BOTTOM], [LEFT, BOTTOM]]
OTHER = [30.5, 40, 50, 40, 50, 60.5, 30, 60]  # another object
SIZE = UPRIGHT[::-1]


def data(folder: Path, *entries: Any, pictures: int = 3, orientation: int = 1) -> Path:
    """A folder as Sa2VA's guide lays it out; pictures without a given entry have the usual one."""
    for n in range(pictures):
        picture(folder / "images" / f"{n}.jpg", n, orientation)
    listed = list(entries)
    listed += [entry(n) for n in range(len(entries), pictures)]
    (folder / "annotations.json").write_text(json.dumps(listed), encoding="utf-8")
    return folder


def entry(number: int, **changes: Any) -> dict[str, Any]:
    return {"image": f"{number}.jpg", "mask": [[FLAT]], "text": ["the bright box"]} | changes


def items(folder: Path) -> list[Item]:
    return [item for split in ("train", "val") for item in read_split(folder / "out", split)]


def imported(source: Path, **options: Any) -> Imported:
    return import_annotations(source, source.parent / "out", **options)


def refusal(source: Path) -> str:
    with pytest.raises(DataError) as refused:
        imported(source)
    return str(refused.value)


def as_sa2va_paints(mask: list[list[float]]) -> np.ndarray:
    """What its loader makes of an object: the polygons' masks, each by pycocotools, added up."""
    found = np.zeros(SIZE, np.uint8)
    for polygon in mask:
        found += coco_mask.decode(coco_mask.frPyObjects([polygon], *SIZE)).squeeze()
    return found > 0


def mask_of(item: Item) -> np.ndarray:
    return paint_mask(item.polygons, *SIZE) == 1


def test_masks_and_texts_are_those_that_sa2va_trains_on(tmp_path: Path) -> None:
    """Several objects in a picture, one of two polygons that overlap; in a folder of its layout."""
    across = [LEFT + 5, TOP + 5, RIGHT + 9.5, TOP + 5, RIGHT + 9, BOTTOM - 5, LEFT + 5, BOTTOM - 5]
    first = entry(0, mask=[[FLAT, across], [OTHER]], text=["The Bright Box.", "what lies below"])
    done = imported(data(tmp_path / "in", first))
    assert done.pictures == 3 and sum(done.items.values()) == 4
    whole = {i.texts[0]: i for i in items(tmp_path) if i.image_path.name.startswith("0-")}
    assert set(whole) == {"the bright box", "what lies below"}
    for text, mask in (("the bright box", [FLAT, across]), ("what lies below", [OTHER])):
        assert (mask_of(whole[text]) == as_sa2va_paints(mask)).all(), text
        assert not whole[text].is_sentence


RUNS = coco_mask.encode(np.asfortranarray(as_sa2va_paints([FLAT]).astype(np.uint8)))


@pytest.mark.parametrize("changes", [
    {"mask": [[PAIRS]]},  # points as pairs
    {"mask": [PAIRS]},  # and without the list of the object's polygons
    {"mask": [FLAT]},
    {"mask": [[[FLAT]]]},  # one list too many
    {"mask": [FLAT], "text": "the bright box"},  # one text, not in a list
    {"mask": [[FLAT]], "text": "the bright box"},
    {"mask": [FLAT, FLAT], "text": "the bright box"},  # its polygons
    {"mask": [{"size": list(SIZE), "counts": RUNS["counts"].decode()}]},  # as its other data sets
    {"image": "images/0.jpg"},
    {"image": "/home/me/data/my_data/images/0.jpg"},
    {"image": "images\\0.jpg"},
])  # fmt: skip
def test_what_users_write_otherwise_is_read_as_meant(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    imported(data(tmp_path / "in", entry(0, **changes)))
    assert overlap(tmp_path / "out") > 0.94
    assert all((mask_of(item) == as_sa2va_paints([FLAT])).all() for item in items(tmp_path))


def test_entries_of_one_picture_are_one(tmp_path: Path) -> None:
    """One entry a text is common. The same text again is more of the same answer."""
    again = entry(0, image="images/0.jpg", mask=[[OTHER]], text=["The bright  box"])
    other = entry(0, mask=[[OTHER]], text=["what lies below"])
    several = [entry(0), other, again, entry(1), entry(2)]
    done = imported(data(tmp_path / "in", *several))
    assert (done.pictures, sum(done.items.values())) == (3, 4)
    both = next(i for i in items(tmp_path) if i.image_path.name.startswith("0-the-bright"))
    assert (mask_of(both) == as_sa2va_paints([FLAT, OTHER])).all()


def test_a_text_that_is_a_question_is_asked_as_one(tmp_path: Path) -> None:
    asked = entry(0, text=["Which thing would you open first?"])
    imported(data(tmp_path / "in", asked))
    assert {i.texts[0]: i.is_sentence for i in items(tmp_path)} == {
        "which thing would you open first?": True, "the bright box": False,
    }  # fmt: skip


def test_the_pages_example_is_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    (example,) = json.loads(
        page.partition("## Sa2VA")[2].partition("```json")[2].partition("```")[0]
    )
    source = data(tmp_path / "in", example)
    picture(source / "images" / example["image"], 9)
    imported(source)
    assert {i.texts[0] for i in items(tmp_path)} == {*example["text"], "the bright box"}


@pytest.mark.parametrize(
    "mode, means", [("P", None), ("RGB", '{(255, 255, 255): "cat"}'), ("1", '{255: "cat"}')]
)
def test_the_pages_script_reads_painted_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, means: str | None
) -> None:
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    script = page.partition("### Painted masks")[2].partition("```python")[2].partition("```")[0]
    shown = np.zeros(SIZE, np.uint8)
    shown[TOP:BOTTOM, LEFT:RIGHT] = 1
    for n in range(2):
        picture(tmp_path / "in" / "images" / f"{n}.jpg", n)
        mask = Image.fromarray(shown, "P")
        mask.putpalette([0, 0, 0, 255, 255, 255])
        (tmp_path / "in" / "masks").mkdir(exist_ok=True)
        mask.convert(mode).save(tmp_path / "in" / "masks" / f"{n}.png")
    monkeypatch.chdir(tmp_path / "in")
    exec(script.replace('{1: "cat", 2: "dog"}', means or '{1: "cat", 2: "dog"}'), {})
    imported(tmp_path / "in" / "annotations.json")
    found = items(tmp_path / "in")
    assert [item.texts[0] for item in found] == ["cat", "cat"]
    assert all((mask_of(item) == shown.astype(bool)).all() for item in found)


def test_other_questions_may_be_asked_about_the_texts(tmp_path: Path) -> None:
    source = data(tmp_path / "in")
    questions = tmp_path / "questions.csv"
    lines = [f"{n}.jpg,the bright box,What shines?" for n in range(3)]
    questions.write_text("\n".join(["picture,label,question", *lines]), encoding="utf-8")
    imported(source, questions=questions)
    assert {i.texts[0] for i in read_split(tmp_path / "out", "train")} == {"What shines?"}


@pytest.mark.parametrize("orientation", sorted(STORE))
def test_rotated_pictures_are_read_as_sa2va_opens_them(tmp_path: Path, orientation: int) -> None:
    """Its loader ignores EXIF, so its outlines are on the stored picture; a note says so."""
    shown = Image.new("1", UPRIGHT)
    shown.paste(1, BOX)
    across, down, right, bottom = shown.transpose(STORE[orientation]).getbbox()
    stored = [across, down, right, down, right, bottom, across, bottom]
    entries = [entry(n, mask=[[stored]]) for n in range(3)]
    done = imported(data(tmp_path / "in", *entries, orientation=orientation))
    assert overlap(tmp_path / "out") == 1
    (said,) = done.assumed
    assert said.startswith("3 rotated pictures") and "--frame upright" in said


@pytest.mark.parametrize("orientation", sorted(STORE))
def test_upright_outlines_may_be_said_to_be(tmp_path: Path, orientation: int) -> None:
    done = imported(data(tmp_path / "in", orientation=orientation), frame="upright")
    assert overlap(tmp_path / "out") == 1 and not done.assumed


@pytest.mark.parametrize("changes, said", [
    ({"text": []}, "[0].text: got '0 for 1 mask'; allowed: as many as masks"),
    ({"text": ["a", "b"]}, "[0].text: got '2 for 1 mask'"),
    ({"text": [" "]}, "[0].text[0]: got ' '; allowed: the words for this mask"),
    ({"text": [None]}, "[0].text[0]: got nothing; allowed: text without"),
    ({"text": ["the [SEG] box"]}, "[0].text[0]: got 'the [SEG] box'; allowed: text without"),
    ({"text": ["half \ud83d"]}, ", in whole characters"),
    ({"text": None}, "[0].text: got nothing; allowed: a list with one for each mask"),
    ({"mask": [[]]}, "[0].mask[0]: got 'no pixel of the picture'"),
    ({"mask": [[[500, 500, 600, 500, 600, 600]]]}, "[0].mask[0]: got 'no pixel of the picture'"),
    ({"mask": [[[1, 2, 3, 4]]]}, "[0].mask[0]: got [1, 2, 3, 4]; allowed: a polygon of 3 points"),
    ({"mask": [[[1, 2, 3, 4, 5]]]}, "[0].mask[0]: got [1, 2, 3, 4, 5]; allowed: a polygon of 3"),
    ({"mask": ["masks/0.png"]}, "[0].mask[0]: got 'masks/0.png'; allowed: polygons or run lengths"),
    ({"mask": "masks/0.png"}, "[0].mask: got 'masks/0.png'; allowed: a list with one"),
    ({"mask": [{"size": [3, 4], "counts": [12]}]}, "[0].mask[0]: got 'size [3, 4]"),
    ({"image": "9.jpg"}, "[0].image: got '9.jpg'; allowed: the path of a picture in "),
    ({"image": "../../9.jpg"}, "no such file, and none outside of it is read"),
    ({"image": None}, "[0].image: got nothing"),
])  # fmt: skip
def test_broken_entries_are_named_and_may_be_left_out(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    source = data(tmp_path / "in", entry(0, **changes), pictures=4)
    told = refusal(source)
    assert said in told and told.count("Fix: ") == 1
    left = imported(source, skip_broken=1)
    assert sum(left.items.values()) == 3
    assert [one.entry for one in left.broken] == [f"{source / 'annotations.json'}: [0]"]


@pytest.mark.parametrize("given, said", [
    ({"image": "0.jpg", "masks": [[FLAT]], "texts": ["a box"]},
     "[0].mask: got 'the keys image, masks, texts'"),
    ({"img_path": "0.jpg", "mask": [[FLAT]], "text": ["a box"]},
     "[0].image: got 'the keys img_path, mask, text'"),
    ("0.jpg", "[0]: got '0.jpg'; allowed: an object with image, mask, text"),
])  # fmt: skip
def test_other_keys_are_shown(tmp_path: Path, given: object, said: str) -> None:
    assert said in refusal(data(tmp_path / "in", given))


def test_no_picture_is_taken_for_another_of_the_same_name(tmp_path: Path) -> None:
    told = refusal(data(tmp_path / "in", entry(0, image="/a/0.jpg"), entry(0, image="/b/0.jpg")))
    assert "[0].image: got '/a/0.jpg'" in told and "[1].image: got '/b/0.jpg'" in told


def test_who_trains_on_the_annotations_themselves_is_told_the_way(tmp_path: Path) -> None:
    source = data(tmp_path / "in")
    with pytest.raises(DataError, match=f"lisa-train import {source} NEW"):
        read_split(source, "train")
    advice = CliRunner().invoke(app, ["--model", "7b", "--data-dir", str(source)])
    assert advice.exit_code == 2 and f"hint: lisa-train import {source} NEW" in advice.output


def test_of_several_files_each_is_to_be_named(tmp_path: Path) -> None:
    source = data(tmp_path / "in")
    (source / "annotations.json").rename(source / "a.json")
    (source / "b.json").write_bytes((source / "a.json").read_bytes())
    assert refusal(source).count("import it on its own, by its name") == 2
    assert sum(imported(source / "b.json").items.values()) == 3


def test_fractions_of_the_picture_are_refused_once(tmp_path: Path) -> None:
    parts = [[[x / 80 for x in FLAT]]]
    told = refusal(data(tmp_path / "in", *(entry(n, mask=parts) for n in range(3))))
    assert "mask: got 'no coordinate above 1'; allowed: pixels of the picture" in told
    assert "multiply x by the picture's width" in told


def test_a_mask_that_is_left_out_takes_its_text_along(tmp_path: Path) -> None:
    """But not the picture's other texts; what is half outlined is not asked about."""
    broken = entry(0, mask=[[FLAT], [[1, 2]], [OTHER]], text=["a", "a", "b"])
    left = imported(data(tmp_path / "in", broken, pictures=4), skip_broken=1)
    assert sorted(i.texts[0] for i in items(tmp_path)) == ["b", *["the bright box"] * 3]
    assert left.pictures == 4
