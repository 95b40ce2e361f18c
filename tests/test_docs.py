"""The docs say what the code and the recorded runs say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

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
