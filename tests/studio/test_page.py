"""From nothing to the mask of an own question, on the page alone, in a real browser."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from tests.browser import browser
from tests.conftest import PHOTOS
from tests.studio.session import PATIENCE, Session, session, studio

SIX = ("astronaut", "cat", "coffee", "clock", "photographer", "rocket")
pytestmark = pytest.mark.studio  # asked for by name: without a Chromium they fail


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with six photographs, their LabelMe files and a file of questions."""
    folder = tmp_path / "work" / "photographs"
    folder.mkdir(parents=True)
    for name in SIX:
        notes = json.loads((PHOTOS / "outlined" / f"{name}.json").read_text())
        picture = (PHOTOS / "outlined" / notes["imagePath"]).resolve()
        shutil.copy(picture, folder / f"{name}.jpg")
        notes["imagePath"] = f"{name}.jpg"
        (folder / f"{name}.json").write_text(json.dumps(notes))
    with (PHOTOS / "outlined" / "questions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    column = header.index("picture")
    with (folder / "questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [header, *(row for row in rows if Path(row[column]).stem in SIX)]
        )
    return tmp_path / "work"


def wait(done: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def test_from_nothing_to_a_mask(home: Path, tmp_path: Path) -> None:
    with session(home, tmp_path / "profile") as page:
        import_photographs(page)
        plan(page)
        train(page)
        ask(page, home, tmp_path / "profile")
        assert page.problems() == []


def import_photographs(page: Session) -> None:
    page.open("data")
    page.choose("import-source", "work/photographs", within=True)
    page.choose("import-questions", "work/photographs/questions.csv")
    page.fill("import-name", "mine")
    page.fill("import-val", "0.2")
    page.click("import-start")
    page.until("document.getElementById('import-said').textContent.includes('6 pictures')")
    page.click("data-check")
    page.until("document.getElementById('data-verdict')?.textContent === 'no findings'")
    page.click("data-preview")
    page.until("document.getElementById('data-sheet')?.naturalWidth > 100")


def plan(page: Session) -> None:
    page.click("tab-plan")
    page.fill("plan-model", "tiny")
    page.choose("plan-data", "work/mine")
    page.fill("plan-settings", "schedule.epochs=400")
    page.click("plan-ask")
    page.until("document.getElementById('plan-verdict')?.textContent === 'FITS'")
    page.click("plan-train")


def train(page: Session) -> None:
    """Start, watch, leave and come back, stop, and resume."""
    assert page.text("train-data") == "work/mine"
    page.fill("train-name", "first")
    page.click("train-start")
    page.until("document.getElementById('train-progress')?.dataset.step >= 2")
    before, curve = (
        page.step(),
        page.tab.run("document.querySelector('#train-plots path').outerHTML"),
    )
    wait(lambda: page.step() > before + 1)
    assert page.tab.run("document.querySelector('#train-plots path').outerHTML") != curve
    assert page.tab.run("document.querySelectorAll('#train-plots path').length") == 4
    page.open("train")  # the page was closed and is opened again
    page.until("document.getElementById('train-state')?.textContent === 'training'")
    page.click("train-stop")
    page.until("document.getElementById('train-state').textContent === 'stopped'")
    assert "saved" in page.text("train-shown")  # after a step, or before an evaluation
    stopped = page.step()
    page.click("train-resume")
    wait(lambda: page.step() > stopped)
    page.click("train-stop")
    page.until("document.getElementById('train-state').textContent === 'stopped'")


def ask(page: Session, home: Path, downloads: Path) -> None:
    """Load the model, ask about an uploaded picture, and download the mask in both forms."""
    picture = home / "photographs" / "coffee.jpg"
    page.click("tab-ask")
    page.until("document.getElementById('ask-memory').textContent.includes('MiB')")
    assert page.text("ask-loaded") == "no model is loaded"
    page.click("ask-load")
    page.until("document.getElementById('ask-loaded').textContent.includes('tiny on cpu')")
    page.upload("ask-file", picture)
    page.until("document.getElementById('ask-image').naturalWidth > 100")
    page.fill("ask-questions", "What would you drink from?\nWhat is round?")
    page.click("ask-put")
    page.until("document.getElementById('ask-rle')")
    plain = page.tab.run("document.getElementById('ask-image').src")
    page.click("ask-layer-0")
    wait(lambda: page.tab.run("document.getElementById('ask-image').src") != plain)
    page.click("ask-mask-0")
    page.click("ask-rle")
    wait(lambda: (downloads / "mask-1.png").exists() and (downloads / "answers.json").exists())
    answers = json.loads((downloads / "answers.json").read_text())
    assert [one["question"] for one in answers] == ["What would you drink from?", "What is round?"]
    runs = next(one for answer in answers for one in answer["masks"])
    with Image.open(downloads / "mask-1.png") as mask, Image.open(picture) as opened:
        assert mask.size == opened.size
        assert ((np.asarray(mask) > 0) == (coco.decode(runs) == 1)).all()
    page.click("ask-unload")
    page.until("document.getElementById('ask-loaded').textContent === 'no model is loaded'")


PASTED = """(async () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: WIDTH, height: 90 });
  const blob = await new Promise((done) => canvas.toBlob(done));
  const data = new DataTransfer();
  data.items.add(new File([blob], "picture.png", { type: "image/png" }));
  EVENT
})()"""


def test_pictures_come_from_a_camera_the_clipboard_and_by_dropping(
    home: Path, tmp_path: Path
) -> None:
    with session(home, tmp_path / "profile") as page:
        page.open("ask")
        image = "document.getElementById('ask-image').naturalWidth"
        page.click("ask-camera")
        page.until(f"{image} === 640")
        paste = "document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))"
        page.tab.run(PASTED.replace("WIDTH", "120").replace("EVENT", paste))
        page.until(f"{image} === 120")
        drop = "new DragEvent('drop', { dataTransfer: data, cancelable: true })"
        event = f"document.getElementById('ask-drop').dispatchEvent({drop})"
        page.tab.run(PASTED.replace("WIDTH", "130").replace("EVENT", event))
        page.until(f"{image} === 130")
        assert page.problems() == []


def test_a_question_is_outlined_by_hand(home: Path, tmp_path: Path) -> None:
    with session(home, tmp_path / "profile") as page:
        page.open("data")
        page.choose("edit-picture", "work/photographs/cat.jpg")
        page.until("document.getElementById('edit-canvas').offsetWidth > 100")
        for across, down in ((0.2, 0.2), (0.6, 0.2), (0.6, 0.7)):
            page.press_on("edit-canvas", across, down)
        page.tab.run("document.getElementById('edit-canvas').focus()")
        page.tab.press("Enter", 13)
        page.until("document.getElementById('edit-outlines').textContent.includes('3 corners')")
        page.fill("edit-question", "What sees?")
        page.fill("edit-answer", "Eyes do.")
        page.click("edit-save")
        page.until("document.getElementById('edit-said').textContent.includes('saved')")
        page.choose("edit-picture", "work/photographs/cat.jpg")
        page.until("document.getElementById('edit-question').value === ''")
        page.click("edit-next")
        page.until("document.getElementById('edit-picture').textContent.endsWith('clock.jpg')")
        assert page.problems() == []
    saved = json.loads((home / "my-questions" / "ReasonSeg" / "train" / "cat.json").read_text())
    with Image.open(home / "photographs" / "cat.jpg") as picture:
        width, height = picture.size
    wanted = np.array([[0.2, 0.2], [0.6, 0.2], [0.6, 0.7]]) * [width, height]
    assert np.abs(np.array(saved["shapes"][0]["points"]) - wanted).max() < 3
    assert saved["text"] == ["What sees?"]


def test_a_training_goes_on_while_the_page_is_closed(home: Path, tmp_path: Path) -> None:
    """Its server, too: the next one finds the run by its folder."""
    with session(home, tmp_path / "profile") as page:
        import_photographs(page)
        page.click("tab-plan")
        page.fill("plan-model", "tiny")
        page.choose("plan-data", "work/mine")
        page.fill("plan-settings", "schedule.epochs=400")
        page.click("plan-ask")
        page.click("plan-train")
        page.fill("train-name", "first")
        page.click("train-start")
        page.until("document.getElementById('train-progress')?.dataset.step >= 1")
        before = page.step()
    records = home / "runs" / "first" / "metrics.jsonl"
    wait(lambda: records.read_text().count('"loss"') > before + 1)
    with studio(home) as address, browser(tmp_path / "other") as tab:
        page = Session(tab, address)
        page.open("train")
        page.until("document.getElementById('train-state')?.textContent === 'training'")
        page.click("train-stop")
        page.until("document.getElementById('train-state').textContent === 'stopped'")
        assert "saved" in page.text("train-shown")  # after a step, or before an evaluation
