"""Hostile input as hypothesis strategies: sound documents, pictures and tensor files, made unsound.

Each starts from something sound and changes little of it, since noise never gets past the first
check of a reader. What is not changed at all must be read.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st
from PIL import Image

Draw = Callable[[st.SearchStrategy[Any]], Any]

# JSON texts that json.dumps cannot write: a document holds their names, the file their texts.
RAW = {
    "@deep": "[" * 100_000 + "]" * 100_000,
    "@nearly too deep": "[" * 850 + "]" * 850,
    "@deep object": '{"a":' * 300 + "1" + "}" * 300,
    "@digits": "9" * 5000,
    "@fewer digits": "9" * 4000,
    "@beyond any float": "1e999999",
    "@twice": '{"id": 1, "id": 2, "label": "a", "label": null}',
    "@long list": "[" + ",".join(["[1, 2]"] * 20_000) + "]",
    "@number": "-0.0",
}
TEXTS = (
    "", " ", "x", "a\0b", "\ud800", "\u202e", "\ufeff", "x" * 5000, "%s {0} %n", "\n\r\t\x1b[2J",
    "..", "../../outside.jpg", "/etc/passwd", "C:\\Windows\\win.ini", "..\\..\\outside.jpg",
    "~root", "//host/share", "[SEG]", "<image>", "</s>", "__class__", "NaN", "-1", "1e400", "true",
    "file:///etc/passwd", "link.jpg", "a" * 300 + ".jpg",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 3, 255, 65_536, 2**31, 2**32 - 1, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0,
    1e-320, 1e300, 1.7e308, -1.7e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
odd = st.one_of(
    st.sampled_from([None, True, False, [], {}, [[]], [None], {"": 0}, [[1, 2]] * 3]),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(sorted(RAW)),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a document."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    found = []
    for key, value in items:
        found.append((node, key))
        if isinstance(value, dict | list):
            found += _places(value)
    return found


def changed(draw: Draw, document: Any) -> Any:
    """A copy of a dictionary or list with up to three of its parts replaced, taken out, …"""
    document = deepcopy(document)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        places = _places(document)
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["replace", "replace", "replace", "take out", "add", "swap"]))
        if change == "replace":
            container[key] = deepcopy(draw(odd))
        elif change == "take out":
            del container[key]
        elif change == "swap":
            other, there = draw(st.sampled_from(places))
            container[key] = deepcopy(other[there])
        elif isinstance(container, dict):
            container[draw(st.sampled_from(TEXTS))] = deepcopy(draw(odd))
        else:
            container.append(deepcopy(container[key]))
    return document


def spelled(document: Any, indent: int | None = None) -> str:
    """JSON text, with what RAW names written out."""
    text = json.dumps(document, indent=indent)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


@st.composite
def documents(draw: Draw, document: Any) -> bytes:
    """A JSON file: changed parts, odd encodings, damaged bytes."""
    text = spelled(changed(draw, document))
    encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "cp1252"]))
    data = text.encode(encoding, errors="replace")
    return damaged(draw, data) if draw(st.integers(0, 4)) == 0 else data


@st.composite
def lines(draw: Draw, rows: list[Any], header: str = "") -> bytes:
    """JSON lines, or with a `header` comma-separated ones."""
    rows = changed(draw, rows)
    if header:
        names = header.split(",")
        told = [[str(r.get(n, "")) if isinstance(r, dict) else str(r) for n in names] for r in rows]
        text = "\n".join([header, *(",".join(row) for row in told)])
    else:
        text = "\n".join(map(spelled, rows))
    data = text.encode("utf-8", errors="surrogatepass")
    return damaged(draw, data) if draw(st.integers(0, 3)) == 0 else data


@st.composite
def spaced(draw: Draw, rows: list[Any]) -> bytes:
    """Lines of fields between blanks, with the ends and the blanks of any system."""
    blank = draw(st.sampled_from([" ", " ", "\t", "  ", ",", "\u3000", "\0"]))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", " \n\n", "\r", "\x85", "\v"]))
    changes = changed(draw, rows)
    fields = [row if isinstance(row, list) else [row] for row in changes]
    told = [blank.join(RAW.get(str(one), str(one)) for one in row) for row in fields]
    data = (end.join(told) + end).encode("utf-8", errors="surrogatepass")
    return damaged(draw, data) if draw(st.integers(0, 3)) == 0 else data


def damaged(draw: Draw, data: bytes) -> bytes:
    """Bytes cut off, put in, turned or doubled."""
    how = draw(st.sampled_from(["cut", "put in", "turn", "double", "nothing", "zeros"]))
    place = draw(st.integers(0, max(0, len(data) - 1)))
    if how == "cut":
        return data[:place]
    if how == "put in":
        return data[:place] + draw(st.binary(min_size=1, max_size=16)) + data[place:]
    if how == "turn":
        turned = bytes(byte ^ 0xFF for byte in data[place : place + draw(st.integers(1, 8))])
        return data[:place] + turned + data[place + len(turned) :]
    if how == "double":
        return data[:place] + data[place // 2 :]
    return b"" if how == "nothing" else data[:place] + b"\0" * 64


MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr")
FORMATS = ("PNG", "PNG", "JPEG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "ICO", "MPO")
SIZES = ((1, 1), (8, 6), (33, 20), (64, 48), (1, 700), (700, 1), (16, 16))


@st.composite
def pictures(draw: Draw) -> bytes:
    """A picture file of any mode, format, size and EXIF orientation, sound or damaged."""
    mode, kind = draw(st.sampled_from(MODES)), draw(st.sampled_from(FORMATS))
    size = draw(st.sampled_from(SIZES))
    data = _saved(_drawn(mode, size, draw(st.integers(0, 255))), kind, draw(st.integers(0, 9)))
    change = draw(st.sampled_from(["none", "none", "damage", "huge", "text"]))
    if change == "damage":
        return damaged(draw, data)
    if change == "huge":
        return _claiming(data, draw(st.sampled_from(NUMBERS[3:11])), draw(st.integers(1, 2**31)))
    return draw(st.binary(max_size=64)) if change == "text" else data


def _drawn(mode: str, size: tuple[int, int], value: int) -> Image.Image:
    picture = Image.linear_gradient("L").resize(size).point(lambda x: x ^ value)
    return picture.convert("I").convert(mode) if mode.startswith("I") else picture.convert(mode)


def _saved(picture: Image.Image, kind: str, orientation: int) -> bytes:
    """The picture's file; formats that do not know its mode get it as RGB."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    extra: dict[str, Any] = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "MPO") else {}
    if kind in ("MPO", "GIF"):
        extra |= {"save_all": True, "append_images": [picture.convert("RGB")]}
    for shown in (picture, picture.convert("L").convert("RGB")):
        file = io.BytesIO()
        try:
            shown.save(file, kind, **extra)
        except (OSError, ValueError, KeyError):
            continue
        return file.getvalue()
    return b""


