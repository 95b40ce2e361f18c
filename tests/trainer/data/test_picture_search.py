"""The picture at hand is found however its path was recorded, and never outside of the folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.data.importing.test_importer import instances, items, labelme, picture, shape
from tests.trainer.data.small_sets import write_coco
from trainer.data.findings import DataError, Report
from trainer.data.importing.importer import import_annotations
from trainer.data.mixture import READERS
from trainer.data.picture_paths import PictureSearch

OUTLINE = {"segmentation": [[10, 10, 29, 10, 29, 24, 10, 24]]}


def found(name: object, *folders: Path) -> Path | None:
    """What a search finds; without a picture there is one finding."""
    report = Report(Path("notes.json"))
    placed = PictureSearch(folders).find(report, "image", name)
    assert len(report.findings) == (placed is None)
    return placed and placed[0]


@pytest.mark.parametrize(
    "name",
    [
        "shots/a b.jpg", "a b.jpg", ".\\shots\\a b.jpg", "shots/a b.JPG", "a%20b.jpg",
        "/home/someone/shots/a b.jpg", "C:\\Users\\me\\shots\\a b.jpg", "D:a b.jpg",
        "\\\\server\\share\\a b.jpg", "../images/a b.jpg", "..\\..\\shots\\a b.jpg",
        "/data/upload/1/0123abcd-a b.jpg", "upload/1/0123abcd-a%20b.jpg", "0123abcd-a b.jpg",
        "/data/local-files/?d=shots/a%20b.jpg", "https://host.org/x/a%20b.jpg?token=1",
        "s3://bucket/shots/a b.jpg", "file:///C:/me/a%20b.jpg", "other/a b.Jpg",
    ],
)  # fmt: skip
def test_spellings_of_one_picture(tmp_path: Path, name: str) -> None:
    wanted = picture(tmp_path / "shots" / "a b.jpg")
    picture(tmp_path / "shots" / "b.jpg")
    assert found(name, tmp_path) == wanted


def test_a_file_really_called_so_comes_first(tmp_path: Path) -> None:
    for name in ("name.jpg", "50 .jpg"):
        picture(tmp_path / name)
    for name in ("0123abcd-name.jpg", "50%20.jpg", "b/name.jpg"):
        wanted = picture(tmp_path / name)
        assert found(name, tmp_path) == wanted


@pytest.mark.parametrize(
    "name", ["../out.jpg", "{}/out.jpg", "link.jpg", "out.jpg", "linked/out.jpg", "a\0.jpg",
             "\ud800.jpg", "x" * 5000, "..", "", "/", "C:", "?d=", "http://[/a.jpg", None, 3],
)  # fmt: skip
def test_nothing_outside_is_found(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture(tmp_path / "out.jpg")
    (folder / "link.jpg").symlink_to(tmp_path / "out.jpg")
    (folder / "linked").symlink_to(tmp_path)
    name = name.replace("{}", str(tmp_path)) if isinstance(name, str) else name
    assert found(name, folder) is None


def test_a_name_of_several_is_ambiguous(tmp_path: Path) -> None:
    for day in ("1", "2"):
        picture(tmp_path / day / "a.jpg")
    report = Report(tmp_path / "notes.json")
    search = PictureSearch([tmp_path])
    assert search.find(report, "image", "/elsewhere/3/a.jpg") is None
    (finding,) = report.findings
    assert "ambiguous" in finding.what
    assert all(str(tmp_path / day / "a.jpg") in finding.what for day in ("1", "2"))
    placed = search.find(report, "image", "/elsewhere/2/a.jpg")
    assert placed is not None and placed[0] == tmp_path / "2" / "a.jpg"


def test_no_picture_is_taken_for_another_of_its_name(tmp_path: Path) -> None:
    picture(tmp_path / "day 1" / "a.jpg")
    names = ["day 1/a.jpg", "day 2/a.jpg"]
    search, report = PictureSearch([tmp_path], recorded=names), Report(tmp_path / "notes.json")
    assert search.find(report, "image", names[0])
    assert search.find(report, "image", names[1]) is None


def test_capitals_may_differ_where_one_picture_is_meant(tmp_path: Path) -> None:
    for name in ("img_0.jpg", "img_1.jpg", "Img_2.jpg", "img_2.jpg"):
        picture(tmp_path / "shots" / name)
    names = ["/home/me/IMG_0.JPG", "IMG_1.jpg", "img_1.JPG", "IMG_2.jpg"]
    search, report = PictureSearch([tmp_path], recorded=names), Report(tmp_path / "notes.json")
    first, *_ = search.find(report, "image", names[0]) or (None,)
    assert first == tmp_path / "shots" / "img_0.jpg" and report.findings == []
    assert search.respelled == {"IMG_0.JPG": "img_0.jpg"}
    assert search.find(report, "image", names[1]) is None  # another entry names that file
    assert search.find(report, "image", names[3]) is None  # it may be one of two
    assert "no such file" in report.findings[0].what and "ambiguous" in report.findings[1].what


@pytest.mark.parametrize("name", ["/data/upload/1/no.jpg", "C:\\me\\no.jpg", "../shots/no.jpg"])
def test_what_is_missing_is_said_to_be(name: str, tmp_path: Path) -> None:
    report = Report(tmp_path / "notes.json")
    assert PictureSearch([tmp_path]).find(report, "image", name) is None
    assert "there is no such file" in report.findings[0].what


@pytest.mark.parametrize("named", [True, False])
def test_coco_in_a_folder_of_annotations(tmp_path: Path, named: bool) -> None:
    notes = instances(tmp_path / "export" / "images", OUTLINE)
    moved = tmp_path / "export" / "annotations" / "instances_default.json"
    moved.parent.mkdir()
    notes.rename(moved)
    source = moved if named else tmp_path / "export"
    import_annotations(source, tmp_path / "data")
    assert set(items(tmp_path / "data")) == {"a-cup", "b-other"}


def test_labelme_files_apart_from_their_pictures(tmp_path: Path) -> None:
    for number in range(3):
        path = f"C:\\shots\\images\\{number}.jpg"
        labelme(tmp_path / "notes", str(number), shape(), colour=number, imagePath=path)
        pictures = tmp_path / "pictures"
        pictures.mkdir(exist_ok=True)
        (tmp_path / "notes" / f"{number}.jpg").rename(pictures / f"{number}.jpg")
    with pytest.raises(DataError) as raised:
        import_annotations(tmp_path / "notes", tmp_path / "data")
    assert len(raised.value.findings) == 3 and str(raised.value).count("--pictures") == 1
    import_annotations(tmp_path / "notes", tmp_path / "data", pictures=pictures)
    assert set(items(tmp_path / "data")) == {"0-cup", "1-cup", "2-cup"}
    (tmp_path / "notes").rename(tmp_path / "labels")
    pictures.rename(tmp_path / "images")
    import_annotations(tmp_path / "labels", tmp_path / "more")
    assert set(items(tmp_path / "more")) == {"0-cup", "1-cup", "2-cup"}


def test_a_missing_labelme_picture_does_not_take_anothers(tmp_path: Path) -> None:
    """With --skip-broken the right one of two would go, and outlines stay on the wrong picture."""
    source = tmp_path / "in"
    for number, (day, name) in enumerate((("1", "a"), ("2", "a"), ("3", "b"))):
        labelme(source / day, name, shape(day), colour=60 * number)
    (source / "1" / "a.jpg").unlink()
    done = import_annotations(source, tmp_path / "out", skip_broken=1)
    assert [finding.entry for finding in done.broken] == [str(source / "1" / "a.json")]
    found = items(tmp_path / "out")
    assert sorted(found) == ["2-a-2", "3-b-3"]
    # What a longer end tells apart is found.
    (tmp_path / "shots" / "1").mkdir(parents=True)
    labelme(source / "1", "a", shape("1"), colour=200, imagePath="..\\old\\1\\a.jpg")
    (source / "1" / "a.jpg").rename(tmp_path / "shots" / "1" / "a.jpg")
    import_annotations(source, tmp_path / "all", pictures=tmp_path / "shots")
    assert len(items(tmp_path / "all")) == 3


def test_lvis_tells_addresses_only(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    path = folder / "annotations.json"
    notes = json.loads(path.read_text())
    for image in notes["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    path.write_text(json.dumps(notes))
    (data_set,), findings = READERS["sem_seg"](tmp_path, None)
    assert findings == [] and data_set.pictures[0].image_path == folder / "images" / "0.jpg"
    place = folder / "images" / "train2017"
    picture(place / "0.jpg")
    (data_set,), _ = READERS["sem_seg"](tmp_path, None)
    assert data_set.pictures[0].image_path == place / "0.jpg"
