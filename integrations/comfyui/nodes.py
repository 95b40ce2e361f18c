"""A ComfyUI node that asks `lisa-segment --serve` about pictures and gives their masks.

It needs what ComfyUI brings: torch, numpy and Pillow. The model is in the server's process.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

try:
    from comfy.model_management import (
        throw_exception_if_processing_interrupted as stop_if_cancelled,
    )
    from comfy.utils import ProgressBar
except ImportError:  # outside of ComfyUI

    def stop_if_cancelled() -> None:
        """Nobody can cancel."""

    class ProgressBar:  # type: ignore[no-redef]
        """Nobody sees it."""

        def __init__(self, total: int) -> None: ...

        def update(self, value: int) -> None:
            """So many more are done."""


ResultT = TypeVar("ResultT")
SECONDS = 300  # for an answer
MODEL_SECONDS = 2  # for what the model is: ComfyUI asks whenever a workflow is queued
PAUSE = 0.1  # between two looks at whether the run was cancelled
MOST_BYTES = 64 << 20  # of an answer
MOST_MASKS = 256  # of an answer; each is as large as the picture
LARGEST_FILE = 16 << 20  # that the server takes
# Variables, not inputs. A workflow of a stranger has inputs: his address would get the pictures
# and the token. A workflow that is shared would show the token.
ADDRESS, TOKEN = "LISA_SEGMENT_ADDRESS", "LISA_SEGMENT_TOKEN"
HERE = "http://127.0.0.1:8763"


class LisaSegment:
    """Pictures [B, H, W, 3] and a question -> masks [B, H, W], and the answers, a line each."""

    CATEGORY = "mask"
    FUNCTION = "segment"
    RETURN_TYPES = ("MASK", "STRING")
    RETURN_NAMES = ("mask", "answer")
    DESCRIPTION = "Asks lisa-segment --serve; the mask is all that the answer points at."
    model = ""  # that the server answered with when it was last asked

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs, as ComfyUI reads them."""
        question = {"multiline": True, "default": "What would you drink from?"}
        return {
            "required": {
                "image": ("IMAGE",),
                "question": ("STRING", question),
                "kind": (["sentence", "phrase", "explain"],),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """What ComfyUI compares beside the inputs: an answer holds as long as the model is the
        same, and while there is no server.

        It may not look for a cancelled run: before a node begins, nothing of ComfyUI catches that.
        """
        with suppress(RuntimeError):
            LisaSegment.model = asked("GET", "/model", model_of, MODEL_SECONDS)
        return LisaSegment.model

    def segment(self, image: torch.Tensor, question: str, kind: str) -> tuple[torch.Tensor, str]:
        """Ask about each picture of the batch. Raises RuntimeError with the server's words."""
        masks, answers = [], []
        progress = ProgressBar(len(image))
        for picture in image:
            height, width = picture.shape[:2]
            body, headers = form(file_of(picture), {"question": question, "kind": kind})
            mask, answer = asked("POST", "/segment", lambda reply, size=(height, width):
                                 read(reply, size), SECONDS, body, headers,
                                 stop_if_cancelled)  # fmt: skip
            masks.append(torch.from_numpy(mask.astype(np.float32)))
            answers.append(answer)
            progress.update(1)
        return torch.stack(masks), "\n".join(answers)


def file_of(picture: torch.Tensor) -> bytes:
    """A picture [H, W, 3] of 0 to 1 as a file: PNG, or JPEG where the server would refuse that."""
    values = (picture[..., :3].cpu().float().numpy() * 255).round().clip(0, 255)
    image, file = Image.fromarray(values.astype(np.uint8)), io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    for quality in (95, 80, 50):
        if file.tell() <= LARGEST_FILE:
            break
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def asked(
    method: str, path: str, understood: Callable[[dict[str, Any]], ResultT], seconds: float,
    body: bytes = b"", headers: Mapping[str, str] | None = None,
    look: Callable[[], None] = lambda: None,
) -> ResultT:  # fmt: skip
    """What is understood of the server's answer. Raises RuntimeError, and what `look` raises."""
    address = os.environ.get(ADDRESS) or HERE
    if not address.startswith(("http://", "https://")):
        raise RuntimeError(f"{ADDRESS}: got {address!r}; allowed: http://HOST:PORT, as the server "
                           "printed it")  # fmt: skip
    shown = dict(headers or {})
    if token := os.environ.get(TOKEN, "").strip():
        shown["Authorization"] = f"Bearer {token}"
    try:
        place = urlsplit(address)
        secure = place.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(place.netloc, timeout=seconds)
        path = place.path.rstrip("/").removesuffix("/docs") + path  # as the server prints it
        response, content = within(seconds, look, connection, method, path, body, shown)
        if response.status != http.client.OK:
            raise RuntimeError(f"lisa-segment: {_said(response, content)}")
        return understood(document(content))
    except (ValueError, http.client.HTTPException) as error:
        raise RuntimeError(f"{address}: answers, but not as lisa-segment does ({error}); "
                           f"correct {ADDRESS}") from None  # fmt: skip
    except OSError as error:
        raise RuntimeError(f"{address}: {error}; start lisa-segment --serve there, or correct "
                           f"{ADDRESS}") from None  # fmt: skip


def within(
    seconds: float, look: Callable[[], None], connection: http.client.HTTPConnection, *request: Any
) -> tuple[http.client.HTTPResponse, bytes]:
    """A response and its first bytes. Raises OSError, HTTPException, ValueError, and what `look`
    raises meanwhile: the server sees the connection end, and computes no more.

    No redirection is followed, which would get the token, and no proxy is asked. A socket's own
    time limit begins anew with every byte that comes.
    """
    done: futures.Future[tuple[http.client.HTTPResponse, bytes]] = futures.Future()

    def asking() -> None:
        try:
            connection.request(*request)
            response = connection.getresponse()
            done.set_result((response, response.read(MOST_BYTES + 1)))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=asking, daemon=True).start()
    until = time.monotonic() + seconds
    try:
        while not futures.wait([done], PAUSE).done:
            look()
            if time.monotonic() > until:
                raise TimeoutError(f"no answer within {seconds:g} s")
        return done.result()
    finally:
        if (sock := connection.sock) is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread, which close would not
        connection.close()


def document(content: bytes) -> dict[str, Any]:
    """The JSON object that a server sent. Raises ValueError."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("no object of JSON")
    return found


def _said(response: http.client.HTTPResponse, content: bytes) -> str:
    """Why the server refuses, in its words if it has any."""
    with suppress(ValueError):
        reply = document(content)
        if words := "; ".join(str(reply[name]) for name in ("error", "hint") if name in reply):
            return words
    return f"HTTP {response.status} {response.reason}"


def model_of(reply: dict[str, Any]) -> str:
    """What makes two models give other answers."""
    return json.dumps([reply.get(name) for name in ("model", "plan", "weights")])


def read(reply: dict[str, Any], size: tuple[int, ...]) -> tuple[np.ndarray, str]:
    """All masks of the one answer as one, and its words. Raises ValueError."""
    match reply.get("answers"):
        case [{"answer": str(answer), "masks": list(masks)}]:
            pass
        case _:
            raise ValueError("no answer in it")
    if len(masks) > MOST_MASKS:
        raise ValueError(f"{len(masks)} masks")
    whole = np.zeros(size, bool)
    for mask in masks:
        match mask:
            case {"size": [height, width], "counts": str(counts)} if (height, width) == size:
                whole |= decoded(size, counts)
            case _:
                raise ValueError("a mask of another size than the picture's")
    return whole, answer


def form(picture: bytes, fields: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    """A multipart form of a file and fields, and its header."""
    boundary = secrets.token_hex(16)
    named = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    parts = [('name="picture"; filename="picture"', picture), *named]
    body = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n"
        % (boundary.encode(), name.encode(), value)
        for name, value in parts
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return body + b"--%s--\r\n" % boundary.encode(), headers


def decoded(size: tuple[int, ...], counts: str) -> np.ndarray:
    """COCO's compressed run lengths as a mask [H, W]; pycocotools need not be installed.

    Raises ValueError for what is no mask of that size, before it takes memory for it.
    """
    height, width = size
    runs = list(_runs(counts, most=height * width))
    if sum(runs) != height * width:
        raise ValueError(f"a mask of {sum(runs)} pixels for {height * width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T  # runs go down the columns


def _runs(counts: str, most: int) -> Iterator[int]:
    """The lengths of the runs, alternately outside and inside. Raises ValueError."""
    before = last = value = shift = number = 0
    for letter in counts:
        code = ord(letter) - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if not 0 <= code < 64 or shift > 60:
            raise ValueError("a mask that is no run lengths")
        if code & 0x20:  # more of this number follows
            continue
        if code & 0x10:
            value -= 1 << shift
        if number > 2:  # such a number is the difference to the one before the last
            value += before
        if not 0 <= value <= most:
            raise ValueError(f"a mask with a run of {value} pixels")
        yield value
        before, last, number = last, value, number + 1
        value = shift = 0
    if shift:
        raise ValueError("a mask that ends within a number")


NODE_CLASS_MAPPINGS = {"LisaSegment": LisaSegment}
NODE_DISPLAY_NAME_MAPPINGS = {"LisaSegment": "Segment by a question (LISA)"}