def png(width: int, height: int, bits: int = 8, colour: int = 0, rows: int | None = None) -> bytes:
    """A black PNG that claims `width` x `height` and holds `rows` rows, in few bytes."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = b"\0" * (1 + (width * bits * channels + 7) // 8)
    packer = zlib.compressobj(9)
    held = height if rows is None else rows
    step = max(1, (1 << 20) // len(row))
    packed = b"".join(packer.compress(row * min(step, held - n)) for n in range(0, held, step))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", packed + packer.flush()), (b"IEND", b"")]
    if colour == 3:
        parts.insert(1, (b"PLTE", b"\0\0\0"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def _claiming(data: bytes, width: int, height: int) -> bytes:
    """The file with another size in its header, where its format is known."""
    width, height = abs(int(width)) % 2**31, height % 2**31
    if data.startswith(b"\x89PNG"):
        head = data[12:16] + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    if data.startswith(b"BM"):
        return data[:18] + struct.pack("<ii", width, height) + data[26:]
    start = data.find(b"\xff\xc0")
    if data.startswith(b"\xff\xd8") and start > 0:
        size = struct.pack(">HH", height % 65536, width % 65536)
        return data[: start + 5] + size + data[start + 9 :]
    return data


@st.composite
def tensor_files(draw: Draw, sound: bytes) -> bytes:
    """A safetensors file with another header, length or end."""
    length = int.from_bytes(sound[:8], "little")
    header, values = json.loads(sound[8 : 8 + length]), sound[8 + length :]
    dtypes = st.sampled_from(["F64", "F32", "BF16", "I8", "BOOL", "U64", "F4", "F8_E4M3", "C64"])
    header = changed(draw, header)
    if draw(st.booleans()) and isinstance(header, dict):
        for entry in header.values():
            if isinstance(entry, dict) and "dtype" in entry and draw(st.integers(0, 2)) == 0:
                entry["dtype"] = draw(dtypes)
    text = spelled(header).encode("utf-8", errors="replace")
    told = draw(st.sampled_from([len(text)] * 6 + [0, 1, len(text) + 64, 2**40, 2**64 - 1]))
    data = told.to_bytes(8, "little") + text + values
    return damaged(draw, data) if draw(st.integers(0, 3)) == 0 else data
