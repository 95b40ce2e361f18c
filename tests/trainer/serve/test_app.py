"""Who may ask, what can be asked, and what is said where that is not so."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from tests.conftest import tiny_plan
from tests.trainer.answer.test_results import PICTURES, make_run
from tests.trainer.serve.harness import HERE, Server, check, picture
from trainer.answer.output import run_lengths
from trainer.answer.question import Question
from trainer.answer.segmenter import Segmenter
from trainer.answer.trained_model import find_trained
from trainer.cli.segment import app as segment
from trainer.cli.serve import workers_for
from trainer.serve import drained
from trainer.serve.address import taken, url
from trainer.serve.app import create_app
from trainer.serve.guard import Access
from trainer.serve.limits import Limits
from trainer.serve.openapi import document, page
from trainer.serve.workers import Workers

FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def test_a_trained_model_answers_over_http_as_it_does_here(tmp_path: Path) -> None:
    """Questions of one request, and of the next, share the picture's features and prefix."""
    where = make_run(tmp_path / "run", tokens={"max_new_tokens": 2})
    trained = find_trained(where)
    alone = Segmenter(trained, PICTURES[:2], tmp_path / "cache")
    asked = ((0, ["What is it?", "What could somebody drink from?"]), (0, ["What is it?"]),
             (1, ["What is it?"]))  # fmt: skip
    with workers_for(trained, where, []) as workers:
        app = create_app(workers)
        with TestClient(app, base_url=HERE) as client:
            assert client.portal is not None
            client.portal.call(workers.start)
            facts = client.get("/model").json()
            assert facts["model"] == "tiny" and facts["weights"] == trained.fingerprint
            resident = trained.plan.override(["cached_encoders=[]"])
            assert facts["plan"] == resident.content_hash != trained.plan.content_hash
            for number, texts in asked:
                image = PICTURES[number]
                files = {"picture": image.read_bytes()}
                found = client.post("/segment", files=files, data={"question": texts}).json()
                for row, text in zip(found["answers"], texts, strict=True):
                    expected = alone.ask(Question(image, text))
                    masks = [run_lengths(mask) for mask in expected.masks]
                    assert row["answer"] == expected.text and len(masks) == len(row["masks"])
                    for mine, its in zip(masks, row["masks"], strict=True):
                        assert its["size"] == mine["size"] == [found["height"], found["width"]]
                        assert abs(its["area"] - mine["area"]) <= 1e-4 * its["size"][0] ** 2
            client.portal.call(workers.stop)


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({}, 422, "question: one to 32 are needed"),
        ({"question": [" "]}, 422, "question: question text is empty"),
        ({"question": ["a [SEG]"]}, 422, "question: question text contains the reserved token"),
        ({"question": ["a"] * 33}, 422, "question: one to 32 are needed"),
        ({"question": ["a"] * 99}, 400, "the form cannot be read: Too many fields"),
        ({"question": ["a" * 2001]}, 422, "question: 2000 letters are allowed"),
        ({"question": ["a " * 60]}, 422, "question has 60 tokens; 50 are allowed"),
        ({"question": ["a", "a " * 60]}, 422, "question 2 of 2 has 60 tokens; 50 are allowed"),
        ({"question": ["a", "b", " "]}, 422, "question 3 of 3: question text is empty"),
        ({"question": ["a" * 2001, "b"]}, 422, "question 1 of 2: 2000 letters are allowed"),
        ({"question": ["a"], "kind": "1"}, 422, "kind: one of sentence, phrase, explain"),
        ({"question": ["a"], "kind": ["phrase", "phrase"]}, 422, "kind: one of"),
        ({"question": ["a"], "path": "/etc/passwd"}, 422, "unknown: path"),
        ({"question": ["a"], "picture": "/etc/passwd"}, 422, "picture: one file is needed"),
    ],
)
def test_fields_that_cannot_be_used_are_named(fields, status, error, shared: Server) -> None:
    found = shared.sync.post("/segment", files={"picture": picture()}, data=fields)
    assert found.status_code == status and found.json()["error"].startswith(error), found.text


