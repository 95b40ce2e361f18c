"""Reads pictures: opened with size limits, decoded, turned upright."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from trainer.data.arrays import ByteArray, Size
from trainer.data.findings import DataError, Report

ReadT = TypeVar("ReadT")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LONGEST_SIDE = 65_535  # pixels; JPEG allows no longer one
# Judged by content, not by extension: pictures gathered from the web often carry a wrong one.
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")
# Some public dialogues are about GIFs called .jpg: their first frame is used. Outlines may belong
# to another frame, so pictures with outlines must not be GIFs.
_ALL_FORMATS = (*_IMAGE_FORMATS, "GIF")
# Pillow refuses a PNG with a colour profile or text beyond 1 MiB, which editors do write.
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20
_END = b"\xff\xd9"  # JPEG's marker of the end
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # one that ends coded pixels: restarts do not
_SEGMENT = re.compile(rb"(\xff[\xc0-\xfe])(?=(..))", re.DOTALL)  # and its length
# Comments and metadata, except JFIF's and Adobe's, which tell libjpeg the colour space.
_SKIPPED = {b"\xff\xfe"} | {bytes((0xFF, 0xE0 + n)) for n in range(16)} - {b"\xff\xe0", b"\xff\xee"}
# Suffixes of pictures in lower case; also of formats that are not read, to report them.
PICTURE_SUFFIXES = frozenset(
    (*IMAGE_SUFFIXES, ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".apng", ".webp", ".bmp", ".dib",
     ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".mpo")
)  # fmt: skip


def read_image(path: Path) -> ByteArray:
    """Read a picture upright as uint8 [H, W, 3], RGB.

    Other modes are converted: alpha is dropped, as OpenCV does; of 16 bits the high byte is kept.
    Raises DataError: missing, not a picture, truncated, or beyond Pillow's MAX_IMAGE_PIXELS or
    LONGEST_SIDE.
    """
    return _opened(path, _to_rgb)[1]


def size_of(path: Path) -> Size:
    """Height and width of a picture as `read_image` gives it, from its header. Raises DataError."""
    return _opened(path, lambda image: None)[0]


def whole_size_of(path: Path) -> Size:
    """The same of a picture that can be decoded as a whole. Raises DataError."""
    return _opened(path, load_whole)[0]


def _opened(path: Path, read: Callable[[Image.Image], ReadT]) -> tuple[Size, ReadT]:
    report = Report(Path(path))
    opened = open_image(report, read, _ALL_FORMATS)
    if opened is None:
        raise DataError(report.findings)
    return opened


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name, or else by its first bytes."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return True
    try:
        if not path.is_file():  # reading a pipe would block
            return False
        with Image.open(path, formats=_ALL_FORMATS):
            return True
    except Exception:  # other files may raise anything in Pillow
        return False


def open_image(
    report: Report, read: Callable[[Image.Image], ReadT], formats: tuple[str, ...] = _IMAGE_FORMATS
) -> tuple[Size, ReadT] | None:
    """The upright size and the result of `read` on the image; None with a finding added."""
    limit = Image.MAX_IMAGE_PIXELS or float("inf")
    try:
        if not report.path.is_file():  # reading a pipe would block
            raise FileNotFoundError
        with Image.open(report.path, formats=formats) as opened:
            width, height = opened.size
            # Up to twice its limit Pillow only warns; long sides cost gigabytes of row pointers.
            if width * height > limit or max(width, height) > LONGEST_SIDE:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            sideways = opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            sideways &= opened.format != "TIFF"  # Pillow turns these itself, and swaps their size
            return ((width, height) if sideways else (height, width)), read(opened)
    except FileNotFoundError:
        report.add("image", "no such file", "the path of a picture", "give one that is there")
    except Exception as error:
        # Broad because damaged files make Pillow raise nearly anything, such as struct.error.
        most = f"at most {limit} pixels, {LONGEST_SIDE} a side"
        allowed = f"a complete {', '.join(formats)} file of {most}"
        fix = "fetch or save the picture again, smaller if that is the complaint"
        unknown = isinstance(error, UnidentifiedImageError)  # whose text has the path again
        if unknown and _is_heic(report.path):
            report.add("image", "HEIC, of a phone", allowed, "save the picture as JPEG")
            return None
        if isinstance(error, Image.DecompressionBombError):  # Pillow names twice our limit
            error = ValueError(str(error).partition(" exceeds")[0])
        report.add("image", ValueError("no picture of a known kind") if unknown else error,
                   allowed, fix)  # fmt: skip
    return None


def _is_heic(path: Path) -> bool:
    """Whether the first bytes are those of HEIC or HEIF, which Pillow does not read."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf")


def _to_rgb(image: Image.Image) -> ByteArray:
    """uint8 [H, W, 3], upright, of a picture in any of Pillow's modes."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        # Heights or distances in a TIFF: Pillow would clip them to what looks like a picture.
        raise ValueError("floating-point values are no colours")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255, which turns 16-bit pictures white.
        deep = np.clip(np.asarray(image), 0, 65535) >> 8
        return np.repeat(deep.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB warns
    return np.array(image.convert("RGB"), dtype=np.uint8)


def load_whole(image: Image.Image) -> None:
    """Check that a whole picture can be decoded. Raises nearly anything if it is damaged."""
    if image.format != "JPEG":
        _to_rgb(image)  # refuses more than load() does
    elif not _is_complete(image):
        _load_smallest(image)


def _load_smallest(image: Image.Image) -> None:
    """Decode a JPEG at an eighth of its size: all of it is read, without the last transform."""
    image.draft("L", (1, 1))
    image.load()


def _is_complete(image: Image.Image) -> bool:
    """Whether a JPEG, opened but not read on, has a sound header and pixels up to its end marker.

    Such a file can be decoded: libjpeg refuses no pixel data, whatever its bits are. This check
    takes a third of the time of decoding. If it is False, only decoding shows whether the file is
    sound.
    """
    file = getattr(image, "fp", None)
    if file is None:
        return False
    start = file.tell()  # Pillow has read the header, and no further
    file.seek(0)
    content = file.read()
    marker = _MARKER.search(content, start)
    if marker is None or marker[0] != _END:
        return False
    return _decodes(_tables(content[:start]))


def _tables(header: bytes) -> bytes:
    """A JPEG's header without comments and metadata, which its decoder skips.

    The rest is sizes and tables, the same for many pictures.
    """
    kept, place = [header[:2]], 2
    while segment := _SEGMENT.match(header, place):
        end = segment.end(1) + int.from_bytes(segment[2])
        if segment[1] not in _SKIPPED:
            kept.append(header[place:end])
        place = end
    return b"".join(kept) if place == len(header) else header


@lru_cache(maxsize=1000)
def _decodes(header: bytes) -> bool:
    """Whether a JPEG with this header and no pixels can be decoded."""
    with suppress(Exception), Image.open(BytesIO(header + _END), formats=["JPEG"]) as image:
        _load_smallest(image)
        return True
    return False
