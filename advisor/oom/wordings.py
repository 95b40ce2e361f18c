"""Finds the messages that memory ran out in a log, and reads their figures.

Figures are GiB, MiB, KiB or bytes, as PyTorch counts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from pydantic import Field

from advisor.oom.known import ADVICE, BARE, FIGURED, KILLED, OWN, SIZE, Memory, Wording
from advisor.oom.log import Log, Stream
from profiles.records import Frozen
from profiles.text import one_line

_FACTORS = {"b": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MOST = 2**60  # bytes: NVML's "not available" comes out as 17179869184 GiB
_WINDOW = 1500  # letters in which a message's figures stand
_AROUND = 80  # letters: what a message with figures is called before, and ends with
_TRACEBACK = 2500  # letters before a message in which the lines that led to it stand
_NEAR = 30  # letters between two names of one thing
_SHOWN = 160
_EACH = 200  # messages of one wording in one stream that are looked at
# Whose GPU a message speaks of, by its first letters.
_MAKERS = {"HIP": " on AMD", "XPU": " on Intel", "NPU": " on Huawei", "MLU": " on Cambricon",
           "MUSA": " on Moore Threads"}  # fmt: skip


class Process(Frozen):
    """Another entry of the driver's list."""

    pid: int
    bytes: int


class Message(Frozen):
    """One message, with the figures that it gives. Bytes."""

    memory: Memory = Field(description="which memory ran out")
    wording: str = Field(description="whose message it is")
    text: str = Field(description="its line")
    line: int = Field(description="number of the line, from 1")
    rank: str = Field("", description="process that wrote it, where the log says so")
    sure: bool = Field(True, description="False: it may have another cause")
    gpu: int | None = None
    requested_bytes: int | None = Field(None, description="what was asked for")
    total_bytes: int | None = Field(None, description="the card's memory")
    free_bytes: int | None = None
    allowed_bytes: int | None = Field(None, description="the process's own limit")
    allocated_bytes: int | None = Field(None, description="tensors")
    unallocated_bytes: int | None = Field(None, description="in the pool, not in use")
    process_bytes: int | None = Field(None, description="this process, libraries included")
    others: tuple[Process, ...] = Field((), description="other processes on the card")


def messages(log: Log) -> list[Message]:
    """Every message in a log, in the order of their lines."""
    found = [one for stream in log.streams for one in _in_stream(stream, log)]
    taken = {one.line for one in found}
    lines = (one for one in log.shown_lines() if one[0] not in taken)
    return sorted([*found, *islice(_whole_lines(lines), _EACH)], key=lambda one: one.line)


def _whole_lines(lines: Iterable[tuple[int, str]]) -> Iterator[Message]:
    """The messages that are recognised by their line as it is."""
    for number, line in lines:
        if "out of memory" in line and OWN.search(line):
            yield _message("run", "lisa-train", line, number)
        elif "illed" in line and KILLED.search(line):
            yield _message("killed", "the shell", line, number, sure=False)


def _in_stream(stream: Stream, log: Log) -> Iterator[Message]:
    text = stream.text
    figured = sorted(
        (
            (match, wording)
            for wording in FIGURED
            for match in islice(wording.pattern.finditer(text), _EACH)
        ),
        key=lambda pair: pair[0].start(),
    )
    ends = [*(match.start() for match, _ in figured[1:]), len(text)][: len(figured)]
    covered = []
    for (match, wording), end in zip(figured, ends, strict=True):
        window = text[match.start() : min(end, match.start() + _WINDOW)]
        covered.append((match.start() - _AROUND, match.end() + _AROUND))
        line = stream.line_at(match.start())
        yield _figures(wording, window).model_copy(
            update={"rank": stream.rank, "line": line, "text": _shown(log.lines[line - 1])}
        )
    for wording in BARE:
        for match in islice(wording.pattern.finditer(text), _EACH):
            line = stream.line_at(match.start())
            inside = any(start <= match.start() <= end for start, end in covered)
            advice = ADVICE.search(log.lines[line - 1][:_WINDOW])
            if inside or advice or not _led_to(wording, text, match.start()):
                continue
            covered.append((match.start() - _NEAR, match.end() + _NEAR))
            read = _message(wording.memory, wording.name, log.lines[line - 1], line, wording.sure)
            yield read.model_copy(update={"rank": stream.rank})


