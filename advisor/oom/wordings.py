"""The messages with which PyTorch, CUDA, its libraries and systems say that memory ran out.

Patterns are for text without white space (`Log`). Figures are GiB, MiB, KiB or bytes, as PyTorch
counts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from pydantic import Field

from advisor.oom.log import Log, Stream
from profiles.records import Frozen
from profiles.text import one_line

Memory = Literal["card", "host", "killed", "shared", "on-chip", "unified", "size", "run"]

_SIZE = r"(\d{1,11}(?:\.\d{1,4})?)(bytes|[KMGT]i?B)"
_FACTORS = {"b": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MOST = 2**44  # bytes: NVML's "not available" comes out as 17179869184 GiB
_WINDOW = 1500  # letters in which a message's figures stand
_AROUND = 80  # letters: what a message with figures is called before, and ends with
_NEAR = 30  # letters between two names of one thing
_SHOWN = 160
_EACH = 200  # messages of one wording in one stream that are looked at


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


@dataclass(frozen=True)
class _Wording:
    memory: Memory
    name: str
    pattern: re.Pattern[str]
    sure: bool = True


def _w(memory: Memory, name: str, pattern: str, sure: bool = True) -> _Wording:
    return _Wording(memory, name, re.compile(pattern), sure)


# With figures: a message of these is the best that a log can have.
_FIGURED = (
    _w("card", "PyTorch", rf"(?:(?:CUDA|HIP|XPU)outofmemory\.?)?Triedtoallocate{_SIZE}(?!on)"),
    _w("size", "PyTorch", r"Triedtoallocatemorethan1EB"),
    _w("card", "PyTorch (cudaMallocAsync)", r"Allocationondevice\d*wouldexceedallowedmemory"),
    _w("unified", "PyTorch on Apple", r"MPSbackendoutofmemory"),
    _w("host", "PyTorch's CPU allocator",
       r"DefaultCPUAllocator:(?:can'tallocatememory|notenoughmemory):youtriedtoallocate"),
    _w("host", "NumPy", rf"Unabletoallocate{_SIZE}foranarray"),
    _w("killed", "Linux", r"Outofmemory:Kill(?:ed)?process\d+.{0,60}?total-vm"),
)  # fmt: skip
_BARE = (
    _w("on-chip", "Triton", r"outofresource:sharedmemory"),
    _w("card", "bitsandbytes", r"Erroroutofmemoryatline\d+infile"),
    _w("card", "NCCL", r"Cudafailure(?:\d+)?'outofmemory'|FailedtoCUDA[cm]alloc"),
    _w("card", "CUDA's libraries", r"CU[A-Z]{2,10}_STATUS_ALLOC_FAILED"),
    _w("card", "CUDA", r"(?:CUDA|HIP)(?:driver)?error:?outofmemory|cudaruntimeerror\(2\)"
       r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|cudaMallocfailed:outofmemory"),
    _w("card", "PyTorch", r"torch\.(?:cuda\.)?OutOfMemoryError|(?:CUDA|HIP)outofmemory"),
    _w("card", "accelerate", r"Noexecutablebatchsizefound"),
    _w("card", "transformers", r"enoughGPURAMtofit"),
    _w("card", "TensorFlow or JAX", r"OOMwhenallocatingtensor|RESOURCE_EXHAUSTED:Outofmemory"),
    _w("card", "cuBLAS", r"CUBLAS_STATUS_NOT_INITIALIZED", sure=False),
    _w("shared", "PyTorch's data loader", r"insufficientsharedmemory\(shm\)|outofsharedmemory"
       r"|killedbysignal:Buserror"),
    _w("host", "Windows", r"oserror1455|WinError1455|pagingfileistoosmall"),
    _w("host", "Python", r"(?<!OutOf)MemoryError|std::bad_alloc|Cannotallocatememory"),
    _w("killed", "a container or scheduler", r"OOMKill|oom[-_]kill|usingallavailableRAM"),
    _w("killed", "a launcher", r"(?:exit|return)code[:=]?-9(?!\d)"
       r"|exit(?:ed)?(?:with)?(?:code|status)[:=]?137(?!\d)"
       r"|(?<!via)(?<!viaSignals\.)SIGKILL|killedbysignal:Killed|[Ss]ignal9(?!\d)", sure=False),
)  # fmt: skip
# Of whole lines, which only end so: bash and zsh of a process that was killed.
_KILLED = re.compile(r"(?:^|it/s\]|\?\]|\d\s{1,20}|\s{2,20}|zsh: )[Kk]illed(?::? 9|\s{2,20}\S.*|)$")
_OWN = re.compile(r"out of memory while .+, after step \d+|out of memory, (?:see|and no smaller)")
# Texts that only speak of it: advice, options, documentation.
_ADVICE = re.compile(
    r"(?i)\b(?:if|when|avoid|prevent|may|might|could|can|causes?|reduces?|in case of|leads? to|"
    r"risk|to fix|help)\b.{0,80}(?:out of memory|OutOfMemoryError|SIGKILL|MemoryError)"
)


def messages(log: Log) -> list[Message]:
    """Every message in a log, in the order of their lines."""
    found = [one for stream in log.streams for one in _in_stream(stream, log)]
    taken = {one.line for one in found}
    lines = (one for one in log.shown_lines() if one[0] not in taken)
    return sorted([*found, *islice(_whole_lines(lines), _EACH)], key=lambda one: one.line)


def _whole_lines(lines: Iterable[tuple[int, str]]) -> Iterator[Message]:
    """The messages that are recognised by their line as it is."""
    for number, line in lines:
        if "out of memory" in line and _OWN.search(line):
            yield _message("run", "lisa-train", line, number)
        elif "illed" in line and _KILLED.search(line):
            yield _message("killed", "the shell", line, number, sure=False)


def _in_stream(stream: Stream, log: Log) -> Iterator[Message]:
    text = stream.text
    figured = sorted(
        (
            (match, wording)
            for wording in _FIGURED
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
    for wording in _BARE:
        for match in islice(wording.pattern.finditer(text), _EACH):
            line = stream.line_at(match.start())
            inside = any(start <= match.start() <= end for start, end in covered)
            if inside or _ADVICE.search(log.lines[line - 1][:_WINDOW]):
                continue
            covered.append((match.start() - _NEAR, match.end() + _NEAR))
            read = _message(wording.memory, wording.name, log.lines[line - 1], line, wording.sure)
            yield read.model_copy(update={"rank": stream.rank})


def _message(memory: Memory, wording: str, line: str, number: int, sure: bool = True) -> Message:
    return Message(memory=memory, wording=wording, text=_shown(line), line=number, sure=sure)


def _shown(line: str) -> str:
    text = line.strip()
    return one_line(text if len(text) <= _SHOWN else text[:_SHOWN] + " …")


def _figures(wording: _Wording, window: str) -> Message:
    """The message in `window`, which begins with it."""
    patterns = _FIGURES if wording.memory == "card" else _OTHER_FIGURES
    figures = {name: _size(pattern, window) for name, pattern in patterns.items()}
    reserved = _size(re.compile(rf"{_SIZE}reservedintotal"), window)
    if reserved is not None and figures.get("allocated_bytes") is not None:
        figures["unallocated_bytes"] = max(0, reserved - (figures["allocated_bytes"] or 0))
    gpu = re.search(r"GPU(\d{1,3})(?:;|hasatotal)", window)
    listed = re.finditer(rf"Process(\d{{1,9}})has{_SIZE}memoryinuse", window)
    others = [(int(one[1]), _bytes(one[2], one[3])) for one in listed]
    name = wording.name
    if window.startswith(("HIP", "XPU")):
        name += {"H": " on AMD", "X": " on Intel"}[window[0]]
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
    "requested_bytes": re.compile(rf"Triedtoallocate{_SIZE}|Requested:{_SIZE}"),
    "total_bytes": re.compile(rf"{_SIZE}totalcapacity|totalcapaci?tyof{_SIZE}|Devicelimit:{_SIZE}"),
    "free_bytes": re.compile(rf"{_SIZE}free;|ofwhich{_SIZE}isfree|accordingtoCUDA\):{_SIZE}"),
    "allowed_bytes": re.compile(rf"{_SIZE}allowed;|memoryfraction\):{_SIZE}"),
    "allocated_bytes": re.compile(
        rf"{_SIZE}alreadyallocated|allocatedmemory{_SIZE}isallocated|Currentlyallocated:{_SIZE}"
    ),
    # Until PyTorch 1.3 "cached" counted the part of the pool that was not in use.
    "unallocated_bytes": re.compile(rf"{_SIZE}isreservedbyPyTorchbut|{_SIZE}cached\)"),
    "process_bytes": re.compile(rf"thisprocesshas{_SIZE}memoryinuse"),
}
_OTHER_FIGURES = {
    "requested_bytes": re.compile(
        rf"Triedtoallocate{_SIZE}|youtriedtoallocate(\d{{1,18}})(bytes|GB)|Unabletoallocate{_SIZE}"
    ),
    "allowed_bytes": re.compile(rf"maxallowed:{_SIZE}"),
    "allocated_bytes": re.compile(rf"MPSallocated:{_SIZE}"),
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
