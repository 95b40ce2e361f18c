"""No pickle runs, no command asks the network, nothing is written where it has no business."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from profiles.environment import at_home
from profiles.plan import Plan
from tests.conftest import PHOTOS, tiny_plan
from trainer.answer.trained_model import find_trained
from trainer.atomic_folder import atomic_folder
from trainer.convert.convert import convert
from trainer.convert.hub import checkpoint_folder
from trainer.data.feature_cache import BadEntry, FeatureCache, encoder_key, fill_cache
from trainer.data.findings import Report
from trainer.data.formats.refer_seg import read_references
from trainer.model.build import read_tokenizer
from trainer.model.weights import WeightsError, packaged_folder, weight_source
from trainer.run import checkpoint
from trainer.run.checkpoint import CheckpointError
from trainer.run.checkpoint_files import checksum
from trainer.run.folder import STATE, TRAINED
from trainer.run.resume import resumable

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PICTURE = PHOTOS / "ReasonSeg" / "val" / "astronaut_patch.jpg"


# ------------------------------------------------------------------------------------- no pickles


class Runs:
    """Makes the folder `mark` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that would leave a mark; at the end there is none, though it does work."""
    mark = tmp_path / "ran"
    data = pickle.dumps({"model": Runs(mark)})
    yield data
    assert not mark.exists()
    pickle.loads(data)
    assert mark.is_dir()


def torch_saved(tmp_path: Path, old: bool) -> bytes:
    """As torch saves it, in its archive or its old format."""
    path = tmp_path / "saved"
    torch.save({"model": Runs(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not old)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sam.pth", "model.safetensors"])
@pytest.mark.parametrize("form", ["bare", "archive", "old"])
def test_convert_runs_nothing(tmp_path: Path, planted: bytes, name: str, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    data = planted if form == "bare" else torch_saved(tmp_path, form == "old")
    (source / name).write_bytes(data)
    with pytest.raises(WeightsError, match=name):
        convert([source], tmp_path / "made", "tiny", lambda line: None)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_model_folder_runs_nothing(tmp_path: Path, planted: bytes, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(packaged_folder(), folder)
    for extra in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        (folder / extra).write_bytes(planted)  # passed over
    (folder / name).write_bytes(planted)
    plan = tiny_plan(weights=str(folder))
    with pytest.raises(WeightsError):
        weight_source(plan)
        read_tokenizer(plan)


def test_a_cache_entry_runs_nothing_and_is_built_again(tmp_path: Path, planted: bytes) -> None:
    plan = tiny_plan()
    cache = FeatureCache(tmp_path / "cache", encoder_key(plan, "vision", "x"))
    cache.folder.mkdir(parents=True)
    cache.entry(PICTURE).write_bytes(planted)
    with pytest.raises(BadEntry):
        cache.read(PICTURE)
    quiet = SimpleNamespace(progress=lambda done, total: None, told=list[str]())
    built = fill_cache(cache, plan, "vision", [PICTURE], lambda: lambda shown: shown,
                       quiet.progress, quiet.told.append)  # fmt: skip
    assert built == 1 and cache.read(PICTURE)["pixels"].ndim == 4


def test_a_checkpoint_runs_nothing(tmp_path: Path, planted: bytes) -> None:
    """Not even one whose manifest has been made to fit."""
    model, run = torch.nn.Linear(2, 2), tmp_path / "run"
    checkpoint.save(run / "last", model, Plan(), {}, {"step": 1, "a": torch.ones(2)})
    for name in (TRAINED, STATE):
        (run / "last" / name).write_bytes(planted)
    with pytest.raises(ValueError, match="is damaged"):
        resumable(run, lambda line: None)
    sums = json.loads((run / "last" / "manifest.json").read_text())
    sums = {name: checksum(run / "last" / name) for name in sums}
    (run / "last" / "manifest.json").write_text(json.dumps(sums))
    folder = resumable(run, lambda line: None)
    assert folder == run / "last"
    for read in (checkpoint.load_state, lambda folder: checkpoint.load(folder, model)):
        with pytest.raises(CheckpointError):
            read(folder)


def test_answering_runs_nothing(tmp_path: Path, planted: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / TRAINED).write_bytes(planted)
    plan = tiny_plan()
    (tmp_path / "run" / "plan.json").write_text(plan.to_json())
    trained = find_trained(tmp_path / "run")
    with pytest.raises(CheckpointError):
        trained.load(trained.plan, read_tokenizer(plan), CPU)


def test_references_run_nothing(tmp_path: Path, planted: bytes) -> None:
    path = tmp_path / "refs(unc).p"
    for data in (planted, pickle.dumps([Runs(tmp_path / "ran")], 0), b"cos\nmkdir\n(S'ran'\ntR."):
        path.write_bytes(data)
        report = Report(path)
        assert read_references(report) == []
        assert "it asks for" in str(report.findings[0])


def sources() -> Iterator[tuple[str, ast.AST]]:
    for package in ("advisor", "profiles", "trainer"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield name, node


def test_no_source_unpickles_or_runs_code_of_others() -> None:
    """refer_seg's pickles are read by a class that refuses to look anything up."""
    unpicklers = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for name, node in sources():
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert name == "trainer/data/formats/refer_seg.py" or not named & unpicklers, name
        if isinstance(node, ast.keyword):
            assert node.arg not in ("trust_remote_code", "allow_pickle"), name
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert called not in ("eval", "exec", "torch.save", "torch.hub.load"), name
            if called == "torch.load":
                assert given["weights_only"] == "True", name
            if called.endswith("from_pretrained"):
                assert given["local_files_only"] == "True", name


