"""lisa-advise table, check and doctor from outside."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from advisor import doctor
from advisor.cli.forecast import PlanOptions
from advisor.cli.main import app
from advisor.doctor import Check, answer, examine, report
from advisor.machine.gpu import Gpu, Machine
from profiles.plan import Plan
from profiles.sizes import GIB, gib
from profiles.tested import read_table, user_table_path
from tests.conftest import tiny_plan

GPU = Gpu(index=0, uuid="GPU-a", name="Some card", total_bytes=8 * GIB, free_bytes=7 * GIB,
          compute_capability=(8, 9))  # fmt: skip
MACHINE = Machine(gpus=(GPU,), driver_version="580.1", cuda_driver_version="13.0",
                  host_total_bytes=32 * GIB, host_available_bytes=28 * GIB)  # fmt: skip
HEALTHY: dict[str, Any] = {"versions": {"torch": "2.11.0"}, "torch_cuda": "13.0", "bf16": True,
                           "cuda_available": True, "architectures": ["sm_80"], "compiler": "",
                           "loss": 2.0}  # fmt: skip


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), prog_name="lisa-advise")


def test_table_lists_filters_and_judges_the_seed() -> None:
    seed = run("table", "--source", "seed")
    assert seed.exit_code == 0
    assert "contradicted by" in seed.stdout and "confirmed by lean-seed-2" in seed.stdout
    assert "7 of" in seed.stderr and "drawn-" not in seed.stdout
    rows = run("table", "--model", "13b", "--verdict", "FITS", "--json").stdout.splitlines()
    assert rows and all(json.loads(row)["model"] == "13b" for row in rows)


def test_rows_go_out_and_come_back_once(tmp_path: Path) -> None:
    row = read_table().row("lean-7b-b1").model_copy(update={"id": "user-x", "source": "user"})
    file = tmp_path / "theirs.jsonl"
    file.write_text(row.model_dump_json() + "\n")
    assert "1 row added" in run("table", "import", str(file)).stderr
    again = run("table", "import", str(file))
    assert again.exit_code == 0 and "0 rows added, 1 were there" in again.stderr
    assert run("table", "export", "-").stdout == file.read_text()
    assert run("table", "export", str(tmp_path / "out.jsonl")).exit_code == 0
    assert run("table", "export", str(tmp_path / "out.jsonl")).exit_code == 0, "its own"
    assert (tmp_path / "out.jsonl").read_text() == file.read_text()


def test_rows_are_shared_without_what_names_a_person(tmp_path: Path) -> None:
    assert run("table", "share").exit_code == 1, "there is none of one's own"
    known = read_table().row("lean-7b-b1")
    secret = {"weights": "/home/zoe/models/7b"}
    row = known.model_copy(update={
        "id": "user-of-zoe", "title": "zoe's", "source": "user", "forecast_bytes": 5 * GIB,
        "settings": known.settings | secret, "note": "no room in /home/zoe/run",
        "versions": known.versions | {"hostname": "zoe-pc"},
    })  # fmt: skip
    (tmp_path / "own.jsonl").write_text(row.model_dump_json() + "\n")
    assert run("table", "import", str(tmp_path / "own.jsonl")).exit_code == 0
    found = run("table", "share")
    assert found.exit_code == 0 and "zoe" not in found.stdout and "1 row" in found.stderr
    assert (
        f"| {row.gpu} |" in found.stdout
        and f"| 5.00 GiB | {gib(row.needed_bytes or 0)} | FITS |" in found.stdout
    )
    issue = tmp_path / "issue.md"
    issue.write_text(f"Hello,\nthese are from my card:\n\n{found.stdout}\nGreetings\n")
    user_table_path().unlink()
    assert "1 row added" in run("table", "import", str(issue)).stderr
    (back,) = [one for one in read_table().rows if one.source == "user"]
    assert back.plan == known.plan and back.needed_bytes == row.needed_bytes
    assert back.versions == known.versions and back.forecast_bytes == row.forecast_bytes
    assert "0 rows added" in run("table", "import", str(issue)).stderr
    assert run("table", "share", str(tmp_path / "out.md")).exit_code == 0
    again = tmp_path / "out.md"
    assert again.read_text() == found.stdout, "a row is shared under one name"


def test_damaged_rows_are_told_and_stay_where_they_are(tmp_path: Path) -> None:
    row = read_table().row("lean-7b-b1").model_copy(update={"id": "user-x", "source": "user"})
    file = tmp_path / "theirs.jsonl"
    file.write_text("{broken\n" + row.model_dump_json() + "\n")
    found = run("table", "import", str(file))
    assert found.exit_code == 2 and "damaged" in found.stderr and "1 row added" in found.stderr
    with user_table_path().open("a") as table:
        table.write('{"id": 3}\n')
    listed = run("table", "--source", "user")
    assert listed.exit_code == 0 and "user-x" in listed.stdout and "damaged" in listed.stderr
    assert '{"id": 3}' in user_table_path().read_text()
    assert run("table", "import", str(tmp_path / "absent")).exit_code == 2


def test_check_is_one_line_and_an_exit_code(tmp_path: Path, rehearsals_here: None) -> None:
    path = tmp_path / "plan.json"
    path.write_text(tiny_plan(device="cuda", cached_encoders=["mask", "vision"]).to_json())
    fits = run("check", str(path), "--gpu", "RTX 3060 12GB")
    assert fits.exit_code == 0 and fits.stdout.startswith("FITS  tiny ")
    assert len(fits.stdout.splitlines()) == 1
    two = run("check", str(path), "--gpu", "2x RTX 3060 12GB")
    assert (two.exit_code, two.stdout) == (0, fits.stdout)
    assert "but the plan runs 1 process on a machine: --set processes=2 uses all" in two.stderr
    poor = run("check", str(path), "--gpu", "RTX 3060 12GB", "--ram", "2GiB")
    assert poor.exit_code == 1 and "host memory: " in poor.stdout
    short = run("forecast", str(path), "--vram", "8GiB", "--ram", "2GiB")
    assert short.exit_code == 1 and "1.00 GiB usable" in short.stdout
    small = run("check", str(path), "--vram", "0.6GiB")
    assert small.exit_code == 1 and small.stdout.startswith("OOM")
    assert run("check", str(path)).exit_code == 3, "no card is known"
    old = run("check", str(path), "--gpu", "T4", "--set", "dtype=bf16", "--set", "products=fp8")
    assert old.exit_code == 2 and "dtype=fp16" in old.stderr and "products=dtype" in old.stderr
    able = run("forecast", str(path), "--gpu", "T4", "--set", "dtype=bf16")
    assert able.exit_code == 0 and "note: dtype: Tesla T4 has no bf16" in able.stderr
    assert run("check", str(tmp_path / "absent.json"), "--vram", "8GiB").exit_code == 2


def test_a_plan_set_to_another_model_is_said_to_be_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.json").write_text(Plan(model="7b").to_json())
    told = {}
    for model in ("7b", "13b"):
        PlanOptions(plan=tmp_path / "plan.json", settings=[f"model={model}"]).chosen()
        told[model] = capsys.readouterr().err
    assert told["7b"] == "" and told["13b"].startswith("note: this plan is of 7b: ")


def test_check_names_all_cards_of_a_plan_and_refuses_too_few(
    tmp_path: Path, rehearsals_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    plan = tiny_plan(device="cuda", cached_encoders=["mask", "vision"], processes=4, nodes=2,
                     effective_batch=8, micro_batch=1)  # fmt: skip
    path.write_text(plan.to_json())
    each = run("check", str(path), "--gpu", "RTX 3060")
    assert each.exit_code == 0 and "RTX 3060 (8 GB) is assumed, the smallest" in each.stderr
    assert " on 2 x RTX 3060 (8 GB) in each of 2 machines: " in each.stdout
    assert "2 processes on a machine: 2 such cards are meant" in each.stderr
    assert (
        " on 2 x 8 GiB card in each of 2 machines: "
        in run("check", str(path), "--vram", "8GiB").stdout
    )
    few = run("check", str(path), "--gpu", "2x RTX 3060 12GB", "--set", "nodes=1")
    assert few.exit_code == 2 and "--gpu names 2 cards, but the plan runs 4 processes" in few.stderr
    monkeypatch.setattr("advisor.machine.probe.probe", lambda: MACHINE)
    here = run("check", str(path))
    assert here.exit_code == 2 and "this machine shows 1 usable GPU (got 2)" in here.stderr


def checks(machine: Machine, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> dict[str, Any]:
    monkeypatch.setattr(doctor, "_selftest", lambda device: HEALTHY | facts)
    return {check.name: check for check in examine(machine, offline=True)}


def test_a_healthy_machine_has_no_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_segments_tried", lambda: ("tried: it went well", True))
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=90 * GIB))
    found = checks(MACHINE, monkeypatch)
    assert {check.status for check in found.values()} == {"ok"}
    assert not any(check.remedy for check in found.values())
    assert "a training step of lisa-tiny on cuda" in found


@pytest.mark.parametrize(
    ("facts", "name", "status", "remedy"),
    [
        ({"torch_cuda": None}, "torch's CUDA", "fail", "install torch for CUDA"),
        ({"torch_cuda": "14.1"}, "torch's CUDA", "fail", "newer NVIDIA driver"),
        ({"cuda_available": False}, "torch sees the GPU", "fail", "CUDA_VISIBLE_DEVICES"),
        ({"bf16": False}, "bf16", "note", ""),
        ({"compiler": "needs Triton"}, "compiled layers", "note", "compile=false"),
        ({"error": "RuntimeError: kaput"}, "a training step of lisa-tiny on cuda", "fail",
         "--report"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named_with_its_remedy(
    facts: dict[str, Any], name: str, status: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "error" not in facts:  # one of them tries segments in a child process, for two seconds
        monkeypatch.setattr(doctor, "_segments_tried", lambda: ("failed", False))
    found = checks(MACHINE, monkeypatch, **facts)
    assert found[name].status == status and remedy in found[name].remedy
    assert "failed" in found["expandable segments"].found


def test_without_a_gpu_every_line_about_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks(MACHINE.model_copy(update={"gpus": ()}), monkeypatch, torch_cuda=None)
    for name in ("torch's CUDA", "bf16", "compiled layers"):
        assert found[name].status == "note" and found[name].found.startswith("no CUDA device: ")
    assert found["torch's CUDA"].found.endswith("torch is a CPU build")


def test_a_child_that_dies_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    found = {check.name: check for check in examine(MACHINE, offline=True)}
    assert found["libraries"].status == "fail"
    assert "ended with code 1" in found["a training step of lisa-tiny on cuda"].found


@pytest.mark.parametrize(("platform", "said"), [("linux", "CUDA 13.0"), ("windows", "plain pip")])
def test_a_cpu_build_of_torch_beside_a_gpu_is_the_first_finding(
    monkeypatch: pytest.MonkeyPatch, platform: str, said: str
) -> None:
    monkeypatch.setattr(doctor, "_selftest", lambda device: HEALTHY | {"torch_cuda": None})
    monkeypatch.setattr(doctor, "_segments_tried", lambda: ("tried", True))
    first = examine(MACHINE.model_copy(update={"platform": platform}), offline=True)[0]
    assert first.status == "fail" and first.found == "torch is a CPU build"
    assert "pytorch.org/get-started" in first.remedy and said in first.remedy


def test_the_doctor_ends_with_a_plain_answer() -> None:
    good, bad = (Check(name=name, status=name, found="") for name in ("ok", "fail"))
    assert answer(MACHINE, [good]).startswith("ready to train; lisa-advise says")
    assert answer(MACHINE, [bad, good]) == "not ready to train: fail"
    assert answer(Machine(), [good]).startswith("ready to train lisa-tiny alone")


def test_the_doctors_json_has_the_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_selftest", lambda device: HEALTHY)
    monkeypatch.setattr("advisor.machine.probe.probe", Machine)
    found = json.loads(run("doctor", "--offline", "--json").stdout)
    assert found["answer"].startswith("ready to train lisa-tiny alone")
    assert {check["name"] for check in found["checks"]} >= {"driver", "libraries"}


def test_the_report_names_no_folder_and_no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_selftest", lambda device: HEALTHY)
    text = report(MACHINE, examine(MACHINE, offline=True))
    assert text.startswith("```\n") and "Some card" in text and "torch 2.11.0" in text
    assert str(Path.home()) not in text and "GPU-a" not in text


def test_the_doctor_says_what_takes_seconds_before_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(doctor, "_selftest", lambda device: happened.append("step") or HEALTHY)
    monkeypatch.setattr(doctor, "_segments_tried", lambda: ("tried", True))
    monkeypatch.setattr(doctor, "_hub", lambda: happened.append("hub") or iter(()))
    examine(MACHINE, tell=happened.append)
    assert happened[1::2] == ["step", "hub"]
    assert "training step" in happened[0] and "model hub" in happened[2]
    happened.clear()
    examine(MACHINE, offline=True, tell=happened.append)
    assert happened[1:] == ["step"]
