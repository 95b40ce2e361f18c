"""The advice depends on its arguments alone: what else it knows comes as evidence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.machine import cuda_context
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Gpu, Machine
from advisor.memory.card import card_for
from advisor.preflight import advise
from advisor.report.text import to_json
from profiles.sizes import GIB
from profiles.tested import read_table

ROOT = Path(__file__).parents[2]
CARD = Gpu(index=0, uuid="GPU-a", name="Some card", total_bytes=12 * GIB, free_bytes=12 * GIB,
           compute_capability=(8, 6))  # fmt: skip
MACHINE = Machine(gpus=(CARD,), host_total_bytes=32 * GIB, host_available_bytes=28 * GIB)
# Prints the advice for several questions, and the audited files that were opened for it.
ASK = """
import sys
from advisor.machine.evidence import Evidence
from advisor.machine.gpu import Machine
from advisor.memory.card import card_for
from advisor.preflight import advise
from advisor.machine.target import Target
from advisor.report.text import to_json
machine = Machine.model_validate_json(sys.argv[1])
for model, target in ((None, None), ("7b", None), ("13b", Target(vram_bytes=6 << 30)),
                      ("qwen3-vl-2b", None), ("tiny", None)):
    print(to_json(advise(machine, model, (), target, evidence=Evidence.shipped())))
"""


def fill(home: Path) -> dict[str, str]:
    """A home with rows, a measured context, and a shell with settings that the CLI heeds."""
    row = read_table(Path("/nonexistent")).row("lean-7b-b1")
    small = row.model_copy(update={"id": "mine", "source": "user", "peak_reserved_bytes": GIB,
                                   "forecast_bytes": GIB // 2, "gpu": CARD.name})  # fmt: skip
    (home / "data" / "lisa-preflight").mkdir(parents=True)
    (home / "data" / "lisa-preflight" / "tested.jsonl").write_text(small.model_dump_json() + "\n")
    key = cuda_context.key_of(CARD, MACHINE, cuda_context.library_versions())
    contexts = home / "cache" / "lisa-preflight" / "contexts"
    contexts.mkdir(parents=True)
    (contexts / f"{key}.json").write_text(json.dumps([2 * GIB, GIB]))
    return {"XDG_DATA_HOME": str(home / "data"), "XDG_CACHE_HOME": str(home / "cache"),
            "PYTORCH_ALLOC_CONF": "max_split_size_mb:128", "LISA_SKIP_BROKEN": "7"}  # fmt: skip


def test_the_same_question_with_shipped_evidence_has_the_same_answer(tmp_path: Path) -> None:
    full, empty = fill(tmp_path / "full"), tmp_path / "empty"
    (tmp_path / "elsewhere").mkdir()
    empty.mkdir()
    kept = {k: v for k, v in os.environ.items() if k not in full} | {"PYTHONPATH": str(ROOT)}
    bare = {"XDG_DATA_HOME": str(empty), "XDG_CACHE_HOME": str(empty), "HOME": "/nonexistent"}
    answers = [
        subprocess.run(
            [sys.executable, "-P", "-c", ASK, MACHINE.model_dump_json()], cwd=cwd,
            env=kept | environment, capture_output=True, text=True, check=True, timeout=120,
        ).stdout
        for cwd, environment in ((ROOT, full), (tmp_path / "elsewhere", bare))
    ]  # fmt: skip
    assert answers[0] == answers[1] and answers[0].count('"verdict"') > 5
    assert list(empty.iterdir()) == [], "nothing is written either"


def test_what_this_machine_knows_changes_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the test above would fail if the advice read it by itself."""
    for name, value in fill(tmp_path).items():
        monkeypatch.setenv(name, value)
    shipped = advise(MACHINE, "7b", data=Path("DIR"), evidence=Evidence.shipped())
    here = advise(MACHINE, "7b", data=Path("DIR"), evidence=Evidence.here())
    assert shipped.budget and here.budget and shipped.command and here.command
    assert here.budget.context.basis == "measured" and here.budget.context.bytes == 3 * GIB
    assert shipped.budget.context.basis == "policy"
    known, also_own = (
        int(re.findall(r"of (\d+) rows", one.budget.margin.source)[0]) for one in (shipped, here)
    )
    assert also_own == known + 1
    assert "max_split_size_mb" in to_json(here) and "max_split_size_mb" not in to_json(shipped)
    assert "--skip-broken 7" in here.command and "--skip-broken" not in shipped.command
    assert len(Evidence.here().own_rows) == 1 and Evidence.shipped().own_rows == ()
    assert to_json(advise(MACHINE, "7b", data=Path("DIR"))) == to_json(shipped), "the default"


def test_a_forecast_keeps_the_margin_that_the_advice_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own rows say how far off forecasts were on this card, to both."""
    for name, value in fill(tmp_path).items():
        monkeypatch.setenv(name, value)
    table = tmp_path / "data" / "lisa-preflight" / "tested.jsonl"
    row = json.loads(table.read_text()) | {"forecast_bytes": round(0.9 * GIB)}
    table.write_text("".join(json.dumps(row | {"id": f"mine-{n}"}) + "\n" for n in range(25)))
    advice = advise(MACHINE, "7b", evidence=Evidence.here())
    assert advice.budget and advice.budget.margin.bytes == card_for(MACHINE).margin_bytes
    assert card_for(MACHINE).margin_bytes == pytest.approx(1.2 * GIB, rel=0.01), "a tenth of 12 GiB"
