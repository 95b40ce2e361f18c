"""The Ask tab: which models, how they are drawn, loaded and let go."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
import time
import tracemalloc
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from advisor.machine.budget import named_gpu
from advisor.machine.gpu import Machine
from profiles.files import held
from profiles.gpus import gpus
from profiles.plan import Plan
from studio import answers, layers
from studio.app import create_app
from studio.places import Places
from tests.conftest import PHOTOS, tiny_plan
from tests.studio.conftest import HERE, Page
from trainer.answer.output import run_lengths

COFFEE = PHOTOS / "ReasonSeg" / "train" / "coffee.jpg"
# In the place of a model's process: no libraries, one mask for each question.
MODEL = """
import sys
from trainer.serve.messages import packed, read
out = sys.stdout.buffer
def tell(header):
    out.write(packed(header))
    out.flush()
tell({"ready": {"model": "tiny", "device": "cpu"}})
while (message := read(sys.stdin.buffer)) is not None:
    if "ask" in message.header:
        number = message.header["ask"]
        for text in message.header["texts"]:
            row = {"question": text, "answer": "It is [SEG].", "seconds": 0.1, "masks": []}
            tell({"number": number, "row": row, "size": [4, 4]})
        tell({"number": number, "end": True})
"""


@pytest.fixture
def model(page: Page, monkeypatch: pytest.MonkeyPatch) -> str:
    """The place of a run that can be asked, by a process without a model."""
    best = page.home / "runs" / "first" / "best"
    best.mkdir(parents=True)
    (best / "trained.safetensors").write_bytes(b"")
    (best / "plan.json").write_text(tiny_plan().to_json())

    def command(module: str, asked: str) -> list[str]:
        assert module == answers.PROCESS
        assert json.loads(asked)["run"] == str(page.home / "runs" / "first")
        return [sys.executable, "-P", "-c", MODEL]

    monkeypatch.setattr(answers, "python_module", command)
    return "work/runs/first"


def drawing(masks: list[Any], **more: Any) -> dict[str, Any]:
    encoded = base64.b64encode(COFFEE.read_bytes()).decode()
    return {"picture": encoded, "masks": masks, "shown": list(range(len(masks))), **more}


def image(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(content)))


def test_models_are_found_and_their_memory_is_said(page: Page, model: str) -> None:
    exported = page.home / "exports" / "mine"
    shutil.copytree(page.home / "runs" / "first" / "best", exported)
    converted = page.home / "sa2va"
    converted.mkdir()
    (converted / "conversion.json").write_text('{"model": "sa2va-qwen3-vl-2b"}')
    (page.home / "broken").mkdir()
    (page.home / "broken" / "conversion.json").write_text('{"model": "none"}')
    told = {one["model"]: (one["kind"], one["name"]) for one in page.ask("models")["models"]}
    assert told == {
        model: ("run", "tiny"),
        "work/exports/mine": ("export", "tiny"),
        "work/sa2va": ("converted", "sa2va-qwen3-vl-2b"),
    }
    assert "9 MiB" in page.ask("memory", model=model)["words"]
    assert "no trained model" in page.error("memory", model="work/photos")


def test_on_a_card_the_memory_is_forecast_for_answering(
    page: Page, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = named_gpu(gpus()["rtx-3060-12gb"], windows=False)
    monkeypatch.setattr(answers, "probe", lambda: Machine(gpus=(card,)))
    asked: list[Any] = []

    def fitting(plan: Plan, may_round: bool, worst: Any, machine: Machine, tell: Any) -> Any:
        asked.append((plan.device, plan.cached_encoders, may_round, worst.answering))
        raise answers.NoRoom("does not answer within 1 GiB")

    monkeypatch.setattr(answers, "fitting", fitting)
    place = page.home / "runs" / "first" / "best" / "plan.json"
    trained = tiny_plan(device="cuda", dtype="bf16", quantization="nf4", cached_encoders=["mask"])
    place.write_text(trained.to_json())
    assert page.ask("memory", model=model)["words"] == "does not answer within 1 GiB"
    assert asked == [("cuda", (), False, True)]
    monkeypatch.setattr(answers, "fitting", lambda *_: SimpleNamespace(line=lambda: "FITS"))
    assert page.ask("memory", model=model)["words"] == "FITS"
    run = place.parents[1]
    (run / "run.json").write_text("{}")
    with held(run):
        words = page.ask("memory", model=model)["words"]
    assert words == "FITS; first is training here and may run out of memory then"


def test_one_model_is_loaded_asked_and_let_go(page: Page, model: str) -> None:
    form = {"files": {"picture": COFFEE.read_bytes()}, "data": {"question": ["a?", "b?"]}}
    assert page.client.post("/segment", **form).status_code == 503
    assert page.ask("desk")["loaded"] == ""
    told = page.ask("load", model=model)
    assert told["loaded"] == model and told["facts"]["device"] == "cpu"
    answer = page.client.post("/segment", **form)
    assert [one["question"] for one in answer.json()["answers"]] == ["a?", "b?"]
    assert page.client.get("/model").json()["model"] == "tiny"
    assert page.ask("unload")["loaded"] == ""
    assert page.client.post("/segment", **form).status_code == 503


def test_a_model_that_nobody_asks_leaves_the_memory(
    home: Path, page: Page, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "IDLE_SECONDS", 0.05)
    with TestClient(create_app([home]), base_url=HERE) as client:
        other = Page(client, home)
        other.ask("load", model=model)
        until = time.monotonic() + 20
        while other.ask("desk")["loaded"]:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_late_question_does_not_stop_the_unloading(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, ended = answers.Desk(Places([home])), []

    async def stop() -> None:
        await asyncio.sleep(0.05)
        ended.append(True)

    async def ask_late() -> None:
        monkeypatch.setattr(answers, "IDLE_SECONDS", 0)
        desk._stay()
        await asyncio.sleep(0.02)
        monkeypatch.setattr(answers, "IDLE_SECONDS", 60)
        desk._stay()  # as every question does at its end
        await asyncio.sleep(0.1)

    monkeypatch.setattr(desk, "stop", stop)
    asyncio.run(ask_late())
    desk.folder.cleanup()
    assert ended == [True]


def test_a_model_that_cannot_be_loaded_says_why(
    page: Page, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "from trainer.serve.messages import packed\nimport sys\n"
    broken += "sys.stdout.buffer.write(packed({'failed': 'no card is free'}))"
    monkeypatch.setattr(answers, "python_module", lambda *_: [sys.executable, "-P", "-c", broken])
    assert page.error("load", model=model) == "no card is free"
    assert page.ask("desk") == {"loaded": "", "loading": False, "facts": {}}


def test_masks_are_drawn_as_layers(page: Page) -> None:
    with Image.open(COFFEE) as opened:
        width, height = opened.size
    masks = [np.zeros((height, width), bool) for _ in range(2)]
    masks[0][20:60, 20:80] = True
    masks[1][100:140, 20:80] = True
    coded = [run_lengths(mask) for mask in masks]
    assert (image(page.ask("draw", **drawing(coded, kind="mask"))) > 0).tolist() == (
        masks[0] | masks[1]
    ).tolist()
    one = image(page.ask("draw", **drawing(coded, kind="mask", shown=[1])))
    assert ((one > 0) == masks[1]).all()
    plain = image(page.ask("draw", **drawing([])))
    strong = image(page.ask("draw", **drawing(coded, opacity=1.0)))
    faint = image(page.ask("draw", **drawing(coded, opacity=0.0)))
    assert strong[40, 50].tolist() == [255, 60, 0] and strong[120, 50].tolist() == [0, 200, 255]
    assert (faint[40, 50] == plain[40, 50]).all()
    assert image(page.ask("draw", **drawing(coded, caption="What?"))).shape[0] > height


@pytest.mark.parametrize(
    "mask",
    [{}, {"size": [4, 4], "counts": "x"},
     {"size": [213, 320], "counts": [-1, 5]}, {"size": [213, 320], "counts": [10**12]},
     {"size": "a", "counts": 5}, {"size": [213, 320], "counts": "~" * 9999}],
)  # fmt: skip
def test_masks_of_a_stranger_are_refused(page: Page, mask: dict[str, Any]) -> None:
    answer = page.client.post(
        "/api/draw", content=json.dumps(drawing([mask])), headers={"origin": HERE}
    )
    assert answer.status_code == 422 and "mask" in answer.json()["error"]


def test_a_picture_of_a_stranger_is_refused(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"picture": base64.b64encode(b"<svg onload=alert(1)>").decode(), "masks": []}
    assert "a complete" in page.error("draw", **bad)
    assert "tmp" not in page.error("draw", **bad)
    monkeypatch.setattr(layers, "PIXELS", 1000)
    assert "allowed: 1000" in page.error("draw", **drawing([]))


@pytest.mark.parametrize("kind", ["overlay", "mask"])
def test_many_masks_of_a_large_picture_are_not_held_at_once(kind: str) -> None:
    height, width, count = 1200, 1600, 40
    file = BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    mask = run_lengths(np.ones((height, width), bool))
    asked = layers.Drawing(
        picture=base64.b64encode(file.getvalue()), masks=(mask,) * count,
        shown=tuple(range(count)), kind=kind, most=64,
    )  # fmt: skip
    tracemalloc.start()
    layers.draw(asked)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < count * height * width / 2
