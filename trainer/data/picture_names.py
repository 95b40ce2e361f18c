"""What a picture's name in annotations may mean, as text alone: other systems, tools, encodings."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import PureWindowsPath
from urllib.parse import parse_qs, unquote, urlsplit

UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # the hash that Label Studio puts before a user's name


def spellings(text: str) -> list[str]:
    """What a recorded name may mean, likeliest first: itself, and without address or hash."""
    found = [text]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) or "?" in text:
        try:
            address = urlsplit(text)
            # Label Studio serves local files as /data/local-files/?d=folder/name.jpg.
            inner = parse_qs(address.query).get("d", [])
            found += [*inner, address.path.lstrip("/"), unquote(address.path).lstrip("/")]
        except ValueError:  # not an address
            pass
    if "%" in text:
        found.append(unquote(text))
    for spelling in list(found):
        head, separator, base = re.split(r"(.*[/\\])", spelling)[-3:] if re.search(
            r"[/\\]", spelling) else ("", "", spelling)  # fmt: skip
        if UPLOAD.match(base):
            found.append(head + separator + UPLOAD.sub("", base))
    sound = (one for one in found if one.strip() and "\0" not in one)
    return list(dict.fromkeys(sound)) or [text]


def stems(text: str) -> set[str]:
    """The file names, without suffix and in small letters, that a recorded name may mean."""
    names = (PureWindowsPath(spelling).name for spelling in spellings(text))
    return {os.path.splitext(name)[0].casefold() for name in names}


def uploaded(name: str) -> str:
    """The name that Label Studio gives an upload, after the hash: Django's get_valid_filename."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def names_of(parts: PureWindowsPath) -> list[str]:
    """The folders and the file of a path, without the drive and `..`."""
    return [part for part in parts.parts if part not in (parts.anchor, "..")]


def ends_of(text: str) -> set[str]:
    """The keys of all ends of a recorded name, in all its meanings; behind / in small letters."""
    paths = [names_of(PureWindowsPath(spelling)) for spelling in spellings(text)]
    ends = {key_of("/".join(names[n:])) for names in paths for n in range(len(names))}
    return ends | {f"/{key_of(names[-1]).casefold()}" for names in paths if names}


def key_of(name: str) -> str:
    """A key for all spellings of a name or path: composed letters, suffix in lower case."""
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()


def older_names(name: str) -> Iterator[tuple[str, str]]:
    """What a file's name that is no UTF-8 may have been on the Windows that wrote it."""
    for encoding in ("cp1252", "cp850"):
        with suppress(UnicodeDecodeError):
            yield encoding, os.fsencode(name).decode(encoding)
