"""Who may ask the page's server, and what it says to requests that are wrong."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient
from typer.testing import CliRunner

from studio import app as studio_app
from studio.app import MOST_BYTES, PAGE, create_app
from studio.main import app as command
from tests.studio.conftest import HERE, Page
from trainer.serve.guard import Access


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        known = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", known), path
        assert not re.search(r" on[a-z]+=\"| style=\"", known), f"{path}: the policy forbids it"


def test_every_file_of_the_page_is_served_with_its_policy(page: Page) -> None:
    for path in ["/", *(f"/{one.name}" for one in PAGE.iterdir())]:
        answer = page.client.get(path)
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"], path
        assert "unsafe" not in answer.headers["content-security-policy"]
    assert page.client.get("/../pyproject.toml").status_code == 404
    assert page.client.get("/%2e%2e/app.py").status_code == 404


def test_it_uses_no_network(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a socket was used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    assert page.ask("plan", model="tiny", data="work/photos")["verdict"] == "FITS"
    assert page.ask("plan", model="7b", card="rtx-3060-12gb")["verdict"] == "FITS"
    for action in ("choices", "runs", "models", "desk"):
        page.ask(action)
    assert page.ask("check", data="work/photos")["count"] == 0


@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.example"}, {"host": "127.0.0.1.evil.example:8765"}, {"host": ""},
     {"origin": "http://evil.example"}, {"origin": "null"},
     {"origin": "http://127.0.0.1:9999"}],
)  # fmt: skip
def test_other_pages_are_refused(page: Page, headers: dict[str, str]) -> None:
    for path in ("/api/runs", "/api/train"):
        assert page.client.post(path, json={}, headers=headers).status_code == 403
    assert page.client.post("/api/runs", json={}, headers={"origin": HERE}).status_code == 200


def test_elsewhere_a_token_is_needed_and_kept_as_a_cookie(home: Path) -> None:
    access = Access.of("0.0.0.0")
    with TestClient(create_app([home], access), base_url="http://192.168.1.5:8765") as client:
        for path in ("/", "/app.js", "/?token=wrong"):
            assert client.get(path).status_code == 401
        assert client.post("/api/runs", json={}).status_code == 401
        let_in = client.get(f"/?token={access.token}", follow_redirects=False)
        assert let_in.status_code == 303 and let_in.headers["location"] == "/"
        cookie = let_in.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert client.post("/api/runs", json={}).status_code == 200
        client.cookies.clear()
        bearer = {"Authorization": f"Bearer {access.token}"}
        assert client.post("/api/runs", json={}, headers=bearer).status_code == 200
    assert Access.of("127.0.0.1").token is None


def test_what_is_wrong_is_said_in_words(page: Page) -> None:
    assert page.ask("nonsense", 404) == {"error": "no such action"}
    assert "extra" in page.error("runs", more=1).lower()
    assert "model" in page.error("plan", model=7)
    assert page.client.post("/api/plan", content=b"{").status_code == 422
    assert page.client.post("/api/plan", content=b"[" * 100_000).status_code == 422
    assert page.client.get("/api/plan").status_code == 405


def test_a_request_that_is_too_large_is_not_read(page: Page) -> None:
    answer = page.client.post("/api/runs", content=b" " * (MOST_BYTES + 1))
    assert answer.status_code == 413


def test_a_defect_is_not_explained_to_the_browser(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, _ = studio_app.ACTIONS["runs"]

    def broken(*_: object) -> None:
        raise KeyError("a secret place")

    monkeypatch.setitem(studio_app.ACTIONS, "runs", (form, broken))
    answer = page.client.post("/api/runs", json={})
    assert answer.status_code == 500 and "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_the_command_says_what_it_cannot_serve(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path / "none")])
    assert result.exit_code == 2 and "no such folder" in result.output
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(command, [str(tmp_path), "--port", port])
    assert result.exit_code == 2 and "already in use" in result.output


HOSTILE = [None, [], 7, "text", {"\ud800": 1}, {"run": {}}, {"place": ["work"]}, {"masks": [[]]},
           {"picture": "\0" * 9999}, {"model": 10**400}, {"settings": [None]}]  # fmt: skip


@pytest.mark.parametrize("action", studio_app.ACTIONS)
def test_no_request_makes_a_defect_of_an_action(page: Page, action: str) -> None:
    for body in HOSTILE:
        answer = page.client.post(f"/api/{action}", content=json.dumps(body))
        assert answer.status_code in (200, 422), (body, answer.text)


def filled(form: type[BaseModel], place: str) -> Iterator[dict[str, Any]]:
    """Requests of a form, each with the place in another one of its fields for text."""
    known: dict[str, Any] = {"name": "new", "question": "What?", "masks": [], "data": "work/photos"}
    known |= {"picture": "work/photos/ReasonSeg/train/coffee.jpg", "source": "work/photos/outlined"}
    needed = {name: known.get(name, "work") for name, field in form.model_fields.items()
              if field.is_required()}  # fmt: skip
    needed |= {"wanted": {"data": place}} if "wanted" in needed else {}
    for name, field in form.model_fields.items():
        if "str" in str(field.annotation) and "Literal" not in str(field.annotation):
            yield needed | {name: place}


@pytest.mark.parametrize("place", ["/etc", "../../etc", "work/../../etc", "work/way-out"])
def test_no_field_of_any_action_leads_out_of_the_folders(
    page: Page, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = page.home.parent / "outside"
    outside.mkdir()
    (page.home / "way-out").symlink_to(outside)
    seen: list[object] = []
    monkeypatch.setattr("studio.processes.subprocess.Popen", lambda *a, **k: seen.append(a))
    for action, (form, _) in studio_app.ACTIONS.items():
        if action not in ("draw", "save-question"):  # their text is a picture's and a question's
            for body in filled(form, place):
                answer = page.client.post(f"/api/{action}", json=body)
                assert answer.status_code == 422, (action, body, answer.text)
    assert not seen and not list(outside.iterdir())
