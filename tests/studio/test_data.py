"""Data on the page: checked, drawn, imported, and asked about."""

from __future__ import annotations

import errno
import json
import os
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from studio.app import PAGE, create_app
from studio.fields import FIELDS, in_fields
from tests.studio.conftest import HERE, Page
from trainer.data.formats.reasonseg import read_split

COFFEE = "work/photos/ReasonSeg/train/coffee.jpg"
OUTLINES = [{"label": "target", "points": [[10, 10], [60, 10], [60.5, 50]]},
            {"label": "ignore", "points": [[100, 100], [120, 100], [110, 120]]}]  # fmt: skip
IMPORT = {
    "source": "work/photos/outlined", "name": "mine",
    "questions": "work/photos/outlined/questions.csv", "pictures": "work/photos/ReasonSeg/train",
}  # fmt: skip


def question(**changes: Any) -> dict[str, Any]:
    return {"picture": COFFEE, "data": "asked", "question": "What would you drink from?",
            "outlines": OUTLINES, **changes}  # fmt: skip


def test_a_check_lists_everything(page: Page) -> None:
    told = page.ask("check", data="work/photos")
    assert told["count"] == 0 and told["splits"]["train"]["items"] == "7"
    (page.home / "photos" / "ReasonSeg" / "train" / "coffee.json").write_text("{}")
    told = page.ask("check", data="work/photos")
    assert told["count"] >= 2 and all("coffee" in one for one in told["findings"])
    assert "in a terminal, lisa-train --skip-broken 1, or all, leaves this" in told["hints"][0]


def test_a_set_to_try_with_is_made(page: Page) -> None:
    told = page.ask("synthesise", name="shapes", train=2, val=1)
    assert told["data"] == "work/shapes" and len(read_split(page.home / "shapes", "train")) == 2
    assert "shapes" in page.error("synthesise", name="shapes", train=2, val=1)


def test_a_sheet_is_drawn(page: Page) -> None:
    sheet = Image.open(BytesIO(page.ask("sheet", data="work/photos", split="val", count=2)))
    assert sheet.format == "PNG" and sheet.height > sheet.width / 2
    assert "test" in page.error("sheet", data="work/photos", split="test")


def test_pictures_are_decoded_not_handed_out(page: Page) -> None:
    shown = Image.open(BytesIO(page.ask("picture", picture=COFFEE, most=64)))
    assert max(shown.size) == 64 and shown.format == "PNG"
    assert "no picture" in page.error("picture", picture="work/photos/ReasonSeg/train/coffee.json")
    (page.home / "fake.png").write_text("<script>")
    assert "a complete" in page.error("picture", picture="work/fake.png")


def test_annotations_are_imported_with_a_form(page: Page) -> None:
    told = page.ask("import", **IMPORT)
    assert told["data"] == "work/mine" and "7 pictures" in told["words"]
    assert len(read_split(page.home / "mine", "train")) == 9
    assert "mine" in page.error("import", **IMPORT)  # is there already
    without = {**IMPORT, "pictures": None, "name": "other"}
    told_instead = page.error("import", **without)
    assert "imagePath" in told_instead and "--" not in told_instead
    assert "name their folder with “Pictures, if elsewhere”\n" in told_instead
    assert "“Broken entries to skip” " not in told_instead  # nothing would be left
    assert not (page.home / "other").exists()
    assert "“Outlines on rotated pictures”: got" in page.error(
        "import", **{**IMPORT, "name": "third", "frame": "sideways"}
    )


def test_what_the_page_says_names_its_own_fields() -> None:
    labels = "".join(path.read_text() for path in PAGE.glob("*.js"))
    for option, field in FIELDS.items():
        assert f'}}, "{field}")' in labels, option
    assert in_fields("hint: --skip-broken 3 (not just 1), or all, leaves these out") == (
        "hint: “Broken entries to skip” 3 (not just 1) leaves these out"
    )
    assert in_fields("say --frame stored\nor --seed 3") == (
        "say “Outlines on rotated pictures” stored\nor --seed 3"
    )
    typed = "hint: lisa-train import a NEW --pictures FOLDER"
    assert in_fields(typed) == typed


def test_a_question_is_saved_as_reason_seg(page: Page) -> None:
    told = page.ask("save-question", **question(answer="Cups hold drinks."))
    assert told["picture"] == "work/asked/ReasonSeg/train/coffee.jpg"
    (item,) = read_split(page.home / "asked", "train")
    assert item.texts == ("What would you drink from?",) and item.is_sentence
    assert [one.label for one in item.polygons] == ["target", "ignore"]
    assert np.allclose(item.polygons[0].points, OUTLINES[0]["points"])
    assert [(one.query, one.answer) for one in item.explanations] == [
        ("What would you drink from?", "Cups hold drinks.")
    ]
    original = page.home / "photos" / "ReasonSeg" / "train" / "coffee.jpg"
    assert item.image_path.read_bytes() == original.read_bytes()
    shown = page.ask("question", picture=told["picture"])
    assert shown["outlines"][0]["points"] == OUTLINES[0]["points"]
    assert shown["answer"] == "Cups hold drinks." and shown["question"] == item.texts[0]


