"""lisa-advise from outside: exit codes, a clean stdout, and text that starts with the answer."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from advisor.cli.main import app
from profiles.plan import Plan
from tests.advisor import fake_nvml
from tests.advisor.fake_nvml import Card, install


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    """No GPU, an empty user data folder and a plain 80-column terminal."""
    install(monkeypatch, init_error=fake_nvml.NVMLError_LibraryNotFound("not found"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


def _run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), prog_name="lisa-advise")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 0, "FITS"),
        (("--vram", "8GiB"), 0, "FITS"),
        (("--vram", "8192 MiB", "--model", "7b"), 0, "FITS"),
        (("--vram", "3.5GiB", "--model", "7b"), 0, "TIGHT"),
        (("--vram", "1.5GiB", "--model", "7b"), 1, "OOM"),
        (("--model", "7b"), 3, "UNKNOWN"),
        (("--gpu", "rtx3060 12gb"), 0, "FITS  sa2va-qwen3-vl-4b on RTX 3060 (12 GB)"),
        (("--gpu", "rtx3060 12gb", "--model", "7b"), 0, "FITS  7b on RTX 3060 (12 GB)"),
        (("--gpu", "RTX 3060", "--os", "windows", "--no-quantization"), 0, "FITS"),
        (("--gpu", "RTX 3060", "--no-quantization", "--model", "7b"), 1, "OOM"),
        (("--gpu", "RTX 3060", "--no-quantization", "--ram", "32GiB", "--model", "7b"), 0, "FITS"),
        (("--vram", "8GiB", "--prefer", "precision"), 0, "FITS"),
        (
            ("--vram", "8GiB", "--no-quantization", "--set", "host_layers=0", "--model", "7b"),
            1,
            "OOM",
        ),
    ],
)
def test_the_answer_comes_first_and_sets_the_exit_code(arguments, code, words):
    result = _run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout.splitlines()[0].startswith(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "8b"), "unknown model '8b'"),
        (("--model", "LISA-7B"), "did you mean '7b-v1'?"),
        (("--model", "Qwen/Qwen3-VL-4B-Instruct"), "did you mean 'qwen3-vl-4b'?"),
        (("--recipe", "ds_config.json"), "DeepSpeed has no part here"),
        (("--ram", "32GiB"), "--ram needs --vram or --gpu"),
        (("--vram", "8GiB", "--prefer", "beauty"), "usual"),
        (("--set", "mikro_batch=2"), "did you mean micro_batch?"),
        (("--set", "micro_batch"), "must read key=value"),
        (("--set", "dtype=fp16"), "fp16 training needs a GPU"),
        (("--vram", "8192"), "did you mean 8192MiB?"),
        (("--vram", "8", "--ram", "8192"), "did you mean 8192MiB?"),
        (("--vram", "-8GiB"), "vram"),
        (("--vram", "0GiB"), "more than 0"),
        (("--vram", "nanGiB"), "vram"),
        (("--vram", "9" * 400 + "GiB"), "at most"),
        (("--mdl", "7b"), "--model"),
        (("--gpu", "RTX 4600"), "did you mean RTX 4060?"),
        (("--gpu", "M2 Max"), "--vram SIZE, such as 8GiB, gives the memory side"),
        (("--no-quantization", "--set", "quantization=nf4"), "give it once"),
        (("--model", "7B"), "did you mean '7b'"),
        (("table", "--source", "foo"), "known: seed, measured, user"),
        (("--gpu", "RTX 3060 24GB"), "no such card is sold with 24 GB"),
        (("--gpu", "T4", "--vram", "8GiB"), "give one of them"),
        (("--vram", "8GiB", "--os", "beos"), "give linux or windows"),
        (("--os", "windows"), "needs --vram or --gpu"),
        (("--lora-r", "0"), "lora-r"),
        (("--data-dir", "absent"), "no such folder"),
        (("--data-dir", "."), "needed: ReasonSeg/train, ReasonSeg/val or"),
        (("--measure", "--vram", "8GiB"), "--emulate-vram"),
        (("--emulate-vram", "8GiB"), "has no GPU"),
        (("--save", "no/such/folder/plan.json"), "cannot be written"),
    ],
)
def test_bad_usage_is_exit_2_on_stderr_without_a_traceback(arguments, words):
    result = _run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert words in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [(), ("--vram", "8GiB"), ("--model", "7b")])
def test_json_is_one_document_and_nothing_else(arguments):
    result = _run(*arguments, "--json")
    document = json.loads(result.stdout)
    assert document["schema_version"] == 2
    assert document["verdict"] in {"FITS", "UNKNOWN"}
    assert result.stdout.isascii()


def test_json_keeps_warnings_on_stderr(tmp_path):
    table = tmp_path / "data" / "lisa-preflight" / "tested.jsonl"
    table.parent.mkdir(parents=True)
    table.write_text("{broken\n")
    result = _run("--json")
    assert "damaged row" in result.stderr
    assert any("damaged row" in f["what"] for f in json.loads(result.stdout)["findings"])


def test_save_writes_the_plan_and_the_command_uses_it(tmp_path):
    result = _run("--vram", "8GiB", "--model", "7b", "--save", "my plan.json")
    assert "lisa-train --plan 'my plan.json' --weights FOLDER --data-dir DIR" in result.stdout
    plan = Plan.read(tmp_path / "my plan.json")
    assert (plan.model, plan.effective_batch) == ("7b", 20)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["my plan.json"]


@pytest.mark.parametrize(
    "command",
    [
        ("--vram", "8GiB", "--save", "out.json"),
        ("--vram", "8GiB", "--plot", "out.png"),
        ("--svg", "out.svg"),
        ("report", "out.html", "--vram", "8GiB"),
        ("table", "export", "out.jsonl"),
        ("table", "share", "out.md"),
    ],
)
def test_no_file_of_another_is_replaced(tmp_path, command):
    file = tmp_path / next(word for word in command if word.startswith("out."))
    file.write_text('{"mine": 1}\n')
    refused = _run(*command)
    assert refused.exit_code == 2 and file.read_text() == '{"mine": 1}\n'
    assert f"{file.name}: exists and is not a" in refused.stderr
    assert "move or delete it, or name another" in refused.stderr
    file.unlink()
    file.symlink_to("/dev/null")
    assert _run(*command).exit_code == 2 and file.is_symlink()
    file.unlink()
    file.touch()  # as mktemp makes it
    if command[0] not in ("report", "table") and "--plot" not in command:  # these take seconds
        assert _run(*command).exit_code == _run(*command).exit_code == 0 < file.stat().st_size


@pytest.mark.parametrize("record", ["run.json", "advice.json", "trained.safetensors"])
def test_a_run_keeps_its_own_plan(tmp_path, record):
    """It is a plan, which --save would replace, and what --resume goes by."""
    plan = tmp_path / "plan.json"
    assert _run("--vram", "8", "--model", "tiny", "--save", str(plan)).exit_code == 0
    (tmp_path / record).touch()
    kept = plan.read_bytes()
    refused = _run("--vram", "8GiB", "--model", "7b", "--save", str(plan))
    assert refused.exit_code == 2 and "belongs to a run or an export" in refused.stderr
    assert plan.read_bytes() == kept


@pytest.mark.parametrize(
    ("name", "meant", "others"),
    [
        ("3060", "RTX 3060 (8 GB)", "rtx-3060-12gb"),
        ("2x RTX 3060", "RTX 3060 (8 GB)", "rtx-3060-12gb"),
        ("H100", "H100 PCIe (80 GB)", "h100-sxm-80gb or h100-nvl-94gb"),
        ("A100 80GB", "A100 80GB PCIe (80 GB)", "a100-sxm4-80gb"),
    ],
)
def test_the_first_screen_says_which_card_an_open_name_is_taken_for(name, meant, others):
    screen = " ".join(_run("--gpu", name, "--model", "tiny").stdout.split())
    assert f"card {meant} is assumed, the smallest of that name; else --gpu {others} " in screen
    for key in others.split(" or "):
        assert " card " not in _run("--gpu", key, "--model", "tiny").stdout.replace("\n", " ")


def test_a_large_model_s_first_note_is_what_else_the_name_may_mean():
    document = json.loads(_run("--gpu", "3060", "--model", "7b", "--json").stdout)
    note = document["findings"][0]  # first, as all else depends on the size
    other = _run(*shlex.split(note["fix"]), "--model", "7b", "--json")
    assert other.exit_code == 0
    assert "RTX 3060 (12 GB)" in json.loads(other.stdout)["summary"]
    assert _run("--gpu", "3060", "--model", "7b").stdout.count("rtx-3060-12gb") == 1


def _but_for_memory(text: str) -> str:
    """An answer without this machine's free memory, which changes from moment to moment."""
    return re.sub(r'"host_available_bytes": \d+', "", text)


