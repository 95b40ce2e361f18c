"""A home that cannot be written, a shell of another project, a disk that takes no more."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from profiles import places
from profiles.environment import at_home, borrowed, refused
from profiles.files import opened
from profiles.tested import append, keep, read_table, shipped_table, user_table_path
from tests.conftest import ROOT, tiny_plan
from trainer.atomic_folder import atomic_folder
from trainer.cli import train
from trainer.cli.console import user_errors
from trainer.cli.ranks import deciding
from trainer.convert.convert import Shards
from trainer.data.feature_cache import FeatureCache
from trainer.data.synthetic.dataset import write_dataset
from trainer.parallel.launch import without_leftovers
from trainer.process import clear_leftover_variables
from trainer.run import checkpoint, write_failure
from trainer.run.folder import RECORD
from trainer.run.write_failure import NotWritten
from trainer.tensor_files import save_file

HOMES = ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME", "TRITON_CACHE_DIR")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A temporary folder where the home is a file, as no permission stops whoever runs tests."""
    for name in HOMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr(places.tempfile, "tempdir", str(tmp_path))
    places._temporary.cache_clear()
    yield tmp_path
    places._temporary.cache_clear()


def test_caches_go_to_a_temporary_folder_with_one_note(
    homeless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = homeless / f"lisa-preflight-{os.getuid()}"
    assert places.cache_folder() == place / "cache" and places.data_folder() == place / "data"
    assert not places.caches_stay()
    found = at_home({})
    for name in ("TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "TRITON_CACHE_DIR"):
        assert Path(found[name]).is_relative_to(place), name
    assert at_home({"HF_HOME": "/mine"})["HF_HOME"] == "/mine"
    said = capsys.readouterr().err
    assert said.count("note: ") == 1 and str(place) in said and "XDG_CACHE_HOME" in said
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    row = shipped_table().rows[0].model_copy(update={"id": "mine", "source": "user"})
    keep(row)
    assert user_table_path().is_relative_to(place) and read_table().row("mine")
    places._temporary.cache_clear()  # the next command finds what this one kept
    assert read_table().row("mine")


@pytest.mark.parametrize("taken", ["file", "others", "link"])
def test_a_temporary_folder_of_another_is_not_used(
    taken: str, homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = homeless / f"lisa-preflight-{os.getuid()}"
    if taken == "file":
        place.touch()
    elif taken == "link":
        (homeless / "x").mkdir(mode=0o700)
        place.symlink_to(homeless / "x")
    else:
        place.mkdir(mode=0o777)
        place.chmod(0o777)
    found = places.cache_folder().parent
    assert found != place and found.parent == homeless and not found.is_symlink()
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


@pytest.mark.parametrize("how", ["read-only", "no home", "missing", "takes no files"])
def test_whatever_is_wrong_with_the_home(
    how: str, homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = homeless / "home"
    monkeypatch.setenv("HOME", str(home))
    if how == "read-only":  # access(2) is what tells a mount that is
        home.mkdir()
        real = os.access
        monkeypatch.setattr(os, "access", lambda path, mode, **more: (
            not Path(path).is_relative_to(home) and real(path, mode, **more)))  # fmt: skip
    elif how == "takes no files":  # an automount's, a quota's, /proc's: rights do not tell
        home = Path("/proc/nobody")
        monkeypatch.setenv("HOME", str(home))
    elif how == "no home":  # a user whom the system does not know: "~" stays as it is
        monkeypatch.setattr(os.path, "expanduser", lambda path: str(path))
    else:
        assert places.cache_folder().is_relative_to(home)  # which can be made
        return
    assert places.cache_folder().parent.parent == homeless


def test_the_home_is_used_where_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HOMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.cache_folder() == tmp_path / ".cache" / "lisa-preflight"
    assert places.caches_stay() and places.libraries_caches() == {}
    assert list(tmp_path.iterdir()) == []  # to look is not to make


def test_commands_work_without_a_home(tmp_path: Path) -> None:
    """An advice, a check and what asks the hub's cache: one note each, and the usual answer."""
    write_dataset(tmp_path, seed=0, train=2, val=1, test=0, kinds=("negation",))
    environment = {k: v for k, v in os.environ.items() if k not in HOMES} | {
        "HOME": "/dev/null", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}  # fmt: skip
    for module, arguments in (
        ("advisor.cli", ("--vram", "8GiB", "--model", "7b", "--json")),
        ("trainer.cli", ("--check-data", ".")),
        ("trainer.cli", ("convert", "a/b", "m", "--model", "7b", "--offline")),
    ):
        done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=tmp_path,
                              env=environment, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == (2 if "convert" in arguments else 0), done.stderr
        assert done.stderr.count("note: the home") == 1 and "Traceback" not in done.stderr
    assert (tmp_path / f"lisa-preflight-{os.getuid()}").is_dir()


def test_a_row_that_cannot_be_kept_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "lisa-preflight").touch()
    monkeypatch.setattr("profiles.tested.data_folder", lambda: tmp_path / "lisa-preflight")
    row = shipped_table().rows[0]
    with pytest.raises(OSError):
        append(row)
    keep(row)
    assert "note: the result was not saved" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "fix"),
    [(errno.EROFS, "a folder that can be written"), (errno.ENOSPC, "make room"),
     (errno.EFBIG, "ulimit -f"), (errno.EMFILE, "ulimit -n"), (errno.EIO, "whether the disk")],
)  # fmt: skip
def test_what_the_system_refuses_has_its_own_fix(
    number: int, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception) as ended, user_errors():
        raise OSError(number, os.strerror(number), "/run")
    said = capsys.readouterr().err
    assert ended.value.exit_code == 1 and fix in said and "/run: " in said
    assert "then the same command again" in said and "--resume" not in said
    with pytest.raises(Exception) as ended, deciding():  # a training
        raise OSError(number, os.strerror(number), "/run")
    assert ended.value.exit_code == 1 and "--resume RUN" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--resume", "--output-dir"])
def test_a_rank_that_joins_a_training_names_what_continues_it(
    option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def join(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(train, "is_main", lambda: False)
    monkeypatch.setattr(train, "join", join)
    (tmp_path / RECORD).touch()
    data = ["--data-dir", "."] if option == "--output-dir" else []
    done = CliRunner().invoke(train.app, [option, str(tmp_path), *data])
    assert done.exit_code == 1 and "lisa-train --resume RUN" in done.stderr, done.output


@pytest.mark.skipif(os.name == "nt", reason="no such limits")
def test_what_a_full_disk_does_not_take_is_named(tmp_path: Path) -> None:
    """Also where a library tells the system's error in its text, or Python not where it wrote."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="large") as tensors:
            save_file({"a": torch.ones(1000)}, tmp_path / "a.safetensors")
        with pytest.raises(OSError, match="large") as plain, atomic_folder(tmp_path / "b") as draft:
            (draft / "c").write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert tensors.value.filename == str(tmp_path / "a.safetensors")
    assert plain.value.filename == str(tmp_path / "b")
    assert tensors.value.errno == plain.value.errno == errno.EFBIG


def test_a_reader_who_has_gone_is_no_error_of_the_disk(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BrokenPipeError), user_errors():
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    assert capsys.readouterr().err == ""


def test_an_error_of_our_own_words_is_said_in_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that the system ended; a file that is none."""
    with pytest.raises(Exception) as ended, user_errors():
        raise OSError("the system ended a process\n    hint: close other programs")
    assert ended.value.exit_code == 1
    with pytest.raises(Exception) as ended, user_errors(), opened(Path(os.devnull)):
        pass
    assert ended.value.exit_code == 1
    said = capsys.readouterr().err
    assert "the system ended a process" in said and "allowed: a regular file" in said
    assert "whether the disk" not in said


# --- a shell of another project ------------------------------------------------------------------

FOREIGN = {
    "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_FSDP": "1", "ACCELERATE_CPU": "yes",
    "ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_USE_MEGATRON_LM": "true", "OMPI_COMM_WORLD_SIZE": "4", "PMI_RANK": "1",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true", "ACCELERATE_USE_CPU": "true",
}  # fmt: skip
HARMLESS = {
    "ACCELERATE_LOG_LEVEL": "info", "ACCELERATE_DYNAMO_MODE": "default", "PATH": "/bin",
    "ACCELERATE_USE_XPU": "False",
}  # fmt: skip


def test_what_would_overrule_the_plan_is_taken_out() -> None:
    assert set(borrowed(FOREIGN | HARMLESS)) == FOREIGN.keys()
    environment = FOREIGN | HARMLESS
    said = without_leftovers(environment)
    assert environment == HARMLESS and len(said) == len(FOREIGN)
    assert "ACCELERATE_USE_DEEPSPEED=true" in said
    assert HARMLESS.items() <= at_home(FOREIGN | HARMLESS).items()
    assert not FOREIGN.keys() & at_home(FOREIGN | HARMLESS).keys()


def test_what_a_library_would_end_on_is_left_out_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    bad = {"ACCELERATE_LOG_LEVEL": "loud", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "x"),
           "TORCH_DISTRIBUTED_DEBUG": "", "HF_HUB_DOWNLOAD_TIMEOUT": "1s"}  # fmt: skip
    assert refused(bad).keys() == bad.keys() and refused(HARMLESS) == {}
    good = {"ACCELERATE_LOG_LEVEL": "debug", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "new")}
    assert refused(good) == {} and good.items() <= at_home(good).items()
    home = at_home(bad | {"PYTHONOPTIMIZE": "2"})
    assert not {"ACCELERATE_LOG_LEVEL", "PYTHONOPTIMIZE"} & home.keys()
    assert home["TORCHINDUCTOR_CACHE_DIR"] == at_home({})["TORCHINDUCTOR_CACHE_DIR"]
    for name, value in bad.items():
        monkeypatch.setenv(name, value)
    clear_leftover_variables()
    said = capsys.readouterr().err.splitlines()
    assert not bad.keys() & os.environ.keys() and len(said) == len(bad)
    assert said[0].startswith("ignoring ACCELERATE_LOG_LEVEL=loud of this shell: allowed: debug, ")


@pytest.mark.parametrize("variable", ["TORCH_LOGS=nonsense", "PYTHONOPTIMIZE=2"])
def test_a_variable_with_which_no_library_can_be_imported_is_named(variable: str) -> None:
    name, _, value = variable.partition("=")
    script = "from trainer.process import import_libraries as load; load()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env=os.environ | {name: value, "PYTHONPATH": str(ROOT)})  # fmt: skip
    *_, said, hint = done.stderr.splitlines()
    assert f"ValueError: {variable}" in said and "allowed: " in said
    assert hint == f"    hint: unset {name}"


def test_a_launcher_may_say_that_it_is_for_the_cpu() -> None:
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "True",
                "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}  # fmt: skip
    assert without_leftovers(dict(launched)) == []
    assert without_leftovers(launched | {"ACCELERATE_USE_FSDP": "true"}) == [
        "ACCELERATE_USE_FSDP=true"
    ]


def test_accelerate_does_as_the_plan_says_in_a_foreign_shell(tmp_path: Path) -> None:
    """In a process of its own: what accelerate has read it does not forget.

    Nor is torch's compiler imported where nothing is compiled; it is not shut off either.
    """
    script = (
        "import os, sys, json; from trainer.process import clear_leftover_variables as clear;"
        "from trainer.process import import_libraries as load; clear(); load();"
        "from tests.conftest import tiny_plan; from trainer.run.run import make_accelerator;"
        "a = make_accelerator(tiny_plan(), None);"
        "print(json.dumps([a.mixed_precision, a.num_processes, str(a.device),"
        "a.gradient_accumulation_steps, a.state.dynamo_plugin.backend.value,"
        "a.distributed_type.value, 'torch._inductor.compile_fx' in sys.modules,"
        "os.environ.get('TORCHDYNAMO_DISABLE')]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env=os.environ | FOREIGN | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["no", 1, "cpu", 1, "NO", "NO", False, None]
    (note,) = done.stderr.splitlines()  # the libraries say nothing
    assert note.startswith("ignoring ") and all(name in note for name in FOREIGN)


# --- files for others, and disks that take none --------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_have_the_rights_that_the_umask_gives(
    mask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it changed for a moment, in which another thread may make a file."""
    change = os.umask
    before = change(mask)
    monkeypatch.delattr(os, "umask")
    try:
        (tmp_path / "usual").touch()
        (tmp_path / "picture.png").write_bytes(b"x")
        cache = FeatureCache(tmp_path, "key")
        cache.write(tmp_path / "picture.png", {"features": torch.ones(2)})
        model = torch.nn.Linear(2, 2)
        state = {"a": torch.ones(2)}
        checkpoint.save(tmp_path / "run" / "last", model, tiny_plan(), {}, state)
        shards = Shards(tmp_path, 100)
        shards.add("a", torch.ones(2))
        shards.close()
    finally:
        change(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}


def saved(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    """What is said of a checkpoint that `error` stops."""

    def fails(tensors: object, path: Path) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fails)
    with pytest.raises(NotWritten) as ended:
        checkpoint.save(folder, torch.nn.Linear(2, 2), tiny_plan(), {}, {"a": torch.ones(2)})
    assert not list(folder.parent.glob(".last-*"))
    return str(ended.value)


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (os_error(errno.EROFS), "read-only"),
        (os_error(errno.EACCES), "permission denied"),
        (os_error(errno.EDQUOT), "quota"),
        (os_error(errno.ENOSPC), "the disk is full"),
        (os_error(errno.EFBIG), "no file may be as large"),
        (os_error(errno.EIO), "not be written, input/output error: "),
    ],
)
def test_a_checkpoint_that_is_not_written_names_the_cause(
    error: OSError, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = saved(tmp_path / "-run" / "last", monkeypatch, error)
    assert said in first.splitlines()[0] and "no earlier checkpoint" in first
    monkeypatch.undo()
    checkpoint.save(tmp_path / "-run" / "last", torch.nn.Linear(2, 2), tiny_plan(), {}, {"a": 1})
    again = saved(tmp_path / "-run" / "last", monkeypatch, error)
    assert "the checkpoint before is whole" in again and "no earlier" not in again


def test_a_disk_without_inodes_is_not_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the save itself are the last that it took, and they go when it fails."""
    counts = SimpleNamespace(f_files=1000, f_favail=0)
    usage = shutil.disk_usage(tmp_path)

    def statvfs(path: Path) -> SimpleNamespace:
        counts.f_favail = int(not any(Path(path).glob(".last-*")))
        return counts

    monkeypatch.setattr(write_failure.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(write_failure.os, "statvfs", statvfs)
    said = saved(tmp_path / "run" / "last", monkeypatch, os_error(errno.ENOSPC))
    assert "no inode is free" in said and "delete files" in said
    counts.f_files = 0  # a file system that counts none, such as btrfs
    said = saved(tmp_path / "run" / "last", monkeypatch, os_error(errno.ENOSPC))
    assert "disk is full" in said
