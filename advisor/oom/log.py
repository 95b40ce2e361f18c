"""A pasted log as one text for each process that wrote it, in which messages can be searched.

People paste colours, progress bars, the prefixes of launchers, and lines that a terminal has cut
in the middle of a word. So the searched text has no white space at all.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_]|[\x00\x07\x08]+"
    r"|[\u2500-\u257f]+"  # the frame that rich draws around a message, and cuts it with
)
# What launchers, log collectors and quoting put in front of a line, one at a time.
_PREFIX = re.compile(
    r"\s*(?:\[rank(\d+)\]:?|\[default(\d+)\]:|\[\d+,(\d+)\]<std(?:err|out)>:|rank ?(\d+):"
    r"|(\d{1,4}): |\[(pod/[\w./-]{1,80})\]"
    r"|([a-z][\w.-]{0,40}\d|\d{1,3}(?:\.\d{1,3}){3}): "  # a machine, as pdsh has it
    r"|\([\w.-]+ pid=(\d+)[^)]{0,60}\)"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?Z?|[>#]|[\w.-]{1,40} +\| )\s?",
    re.IGNORECASE,
)
_WINDOWS = re.compile(r'File"[A-Z]:\\|[A-Z]:\\(?:Users|Program)')
_PREFIXES = 4  # of one line, at most


@dataclass
class Stream:
    """What one process wrote, without white space; `rank` is empty where nothing names it."""

    rank: str
    text: str = ""
    starts: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of lines, by `starts`

    def line_at(self, position: int) -> int:
        """The number, from 1, of the line in which a position of `text` was."""
        return self.numbers[bisect_right(self.starts, position) - 1]


@dataclass(frozen=True)
class Log:
    """The lines as a reader sees them, and the streams."""

    lines: list[str]
    streams: list[Stream]

    @classmethod
    def of(cls, text: str) -> Log:
        """A log from what was pasted."""
        lines = re.split(r"\r\n|\n|\r", _CONTROL.sub("", text))
        found: dict[str, tuple[Stream, list[str]]] = {}
        rank = ""
        shown = []
        for number, line in enumerate(lines, start=1):
            named, rest = _without_prefixes(line) if line else (None, line)
            shown.append(rest)
            if not rest:
                continue
            # A line without a prefix continues the one before, which a terminal may have cut.
            rank = rank if named is None else named
            stream, parts = found.setdefault(rank, (Stream(rank), []))
            stream.starts.append(stream.starts[-1] + len(parts[-1]) if parts else 0)
            stream.numbers.append(number)
            parts.append("".join(rest.split()))
        for stream, parts in found.values():
            stream.text = "".join(parts)
        return cls(shown, [stream for stream, _ in found.values() if stream.text])

    @property
    def windows(self) -> bool:
        """Whether the program ran on Windows, by the paths in tracebacks."""
        return any(_WINDOWS.search(stream.text) for stream in self.streams)

    def shown_lines(self) -> Iterator[tuple[int, str]]:
        """Every line's number and text."""
        return enumerate(self.lines, start=1)


def decoded(first: bytes, last: bytes = b"") -> str:
    """The text of a log's two ends: UTF-8, or UTF-16 as PowerShell writes it."""
    wide = first[:2] in (b"\xff\xfe", b"\xfe\xff")
    encoding = "utf-8-sig" if not wide else "utf-16-le" if first[:1] == b"\xff" else "utf-16-be"
    ends = (data.decode(encoding, errors="replace") for data in (first, last) if data)
    return "\n".join(ends).removeprefix("\ufeff")


def _without_prefixes(line: str) -> tuple[str | None, str]:
    """The rank that a line's prefixes name, if any, and the line behind them."""
    rank, start = None, 0
    for _ in range(_PREFIXES):
        match = _PREFIX.match(line, start)
        if match is None:
            break
        rank = next((one for one in match.groups() if one is not None), rank)
        start = match.end()
    return rank, line[start:].rstrip()
