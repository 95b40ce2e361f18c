"""The docs say what the code and the recorded runs say."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from advisor.advice import Advice
from advisor.cli.main import main as advise
from advisor.machine.gpu import Machine
from benchmarks.forked import run as forked
from profiles.models import models
from profiles.tested import read_table
from trainer.cli.train import main as train

ROOT = Path(__file__).parents[1]


def script(place: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the repository as a module, with its neighbours in reach."""
    path = ROOT / place
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def write_docs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("tools/write_docs.py", monkeypatch)


@pytest.fixture
def own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A writer's own table, that says a 7B took nearly nothing."""
    lines = (ROOT / "profiles" / "tested.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row |= {"id": f"user-{row['id']}", "source": "user", "contradicted_by": []}
        row |= {"peak_allocated_bytes": 2**30, "peak_reserved_bytes": 2**30, "verdict": "FITS"}
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    monkeypatch.setattr("profiles.tested.user_table_path", lambda: path)
    return path


def test_the_readme_says_what_was_measured(write_docs: ModuleType) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert write_docs.readme(page) == page
    # A number changed by hand is noticed.
    assert write_docs.readme(page.replace("| 3.8 |", "| 3.9 |")) == page
    assert len(page.splitlines()) <= 130, "what is more has a page in docs/"


# A number with a unit of time, memory or share: what a benchmark measures, and goes out of date.
FIGURE = re.compile(r"(?<![\w.])\d[\d.]*\s?(?:ms|s|GiB|MiB|KiB|%|times|seconds|samples/s)(?![\w/])")
NOT_MEASURED = {  # what may stand by hand, and why
    "docs/advice.md": {
        "95 %": "the quantile that margin_of takes",
        "3 %": "LEAST_MARGIN of advisor/machine/budget.py",
        "0.3 GiB": "the same", "85 %": "the share of host memory, advisor/machine/budget.py",
        "16 GiB": "what is assumed of a host, advisor/machine/budget.py", "93 %": "RUNG_SHARE",
    },
    "docs/cards.md": {"16 GiB": "what is assumed of a host"},
    "docs/forecast.md": {
        "1 MiB": "the allocator's rounding, and a constant of trainer/rehearse/memory_trace.py",
        "762 MiB": "HOPPER of advisor/machine/cuda_context.py", "0.74 GiB": "OTHERS, the same",
        "141 MiB": "of another's page, which is linked", "2.04 GiB": "LIBRARIES_BYTES",
        "32 MiB": "cuBLAS' own size", "1.4 %": "of another's page", "5.4 %": "of another's page",
        "15.3 %": "of another's page", "1.6 %": "of another's page", "16.7 %": "of another's page",
        "5 %": "which rows benchmarks/verdicts.py takes", "23.0 GiB": "caps of benchmarks/lean.py",
        "4.7 %": "UNKNOWN_CODE_DOUBT", "13.5 %": "the same",
        "8 s": "a target of benchmarks/forecast_time.py",
        "3 s": "a target", "3 GiB": "a target",
    },
    "docs/serving.md": {"120 s": "Limits of trainer/serve", "16 MiB": "the same",
                        "10 s": "the bound of benchmarks/serve_fuzz.py"},
    "docs/hostile-input.md": {
        "10 s": "the bound that make fuzz holds", "512 MiB": "the same", "2 GiB": "the same",
        "64 MiB": "LARGEST_FILE", "100 times": "a limit of trainer/data", "64 times": "a limit",
        "32 GiB": "what nine bytes ask of Python's own unpickler",
    },
    "docs/inference.md": {
        "95 %": "the interval's kind", "15 %": "asserted in tests/trainer/answer/test_results.py",
    },
    "docs/lean.md": {"3.4 GiB": "caps of benchmarks/lean.py"},
    "docs/models.md": {"200 times": "LONGEST of profiles/families/qwen3_sam2.py"},
    "docs/own-data.md": {"95 %": "the interval's kind"},
    "docs/recovery.md": {
        "93 %": "RUNG_SHARE",
        "6.0 GiB": "what benchmarks/recovery.py sets", "3 GiB": "the same",
    },
    "docs/several-gpus.md": {"600 s": "SECONDS of trainer/parallel/lost.py"},
    "docs/studio.md": {"95 %": "the interval's kind"},
}  # fmt: skip


def by_hand(page: str) -> str:
    """A page without what scripts write between marks, and without code."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    page = re.sub(r"`[^`\n]*`", "", page)
    for begin, end in ((r"(\w+): begin", r"\1: end"), (r"([^>:]+?)(?:: [^>]*)?", r"/\1")):
        page = re.sub(f"<!-- {begin} -->.*?<!-- {end} -->", "", page, flags=re.DOTALL)
    return page


def test_no_measured_figure_stands_by_hand() -> None:
    """Of a log of decisions each figure is of its day; all others come from rows, between marks."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for path in pages:
        place = path.relative_to(ROOT).as_posix()
        if place == "docs/decisions.md":
            continue
        found = set(FIGURE.findall(by_hand(path.read_text("utf-8"))))
        known = NOT_MEASURED.get(place, {}).keys()
        new = sorted(found - known)
        assert not new, f"{place}: {new}: write them by tools/figures.py, or say why not here"
        gone = sorted(known - found)
        assert not gone, f"{place}: {gone} are listed here, and gone"


def test_a_figure_by_hand_is_seen() -> None:
    page = "a\n<!-- x: begin -->\n3 s\n<!-- x: end -->\n`4 s`\n<!-- b/y.py --> 5 s <!-- /b/y.py -->"
    assert not FIGURE.search(by_hand(page))
    for text in ("took 7 to 10 s (one", "by 5–7 %:", "of 1.5 GiB,", "it was 2.9 times:", "30 ms"):
        assert FIGURE.search(by_hand(f"{page}\n{text}"))


def test_running_text_says_what_its_rows_say(write_docs: ModuleType) -> None:
    for place in write_docs.PAGES:
        page = (ROOT / place).read_text(encoding="utf-8")
        assert write_docs.with_figures(place, page) == page, place
    page = (ROOT / "docs/lean.md").read_text(encoding="utf-8")
    assert write_docs.with_figures("docs/lean.md", page.replace("490 ms", "480 ms")) == page


def test_the_lean_page_says_what_its_rows_say_and_what_is_advised(
    write_docs: ModuleType, own_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "lean.md").read_text(encoding="utf-8")
    assert write_docs.lean_page(page) == page
    assert any(row.source == "user" for row in read_table().rows), "which have no say in it"
    lean = script("benchmarks/lean.py", monkeypatch)
    for mark, lines in lean.doc_tables(lean.read_rows()).items():
        begin, end = f"<!-- {mark}: benchmarks/lean.py --table -->", f"<!-- /{mark} -->"
        assert "\n".join([begin, *lines, end]) in page
    assert "leaves that pair out" not in page


@pytest.mark.parametrize(("name", "write"), [
    ("emulate", "write_table"), ("recovery", "write_table"), ("forecast", "write_tables"),
    ("speed", "main"), ("crashes", "write_table"), ("races", "write_table"),
    ("faults", "write_table"), ("fuzz", "write_table"), ("rank_faults", "write_table"),
    ("two_machines", "write_table"), ("ranks", "write_table"), ("environments", "write_table"),
    ("routes", "write_table"),
])  # fmt: skip
def test_a_benchmarks_table_is_that_of_its_rows(
    name: str, write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is what profiles/ holds of them: forecasts' errors, and factors of a step's time."""
    benchmark = script(f"benchmarks/{name}.py", monkeypatch)
    made = {"DOCS": benchmark, "ERRORS_FILE": benchmark}
    if name == "speed":
        made["SPEED_FILE"] = benchmark.speed
    kept = {}
    for constant, owner in made.items():
        if path := getattr(owner, constant, None):
            copy = tmp_path / path.name
            copy.write_bytes(path.read_bytes())
            kept[copy] = path
            monkeypatch.setattr(owner, constant, copy)
    if write == "main":
        monkeypatch.setattr(sys, "argv", [name])
        benchmark.main()
        benchmark.speed.factors.cache_clear()
    else:
        rows = (ROOT / "benchmarks" / benchmark.ROWS_FILE.name).read_text("utf-8").splitlines()
        getattr(benchmark, write)([json.loads(line) for line in rows])
    assert len(kept) == {"forecast": 2, "speed": 2}.get(name, 1)
    for copy, path in kept.items():
        assert copy.read_text("utf-8") == path.read_text("utf-8"), path


def test_every_surface_and_every_disturbance_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz = script("benchmarks/fuzz.py", monkeypatch)
    faults = script("benchmarks/faults.py", monkeypatch)
    of_ranks = script("benchmarks/rank_faults.py", monkeypatch)
    for benchmark, key, known in (
        (fuzz, "name", [surface.name for surface in fuzz.SURFACES]),
        (faults, "kind", [*faults.DISTURBANCES, *of_ranks.DISTURBANCES]),
    ):
        lines = (ROOT / "benchmarks" / benchmark.ROWS_FILE.name).read_text("utf-8").splitlines()
        assert {json.loads(line)[key] for line in lines} == set(known)


@pytest.mark.slow
def test_the_cards_page_does_not_depend_on_the_writers_own_rows(
    own_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth card by memory: a rule that changes shows in all sizes."""
    cards = script("benchmarks/cards.py", monkeypatch)
    page = (ROOT / "docs" / "cards.md").read_text(encoding="utf-8")
    written = page.split(f"{cards.BEGIN}\n")[1].split(f"\n{cards.END}")[0].splitlines()
    lines = [line for line in written if " GB)" in line.split(" | ")[0]]
    titles = [f"| {cards.titled(card)}" for card in cards.cards()]
    assert [line.split(" | ")[0] for line in lines] == titles
    assert [cards.line(card) for card in cards.cards()[::4]] == lines[::4]
    assert "\n".join([cards.MEASURED, *cards.measured_lines()]) in page


def test_convert_lists_every_size_that_it_makes() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lisa-train"), "convert", "--help"],
        capture_output=True, text=True, timeout=60, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    sizes = [name for name in models() if name != "tiny"]
    assert sizes and all(name in done.stdout.split("Size to make:")[1] for name in sizes)


def test_the_pages_of_settings_and_words_are_up_to_date(write_docs: ModuleType) -> None:
    assert (ROOT / "docs" / "plan.md").read_text(encoding="utf-8") == write_docs.settings_page()
    assert (ROOT / "docs" / "words.md").read_text(encoding="utf-8") == write_docs.words_page()


def test_the_schema_is_that_of_the_advice(write_docs: ModuleType) -> None:
    """A changed field must change the schema, and its version where a reader would notice."""
    text = (ROOT / "docs" / "advice.schema.json").read_text(encoding="utf-8")
    assert text == write_docs.advice_schema()
    recipe = (ROOT / "docs" / "recipe.schema.json").read_text(encoding="utf-8")
    assert recipe == write_docs.recipe_schema()
    shown = json.loads(Advice(verdict="UNKNOWN", summary="", model="7b", machine=Machine())
                       .model_dump_json())  # fmt: skip
    assert shown.keys() == json.loads(text)["properties"].keys()


def test_the_tables_are_those_of_the_recorded_runs(write_docs: ModuleType) -> None:
    page = (ROOT / "docs" / "lisa-tiny.md").read_text(encoding="utf-8")
    assert write_docs.with_tables(page) == page


def test_a_missed_target_is_told(write_docs: ModuleType) -> None:
    row = {"giou_before": 0.1, "giou_after": 0.76}
    assert write_docs.reached(row)
    assert not write_docs.reached(row | {"giou_after": 0.74})
    assert not write_docs.reached(row | {"giou_before": 0.6})


def yaml_of_the_docs(number: int) -> Any:
    """A block of YAML in docs/advice.md."""
    page = (ROOT / "docs" / "advice.md").read_text(encoding="utf-8")
    return yaml.safe_load(page.split("```yaml\n")[number].split("```")[0])


def workflow_steps() -> list[str]:
    """What the workflow of the docs runs in a shell."""
    steps = yaml_of_the_docs(1)["jobs"]["plan"]["steps"]
    return [step["run"] for step in steps if "run" in step]


def test_the_hook_of_the_docs_is_one_that_pre_commit_takes_and_runs_the_workflows_check() -> None:
    """`python benchmarks/routes.py hook` installs and runs it, which takes minutes."""
    from pre_commit.clientlib import load_manifest

    (hook,) = load_manifest(ROOT / ".pre-commit-hooks.yaml")
    (repository,) = yaml_of_the_docs(2)
    (used,) = repository["hooks"]
    assert used["id"] == hook["id"] and hook["language"] == "python"
    assert shlex.join([*hook["entry"].split(), *used["args"]]).replace("'", '"') in workflow_steps()


def test_the_forms_ask_for_what_the_commands_print() -> None:
    """Rows would be no rows inside of a second block, in which `render` puts what is typed."""
    forms = {path.stem: yaml.safe_load(path.read_text("utf-8"))
             for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")}  # fmt: skip
    asked = {name: form["body"][0] for name, form in forms.items()}
    assert set(asked) == {"problem", "question", "rows"}
    for name, command in (("problem", "lisa-advise doctor --report"), ("rows", "table share")):
        assert command in asked[name]["attributes"]["label"] and asked[name]["validations"]
    assert "render" not in asked["rows"]["attributes"]


@pytest.mark.slow
@pytest.mark.usefixtures("rehearsals_here")
def test_the_workflow_of_the_docs_runs(tmp_path: Path) -> None:
    """Its own commands, in order, after installing; a plan is committed as a user would make it."""
    commands = [step for step in workflow_steps() if not step.startswith("pip ")]
    assert [command.split()[0] for command in commands] == ["lisa-advise"] + 2 * ["lisa-train"]
    saved = 'lisa-advise --gpu "RTX 3060 12GB" --model 7b --set weights=random --save plan.json'
    for command in (saved, *commands):

        def work(words: list[str]) -> None:
            os.chdir(tmp_path)
            sys.argv = words
            {"lisa-advise": advise, "lisa-train": train}[words[0]]()

        log = tmp_path / "log"
        code = forked(partial(work, shlex.split(command)), log)
        assert code == 0, (command, log.read_text())
    assert (tmp_path / "run" / "best" / "trained.safetensors").is_file()


def test_the_page_of_several_cards_says_what_the_forecast_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = script("benchmarks/several_cards.py", monkeypatch)
    page = (ROOT / "docs" / "several-gpus.md").read_text(encoding="utf-8")
    shipped = json.loads(made.EXCHANGE_FILE.read_text(encoding="utf-8"))
    assert shipped == made.measured(), "run benchmarks/several_cards.py"
    for name, lines in zip(made.NAMES, (made.forecast_table(), made.on_paper_table()), strict=True):
        begin, end = made.marks(name)
        written = "\n".join([begin, *lines, end])
        assert written in page, f"{name}: run benchmarks/several_cards.py"


def test_the_versions_page_says_what_was_run_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last tests with the outermost versions passed; the lowest are those of today's bounds."""
    made = script("benchmarks/versions.py", monkeypatch)
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    row, newest = made.last_row("lowest"), made.last_row("newest")
    for name, lines in (("runs", made.run_lines()), ("lowest", made.tested_lines(row)),
                        ("newest", made.tested_lines(newest))):  # fmt: skip
        begin, end = (mark.format(name) for mark in made.MARK)
        assert "\n".join([begin, *lines, end]) in page, "run benchmarks/versions.py --table"
    for one in made.requirements():
        (bound,) = one.specifier
        if one.name not in made.LARGE:
            assert f"{row['versions'][one.name]}.".startswith(f"{bound.version}."), one
    said = [*row["tests"].values(), *newest["tests"].values()]
    assert all(re.fullmatch(r"\d+ passed(, \d+ deselected)?", one) for one in said)


def test_the_page_of_fp8_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    made = script("benchmarks/fp8.py", monkeypatch)
    page = made.DOCS.read_text(encoding="utf-8")
    for name, lines in made.written_lines(made.all_rows()).items():
        begin, end = f"<!-- benchmarks/fp8.py {name} -->", f"<!-- /benchmarks/fp8.py {name} -->"
        assert "\n".join([begin, *lines, end]) in page, "run benchmarks/fp8.py table"