@pytest.mark.parametrize(
    ("image", "status", "error"),
    [
        (b"", 422, "picture: the file is empty"),
        (b"/etc/passwd", 422, "no picture of a known kind"),
        (picture()[:60], 422, "image file is truncated"),
        (picture(size=(101, 100)), 422, "picture: cannot be read: 101 x 100 pixels; allowed: "),
        (picture(size=(201, 100)), 422, "20100 pixels); allowed: "),
        (picture() + b"\0" * (1 << 16), 413, "the picture's file is too large"),
        (picture() + b"\0" * (1 << 24), 413, "the picture's file is too large"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused(image, status, error, shared: Server) -> None:
    found = shared.sync.post("/segment", files={"picture": image}, data={"question": ["a"]})
    assert found.status_code == status and error in found.json()["error"], found.text
    assert str(shared.place) not in found.text and "Traceback" not in found.text


def test_a_body_is_read_no_further_than_is_allowed(shared: Server) -> None:
    """Also without its length, of which nothing has to be true."""
    read = 0

    def endless():
        nonlocal read
        yield b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a"\r\n\r\n'
        while True:
            read += 1 << 14
            yield b"\0" * (1 << 14)
            if read > 1 << 22:
                return

    found = shared.sync.post("/segment", content=endless(), headers=FORM)
    assert found.status_code == 413
    for headers, status in (({}, 415), (FORM, 400), (FORM | {"Content-Length": "x"}, 413),
                            ({"Content-Type": "Multipart/Form-Data"}, 400),
                            (FORM | {"Content-Encoding": "gzip"}, 415)):  # fmt: skip
        assert shared.sync.post("/segment", content=b"x", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "read"),
    [({}, 6), ({"Expect": "100-continue"}, 0), ({"Host": "evil.example"}, 6)],
)
def test_a_refusal_waits_for_the_end_of_the_request(
    headers: dict[str, str], read: int, shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends all before it reads would else see its connection end, and not why."""
    monkeypatch.setattr(drained, "MOST_BYTES", 6000)
    request = shared.sync.build_request("POST", "/segment", headers={"Content-Length": "99999999"}
                                        | FORM | headers)  # fmt: skip
    scope = {"type": "http", "method": "POST", "path": "/segment", "query_string": b"",
             "headers": [(name.lower(), value) for name, value in request.headers.raw]}  # fmt: skip
    seen: list[str] = []

    async def receive() -> dict[str, Any]:
        seen.append("read")
        return {"type": "http.request", "body": b"a" * 1000, "more_body": True}

    async def send(message: Any) -> None:
        seen.append(message.get("status", ""))

    asyncio.run(shared.app(scope, receive, send))
    assert seen == ["read"] * read + [403 if "Host" in headers else 413, ""]


@pytest.mark.parametrize("path", ["/x", "/segment", "/../../etc/passwd", "/docs/x", "/%2e%2e/"])
def test_unknown_paths_and_methods_are_refused_without_more(path: str, shared: Server) -> None:
    found = shared.sync.get(path)
    assert found.status_code in (404, 405) and set(found.json()) == {"error", "hint"}
    assert "/docs" in found.json()["hint"]
    assert found.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8763"}, 200), ({"Host": "localhost"}, 200), ({"Host": "[::1]:1"}, 200),
        ({"Host": "evil.example"}, 403), ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "192.168.1.5"}, 403), ({"Host": "evil.example@127.0.0.1"}, 403),
        ({"Host": "[::1"}, 403), ({"Host": ""}, 403), ({"Host": "LOCALHOST."}, 200),
        ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
        ({"Host": "localhost:80", "Origin": "http://localhost:80"}, 200),
        ({"Host": "localhost:80", "Origin": "http://localhost:81"}, 403),
    ],
)  # fmt: skip
def test_pages_of_strangers_cannot_ask(headers, status, shared: Server) -> None:
    for path in ("/health", "/model", "/docs"):
        found = shared.sync.get(path, headers=headers)
        assert found.status_code == status, found.text
    asked = shared.sync.post(
        "/segment", files={"picture": picture()}, data={"question": ["a"]}, headers=headers
    )
    assert asked.status_code == status


def test_another_host_needs_the_token_that_was_printed() -> None:
    assert Access.of("127.0.0.1").token is Access.of("::1").token is None
    access = Access.of("0.0.0.0")
    assert access.token is not None and len(access.token) >= 43
    assert access.token != Access.of("0.0.0.0").token
    client = TestClient(create_app(Workers([]), access), base_url="http://192.168.1.5:8763")
    for authorization, status in (
        (None, 401), ("Bearer", 401), (f"Bearer {access.token[:-1]}", 401), ("Bearer é", 401),
        (f"Basic {access.token}", 401), (f"Bearer {access.token}", 200),
    ):  # fmt: skip
        headers = {} if authorization is None else {"Authorization": authorization.encode()}
        for path in ("/model", "/docs", "/openapi.json"):
            found = client.get(path, headers=headers)
            assert found.status_code == status, (authorization, path)
        asked = client.post("/segment", headers=headers)
        assert (asked.status_code == 401) == (status == 401)
        assert status == 200 or asked.headers["www-authenticate"] == "Bearer"
    assert client.get("/health").status_code == 503  # without a token: nothing is loaded
    named = client.get("/health", headers={"Host": "evil.example"})
    assert named.status_code == 403


def test_the_page_needs_no_other_server(shared: Server) -> None:
    shown = shared.sync.get("/")  # what a browser is shown at the server's address
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    assert not re.search(r"<script|//|@import|url\(", shown.text)
    for path in ("/segment", "/health", "/model"):
        assert path in shown.text
    described = shared.sync.get("/openapi.json").json()
    assert described == json.loads(json.dumps(document(shared.workers.limits, False)))
    assert "security" not in described
    assert document(Limits(), True)["security"] == [{"token": []}]
    assert page(described) == shown.text


def test_a_defect_shows_no_traceback(run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: Server) -> None:
        async def broken(asked: object) -> None:
            raise KeyError("/root/secret")

        monkeypatch.setattr(server.workers, "ask", broken)
        found = await server.ask("a")
        assert found.status_code == 500 and found.json() == {"error": "the server failed"}
        assert server.workers.waiting == 0
        monkeypatch.undo()
        found = await asyncio.gather(*(server.ask("a", image=picture(n)) for n in range(3)))
        for number, one in enumerate(found):
            check(one, picture(number), "a")

    run(test)


def test_an_address_for_all_is_printed_as_one_that_others_can_open() -> None:
    with taken("0.0.0.0", 0) as place:
        port = place.getsockname()[1]
        assert url("0.0.0.0", place) == f"http://{socket.gethostname()}:{port}"
        assert url("127.0.0.1", place) == f"http://127.0.0.1:{port}"
    assert Access.of("0.0.0.0").names(f"{socket.gethostname()}:{port}")


def test_on_windows_no_other_process_gets_the_port_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # In the place of Windows' option, one that is off at first and can be read again.
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_KEEPALIVE, raising=False)
    with taken("127.0.0.1", 0) as place:
        assert place.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert not place.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    monkeypatch.delattr(socket, "SO_EXCLUSIVEADDRUSE")
    with taken("127.0.0.1", 0) as place:
        assert place.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "PORT"], "--port PORT: address already in use\n    hint: --port N"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 8763: cannot assign requested address"),
        (["--host", "no.such.name.invalid"], "--host no.such.name.invalid --port 8763: "),
        ([str(PICTURES[0])], "--serve gets pictures and questions over HTTP: leave out IMAGE"),
        (["--json", "--set", "seed=1"], "over HTTP: leave out --json\n"),
        (
            ["--set", 'cached_encoders=["sam"]'],
            "so its encoders stay loaded\n    hint: leave it out",
        ),
    ],
)
def test_an_address_that_cannot_be_had_is_told_before_the_model_is_loaded(
    words: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "trained.safetensors").touch()  # is never read
    (tmp_path / "best" / "plan.json").write_text(tiny_plan().to_json())
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        words = [word.replace("PORT", port) for word in words]
        done = CliRunner().invoke(segment, [*words, "--serve", "--run", str(tmp_path)])
    assert done.exit_code == 2 and said.replace("PORT", port) in done.stderr, done.stderr
    assert "loading" not in done.stderr