def test_a_saved_question_is_changed_in_place(page: Page) -> None:
    saved = page.ask("save-question", **question(answer="Cups hold drinks."))["picture"]
    notes = page.home / "asked" / "ReasonSeg" / "train" / "coffee.json"
    rest = json.loads(notes.read_text()) | {"label": "cup"}
    rest["text"].append("Which one holds a drink?")
    notes.write_text(json.dumps(rest))
    page.ask("save-question", **question(picture=saved, question="What is hot?"))
    after = json.loads(notes.read_text())
    assert after["text"] == ["What is hot?", "Which one holds a drink?"]
    assert after["label"] == "cup"
    (item,) = read_split(page.home / "asked", "train")  # and no second one
    assert not item.explanations  # its answer was taken back
    page.ask("save-question", **question())  # the picture again, for another question
    assert [one.name for one in read_split(page.home / "asked", "train")] == ["coffee", "coffee-2"]


def test_a_full_disk_leaves_no_picture_without_its_question(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert "coffee.json: no space left" in page.error("save-question", **question())
    assert not [one for one in (page.home / "asked").rglob("*") if one.is_file()]


def test_the_page_s_folder_may_be_the_data_set(page: Page) -> None:
    with TestClient(create_app([page.home / "photos"]), base_url=HERE) as client:
        inside = Page(client, page.home / "photos")
        picture = COFFEE.removeprefix("work/")
        saved = inside.ask("save-question", **question(picture=picture, data="photos"))["picture"]
    assert saved == picture and not (page.home / "photos" / "photos").exists()
    items = {item.name: item for item in read_split(page.home / "photos", "train")}
    assert items["coffee"].texts[0] == "What would you drink from?"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"question": " "}, "empty"),
        ({"question": "[SEG] it"}, "reserved token"),
        ({"outlines": [{"label": "target", "points": [[1, 1], [2, 2]]}]}, "points"),
        ({"outlines": [{"label": "target", "points": [[9e5, 9e5], [9e5, 1e6], [1e6, 1e6]]}]},
         "wholly outside"),
        ({"outlines": [{"label": "cup", "points": [[1, 1], [2, 2], [3, 1]]}]}, "label"),
        ({"data": "../asked"}, "allowed"),
        ({"picture": "work/photos/outlined/questions.csv"}, "no picture"),
        ({"split": "secret"}, "split"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_not_saved(
    page: Page, changes: dict[str, Any], why: str
) -> None:
    assert why in page.error("save-question", **question(**changes))
    assert not (page.home / "asked").exists()


@pytest.mark.parametrize("name", ["coffee.json", "coffee.jpg"])
def test_no_link_in_a_data_set_leads_out(page: Page, name: str) -> None:
    photos = page.home / "photos" / "ReasonSeg"
    secret = (photos / "train" / name).rename(page.home.parent / name)
    (photos / "train" / name).symlink_to(secret)
    wanted = {"data": "work/photos"}
    asked: dict[str, dict[str, Any]] = {
        "check": wanted, "sheet": wanted, "plan": {"model": "tiny", **wanted},
        "train": {"name": "a", **wanted}, "import": IMPORT,
    }  # fmt: skip
    for action, question in asked.items():
        assert f"{name} leads out of the page's folders" in page.error(action, **question)
    shown = page.ask("question", picture=COFFEE) if name == "coffee.json" else {}
    assert not shown.get("outlines") and not shown.get("question")


def test_the_editor_takes_over_nothing_from_outside(page: Page) -> None:
    saved = page.ask("save-question", **question(answer="Cups hold drinks."))["picture"]
    reason_seg = page.home / "asked" / "ReasonSeg"
    answers = (reason_seg / "explanatory" / "train.json").rename(page.home.parent / "answers.json")
    (reason_seg / "explanatory" / "train.json").symlink_to(answers)
    assert page.ask("question", picture=saved)["answer"] == ""
    (reason_seg / "explanatory" / "train.json").unlink()
    notes = (reason_seg / "train" / "coffee.json").rename(page.home.parent / "notes.json")
    (reason_seg / "train" / "coffee.json").symlink_to(notes)
    assert "link" in page.error("save-question", **question(picture=saved))


def test_no_link_leads_the_editor_out_of_the_folder(page: Page) -> None:
    outside = page.home.parent / "outside"
    outside.mkdir()
    (page.home / "asked").mkdir()
    (page.home / "asked" / "ReasonSeg").symlink_to(outside)
    assert "link" in page.error("save-question", **question())
    assert not list(outside.iterdir())