def _message(memory: Memory, wording: str, line: str, number: int, sure: bool = True) -> Message:
    return Message(memory=memory, wording=wording, text=_shown(line), line=number, sure=sure)


def _led_to(wording: Wording, text: str, start: int) -> bool:
    """Whether the last frame before a message is the one that its wording requires, if any."""
    if wording.after is None:
        return True
    before = text[max(0, start - _TRACEBACK) : start]
    frame = before.rpartition('File"')[2]  # others may only have led there
    return wording.after.search(frame) is not None


def _shown(line: str) -> str:
    text = line.strip()
    return one_line(text if len(text) <= _SHOWN else text[:_SHOWN] + " …")


def _figures(wording: Wording, window: str) -> Message:
    """The message in `window`, which begins with it."""
    patterns = _FIGURES if wording.memory == "card" else _OTHER_FIGURES
    figures = {name: _size(pattern, window) for name, pattern in patterns.items()}
    reserved = _size(re.compile(rf"{SIZE}reservedintotal"), window)
    if reserved is not None and figures.get("allocated_bytes") is not None:
        figures["unallocated_bytes"] = max(0, reserved - (figures["allocated_bytes"] or 0))
    gpu = re.search(r"(?:GPU|NPU)(\d{1,3})(?:;|hasatotal)", window)
    listed = re.finditer(rf"Process(\d{{1,9}})has{SIZE}memoryinuse", window)
    others = [(int(one[1]), _bytes(one[2], one[3])) for one in listed]
    name = wording.name
    name += next((maker for start, maker in _MAKERS.items() if window.startswith(start)), "")
    return Message(
        memory=wording.memory,
        wording=name,
        text="",
        line=1,
        gpu=int(gpu[1]) if gpu else None,
        others=tuple(Process(pid=pid, bytes=size) for pid, size in others if size is not None),
        **figures,
    )


_FIGURES = {
    "requested_bytes": re.compile(rf"Triedtoallocate{SIZE}|Requested:{SIZE}"),
    "total_bytes": re.compile(rf"{SIZE}totalcapacity|totalcapaci?tyof{SIZE}|Devicelimit:{SIZE}"),
    "free_bytes": re.compile(rf"{SIZE}free;|ofwhich{SIZE}isfree|accordingtoCUDA\):{SIZE}"),
    "allowed_bytes": re.compile(rf"{SIZE}allowed;|memoryfraction\):{SIZE}"),
    "allocated_bytes": re.compile(
        rf"{SIZE}alreadyallocated|allocatedmemory{SIZE}isallocated|Currentlyallocated:{SIZE}"
    ),
    # Until PyTorch 1.3 "cached" counted the part of the pool that was not in use.
    "unallocated_bytes": re.compile(rf"{SIZE}isreservedbyPyTorchbut|{SIZE}cached\)"),
    "process_bytes": re.compile(rf"thisprocesshas{SIZE}memoryinuse"),
}
_OTHER_FIGURES = {
    "requested_bytes": re.compile(
        rf"Triedtoallocate{SIZE}|youtriedtoallocate(\d{{1,18}})(bytes|GB)|Unabletoallocate{SIZE}"
    ),
    "allowed_bytes": re.compile(rf"maxallowed:{SIZE}"),
    "allocated_bytes": re.compile(rf"MPSallocated:{SIZE}"),
    "process_bytes": re.compile(r"anon-rss:(\d{1,15})(kB)"),
}


def _size(pattern: re.Pattern[str], window: str) -> int | None:
    match = pattern.search(window)
    if match is None:
        return None
    number, unit = (one for one in match.groups() if one is not None)
    return _bytes(number, unit)


def _bytes(number: str, unit: str) -> int | None:
    size = round(float(number) * _FACTORS[unit[0].upper() if unit != "bytes" else "b"])
    return size if size <= _MOST else None
