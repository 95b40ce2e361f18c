"""What takes a while says how far it is, and ends if nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from studio import slow
from studio.app import ACTIONS
from studio.places import Places
from studio.slow import Left, Slow, Watched, lines
from tests.studio.conftest import Page
from trainer.reporter import Progress


def test_progress_comes_before_the_answer(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, line = threading.Event(), slow._line

    def work(asked: Any, places: Places, progress: Progress) -> dict[str, str]:
        progress("checking pictures", 3, 9)
        shown.wait(30)
        if asked.data == "work/none":
            return {"data": places.folder(asked.data).name}
        if asked.data == "defect":
            raise KeyError("a secret place")
        return {"data": asked.data}

    def shows(content: dict[str, str]) -> bytes:
        if "checking" in content.get("progress", ""):
            shown.set()
        return line(content)

    monkeypatch.setattr(slow, "PAUSE", 0.02)
    monkeypatch.setattr(slow, "_line", shows)
    monkeypatch.setitem(ACTIONS, "check", (ACTIONS["check"][0], Slow(work)))
    for data, last in (
        ("work", {"data": "work"}),
        ("work/none", {"error": "work/none: is not there"}),
        ("defect", {"error": "the server failed"}),
    ):
        shown.clear()
        answer = page.client.post("/api/check", json={"data": data})
        *on_the_way, told = map(json.loads, answer.text.splitlines())
        assert on_the_way and told == last
        assert {"progress": "checking pictures: 3 of 9"} in on_the_way
        assert answer.headers["content-type"] == slow.KIND


def test_what_is_done_at_once_is_an_ordinary_answer(page: Page) -> None:
    assert page.client.post("/api/check", json={"data": "work/none"}).status_code == 422


def test_work_that_nobody_waits_for_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "PAUSE", 0.01)
    watched, ended = Watched(), []

    async def work() -> Response:
        try:
            while True:
                watched("checking pictures", 1, 9)
                await asyncio.sleep(0.001)
        except Left:
            ended.append(True)
        return JSONResponse({})

    async def leave() -> None:
        task = asyncio.create_task(work())
        told = lines(task, watched)
        await anext(told)
        await told.aclose()  # as when the browser has gone
        await asyncio.wait_for(task, 60)

    asyncio.run(leave())
    assert ended == [True]
