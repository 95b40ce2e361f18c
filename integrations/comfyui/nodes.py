"""A ComfyUI node that asks `lisa-segment --serve` about pictures and gives their masks.

It needs what ComfyUI brings: torch, numpy and Pillow. The model is in the server's process.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
import torch
from PIL import Image

SECONDS = 300
MOST_BYTES = 64 << 20  # of an answer
MOST_MASKS = 256  # of an answer; each is as large as the picture
# Variables, not inputs. A workflow of a stranger has inputs: his address would get the pictures
# and the token. A workflow that is shared would show the token.
ADDRESS, TOKEN = "LISA_SEGMENT_ADDRESS", "LISA_SEGMENT_TOKEN"
HERE = "http://127.0.0.1:8763"


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """lisa-segment redirects nobody; another server would be sent the token along."""

    def redirect_request(self, *_: Any) -> None:
        """Makes the redirection an error."""


# Without proxies: what is meant for this machine would go to them.
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect)


class LisaSegment:
    """Pictures [B, H, W, 3] and a question -> masks [B, H, W], and the answers, a line each."""

    CATEGORY = "mask"
    FUNCTION = "segment"
    RETURN_TYPES = ("MASK", "STRING")
    RETURN_NAMES = ("mask", "answer")
    DESCRIPTION = "Asks lisa-segment --serve; the mask is all that the answer points at."

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

    def segment(self, image: torch.Tensor, question: str, kind: str) -> tuple[torch.Tensor, str]:
        """Ask about each picture of the batch. Raises RuntimeError with the server's words."""
        masks, answers = [], []
        for picture in image:
            mask, answer = asked(png(picture), picture.shape[:2], question, kind)
            masks.append(torch.from_numpy(mask.astype(np.float32)))
            answers.append(answer)
        return torch.stack(masks), "\n".join(answers)


def png(picture: torch.Tensor) -> bytes:
    """A picture [H, W, 3] of 0 to 1 as a file."""
    values = (picture[..., :3].cpu().float().numpy() * 255).round().clip(0, 255)
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def asked(
    picture: bytes, size: tuple[int, ...], question: str, kind: str
) -> tuple[np.ndarray, str]:
    """The mask [H, W] and the words of the server's answer to a question. Raises RuntimeError."""
    address = os.environ.get(ADDRESS) or HERE
    if not address.startswith(("http://", "https://")):
        raise RuntimeError(f"{ADDRESS}: got {address!r}; allowed: http://HOST:PORT, as the server "
                           "printed it")  # fmt: skip
    body, kind_of_body = form(picture, {"question": question, "kind": kind})
    headers = {"Content-Type": kind_of_body}
    if token := os.environ.get(TOKEN, "").strip():
        headers["Authorization"] = f"Bearer {token}"
    try:
        request = urllib.request.Request(f"{address.rstrip('/')}/segment", body, headers)
        return read(within(SECONDS, lambda: sent(request)), size)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"lisa-segment: {_said(error)}") from None
    except (ValueError, http.client.HTTPException) as error:
        raise RuntimeError(f"{address}: answers, but not as lisa-segment does ({error}); "
                           f"correct {ADDRESS}") from None  # fmt: skip
    except OSError as error:
        raise RuntimeError(f"{address}: {error}; start lisa-segment --serve there, or correct "
                           f"{ADDRESS}") from None  # fmt: skip


def sent(request: urllib.request.Request) -> dict[str, Any]:
    """The answer's JSON object. Raises ValueError, OSError, HTTPException."""
    with OPEN.open(request, timeout=SECONDS) as response:
        return document(response)


def within(seconds: float, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of some work. Raises TimeoutError if it takes longer, and leaves it behind.

    A socket's own time limit begins anew with every byte that comes.
    """
    done: futures.Future[dict[str, Any]] = futures.Future()

    def working() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=working, daemon=True).start()
    try:
        return done.result(seconds)
    except futures.TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def document(response: Any) -> dict[str, Any]:
    """The JSON object that a server sends. Raises ValueError."""
    content = response.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("no object of JSON")
    return found


def _said(error: urllib.error.HTTPError) -> str:
    """Why the server refuses, in its words if it has any."""
    try:
        told = document(error)
    except (ValueError, OSError, http.client.HTTPException):
        return str(error)
    return "; ".join(str(told[name]) for name in ("error", "hint") if name in told) or str(error)


def read(told: dict[str, Any], size: tuple[int, ...]) -> tuple[np.ndarray, str]:
    """All masks of the one answer as one, and its words. Raises ValueError."""
    match told.get("answers"):
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


def form(picture: bytes, fields: dict[str, str]) -> tuple[bytes, str]:
    """A multipart form of a file and fields, and its content type."""
    boundary = secrets.token_hex(16)
    named = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    parts = [('name="picture"; filename="picture.png"', picture), *named]
    body = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n"
        % (boundary.encode(), name.encode(), value)
        for name, value in parts
    )
    return body + b"--%s--\r\n" % boundary.encode(), f"multipart/form-data; boundary={boundary}"


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
