"""A run folder has one writer; what is half written decides nothing; a refusal changes nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from filelock import Timeout as FileLockTimeout
from typer.testing import CliRunner

from profiles import files
from profiles.files import Held, held, is_vacant, sweep, write_whole
from tests.conftest import PHOTOS, tiny_plan
from trainer.atomic_folder import atomic_folder, forced_meanwhile
from trainer.cli.train import app
from trainer.data.contents import Contents
from trainer.run.data_digests import digests
from trainer.run.folder import is_complete, new_run
from trainer.run.started import Started

HOLD = """
import sys, time
from pathlib import Path
from profiles.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def nobody_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds a folder here keeps it: waiting for it would be in vain."""
    monkeypatch.setattr(files, "PATIENCE", 0.1)


@contextmanager
def other_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begun(folder: Path) -> Path:
    """A run folder whose run has written down what it began with."""
    from trainer.data.formats.reasonseg import read_split

    folder.mkdir()
    train, val = read_split(PHOTOS, "train"), read_split(PHOTOS, "val")
    now = digests(train, val, (), Contents(PHOTOS))
    Started(PHOTOS, folder / "cache", now).write(folder)
    (folder / "plan.json").write_text(tiny_plan(cached_encoders=["mask"]).to_json())
    return folder


def test_the_second_writer_learns_who_is_the_first(tmp_path: Path) -> None:
    with other_process(tmp_path / "run") as child:
        with pytest.raises(Held, match=f"process {child.pid} on "), held(tmp_path / "run"):
            pass
        child.kill()
        child.wait()
        with held(tmp_path / "run"):  # at once: the lock has ended with its holder
            assert json.loads((tmp_path / "run" / ".holder.json").read_text())["pid"] == os.getpid()
    assert is_vacant(tmp_path / "run")


def test_a_second_training_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with other_process(folder) as child:
        before = tree(folder)
        code, said = run("--model", "tiny", "--data-dir", PHOTOS, "--output-dir", folder)
        assert code == 2 and f"process {child.pid}" in said and f"--output-dir {folder}-2" in said
        assert tree(folder) == before


def test_a_lock_on_a_folder_that_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two starts that fail at once: one removes the folder whose lock the other waits for."""
    folder, locked = tmp_path / "run", FileLock.acquire

    def removed_first(lock: FileLock) -> object:
        monkeypatch.setattr(FileLock, "acquire", locked)
        taken = lock.acquire()
        shutil.rmtree(folder)
        return taken

    monkeypatch.setattr(FileLock, "acquire", removed_first)
    with held(folder):
        assert (folder / ".lock").exists()
        with pytest.raises(FileLockTimeout):
            FileLock(folder / ".lock").acquire(timeout=0)


def test_a_folder_that_goes_while_its_lock_is_waited_for_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two exports to one place: the first ends and removes the hidden folder of both."""
    folder, locked = tmp_path / "run", FileLock.acquire

    def gone(lock: FileLock) -> object:
        monkeypatch.setattr(FileLock, "acquire", locked)
        shutil.rmtree(folder)
        return lock.acquire()

    monkeypatch.setattr(FileLock, "acquire", gone)
    with held(folder):
        assert (folder / ".holder.json").exists()


def test_a_second_training_of_the_default_name_goes_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with other_process(tmp_path / "runs" / "latest"):
        from trainer.run.folder import LATEST

        with new_run(LATEST) as folder:
            assert folder == Path("runs/latest-2")


def test_the_default_name_is_the_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands continue, ask and score the run that was written last, not the first one."""
    from trainer.run.folder import LATEST, newest_run

    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for age, name in enumerate(("latest-2", "latest", "latest-old", "latest-10")):
        folder = begun(Path("runs") / name)
        for path in folder.iterdir():
            os.utime(path, (0, 1000 - age))
    assert newest_run(LATEST, "run.json") == Path("runs/latest-2")
    assert newest_run(Path("runs/latest-10"), "run.json") == Path("runs/latest-10")
    assert newest_run(LATEST) == LATEST, "none has a model yet"
    code, said = run("--resume", LATEST, "--recipe", "x")
    assert code == 2 and f"the newest run is meant, {Path('runs/latest-2')}" in said