# ---------------------------- network, and writing: tests/test_wheel.py walks through all commands


def test_the_watch_refuses_the_network_and_tells(tmp_path: Path) -> None:
    script = "import urllib.request as u; open('a', 'w').close(); u.urlopen('http://127.0.0.1:9')"
    environment = {
        "PYTHONPATH": str(ROOT / "tests" / "watched"),
        "WATCHED_LOG": str(tmp_path / "l"),
    }
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, text=True,
                          env=os.environ | environment, capture_output=True)  # fmt: skip
    assert "the network is refused" in done.stderr
    log = (tmp_path / "l").read_text()
    assert f"wrote {tmp_path / 'a'}\n" in log and "\nnetwork socket." in log


# ---------------------------------------------------------------------------------- hub, privacy


def test_offline_takes_the_hubs_cache_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def fetch(name: str, **given: object) -> str:
        asked.append(given)
        if name == "not/here":
            raise OSError("no snapshot")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("the hub was asked"))
    assert checkpoint_folder("me/model@v1", lambda line: None, offline=True) == tmp_path
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="not in the hub's cache\n    hint: leave out --offline"):
        checkpoint_folder("not/here", lambda line: None)
    assert all(given["local_files_only"] is True for given in asked)
    assert [given["revision"] for given in asked] == ["v1", None]


def test_what_is_half_done_is_private(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("a")
        (private,) = tmp_path.iterdir()
        assert private.stat().st_mode & 0o077 == 0 and folder.parent == private
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made").stat().st_mode & 0o700 == 0o700


# ------------------------------------------------------- no code of the folder that one stands in
# Forecasts and the doctor's step start processes, too: tests/test_wheel.py walks in such a folder.

PLANTED = ("pydantic", "numpy", "torch", "profiles", "trainer", "sitecustomize", "usercustomize")


def plant(folder: Path, marks: Path) -> set[str]:
    """Modules that leave a mark when they run; the names of their files."""
    for name in PLANTED:
        code = f"open({str(marks / name)!r}, 'w').close()\n"
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return {f"{name}.py" for name in PLANTED}


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Stand in a folder of modules that would tell of being run; which of them were."""
    folder = tmp_path / "planted"
    folder.mkdir()
    plant(folder, tmp_path)
    monkeypatch.chdir(folder)
    # The tests' own path leads to libraries, never to the folder of the planted ones.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return lambda: [name for name in PLANTED if (tmp_path / name).exists()]


def test_planted_modules_would_run_without_the_switch(strangers: Callable[[], list[str]]) -> None:
    """What the tests below look for does happen: they could fail."""
    subprocess.run([sys.executable, "-c", "import pydantic, numpy, profiles"])
    assert strangers()


def test_several_processes_run_no_code_of_the_folder(strangers: Callable[[], list[str]]) -> None:
    start = (
        "import sys; from trainer.parallel.launch import start_processes as s; sys.exit(s(2, {!r}))"
    )
    code = start.format(["-c", "import pydantic, numpy, profiles"])
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert strangers() == []


@pytest.mark.skipif(sys.platform == "win32", reason="no process becomes another one there")
def test_a_run_that_becomes_another_runs_no_code_of_the_folder(
    strangers: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.run import shortages as recovery

    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: became.append(command))
    recovery.replace_process(Path("run"))
    done = subprocess.run([*became[0], "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert strangers() == []


def test_processes_that_libraries_start_run_no_code_of_the_folder(
    strangers: Callable[[], list[str]],
) -> None:
    """torch's compilers and the like know the environment only."""
    command = [sys.executable, "-c", "import pydantic, numpy, profiles"]
    subprocess.run(command, env=at_home(os.environ), check=True)
    assert strangers() == []


@pytest.mark.launcher
def test_a_launcher_as_it_is_documented_runs_no_code_of_the_folder(
    strangers: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's own `-m` would put the folder first on each process's path."""
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(scripts), prepend=os.pathsep)
    command = [scripts / "torchrun", "--nproc_per_node", "1", "--no_python"]
    done = subprocess.run([*command, "lisa-train", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("lisa-train "), done.stderr
    assert strangers() == []


def test_no_command_that_is_printed_has_a_launcher_run_a_module() -> None:
    """Where a page says why not, it does so within a line."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    sources = [path for house in ("advisor", "trainer") for path in (ROOT / house).rglob("*.py")]
    for path in (*pages, *sources):
        text = re.sub(r"`[^`\n]+`", "", path.read_text(encoding="utf-8"))
        assert "-m trainer.cli" not in text, path
