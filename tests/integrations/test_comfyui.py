"""The node as ComfyUI's documentation has it: found in its folder, called by keyword."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Below it is the folder of the model's process."""
    return tmp_path_factory.mktemp("node")


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """A server on a port, with a model that does as it is asked and a token."""
    workers = fake_workers(place)
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
        # No address: a workflow of a stranger would name one, which would get pictures and token.
        assert list(required) == ["image", "question", "kind"]
        assert required["image"][0] == "IMAGE" and required["kind"][0][0] == "sentence"
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) and node.CATEGORY
        assert callable(getattr(node(), node.FUNCTION))
        assert pack.NODE_DISPLAY_NAME_MAPPINGS[name]


@pytest.fixture
def configured(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's address and token, where its user puts them."""
    monkeypatch.setenv("LISA_SEGMENT_ADDRESS", address + "/docs/")
    monkeypatch.setenv("LISA_SEGMENT_TOKEN", "secret")


def called(pack: ModuleType, **inputs: object) -> tuple[torch.Tensor, str]:
    """As ComfyUI calls a node."""
    inputs = {"image": torch.zeros(1, 8, 8, 3), "question": "a", "kind": "sentence"} | inputs
    node = pack.NODE_CLASS_MAPPINGS["LisaSegment"]
    with torch.inference_mode():
        found: tuple[torch.Tensor, str] = getattr(node(), node.FUNCTION)(**inputs)
    return found


@pytest.mark.usefixtures("configured")
def test_a_batch_becomes_masks_and_answers(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    batch = torch.rand(2, 20, 30, 4)
    text = 'où "est"\r\n--x'
    mask, answers = called(pack, image=batch, question=text, kind="phrase")
    assert mask.shape == (2, 20, 30) and mask.dtype == torch.float32
    rows = torch.zeros(20, 30)
    rows[: len(text)] = 1  # a row for each letter
    assert torch.equal(mask[0], rows) and torch.equal(mask[1], rows)
    first, second = (line for line in answers.split("\n") if line.startswith("picture-"))
    assert first.split(":")[0] != second.split(":")[0]


@pytest.mark.usefixtures("configured")
def test_what_the_server_says_is_the_node_s_error(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="question: question text is empty"):
        called(pack, question=" ")
    monkeypatch.delenv("LISA_SEGMENT_TOKEN")
    with pytest.raises(RuntimeError, match="a token is needed; send the header"):
        called(pack)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (f"{ADDRESS}:9", "start lisa-segment --serve there"),
        ("127.0.0.1:8763", "allowed: http://HOST:PORT"),
        ("file:///etc", "allowed: http://HOST:PORT"),
        ("http://a b", "correct LISA_SEGMENT_ADDRESS"),
        ("http://a:b", "correct LISA_SEGMENT_ADDRESS"),
    ],
)
def test_a_wrong_address_is_said(
    pack: ModuleType, address: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISA_SEGMENT_ADDRESS", address)
    with pytest.raises(RuntimeError, match=why):
        called(pack)


@pytest.mark.usefixtures("configured")
def test_a_picture_goes_as_jpeg_where_its_png_would_be_refused(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = sys.modules[f"{pack.__name__}.nodes"]
    noise = torch.rand(90, 90, 3)
    assert nodes.file_of(noise).startswith(b"\x89PNG")
    monkeypatch.setattr(nodes, "LARGEST_FILE", 10_000)
    file = nodes.file_of(noise)
    assert file.startswith(b"\xff\xd8") and len(file) <= 10_000
    mask, _ = called(pack, image=noise[None])
    assert mask.shape == (1, 90, 90)


@pytest.mark.usefixtures("configured")
def test_earlier_answers_hold_as_long_as_the_model_is_the_same(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = pack.NODE_CLASS_MAPPINGS["LisaSegment"].IS_CHANGED
    known = changed(image=None, question="a", kind="phrase")
    assert known == json.dumps(["fake", None, None])
    monkeypatch.setenv("LISA_SEGMENT_ADDRESS", f"{ADDRESS}:9")  # nobody is there
    assert changed(image=None) == known


@pytest.mark.usefixtures("configured")
def test_a_cancelled_run_ends_the_request(
    pack: ModuleType, address: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waiting() -> int:
        with urllib.request.urlopen(f"{address}/health") as told:
            return int(json.load(told)["waiting"])

    def cancel() -> None:
        if waiting():
            raise KeyError("cancelled")

    monkeypatch.setattr(sys.modules[f"{pack.__name__}.nodes"], "stop_if_cancelled", cancel)
    with pytest.raises(KeyError, match="cancelled"):
        called(pack, question="sleep 30")
    while waiting():
        time.sleep(0.01)
    assert not (place / "0" / "slept").exists()


class Stranger(BaseHTTPRequestHandler):
    """A server that is not lisa-segment: it says what it is told to say, or sends elsewhere."""

    says = b"[]"
    taken = False

    def do_POST(self) -> None:
        """Answers a question."""
        self.rfile.read(int(self.headers["Content-Length"]))
        status = {"/away": 302, "/refused": 422}.get(self.path.removesuffix("/segment"), 200)
        self.send_response(status)
        self.send_header("Location", "/taken")
        self.end_headers()
        if self.path == "/slow/segment":
            for _ in range(40):  # 2 s, and never more than 0.05 s without a byte
                self.wfile.write(b" ")
                time.sleep(0.05)
        self.wfile.write(b"" if status == 302 else self.says)

    def do_GET(self) -> None:
        """Where it sends; about its model it says nothing for a while."""
        Stranger.taken |= self.path == "/taken"
        time.sleep(0.3)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    """The address of a server that is not lisa-segment."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"{ADDRESS}:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_whether_the_model_has_changed_is_no_place_to_cancel_a_run(
    pack: ModuleType, stranger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI calls it outside of what catches a cancelled run: its worker would end for good."""

    def cancel() -> None:
        raise KeyError("cancelled")

    monkeypatch.setattr(sys.modules[f"{pack.__name__}.nodes"], "stop_if_cancelled", cancel)
    monkeypatch.setenv("LISA_SEGMENT_ADDRESS", stranger)
    node = pack.NODE_CLASS_MAPPINGS["LisaSegment"]
    assert node.IS_CHANGED(image=None) == node.model


def test_a_redirection_is_an_error(
    pack: ModuleType, stranger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISA_SEGMENT_ADDRESS", f"{stranger}/away")
    monkeypatch.setenv("LISA_SEGMENT_TOKEN", "secret")
    with pytest.raises(RuntimeError, match="302"):
        called(pack)
    assert not Stranger.taken  # it would have taken the token along


def test_a_server_that_sends_byte_after_byte_has_no_longer_than_another(
    pack: ModuleType, stranger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISA_SEGMENT_ADDRESS", f"{stranger}/slow")
    monkeypatch.setattr(sys.modules[f"{pack.__name__}.nodes"], "SECONDS", 0.3)
    with pytest.raises(RuntimeError, match="no answer within 0.3 s"):
        called(pack)


def answering(*masks: object) -> bytes:
    return json.dumps({"answers": [{"answer": "It is [SEG].", "masks": masks}]}).encode()


def counted(counts: object, size: object = (8, 8)) -> bytes:
    return answering({"size": size, "counts": counts})


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (b"", "no JSON"),
        (b"<html>", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b'{"answers": %s}' % (b"9" * 9999), "no JSON"),
        (b" " * 2000, "more than"),
        (b"[]", "no object"),
        (b"{}", "no answer"),
        (b'{"answers": [{"answer": 7, "masks": []}]}', "no answer"),
        (b'{"answers": [{"answer": "", "masks": {}}]}', "no answer"),
        (answering(*[0] * 300), "300 masks"),
        (answering(None), "another size"),
        (counted("P2", [8, 9]), "another size"),
        (counted("P2", [10**9, 10**9]), "another size"),
        (counted("P2", "88"), "another size"),
        (counted([64]), "another size"),
        (counted("P"), "ends within"),
        (counted("0"), "a mask of 0 pixels"),
        (counted(""), "a mask of 0 pixels"),
        (counted("P2P2"), "a mask of 128 pixels"),
        (counted("O"), "a run of -1 "),
        (counted("oooooo7"), "a run of"),
        (counted("o" * 30), "no run lengths"),
        (counted("é"), "no run lengths"),
        (counted("P2 "), "no run lengths"),
    ],
)
def test_a_hostile_answer_is_an_error(
    pack: ModuleType, stranger: str, says: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISA_SEGMENT_ADDRESS", stranger)
    monkeypatch.setattr(Stranger, "says", says)
    monkeypatch.setattr(
        sys.modules[f"{pack.__name__}.nodes"], "MOST_BYTES", 200_000 if says[:1] != b" " else 1000
    )
    with pytest.raises(RuntimeError, match=f"not as lisa-segment does .*{why}"):
        called(pack)


@pytest.mark.parametrize(
    ("says", "why"),
    [(b"[]", "HTTP 422"), (b"{}", "HTTP 422"), (b"<p>", "HTTP 422"),
     (b'{"error": [1]}', "1"),
     (b'{"error": "too large", "hint": "make it smaller"}', "too large; make it smaller")],
)  # fmt: skip
def test_a_refusal_of_any_form_is_said(
    pack: ModuleType, stranger: str, says: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISA_SEGMENT_ADDRESS", f"{stranger}/refused")
    monkeypatch.setattr(Stranger, "says", says)
    with pytest.raises(RuntimeError, match=f"lisa-segment: .*{why}"):
        called(pack)


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
