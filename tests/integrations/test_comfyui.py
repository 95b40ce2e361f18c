"""The node as ComfyUI's documentation has it: found in its folder, called by keyword."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import ModuleType

import numpy as np
import pytest
import torch
import uvicorn
from pycocotools import mask as coco

from tests.conftest import ROOT
from tests.trainer.serve.harness import fake_workers
from trainer.answer.output import run_lengths
from trainer.serve.app import create_app
from trainer.serve.guard import Access

ADDRESS = "http://127.0.0.1"


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    """The folder, loaded by its path and under a name of ComfyUI's choice."""
    folder = ROOT / "integrations" / "comfyui"
    spec = importlib.util.spec_from_file_location(
        "custom_nodes.lisa", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a port, with a model that does as it is asked and a token."""
    workers = fake_workers(tmp_path_factory.mktemp("node"))
    app = create_app(workers, Access("127.0.0.1", "secret"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))

    async def serving() -> None:
        await workers.start()
        await server.serve()
        await workers.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serving()))
    thread.start()
    while not server.started:
        thread.join(0.05)
    yield f"{ADDRESS}:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_the_node_keeps_to_the_contract(pack: ModuleType) -> None:
    for name, node in pack.NODE_CLASS_MAPPINGS.items():
        required = node.INPUT_TYPES()["required"]
        assert list(required) == ["image", "question", "kind", "address"]
        assert required["image"][0] == "IMAGE" and required["kind"][0][0] == "sentence"
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) and node.CATEGORY
        assert callable(getattr(node(), node.FUNCTION))
        assert pack.NODE_DISPLAY_NAME_MAPPINGS[name]


def called(pack: ModuleType, **inputs: object) -> tuple[torch.Tensor, str]:
    """As ComfyUI calls a node."""
    node = pack.NODE_CLASS_MAPPINGS["LisaSegment"]
    found: tuple[torch.Tensor, str] = getattr(node(), node.FUNCTION)(**inputs)
    return found


def test_a_batch_becomes_masks_and_answers(
    pack: ModuleType, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISA_SEGMENT_TOKEN", "secret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    batch = torch.rand(2, 20, 30, 4)
    text = 'où "est"\r\n--x'
    mask, answers = called(pack, image=batch, question=text, kind="phrase", address=address + "/")
    assert mask.shape == (2, 20, 30) and mask.dtype == torch.float32
    rows = torch.zeros(20, 30)
    rows[: len(text)] = 1  # a row for each letter
    assert torch.equal(mask[0], rows) and torch.equal(mask[1], rows)
    first, second = (line for line in answers.split("\n") if line.startswith("picture-"))
    assert first.split(":")[0] != second.split(":")[0]


def test_what_the_server_says_is_the_node_s_error(
    pack: ModuleType, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.zeros(1, 8, 8, 3)
    with pytest.raises(RuntimeError, match="a token is needed; send the header"):
        called(pack, image=image, question="a", kind="sentence", address=address)
    monkeypatch.setenv("LISA_SEGMENT_TOKEN", "secret")
    with pytest.raises(RuntimeError, match="question: question text is empty"):
        called(pack, image=image, question=" ", kind="sentence", address=address)
    with pytest.raises(RuntimeError, match="start lisa-segment --serve there"):
        called(pack, image=image, question="a", kind="sentence", address=f"{ADDRESS}:9")


class Stranger(BaseHTTPRequestHandler):
    """A server that is not lisa-segment: it says [] or sends elsewhere."""

    taken = False

    def do_POST(self) -> None:
        """Answers a question."""
        self.rfile.read(int(self.headers["Content-Length"]))
        away = self.path.startswith("/away")
        self.send_response(302 if away else 200)
        self.send_header("Location", "/taken")
        self.end_headers()
        self.wfile.write(b"" if away else b"[]")

    def do_GET(self) -> None:
        """Where it sends."""
        Stranger.taken = True

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


def test_other_servers_and_addresses_are_told_apart(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISA_SEGMENT_TOKEN", "secret")
    server = HTTPServer(("127.0.0.1", 0), Stranger)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    place, image = f"{ADDRESS}:{server.server_port}", torch.zeros(1, 8, 8, 3)
    for address, why in (
        (f"{place}/away", "302"),
        (place, "answers, but not as lisa-segment does"),
        ("127.0.0.1:8763", "allowed: http://HOST:PORT"),
        ("file:///etc", "allowed: http://HOST:PORT"),
        ("http://a b", "correct the address"),
    ):
        with pytest.raises(RuntimeError, match=why):
            called(pack, image=image, question="a", kind="sentence", address=address)
    server.shutdown()
    server.server_close()
    assert not Stranger.taken  # a redirection would take the token along


def test_run_lengths_are_read_as_pycocotools_reads_them(pack: ModuleType) -> None:
    decoded = sys.modules[f"{pack.__name__}.nodes"].decoded
    generator = np.random.default_rng(0)
    for number in range(60):
        height, width = generator.integers(1, 90, 2)
        mask = generator.random((height, width)) < generator.choice([0, 0.01, 0.5, 0.99, 1])
        if number % 3 == 0:
            mask[:, : width // 2] = True  # runs over many columns
        found = run_lengths(mask)
        assert np.array_equal(decoded(found["size"], found["counts"]), mask)
        rle = {"size": found["size"], "counts": found["counts"].encode()}
        assert np.array_equal(coco.decode(rle) == 1, mask)
