"""Text of annotation tools: UTF-8, or an older encoding where only one is plausible.

Older LabelMe on a Chinese Windows wrote GBK, spreadsheets write cp1252. Nearly any bytes decode as
cp1252, so decoding alone proves nothing: the result must look like words.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from trainer.data.importing.lost import Lost

BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_MIXED_WORD = re.compile("[A-Za-z][\u0400-\u04ff]|[\u0400-\u04ff][A-Za-z]")  # "cafй" for "café"
_PUNCTUATION = "’‘“”–—…°«»¿¡€£§·×²³±µ½¼®©™ "


@dataclass
class Conventions:
    """What the user specified about ambiguous files, and what was assumed otherwise."""

    encoding: str | None = None
    frame: str | None = None  # "stored" or "upright": the frame of a turned picture's outlines
    iscrowd: str | None = None  # "object" or "crowd": what COCO's `iscrowd: 1` marks
    assumed: dict[str, int] = field(default_factory=dict)  # counts by assumption
    notes: list[str] = field(default_factory=list)  # what lies there and is not read
    labels: set[str] = field(default_factory=set)  # in every spelling
    bare: dict[str, str] = field(default_factory=dict)  # pictures without an outline, and why
    lost: Lost = field(default_factory=Lost)  # what broken entries are about

    def assume(self, what: str, times: int = 1) -> None:
        if times:
            self.assumed[what] = self.assumed.get(what, 0) + times

    def leave_out(self, picture: str, why: str = "") -> None:
        """Count a picture that has no outline to ask about, with the reason if one is recorded."""
        self.bare.setdefault(picture, why)

    def text(self, raw: bytes) -> str:
        """The text of a file. Raises ValueError if no encoding or more than one is plausible.

        LookupError: Python does not know `encoding`.
        """
        text, name = decoded(raw, self.encoding)
        if name not in ("utf-8", "utf-8-sig", self.encoding):
            self.assume(f"files read as {name}")
        return text

    def document(self, raw: bytes) -> str | bytes:
        """The same of JSON, which parsers also take in bytes: no copy of a large file is made."""
        return raw if self.encoding is None and raw.isascii() else self.text(raw)


def decoded(raw: bytes, encoding: str | None = None) -> tuple[str, str]:
    """The text and its encoding: `encoding`, a BOM's, UTF-8, or the only plausible one.

    Raises ValueError where no older encoding, or more than one, gives plausible text.
    """
    if encoding is not None:
        return raw.decode(encoding), encoding
    for mark, name in BOMS:
        if raw.startswith(mark):
            return raw.decode(name), name
    try:
        return raw.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        found = [name for name in _PLAUSIBLE if _is_plausible(raw, name)]
    if len(found) == 1:
        return raw.decode(found[0]), found[0]
    may = f"may be {', '.join(found)}" if found else "no other encoding gives words"
    raise ValueError(f"text that is not UTF-8, and {may}: name it with --encoding")


def _is_plausible(raw: bytes, name: str) -> bool:
    try:
        text = raw.decode(name)
    except UnicodeDecodeError:
        return False
    return _PLAUSIBLE[name](text)


def _of_script(*scripts: str) -> Callable[[str], bool]:
    """A test for text whose letters beyond ASCII are all of these scripts, by Unicode's names."""

    def fits(text: str) -> bool:
        beyond = [c for c in text if not c.isascii() and c not in _PUNCTUATION]
        names = [unicodedata.name(character, "") for character in beyond]
        return (
            not _MIXED_WORD.search(text)
            and any(name.startswith(scripts) for name in names)
            and all(name.startswith((*scripts, "IDEOGRAPHIC", "FULLWIDTH")) for name in names)
        )

    return fits


def _is_western(text: str) -> bool:
    """Letters and typographic signs, rarely side by side, and none within words of capitals."""
    beside = 0
    for before, character in zip(" " + text, text, strict=False):
        if character.isascii():
            beside = 0
            continue
        latin = unicodedata.name(character, "").startswith("LATIN") and character != "ƒ"
        if not latin and character not in _PUNCTUATION:
            return False
        beside += 1
        # Other encodings' words come out as "Ñòîë" or "±­×Ó": signs within words, capitals behind
        # small letters.
        if beside > 2 or (character.isupper() and before.islower()):
            return False
        if not latin and before.isalpha() and not before.isascii():
            return False
    return True


def _is_simplified(text: str) -> bool:
    """Only the 6763 characters of GB 2312: others of GBK are rare, and typical of misreadings."""
    try:
        text.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return _of_script("CJK")(text)


def _is_traditional(text: str) -> bool:
    """Only the 5401 frequent characters of Big5, which come first in it."""
    frequent = (c.isascii() or c.encode("big5", "replace") < b"\xc6\x7f" for c in text)
    return _of_script("CJK")(text) and all(frequent)


def _is_japanese(text: str) -> bool:
    kana = any(unicodedata.name(c, "").startswith(("HIRAGANA", "KATAKANA")) for c in text)
    return kana and _of_script("CJK", "HIRAGANA", "KATAKANA")(text)


_PLAUSIBLE: dict[str, Callable[[str], bool]] = {
    "cp1252": _is_western,
    "gbk": _is_simplified,
    "big5": _is_traditional,
    "shift_jis": _is_japanese,
    "euc_kr": _of_script("HANGUL"),
    "cp1251": _of_script("CYRILLIC"),
}
