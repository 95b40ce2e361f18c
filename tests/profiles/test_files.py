"""Files that users name: what is no regular file of bounded size is refused, never waited for."""

import io
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from profiles import start
from profiles.files import ends_of, read_ends, read_regular, refused
from profiles.findings import PlanError
from profiles.plan import Plan
from profiles.tested import Table, append, read_table, shipped_table

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and devices of a Unix")


@pytest.mark.parametrize("size", [0, 1, 8, 15, 16, 17, 23, 24, 25, 40])
def test_the_ends_of_a_file_or_a_stream_are_read(tmp_path, size):
    data = bytes(range(size))
    expected = (data, b"") if size <= 16 else (data[:8], data[-8:])
    (tmp_path / "log").write_bytes(data)
    assert read_ends(tmp_path / "log", 8) == expected
    assert ends_of(io.BytesIO(data), 8) == expected


@pytest.fixture
def pipe(tmp_path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_a_regular_file_is_read_whole_up_to_the_bound(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path) == read_regular(path, 5) == b"12345"
    if sys.platform == "linux":
        assert read_regular(Path("/proc/self/stat"))  # whose size is said to be 0
    with pytest.raises(OSError, match="allowed: at most 0 MiB"):
        read_regular(path, 4)


def test_a_file_of_gigabytes_is_refused_by_its_size_alone(tmp_path):
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # it takes no room; reading it would take hours
    with pytest.raises(OSError, match="has 1048576 MiB"):
        read_regular(path)


def test_what_is_no_regular_file_is_named(tmp_path, pipe):
    with pytest.raises(OSError, match="is a pipe"):
        read_regular(pipe)
    with pytest.raises(OSError, match="is a device"):
        read_regular(Path("/dev/zero"))
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "absent")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError):
            read_regular(tmp_path / "socket")


def test_a_pipe_for_a_table_is_a_note_and_takes_no_rows(pipe):
    rows = shipped_table().rows
    table = read_table(pipe)
    assert table == Table(rows, table.findings) and "is a pipe" in table.findings[0].what
    with pytest.raises(OSError, match="no regular file"):
        append(rows[0], pipe)


def test_a_pipe_for_a_plan_is_refused(pipe):
    with pytest.raises(PlanError, match="is a pipe"):
        Plan.read(pipe)


@pytest.mark.parametrize(
    ("hidden", "known"),
    [
        ("own", "own"),
        (".own.part", "own"),
        (".own.part/.lock", "own"),
        (".lock", ""),
        ("..holder.json-12", ""),
        (".plan.json-4711", "plan.json"),
        (".mine/x", ".mine/x"),
    ],
)
def test_what_the_system_refuses_is_told_by_the_name_that_the_user_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str, known: str
) -> None:
    denied = PermissionError(13, "Permission denied", str(tmp_path / hidden))
    place, hint = tmp_path / known, f"\n    hint: name another, or change the rights of {tmp_path}"
    assert refused(denied) == f"{place}: cannot be written: permission denied{hint}"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert refused(denied) == f"{place}: cannot be read: permission denied{hint}"
    gone = FileNotFoundError(2, "No such file or directory", str(tmp_path / hidden))
    assert refused(gone) == f"{place}: no such file or directory"
    assert refused(FileExistsError("own: exists")) == "own: exists"


@pytest.mark.parametrize("begin", [start.advise, start.train, start.segment, start.studio])
def test_a_name_too_long_for_the_system_is_no_traceback(begin, monkeypatch, capsys):
    """Python raises even where it only looks whether the file is there."""
    command = SimpleNamespace(**dict.fromkeys(("main", "train", "segment"), Path("x" * 256).exists))
    monkeypatch.setattr(start, "stranger", lambda folder: None)
    monkeypatch.setattr(start, "import_module", lambda name: command)
    with pytest.raises(SystemExit) as ended:
        begin()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {'x' * 256}: file name too long\n"
