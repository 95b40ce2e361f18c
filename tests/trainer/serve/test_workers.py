"""Many ask at once, some leave, processes die: every answer is the right one or a clear error."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.serve.harness import Server, check, picture
from trainer.serve import workers
from trainer.serve.limits import Limits
from trainer.serve.worker import Refused, _written


async def until(happened: Callable[[], object]) -> None:
    while not happened():
        await asyncio.sleep(0.005)


def test_none_is_lost_and_none_mixed_where_many_ask_some_leave_and_a_process_dies(run) -> None:
    async def test(server: Server) -> None:
        async def client(number: int) -> int:
            failed = 0
            for turn in range(8):
                image = picture(100 * number + turn, (30 + number, 20 + turn))
                texts = [f"what {number}?", f"sleep 0.00{turn}", "print"]
                if turn % 4 == 1:  # this one does not wait for its answer
                    asking = asyncio.create_task(server.ask(*texts, image=image))
                    await asyncio.sleep(0.001 * number)
                    asking.cancel()
                    continue
                while (found := await server.ask(*texts, image=image)).status_code == 503:
                    assert "process ended by signal 9" in found.json()["error"]
                    failed += 1
                check(found, image, *texts)
            return failed

        killed: list[int] = []

        async def killing() -> None:
            child = server.workers.children[0]
            for _ in range(2):
                await asyncio.sleep(0.05)
                await until(lambda: child.loaded and child.pid not in (None, *killed))
                killed.append(server.pid)
                os.kill(server.pid, signal.SIGKILL)

        kills = asyncio.create_task(killing())
        failed = await asyncio.gather(*map(client, range(8)))
        kills.cancel()  # all may be answered before the second
        assert killed and sum(failed) <= len(killed)  # the request that it had; the others waited
        assert server.workers.waiting == 0

    run(test, Limits(seconds=30), 2)


def test_too_many_are_sent_away_and_the_others_answered(run) -> None:
    async def test(server: Server) -> None:
        found = await asyncio.gather(*(server.ask("sleep 0.05") for _ in range(7)))
        assert sorted(one.status_code for one in found) == [200] * 4 + [429] * 3
        refused = next(one for one in found if one.status_code == 429)
        assert refused.headers["retry-after"] == "2" and "waiting" in refused.json()["error"]
        assert (await server.ask("a")).status_code == 200

    run(test, Limits(waiting=4))


def test_a_request_that_takes_too_long_ends_and_the_process_is_replaced(run) -> None:
    async def test(server: Server) -> None:
        before, usual = server.pid, server.workers.limits
        server.workers.limits = Limits(seconds=0.1)
        late, queued = await asyncio.gather(server.ask("sleep 60"), server.ask("sleep 60"))
        assert {late.status_code, queued.status_code} == {504}
        assert late.json()["error"] == "no answer within 0.1 s"
        child = server.workers.children[0]
        await until(lambda: child.pid not in (before, None) and not server.workers.tasks)
        assert "did not stop" in server.told[0]
        server.workers.limits = usual
        check(await server.ask("a"), picture(), "a")

    run(test)


def test_what_nobody_waits_for_is_not_computed(run) -> None:
    async def test(server: Server) -> None:
        before = server.pid
        slept = server.place / "0" / "slept"
        asking = [asyncio.create_task(server.ask(*["sleep 0.05"] * 30)) for _ in range(4)]
        await until(slept.exists)
        for one in asking:
            one.cancel()
        check(await server.ask("a"), picture(), "a")
        assert len(slept.read_text()) < 30  # of 120
        assert server.pid == before

    run(test)


def test_a_client_that_leaves_in_the_middle_of_a_message_leaves_no_half_of_it(run) -> None:
    async def test(server: Server) -> None:
        before = server.pid
        await server.ask("halves 0.02")
        for pause in (0.012, 0.024, 0.036, 0.048):
            asking = asyncio.create_task(server.ask("a", "b", "c"))
            await asyncio.sleep(pause)
            asking.cancel()
            image = picture(round(1000 * pause))
            check(await server.ask("a", image=image), image, "a")
        assert server.pid == before

    run(test, Limits(seconds=5))


def test_a_client_that_leaves_is_noticed(run) -> None:
    """As servers say it: the next message of its connection is that it has ended."""

    async def test(server: Server) -> None:
        request = server.client.build_request(
            "POST", "/segment", files={"picture": picture()}, data={"question": ["sleep 0.05"] * 30}
        )
        messages = [{"type": "http.request", "body": request.read(), "more_body": False}]
        scope = {"type": "http", "method": "POST", "path": "/segment", "query_string": b"",
                 "headers": [(k.lower(), v) for k, v in request.headers.raw]}  # fmt: skip
        sent = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await until((server.place / "0" / "slept").exists)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await server.app(scope, receive, send)
        assert sent[0]["status"] == 499 and server.workers.waiting == 0
        check(await server.ask("a"), picture(), "a")

    run(test)


def test_a_model_that_fails_is_replaced_and_says_nothing_of_this_machine(run) -> None:
    async def test(server: Server) -> None:
        for text, how in (("raise", "ended with code 1"), ("die", "ended by signal 9")):
            found = await server.ask("a", text, "b")
            error = f"the model's process {how} while it answered"
            assert found.status_code == 503
            assert found.json() == {"error": error, "hint": "ask again: a new one is starting"}
            check(await server.ask("a"), picture(), "a")
        os.kill(server.pid, signal.SIGKILL)  # while nobody asks
        await until(lambda: server.workers.children[0].pid is None)
        asking = asyncio.create_task(server.ask("a"))
        await until(lambda: server.workers.waiting)  # half a second until the next one has loaded
        health = await server.client.get("/health")
        assert health.json() == {"status": "loading", "processes": 0, "waiting": 1}
        check(await asking, picture(), "a")

    run(test)


def test_a_model_that_cannot_be_loaded_again_is_reported_until_it_can(
    run, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(workers, "PAUSE", 0.05)

    async def test(server: Server) -> None:
        (tmp_path / "broken").write_text("no room on the card")
        assert (await server.ask("die")).status_code == 503
        await until(lambda: server.workers.problem)
        found, health = await server.ask("a"), await server.client.get("/health")
        assert found.status_code == health.status_code == 503
        assert found.json()["error"] == health.json()["error"] == "no room on the card"
        (tmp_path / "broken").unlink()
        await until(lambda: not server.workers.problem)
        check(await server.ask("a"), picture(), "a")
        assert (await server.client.get("/health")).json()["status"] == "ready"

    run(test)


def test_a_model_that_is_unloaded_leaves_no_process_and_nobody_waiting(run) -> None:
    async def test(server: Server) -> None:
        asking = [asyncio.create_task(server.ask("sleep 30")) for _ in range(3)]
        await until(lambda: server.workers.waiting == 3 and server.workers.children[0].busy)
        await server.workers.stop()
        found = [await one for one in asking]
        assert {one.status_code for one in found} == {503}
        errors = sorted(one.json()["error"] for one in found)
        assert errors[0] == errors[1] == "the model is not loaded" and "signal 9" in errors[2]
        assert not server.workers.tasks and server.workers.children[0].pid is None
        await server.workers.start()
        check(await server.ask("a"), picture(), "a")
        assert server.workers.idle.qsize() == 1

    run(test)


def test_a_picture_that_the_disk_does_not_take_is_refused_and_no_half_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request would have been answered about half a picture."""

    def write(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(Refused, match="cannot keep it: no space left"):
        _written(b"a picture")
    assert not list(tmp_path.iterdir())