@pytest.mark.parametrize("form", [(), ("--json",), ("--why",)])
def test_several_cards_are_named_with_the_card_or_beside_it(form):
    named = _run("--gpu", "2x RTX 3090", *form)
    beside = _run("--gpu", "RTX 3090", "--gpus", "2", *form)
    plainly = _run("--gpu", "RTX 3090", "--set", "processes=2", *form)
    assert named.exit_code == 0 and "2 x RTX 3090" in named.stdout
    for other in (beside, plainly):
        assert _but_for_memory(other.stdout) == _but_for_memory(named.stdout)
    more = _run("--gpu", "2x RTX 3090", "--nodes", "2", "--json")
    plan = json.loads(more.stdout)["plan"]
    assert (plan["processes"], plan["nodes"]) == (4, 2)


def test_cards_that_contradict_each_other_or_are_not_there_are_refused():
    apart = _run("--gpu", "2x RTX 3090", "--gpus", "3")
    assert apart.exit_code == 2 and "got 3, and --gpu names 2 cards" in apart.stderr
    twice = _run("--gpus", "2", "--set", "processes=4")
    assert twice.exit_code == 2 and "give it once" in twice.stderr
    assert _run("--gpus", "0", "--vram", "8GiB").exit_code == 2
    absent = _run("--gpus", "2")
    assert absent.exit_code == 2 and "shows no usable GPU" in absent.stderr


