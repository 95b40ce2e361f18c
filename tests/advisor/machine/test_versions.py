"""Libraries newer than every tested row are said, until a trial here has made a row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from advisor import doctor
from advisor.advice import Advice
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Gpu, Machine
from advisor.machine.target import Target
from advisor.machine.versions import newer_than_rows
from advisor.preflight import advise
from advisor.report.findings import smaller_pictures
from profiles.sizes import GIB
from profiles.tested import Table, TestedRow, shipped_table
from tests.conftest import PHOTOS
from trainer.cli.train import app

CARD = Gpu(index=0, name="Some card", total_bytes=12 * GIB, free_bytes=12 * GIB,
           compute_capability=(8, 6))  # fmt: skip
MACHINE = Machine(gpus=(CARD,), host_total_bytes=32 * GIB, host_available_bytes=28 * GIB)
TESTED = {"torch": "2.11.0+cu130", "transformers": "5.17.0", "bitsandbytes": "0.50.2"}
NEWER = TESTED | {"torch": "2.14.1+cu130", "bitsandbytes": "0.50.9"}  # a patch is no other version


def row(versions: Mapping[str, str]) -> TestedRow:
    """As a trial keeps it: with the versions that it ran with."""
    first = shipped_table().row("lean-7b-b1")
    return first.model_copy(update={"id": "mine", "source": "user", "versions": dict(versions)})


def said(advice: Advice) -> list[str]:
    return [str(one) for one in advice.findings if one.where == "versions"]


def test_only_newer_ones_are_named() -> None:
    rows = [row(TESTED), row({"torch": "unknown"}), row({})]
    assert newer_than_rows(NEWER, rows) == "torch 2.14.1 (rows: up to 2.11.0)"
    assert newer_than_rows(TESTED | {"torch": "2.9.0"}, rows) == ""
    assert newer_than_rows({"torch": "absent", "transformers": "6.0.0.dev0"}, rows) == (
        "transformers 6.0.0.dev0 (rows: up to 5.17.0)"
    )
    assert newer_than_rows({"torch": "2.100.0"}, [row({"torch": "2.99.0"})]) != ""
    assert newer_than_rows(NEWER, []) == ""


def test_the_advice_says_it_of_this_machine_until_a_trial_was_made_here() -> None:
    table = shipped_table()
    before = advise(MACHINE, "7b", evidence=Evidence(table, NEWER))
    assert len(said(before)) == 1 and "lisa-advise --measure" in said(before)[0]
    after = Table((*table.rows, row(NEWER)), ())
    assert not said(advise(MACHINE, "7b", evidence=Evidence(after, NEWER)))
    elsewhere = Target(vram_bytes=8 * GIB)
    assert not said(advise(MACHINE, "7b", (), elsewhere, evidence=Evidence(table, NEWER)))
    assert not said(advise(MACHINE, "7b", evidence=Evidence(table, TESTED)))


def test_a_training_with_advice_says_it_too_and_that_pictures_are_shrunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = advise(MACHINE, "7b", evidence=Evidence(shipped_table(), NEWER))
    shrunk = smaller_pictures(told.plan, 1024, False)
    # OOM, so that nothing is trained.
    told = told.model_copy(update={"verdict": "OOM", "findings": (*told.findings, shrunk)})
    monkeypatch.setattr("advisor.preflight.advise", lambda *_, **__: told)
    monkeypatch.setattr("advisor.machine.probe.probe", lambda: MACHINE)
    done = CliRunner().invoke(
        app, ["--auto", "--data-dir", str(PHOTOS), "--output-dir", str(tmp_path / "run")]
    )
    assert done.exit_code == 1
    assert "note: versions: newer here than in any tested row: torch 2.14.1" in done.output
    assert "note: pictures: no plan fits with pictures of up to 1024 tokens" in done.output


def test_the_doctor_says_it_where_there_is_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advisor.doctor.read_table", shipped_table)
    facts = {"versions": NEWER}
    (check,) = doctor._newer(MACHINE, facts)
    assert check.status == "note" and "torch 2.14.1" in check.found and "--measure" in check.remedy
    assert not list(doctor._newer(Machine(), facts))
    assert not list(doctor._newer(MACHINE, {"versions": TESTED}))
    assert not list(doctor._newer(MACHINE, {}))
