"""Text from files and users in messages: whatever it contains, it is shown as text."""

from __future__ import annotations

import json
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable
from itertools import islice
from reprlib import Repr

_UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's categories
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are spelled with them

_LARGEST = 10**4000
_BARE = re.compile(r"[\w./\\:=+-]+")  # PowerShell would cut a word at its commas


class _Brief(Repr):
    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to spell numbers of thousands of digits.
        return repr(x) if abs(x) < _LARGEST else f"a number of {x.bit_length()} bits"


_BRIEF = _Brief()
_BRIEF.maxlevel = 4
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = _BRIEF.maxset = 8
_BRIEF.maxstring = _BRIEF.maxother = 200


def brief(value: object, letters: int = 60) -> str:
    """`repr(value)`, cut to a limit of letters, however long, deep or recursive the value is."""
    text = _BRIEF.repr(value)
    return text if len(text) <= letters else text[: letters - 3] + "..."


def printable(text: str) -> str:
    """`text` with control and invisible characters spelled out, such as `\\u001b`.

    Control characters (C0 except tab and line break, C1), marks that turn the direction of
    writing, and half characters. The spelling is JSON's, so a JSON document stays what it says.
    """
    if text.replace("\n", "").replace("\t", "").isprintable():  # which is stricter, and faster
        return text
    return "".join(one if _is_shown(one) else json.dumps(one)[1:-1] for one in text)


def one_line(text: object) -> str:
    """`str(text)` made `printable` and put in one line, so that it cannot imitate other lines.

    For names, questions and whatever else comes from files.
    """
    return printable(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def some(names: Iterable[str], most: int = 5) -> str:
    """The first of some names from outside, and … for the rest."""
    first = list(islice(names, most + 1))
    return ", ".join([*map(one_line, first[:most]), *["…"] * (len(first) > most)])


def counted(number: int, one: str, more: str = "") -> str:
    """A number and what it counts: 1 picture, 2 pictures; `more` is a plural without a plain s."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def time_text(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 23 min, 4.5 h, 3.2 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{two_digits(hours)} h" if hours < 48 else f"{two_digits(hours / 24)} days"


def two_digits(number: float) -> str:
    """A number in two digits, without an exponent: 0.45, 8.7, 130."""
    return f"{float(f'{number:.2g}'):g}"


def is_text(name: str) -> bool:
    """Whether it has whole characters only: no lone surrogates, from JSON or from a file name."""
    return not any("\ud800" <= one <= "\udfff" for one in name)


def operand(value: str | os.PathLike[str]) -> str:
    """A path as a command's argument: one that begins with a dash would be taken for an option."""
    text = os.fspath(value)
    return f"./{text}" if text.startswith("-") else text


def argument(value: str | os.PathLike[str]) -> str:
    """A path as one word of a command line that can be pasted into a shell."""
    return quoted(operand(value))


def quoted(word: str, windows: bool = os.name == "nt") -> str:
    """One word of a command line, for the shells of this system.

    cmd.exe knows no single quotes, and Windows' programs read backslashes before a double one.
    """
    if not windows:
        return shlex.quote(word)
    if _BARE.fullmatch(word):
        return word
    inner = re.sub(r'(\\*)(?=")', r"\1\1", word).replace('"', '\\"')
    return '"' + re.sub(r"(\\+)$", r"\1\1", inner) + '"'


def _is_shown(one: str) -> bool:
    return one in _JOINERS or one in "\n\t" or unicodedata.category(one) not in _UNSHOWN