def test_machines_without_a_number_of_cards_are_said_to_have_one_each():
    alone = _run("--gpu", "RTX 3090", "--nodes", "2")
    assert alone.stderr == "note: --nodes 2 without --gpus: one card in each is assumed\n"
    assert "RTX 3090 (24 GB) in each of 2 machines" in alone.stdout
    for said in (("--gpus", "2"), ("--set", "processes=4")):
        two = _run("--gpu", "RTX 3090", "--nodes", "2", *said)
        assert not two.stderr and "2 x RTX 3090 (24 GB) in each of 2 machines" in two.stdout
    assert not _run("--gpu", "2x RTX 3090", "--nodes", "2").stderr


def test_weights_are_named_or_a_folder_that_is_there(tmp_path):
    asked = ("--model", "7b", "--vram", "8GiB", "--save", "plan.json", "--weights")
    (tmp_path / "some weights").mkdir()
    for weights in ("random", "some weights"):
        result = _run(*asked, weights)
        assert result.exit_code == 0 and "FOLDER" not in result.stdout
        assert Plan.read(tmp_path / "plan.json").weights == weights
    (tmp_path / "plan.json").unlink()
    result = _run(*asked, "nowhere")
    assert result.exit_code == 2 and not (tmp_path / "plan.json").exists()
    assert "weights: no such folder (got nowhere)\n    hint: name a folder that" in result.stderr
    assert "give it once" in _run(*asked, "random", "--set", "weights=x").stderr


def test_a_plan_that_does_not_fit_is_not_saved(tmp_path):
    result = _run("--vram", "1.5GiB", "--model", "7b", "--save", "plan.json")
    assert result.exit_code == 1
    assert not (tmp_path / "plan.json").exists()
    assert "not saved: OOM" in result.stderr


def test_the_command_is_never_wrapped():
    # Nor joined by `&&`, which Windows PowerShell 5 does not know.
    lines = _run("--vram", "8GiB", "--model", "7b", "--set", "seed=3").stdout.splitlines()
    first = lines.index("  lisa-advise --model 7b --set seed=3 --vram 8GiB --save plan.json")
    assert "  lisa-train --plan plan.json --weights FOLDER --data-dir DIR" in lines
    assert all(len(line) <= 80 for line in lines if not line.startswith("  lisa-"))
    assert first == 3 and lines[2].startswith("  lisa-train convert ")


def test_a_real_card_is_named(monkeypatch):
    install(monkeypatch, Card(name="Card [bold] with markup"))
    result = _run("--model", "7b")
    assert result.exit_code == 0
    assert "Card [bold] with markup" in result.stdout
    assert "lisa-train --auto --model 7b --weights FOLDER --data-dir DIR" in result.stdout


def test_no_colour_when_it_is_not_wanted_or_no_terminal():
    assert "\x1b" not in _run().stdout


def test_svg(tmp_path):
    assert _run("--svg", "picture.svg").exit_code == 0
    assert (tmp_path / "picture.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_folder_that_cannot_be_written_is_told_from_one_that_is_absent(monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    result = _run("--save", "plan.json")
    assert result.exit_code == 2 and "no right to write into ." in result.stderr


def test_an_interrupt_is_exit_130(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("advisor.machine.probe.probe", interrupted)
    assert _run().exit_code == 130


@pytest.mark.parametrize("option", [("--vram",), ("--emulate-vram",), ("--gpu", "T4", "--ram")])
def test_a_number_without_a_unit_is_gib_and_said_to_be(option):
    result = _run(*option, "8")
    assert "note: 8 is read as 8 GiB" in result.stderr
    assert "note" not in _run(*option, "8GiB").stderr


COUNTED = """
import json, runpy, sys
children, calls = [], [0]

def started(event, _):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec"):
        children.append(event)

def called(frame, event, _):
    calls[0] += event == "call"

sys.addaudithook(started)
sys.setprofile(called)
try:
    runpy.run_module("advisor.cli", run_name="__main__", alter_sys=True)
finally:
    sys.setprofile(None)
    print(json.dumps([len(sys.modules), calls[0], children]), file=sys.stderr)
"""


# What takes the time, counted: on a busy machine seconds say nothing (benchmarks/startup.py).
@pytest.mark.parametrize(
    ("arguments", "most_modules", "most_calls"),
    [(("--help",), 500, 300_000), (("--vram", "8GiB"), 600, 1_200_000)],
)  # fmt: skip
def test_help_and_an_answer_from_the_table_are_cheap(arguments, most_modules, most_calls):
    """When written: 364 modules and 197 000 calls, 459 and 811 000."""
    command = [sys.executable, "-c", COUNTED, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    modules, calls, children = json.loads(done.stderr.splitlines()[-1])
    assert modules < most_modules and calls < most_calls and not children


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize(("size", "code"), [("8GiB", 0), ("1.5GiB", 1)])
def test_a_reader_that_has_gone_does_not_change_the_answer(form, size, code):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "advisor.cli", "--model", "7b", "--vram", size, *form]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
