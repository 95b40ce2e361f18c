"""Runs a test with a server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.trainer.serve.harness import HERE, Server, fake_workers, server
from trainer.serve.app import create_app
from trainer.serve.limits import Limits


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """`run(test, limits, processes, access)`: within a minute."""

    def running(test: Callable[[Server], Coroutine[Any, Any, None]], *arguments: Any) -> None:
        async def whole() -> None:
            async with server(tmp_path, *arguments) as one:
                await test(one)

        asyncio.run(asyncio.wait_for(whole(), 60))

    return running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for tests that leave nothing behind."""
    place = tmp_path_factory.mktemp("shared")
    workers = fake_workers(place, Limits(picture_bytes=1 << 16))
    app = create_app(workers)
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        assert client.portal is not None
        client.portal.call(workers.start)
        yield Server(app, workers, client, place=place)
        client.portal.call(workers.stop)
