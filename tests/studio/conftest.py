"""A page without a browser: its application for a folder of its own, asked in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from studio.app import create_app
from studio.slow import KIND
from tests.conftest import PHOTOS

HERE = "http://127.0.0.1:8765"


class Page:
    """The page's server; `ask` is what its JavaScript sends."""

    def __init__(self, client: TestClient, home: Path) -> None:
        self.client, self.home = client, home

    def ask(self, action: str, status: int = 200, **question: Any) -> Any:
        """The answer of an action, which is JSON or a picture's bytes."""
        answer = self.client.post(f"/api/{action}", json=question)
        if answer.headers["content-type"] == KIND:  # it took a while
            told = json.loads(answer.text.splitlines()[-1])
            assert ("error" in told) == (status == 422), answer.text
            return told
        assert answer.status_code == status, answer.text
        is_picture = answer.headers["content-type"] == "image/png"
        return answer.content if is_picture else answer.json()

    def error(self, action: str, **question: Any) -> str:
        """Why an action is refused."""
        return str(self.ask(action, 422, **question)["error"])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The page's folder, with photographs in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copytree(PHOTOS, folder / "photos")
    return folder


@pytest.fixture
def page(home: Path) -> Iterator[Page]:
    with TestClient(create_app([home]), base_url=HERE, raise_server_exceptions=False) as client:
        yield Page(client, home)
