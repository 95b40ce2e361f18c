"""A ComfyUI node that asks `lisa-segment --serve` about pictures and gives their masks.

It needs what ComfyUI brings: torch, numpy and Pillow. The model is in the server's process.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import secrets
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import torch
from PIL import Image

SECONDS = 300
TOKEN = "LISA_SEGMENT_TOKEN"  # a variable, since a workflow that is saved and shared would show it


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
                "address": ("STRING", {"default": "http://127.0.0.1:8763"}),
            }
        }

    def segment(
        self, image: torch.Tensor, question: str, kind: str, address: str
    ) -> tuple[torch.Tensor, str]:
        """Ask about each picture of the batch. Raises RuntimeError with the server's words."""
        masks, answers = [], []
        for picture in image:
            row = asked(address, png(picture), question, kind)
            mask = np.zeros(picture.shape[:2], bool)
            for one in row["masks"]:
                mask |= decoded(one["size"], one["counts"])
            masks.append(torch.from_numpy(mask.astype(np.float32)))
            answers.append(row["answer"])
        return torch.stack(masks), "\n".join(answers)


def png(picture: torch.Tensor) -> bytes:
    """A picture [H, W, 3] of 0 to 1 as a file."""
    values = (picture[..., :3].cpu().float().numpy() * 255).round().clip(0, 255)
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def asked(address: str, picture: bytes, question: str, kind: str) -> dict[str, Any]:
    """The server's answer to one question. Raises RuntimeError."""
    if not address.startswith(("http://", "https://")):
        raise RuntimeError(f"address: got {address!r}; allowed: http://HOST:PORT, as the server "
                           "printed it")  # fmt: skip
    body, kind_of_body = form(picture, {"question": question, "kind": kind})
    headers = {"Content-Type": kind_of_body}
    if token := os.environ.get(TOKEN):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{address.rstrip('/')}/segment", body, headers)
    try:
        with OPEN.open(request, timeout=SECONDS) as response:
            row: dict[str, Any] = json.load(response)["answers"][0]
            return row
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"lisa-segment: {_said(error)}") from None
    except (ValueError, LookupError, TypeError, http.client.HTTPException):
        raise RuntimeError(
            f"{address}: answers, but not as lisa-segment does; correct the address"
        ) from None
    except OSError as error:
        raise RuntimeError(
            f"{address}: {error}; start lisa-segment --serve there, or correct the address"
        ) from None


def _said(error: urllib.error.HTTPError) -> str:
    try:
        document = json.load(error)
        return "; ".join(document[name] for name in ("error", "hint") if name in document)
    except (ValueError, TypeError):
        return str(error)


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


def decoded(size: list[int], counts: str) -> np.ndarray:
    """COCO's compressed run lengths as a mask [H, W]; pycocotools need not be installed."""
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        code = ord(letter) - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:  # more of this number follows
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    height, width = size
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T  # runs go down the columns


NODE_CLASS_MAPPINGS = {"LisaSegment": LisaSegment}
NODE_DISPLAY_NAME_MAPPINGS = {"LisaSegment": "Segment by a question (LISA)"}