def test_a_second_resume_is_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    with other_process(folder) as child:
        before = tree(folder)
        code, said = run("--resume", folder)
        assert code == 2 and f"process {child.pid}" in said
        assert tree(folder) == before


def test_resuming_what_is_no_run_makes_no_folder(tmp_path: Path) -> None:
    code, said = run("--resume", tmp_path / "none")
    assert code == 2 and "none: no such folder" in said and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--data-dir", "typo"), "typo"),
        (("--cache-dir", "file/below"), "file"),
        (("--cache-dir", "/sys"), "lacks features of 10 pictures"),
        (("--weights", "empty"), "empty"),
        (("--set", "nodes=2", "--set", "processes=2", "--set", "micro_batch=1"), "2 machines"),
        (("--epochs", "9", "--data-dir", "typo"), "typo"),
    ],
)
def test_a_refused_resume_is_not_remembered(
    given: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next plain --resume would be refused as well, or train what had been refused."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("empty").mkdir()
    folder = begun(tmp_path / "run")
    (folder / "overlay.png").touch()
    if "--epochs" in given:  # of a run that is complete
        summary = dict.fromkeys(("before", "after", "epochs", "steps"), 1)
        (folder / "summary.json").write_text(json.dumps(summary))
    before = tree(folder)
    code, said = run("--resume", folder, *given)
    assert code == 2 and named in said
    assert {path: content for path, content in tree(folder).items() if path in before} == before


def test_a_start_that_was_killed_before_it_was_a_run_is_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("plan.json", ".run.json-4711", ".lock"):
        (folder / name).touch()
    with new_run(folder) as taken:
        assert taken == folder and not (folder / ".run.json-4711").exists()
    (folder / "mine.txt").touch()
    with pytest.raises(BaseException, match="2"), new_run(folder):
        pass
    assert (folder / "mine.txt").exists()


@pytest.mark.parametrize("summary", ["", "{", "[]", "{}", '{"before": 1'])
def test_a_torn_summary_ends_no_run(summary: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(summary)
    (tmp_path / "overlay.png").touch()
    assert not is_complete(tmp_path)


def test_a_file_is_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, "old")
    (tmp_path / ".summary.json-77").touch()
    (tmp_path / ".another-77").touch()  # of somebody else

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    sweep(tmp_path, ["summary.json"])
    assert {p.name for p in tmp_path.iterdir()} == {"summary.json", ".another-77"}


def test_two_imports_into_one_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as draft:
        (draft / "a").touch()
        with pytest.raises(Held, match=str(os.getpid())), atomic_folder(target):
            pass
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "a"}


def test_what_a_killed_import_left_goes(tmp_path: Path) -> None:
    left = tmp_path / ".out.part" / "out"
    left.mkdir(parents=True)
    (left / "half").touch()
    with atomic_folder(tmp_path / "out") as draft:
        (draft / "whole").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "whole"}


def test_a_network_folder_that_is_found_full_at_the_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.EDQUOT, "over quota")

    monkeypatch.setattr(sys.modules[atomic_folder.__module__], "force", full)
    with pytest.raises(OSError, match="over quota") as refused, atomic_folder(tmp_path / "out"):
        pass
    assert refused.value.filename == str(tmp_path / "out") and not list(tmp_path.iterdir())


def test_what_is_written_goes_to_the_disk_beside_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    synced, threads = threading.Event(), threading.active_count()
    monkeypatch.setattr(os, "sync", synced.set)
    monkeypatch.setattr(sys.modules[atomic_folder.__module__], "_PAUSE", 0.01)
    with forced_meanwhile():
        assert synced.wait(30)
    ends = time.monotonic() + 30
    while threading.active_count() > threads and time.monotonic() < ends:
        time.sleep(0.01)
    assert threading.active_count() == threads
