"""What a request can name: places below the page's folders, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.places import NoSuchPlace, Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("work/runs/first", "work/.hidden", "other/work", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "outside" / "secret.json").write_text("{}")
    (tmp_path / "work" / "runs" / "first" / "run.json").write_text("{}")
    (tmp_path / "work" / "notes.csv").write_text("")
    (tmp_path / "work" / "program.py").write_text("")
    (tmp_path / "work" / "way-out").symlink_to(tmp_path / "outside")
    return Places([tmp_path / "work", tmp_path / "other" / "work"])


@pytest.mark.parametrize(
    "place",
    ["", "..", "/etc/passwd", "work/..", "work/../outside", "work//etc", "work/runs/../../outside",
     "work/.hidden", "work/way-out", "work/way-out/secret.json", "outside", "work\\..\\outside",
     "work/\0", "work/\ud800", "work/none", "../work", "~", "work/" + "a" * 5000],
)  # fmt: skip
def test_nothing_outside_of_the_folders_is_reached(places: Places, place: str) -> None:
    with pytest.raises(NoSuchPlace):
        places.path(place)


def test_folders_of_one_name_are_told_apart(places: Places, tmp_path: Path) -> None:
    assert places.path("work") == tmp_path / "work"
    assert places.path("work-2") == tmp_path / "other" / "work"
    assert places.place(tmp_path / "other" / "work") == "work-2"
    assert places.place(tmp_path / "outside") is None


def test_a_folder_is_listed_without_what_is_hidden_or_of_no_use(places: Places) -> None:
    # The link is listed as what it leads to, and refused when it is opened.
    listed = {one["name"]: one["kind"] for one in places.listed("work")}
    assert listed == {"notes.csv": "notes", "runs": "folder", "way-out": "folder"}
    assert [one["kind"] for one in places.listed("work/runs")] == ["run"]
    assert [one["place"] for one in places.listed("")] == ["work", "work-2"]
    assert [one["kind"] for one in places.listed("")] == ["folder", "folder"]
    (places.home / "train").mkdir()  # the page's folder is a data set itself
    assert [one["kind"] for one in places.listed("")] == ["data", "folder"]


def test_a_folder_of_another_user_hides_no_other(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("studio.places.located", forbidden)
    assert [one["name"] for one in places.listed("work")] == ["notes.csv"]
    assert len(list(places.runs())) == 1


def test_a_folder_that_is_read_whole_has_no_link_that_leads_out(
    places: Places, tmp_path: Path
) -> None:
    inside = tmp_path / "work" / "data" / "train"
    inside.mkdir(parents=True)
    (inside / "a.json").symlink_to(tmp_path / "work" / "notes.csv")
    (inside.parent / "other").symlink_to(tmp_path / "other" / "work")
    (inside.parent / "circle").symlink_to(inside.parent)
    (inside.parent / ".venv").mkdir()  # nothing reads hidden folders
    (inside.parent / ".venv" / "python").symlink_to("/usr/bin/env")
    assert places.folder("work/data") == inside.parent
    assert places.path("work/data/other") == tmp_path / "other" / "work"
    (inside / ".b.json").symlink_to(inside / ".b.json")
    with pytest.raises(NoSuchPlace, match=r"work/data: train/\.b\.json leads out"):
        places.folder("work/data")
    (inside / ".b.json").unlink()
    # Through a folder of the page, and from there away.
    (tmp_path / "other" / "work" / "a.jpg").symlink_to(tmp_path / "outside" / "secret.json")
    with pytest.raises(NoSuchPlace, match="name the folder that it leads to when you start"):
        places.folder("work/data")
    with pytest.raises(NoSuchPlace, match=r"a\.jpg leads out"):
        places.around("work/data/other")
    (tmp_path / "work" / "note").symlink_to("/etc")
    with pytest.raises(NoSuchPlace, match="leads out"):  # what is beside a file is read with it
        places.around("work/notes.csv")
    assert places.listed("work/data")  # a list shows names alone


def test_it_writes_below_the_first_folder_alone(places: Places, tmp_path: Path) -> None:
    assert places.new("second", "runs") == tmp_path / "work" / "runs" / "second"
    for name in ("", ".", "..", "a/b", ".hidden", "a" * 65, "a\n", "über"):
        with pytest.raises(ValueError, match="allowed"):
            places.new(name, "runs")
    with pytest.raises(ValueError, match="link"):
        places.new("way-out")
    with pytest.raises(ValueError, match="link"):
        places.new("run", "way-out")
    with pytest.raises(NoSuchPlace, match="writes below work only"):
        places.own("work-2")


def test_runs_are_found(places: Places, tmp_path: Path) -> None:
    first = tmp_path / "work" / "runs" / "first"
    assert list(places.runs()) == [first]
    (first / "metrics.jsonl").symlink_to("/etc/passwd")
    assert not list(places.runs())
