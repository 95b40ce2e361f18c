"""What a run folder says on the page, while it trains and afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from advisor.machine.gpu import Machine
from advisor.memory.forecast import Forecast, Tier
from profiles.files import held
from profiles.shortage import Shortage
from studio import forecasts
from studio.app import create_app
from studio.processes import Processes
from studio.records import records
from tests.conftest import tiny_plan
from tests.studio.conftest import HERE, Page
from trainer.run.started import Started

RUN = "work/runs/first"


def step(number: int, loss: float = 2.0) -> str:
    row = {"loss": loss, "step": number, "epoch": 1, "memory_bytes": 1 << 30, "step_seconds": 0.1}
    return json.dumps(row) + "\n"


@pytest.fixture
def folder(page: Page) -> Path:
    """A run folder with two steps and an evaluation."""
    run = page.home / "runs" / "first"
    (run / "last").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "plan.json").write_text(tiny_plan().to_json())
    judged = {"evaluation": "before training", "step": 0, "giou": 0.25, "ciou": 0.5, "images": 3}
    (run / "metrics.jsonl").write_text(json.dumps(judged) + "\n" + step(1) + step(2))
    return run


def test_only_new_records_are_sent(page: Page, folder: Path) -> None:
    first = page.ask("run", run=RUN)
    assert [one["step"] for one in first["steps"]] == [1, 2]
    assert [one["giou"] for one in first["evaluations"]] == [0.25] and not first["anew"]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(step(3) + '{"loss": 1.0, "st')  # half written
    second = page.ask("run", run=RUN, at=first["at"])
    assert [one["step"] for one in second["steps"]] == [3] and not second["evaluations"]
    assert page.ask("run", run=RUN, at=second["at"])["steps"] == []
    (folder / "metrics.jsonl").write_text(step(1))  # resumed from an earlier checkpoint
    third = page.ask("run", run=RUN, at=second["at"])
    assert third["anew"] and [one["step"] for one in third["steps"]] == [1]


def test_damaged_records_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"loss": NaN, "step": 1}\n\xff\n[1]\n' + b"[" * 9999 + b"\n" + step(2).encode()
    )
    rows, at, anew = records(path, 0)
    assert rows[0] == {"step": 1} and rows[1]["step"] == 2 and len(rows) == 2
    assert at == path.stat().st_size and not anew
    assert records(tmp_path / "none", 5) == ([], 0, True)


def test_the_state_is_said_in_words(page: Page, folder: Path) -> None:
    def told() -> dict[str, Any]:
        found: dict[str, Any] = page.ask("run", run=RUN)
        return found

    assert told()["state"] == "stopped" and "resume continues it" in told()["words"]
    with held(folder):
        assert told()["state"] == "training" and "process" in told()["words"]
    logs = page.home / ".lisa-studio"
    logs.mkdir()
    (logs / "runs~first.log").write_text("step 2\nerror: the disk is full\n    hint: make room\n")
    assert told()["state"] == "failed"
    assert told()["words"].startswith("error: the disk is full hint: make room")
    (folder / "overlay.png").write_bytes(b"")
    summary = {"before": {"giou": 0.1}, "after": {}, "epochs": 3, "steps": 2, "seconds": 5.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert told()["state"] == "complete" and told()["before"] == 0.1


def test_an_out_of_memory_error_is_said_in_words(page: Page, folder: Path) -> None:
    place = folder / "out-of-memory" / "001"
    place.mkdir(parents=True)
    short = Shortage(plan=tiny_plan(), phase="training", step=7, error="CUDA out of memory",
                     reserved_bytes=3 << 30, limit_bytes=4 << 30)  # fmt: skip
    (place / "shortage.json").write_text(short.model_dump_json())
    (first,) = page.ask("run", run=RUN)["happened"]
    assert "while training, after step 7 with 3.00 GiB in its pool of 4.00 GiB" in first
    assert first.endswith("Resume continues with a smaller plan.")
    answer = {"levers": "nf4 base, micro-batch 1", "because": "it takes 2 GiB less"}
    (place / "answer.json").write_text(json.dumps(answer))
    (second,) = page.ask("run", run=RUN)["happened"]
    assert second.endswith("Went on with nf4 base, micro-batch 1: it takes 2 GiB less.")


def test_the_forecast_is_drawn_beside_what_is_measured(page: Page, folder: Path) -> None:
    told = page.ask("run", run=RUN)
    assert told["forecast"] is None and not told["on_card"]
    plan = json.loads(tiny_plan().to_json())
    advice = {"needs": {"bytes": 5 << 30}, "budget": {"usable": {"bytes": 7 << 30}}, "plan": plan}
    (folder / "advice.json").write_text(json.dumps(advice))
    assert page.ask("run", run=RUN)["forecast"] == {"needs": 5 << 30, "usable": 7 << 30}
    assert page.ask("run", run=RUN)["steps"][0]["memory_bytes"] == 1 << 30
    # It went on with a smaller plan after it ran out of memory.
    (folder / "plan.json").write_text(tiny_plan(micro_batch=1, device="cuda").to_json())
    told = page.ask("run", run=RUN)
    assert told["forecast"] is None and told["on_card"]


def test_a_plan_without_advice_is_forecast_when_asked(
    page: Page, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def live_forecast(machine: Machine, target: None, data: Path | None, tell: object) -> Any:
        assert machine == Machine()
        asked.append(data)
        return lambda plan, text_tokens: found

    asked: list[Path | None] = []
    monkeypatch.setattr(forecasts, "probe", Machine)
    monkeypatch.setattr(forecasts, "live_forecast", live_forecast)
    assert "on a card alone" in page.error("forecast", run=RUN)
    plan = tiny_plan(device="cuda")
    (folder / "plan.json").write_text(plan.to_json())
    pool = Tier(name="pool", bytes=3 << 30, source="replayed")
    found = Forecast(plan=plan, verdict="UNKNOWN", reason="not covered",
                     compute_capability=(8, 6), text_tokens=64, masks=1, tiers=(pool,))  # fmt: skip
    told = page.ask("forecast", run=RUN)
    assert told == {"needs": 3 << 30, "usable": None, "plan": page.ask("run", run=RUN)["hash"]}
    Started(page.home / "photos", page.home, {}).write(folder)
    page.ask("forecast", run=RUN)
    Started(page.home.parent, page.home, {}).write(folder)  # data that the page does not see
    page.ask("forecast", run=RUN)
    assert asked == [None, page.home / "photos", None]
    found = found.model_copy(update={"tiers": ()})
    assert page.error("forecast", run=RUN) == "not covered"


def test_scores_come_with_their_interval_and_pictures(page: Page, folder: Path) -> None:
    scored = folder / "evaluation-test"
    scored.mkdir()
    whole = {"giou": 0.5, "ciou": 0.6, "images": 9, "giou_95": [0.4, 0.6]}
    document = {"split": "test", "data": "/elsewhere/street", "all": whole}
    (scored / "scores.json").write_text(json.dumps(document))
    (scored / "extremes.png").write_bytes(b"")
    told = page.ask("run", run=RUN)
    assert told["scores"][0]["giou_95"] == [0.4, 0.6] and told["scores"][0]["split"] == "test"
    assert told["scores"][0]["data"] == "street"
    assert told["pictures"] == [f"{RUN}/evaluation-test/extremes.png"]
    assert [one["run"] for one in page.ask("runs")["runs"]] == [RUN]


def score(run: Path, ious: list[float], **facts: str) -> None:
    """Write what `lisa-train evaluate` writes about pictures of these IoUs."""
    folder = run / "evaluation-val"
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"giou": 0.5, "images": len(ious)}
    document = {"split": "val", "answers": "teacher-forced", "all": whole, **facts}
    (folder / "scores.json").write_text(json.dumps(document))
    rows = [json.dumps({"name": f"p{number}", "iou": iou}) for number, iou in enumerate(ious)]
    (folder / "images.jsonl").write_text("\n".join(reversed(rows)) + "\n")


def test_runs_are_compared_picture_by_picture(page: Page, folder: Path) -> None:
    def compared(ious: list[float], **facts: str) -> str:
        score(folder.parent / "second", ious, **facts)
        told = page.ask("compare", runs=[RUN, "work/runs/second"])["differences"]
        return str(told[0]) if told else ""

    # Far apart from picture to picture, and still one is better than the other on each.
    base = np.linspace(0, 0.9, 40)
    score(folder, (base + np.tile([0.05, 0.06], 20)).tolist())
    clear = "val: first is better than second: gIoU +0.055 (95 % interval +0.054 to +0.057, "
    clear += "40 questions)"
    assert compared(base.tolist()) == clear
    unclear = compared(base[::-1].tolist())
    assert unclear.startswith("val: too close to call: first has gIoU +0.055 against second (95")
    assert unclear.endswith("the other run could be ahead")
    assert compared([0.1, 0.2]).endswith("were scored on different questions")
    assert compared(base.tolist(), answers="generated") == ""  # nothing to compare it with
    assert compared(base.tolist(), data="/a/street") == ""
    assert compared([float("nan")] * 40).endswith("different questions")
    (folder / "evaluation-val" / "images.jsonl").write_text("[" * 9999)
    assert compared(base.tolist()).endswith("different questions")
    score(folder, [0.5])
    assert compared([0.25]) == (
        "val: first has gIoU +0.250 against second; 1 question cannot tell which is better"
    )


def test_a_run_that_may_not_be_written_into_is_scored_beside(
    page: Page, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "second"
    shutil.copytree(folder, other)
    started: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(Processes, "start", lambda _, *asked: started.append(asked))
    with TestClient(create_app([page.home, other.parent]), base_url=HERE) as client:
        both = Page(client, page.home)
        for run in ("other/second", RUN):
            both.ask("evaluate", run=run, data="work/photos")
        scored, inside = [target for target, _ in started]
        assert inside == folder / "evaluation-val"
        assert scored == page.home / "evaluations" / "other" / "second" / "evaluation-val"
        assert started[0][1] == [
            "evaluate", str(other), f"--data-dir={page.home}/photos", "--split=val",
            f"--out={scored}",
        ]  # fmt: skip
        scored.mkdir(parents=True)
        (scored / "scores.json").write_text(json.dumps({"split": "val", "all": {"giou": 0.5}}))
        (scored / "extremes.png").write_bytes(b"")
        told = both.ask("run", run="other/second")
        assert [one["giou"] for one in told["scores"]] == [0.5]
        place = "work/evaluations/other/second/evaluation-val/extremes.png"
        assert told["pictures"] == [place]
        assert not both.ask("run", run=RUN)["scores"]
    assert not list(other.glob("evaluation-*"))


def test_a_run_that_a_link_leads_out_of_is_none(page: Page, folder: Path) -> None:
    (folder / "summary.json").symlink_to("/etc/passwd")
    assert "leads out" in page.error("run", run=RUN)
    assert page.ask("runs")["runs"] == []
    (folder / "summary.json").unlink()
    away = page.home.parent / "runs"
    folder.parent.rename(away)
    folder.parent.symlink_to(away)
    assert page.ask("runs")["runs"] == []


@pytest.mark.parametrize("bad", ["NaN", "1e999", "1" + "0" * 400, '"x"', "[]", "{}", '"\\ud800"'])
def test_files_of_a_stranger_make_no_defect(page: Page, folder: Path, bad: str) -> None:
    place = folder / "out-of-memory" / "001"
    place.mkdir(parents=True)
    short = Shortage(plan=tiny_plan(), phase="training", step=7, error="CUDA out of memory")
    files = {
        "out-of-memory/001/shortage.json": short.model_dump_json(),
        "out-of-memory/001/answer.json": '{"levers": BAD, "because": BAD}',
        "evaluation-val/scores.json": '{"split": BAD, "all": {"giou": BAD, "giou_95": BAD}}',
        "evaluation-test/scores.json": '{"all": {"giou_95": [BAD]}}',
        "advice.json": '{"needs": {"bytes": BAD}, "budget": {"usable": BAD}, "plan": BAD}',
        "summary.json": '{"before": {"giou": BAD}, "seconds": BAD}',
        "best/facts.json": '{"metrics": BAD}',
        "metrics.jsonl": '{"loss": BAD, "step": 1}\n{"evaluation": [BAD], "giou": BAD}\n',
        "../../.lisa-studio/runs~first.json": '{"pid": BAD, "began": BAD, "arguments": BAD}',
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("BAD", bad))
    advice = json.loads((folder / "advice.json").read_text()) | {
        "plan": json.loads(tiny_plan().to_json())
    }
    told = page.ask("run", run=RUN)
    (folder / "advice.json").write_text(json.dumps(advice))
    again = page.ask("run", run=RUN)
    assert again["forecast"] == {"needs": None, "usable": None}
    for one in (told, again, page.ask("runs")["runs"][0]):
        assert one["before"] is None and one["best"] is None and one["seconds"] is None
        assert [score["giou"] for score in one["scores"]] == [None, None]
    page.ask("compare", runs=[RUN, RUN])


def test_evaluation_and_export_write_where_the_page_may(page: Page, folder: Path) -> None:
    assert "does not see" in page.error("evaluate", run=RUN, data="/etc")
    assert "is not there" in page.error("export", run="work/runs/none", name="a")
    assert "allowed" in page.error("export", run=RUN, name="../../a")
    (page.home / "exports" / "a").mkdir(parents=True)
    assert "taken" in page.error("export", run=RUN, name="a")
