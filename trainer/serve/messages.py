"""Messages between the server and the processes that hold the model.

A message is the length of its header (4 bytes), the header as JSON, and raw bytes. There are no
pickles: one side reads what strangers sent.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

HEAD = struct.Struct(">I")


class Message(NamedTuple):
    """A header of plain values, and bytes."""

    header: dict[str, Any]
    body: bytes = b""


def packed(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A message as it is sent."""
    text = json.dumps({**header, "bytes": len(body)}).encode()
    return HEAD.pack(len(text)) + text + body


async def received(stream: asyncio.StreamReader) -> Message:
    """The next message. Raises IncompleteReadError where the other side has gone."""
    (length,) = HEAD.unpack(await stream.readexactly(HEAD.size))
    header = json.loads(await stream.readexactly(length))
    return Message(header, await stream.readexactly(header.pop("bytes")))


def read(file: BinaryIO) -> Message | None:
    """The next message; None where the other side has gone."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    header = json.loads(file.read(*HEAD.unpack(head)))
    count = header.pop("bytes")
    body = file.read(count)
    return Message(header, body) if len(body) == count else None
