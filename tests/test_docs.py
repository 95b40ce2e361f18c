"""The docs say what the code and the recorded runs say."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from advisor.preflight import Advice
from advisor.probe import Machine

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def write_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "tools" / "write_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_page_is_up_to_date(write_docs: ModuleType) -> None:
    assert (ROOT / "docs" / "plan.md").read_text(encoding="utf-8") == write_docs.settings_page()


def test_the_schema_is_that_of_the_advice(write_docs: ModuleType) -> None:
    """A changed field must change the schema, and its version where a reader would notice."""
    text = (ROOT / "docs" / "advice.schema.json").read_text(encoding="utf-8")
    assert text == write_docs.advice_schema()
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


@pytest.mark.slow
def test_the_workflow_of_the_docs_runs(tmp_path: Path) -> None:
    """Its own commands, in order, after installing; a plan is committed as a user would make it."""
    page = (ROOT / "docs" / "advice.md").read_text(encoding="utf-8")
    workflow = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    steps = [step["run"] for step in workflow["jobs"]["plan"]["steps"] if "run" in step]
    commands = [step for step in steps if not step.startswith("pip ")]
    assert [command.split()[0] for command in commands] == ["lisa-advise"] + 2 * ["lisa-train"]
    saved = 'lisa-advise --gpu "RTX 3060 12GB" --model 7b --set weights=random --save plan.json'
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in (saved, *commands):
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=200,
            env=os.environ | {"PATH": path},
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert (tmp_path / "run" / "best" / "trained.safetensors").is_file()
