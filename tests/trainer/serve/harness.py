"""A server with fake models in this process, and what its answers must be."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image
from starlette.applications import Starlette

from tests.conftest import ROOT
from trainer.serve.app import create_app
from trainer.serve.guard import Access
from trainer.serve.limits import Limits
from trainer.serve.workers import Workers

HERE = "http://127.0.0.1"


def picture(number: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 0)).save(file, "PNG")
    return file.getvalue()


@dataclass
class Server:
    """An application with fake models, and a client of it."""

    app: Starlette
    workers: Workers
    client: Any  # of httpx2: an AsyncClient, or Starlette's own, which waits
    place: Path
    told: list[str] = field(default_factory=list)

    async def ask(self, *texts: str, image: bytes | None = None, **fields: str) -> httpx2.Response:
        image = picture() if image is None else image
        files = {"picture": ("../../a.png", image)}
        return await self.client.post(
            "/segment", files=files, data={"question": list(texts), **fields}
        )

    @property
    def sync(self) -> httpx2.Client:
        """The client that waits."""
        assert isinstance(self.client, httpx2.Client)
        return self.client

    @property
    def pid(self) -> int:
        pid = self.workers.children[0].pid
        assert pid is not None
        return pid


def fake_workers(
    place: Path,
    limits: Limits | None = None,
    processes: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> Workers:
    """Processes with fake models in folders below `place`."""
    commands = []
    for number in range(processes):
        folder = place / str(number)
        folder.mkdir()
        command = [sys.executable, "-m", "tests.trainer.serve.fake_model"]
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        commands.append(([*command, str(folder), str(place / "broken")], environment))
    return Workers(commands, limits, tell)


@asynccontextmanager
async def server(
    place: Path, limits: Limits | None = None, processes: int = 1, access: Access | None = None
) -> AsyncIterator[Server]:
    """Fake models are started in folders below `place`."""
    told: list[str] = []
    workers = fake_workers(place, limits, processes, told.append)
    app = create_app(workers, access)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    try:
        await workers.start()
        async with httpx2.AsyncClient(transport=transport, base_url=HERE) as client:
            yield Server(app, workers, client, place, told)
    finally:
        await workers.stop()


def check(response: httpx2.Response, image: bytes, *texts: str) -> None:
    """The answers are those to these questions about this picture."""
    assert response.status_code == 200, response.text
    document = response.json()
    digest = hashlib.sha256(image).hexdigest()
    assert [row["question"] for row in document["answers"]] == list(texts)
    for row, text in zip(document["answers"], texts, strict=True):
        assert row["answer"] == f"picture-{digest}: {text}"
        area = min(len(text), document["height"]) * document["width"]
        assert row["masks"][0]["area"] == area
