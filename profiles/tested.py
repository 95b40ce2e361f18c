"""The tested-configuration table: what was tried, on which card, and how many bytes it took.

The shipped rows are in `tested.jsonl` beside this module; a user's own rows are in the user data
folder and are only ever appended. A row is evidence: an unknown number is null, never a guess.
"""

from __future__ import annotations

import datetime
import errno
import gc
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias, TypeVar

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import to_json

from profiles.files import read_regular
from profiles.findings import Finding
from profiles.garbage import not_collected
from profiles.levers import memory_key, needs_no_more
from profiles.places import data_folder
from profiles.plan import Plan
from profiles.records import Frozen
from profiles.sizes import GIB
from profiles.streams import tell
from profiles.text import one_line
from profiles.wrong_values import what_is_wrong

Verdict = Literal["FITS", "TIGHT", "SPILLS", "OOM", "UNKNOWN"]

Source = Literal["seed", "measured", "user"]
T = TypeVar("T")
# What rows of a file share, by model and settings: plan, settings, names of the fields given.
Plans: TypeAlias = dict[tuple[str, bytes], tuple[Plan, dict[str, Any], set[str]]]
TABLE_NAME = "tested.jsonl"


class DataShape(Frozen):
    """Tokens of one sample in the tested step."""

    image_tokens: int = Field(ge=0, description="a picture's positions in the decoder")
    text_tokens: int = Field(ge=0, description="tokens beside the image's")


class TestedRow(Frozen):
    """One tested (or merely claimed) configuration."""

    __test__ = False  # the name starts with Test, which pytest would collect

    id: str = Field(min_length=1, description="name by which reasons quote the row")
    title: str = Field(min_length=1, description="the claim, as its source put it")
    source: Source = Field(
        description="seed: claims kept as they came; measured: shipped with this project; "
        "user: this user's own runs"
    )
    status: str = Field(description="as the source put it: works, oom, untested, recommended …")
    model: str = Field(description="a name in models.toml")
    settings: dict[str, Any] = Field(description="the Plan fields that this row pins")
    gpu: str | None = Field(None, description="card, null when the source does not say")
    gpu_memory_gib: float | None = Field(None, gt=0, description="size of that card, in GiB")
    cap_bytes: int | None = Field(None, gt=0, description="limit put on the process, in bytes")
    peak_allocated_bytes: int | None = Field(None, gt=0, description="tensors, in bytes")
    peak_reserved_bytes: int | None = Field(None, gt=0, description="allocator pool, in bytes")
    gradient_bytes: int = Field(
        0,
        ge=0,
        description="gradients that a step of several micro-batches holds while it computes; added "
        "where the row was measured with one micro-batch a step",
    )
    forecast_bytes: int | None = Field(
        None, gt=0, description="what the pool was forecast to take, in bytes"
    )
    step_seconds: float | None = Field(None, gt=0, description="seconds per micro-batch")
    verdict: Verdict = Field(description="the status in this project's words")
    versions: dict[str, str] = Field(default_factory=dict, description="torch, driver …")
    data_shape: DataShape | None = Field(None, description="null when the source does not say")
    date: datetime.date | None = Field(None, description="null when the source does not say")
    note: str = Field("", description="conditions and doubts")
    contradicted_by: tuple[str, ...] = Field((), description="ids of rows that refute this one")
    confirmed_by: tuple[str, ...] = Field((), description="ids of rows that saw the same")

    @field_validator("id", "title")
    @classmethod
    def _is_one_line(cls, text: str) -> str:
        if not text.isprintable() and one_line(text) != text:  # the first is quick
            raise ValueError("must be one line without control characters")
        return text

    @model_validator(mode="after")
    def _settings_are_a_plan(self, info: ValidationInfo) -> Self:
        own = self.__dict__  # reading fields through pydantic counts in a large table
        if "model" in own["settings"]:
            raise ValueError("the model is a field of the row, not one of its settings")
        if info.context is None:
            _ = self.plan  # raises PlanError, a ValueError
            return self
        # Many rows of a file have the same plan, and parsing it takes the most time.
        plans: Plans = info.context
        key = own["model"], to_json(own["settings"])
        if key not in plans:
            plans[key] = self.plan, own["settings"], self.__pydantic_fields_set__
        # Rows of their own settings and set of given fields take 6 KB each, and time to get it.
        own["plan"], own["settings"], given = plans[key]
        if given == self.__pydantic_fields_set__:
            object.__setattr__(self, "__pydantic_fields_set__", given)
        return self

    @cached_property
    def plan(self) -> Plan:
        """The row's settings as a Plan; what the row does not pin has the Plan's default.

        Rows of one file with the same settings share it.
        """
        return Plan.parse({**self.settings, "model": self.model})

    @property
    def needed_bytes(self) -> int | None:
        """What the allocator must be able to hold: the pool's peak, else the tensors'."""
        peak = self.peak_reserved_bytes or self.peak_allocated_bytes
        return None if peak is None else peak + self.gradient_bytes

    @property
    def limit_bytes(self) -> int | None:
        """What the tested process could have at most."""
        if self.cap_bytes is not None:
            return self.cap_bytes
        return None if self.gpu_memory_gib is None else round(self.gpu_memory_gib * GIB)

    def covers(self, plan: Plan) -> bool:
        """Whether `plan` needs no more memory than this row's plan did."""
        return needs_no_more(plan, self.plan)


class Table(NamedTuple):
    """The rows that could be read, and what was wrong with those that could not."""

    rows: tuple[TestedRow, ...]
    findings: tuple[Finding, ...]

    def row(self, row_id: str) -> TestedRow:
        """The row called `row_id`. Raises KeyError."""
        for row in self.rows:
            if row.id == row_id:
                return row
        raise KeyError(row_id)


def user_table_path() -> Path:
    """The file of this user's own rows; it need not exist."""
    return data_folder() / TABLE_NAME


@cache
def shipped_table() -> Table:
    """The shipped rows alone, read once: what the docs say must not depend on the writer's own."""
    return Table(*parse_table((files("profiles") / TABLE_NAME).read_bytes(), TABLE_NAME))


def read_table(user_path: Path | None = None) -> Table:
    """The shipped rows and then the user's (`user_path`, by default the user data folder).

    A damaged line, or a file that cannot be read, becomes a finding and never an error.
    """
    rows, findings = shipped_table()
    path = user_table_path() if user_path is None else user_path
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return Table(rows, findings)
    except OSError as error:
        finding = Finding(
            str(path), f"cannot be read: {error.strerror}", fix="its rows are not used"
        )
        return Table(rows, (*findings, finding))
    own = parse_table(data, str(path))
    return Table(rows + own.rows, findings + own.findings)


def parse_table(data: bytes, where: str) -> Table:
    """The rows in JSON-lines `data` of the file `where`, and a finding per damaged line."""
    rows: list[TestedRow] = []
    findings: list[Finding] = []
    plans: Plans = {}
    with _all_kept():
        for number, line in enumerate(BytesIO(data), start=1):
            if line.isspace():
                continue
            try:
                rows.append(TestedRow.model_validate_json(line, context=plans))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                field = ".".join(str(part) for part in first["loc"])
                what = (
                    f"skipped a damaged row: {field + ': ' if field else ''}{what_is_wrong(first)}"
                )
                findings.append(Finding(f"{where}:{number}", what, fix="fix or delete that line"))
    return Table(tuple(rows), tuple(findings))


@contextmanager
def _all_kept() -> Iterator[None]:
    """No garbage collection inside; the collector never searches these objects later either."""
    with not_collected():
        try:
            yield
        finally:
            gc.freeze()


def keep(row: TestedRow) -> None:
    """Append `row` to the user's table; if it cannot be written, a note is printed."""
    try:
        append(row)
    except OSError as error:
        tell(f"note: the result was not saved in {user_table_path()}: {error.strerror or error}")


def append(row: TestedRow, path: Path | None = None) -> Path:
    """Append `row` to the user's table, as `append_all` does several."""
    return append_all((row,), path)


def append_all(rows: Iterable[TestedRow], path: Path | None = None) -> Path:
    """Append `rows` to the user's table (`path`) and return where they went. Raises OSError.

    One write in append mode: rows of processes that append at the same time neither mix nor get
    lost, even without the lock, which only keeps the check of the last byte valid.
    """
    path = user_table_path() if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = b"".join(row.model_dump_json().encode() + b"\n" for row in rows)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        _lock(handle)
        if _ends_inside_a_line(handle):
            lines = b"\n" + lines  # a torn last line must not swallow the next row
        if os.write(handle, lines) != len(lines):
            raise OSError(f"{path}: only a part was written; is the disk full?")
        os.fsync(handle)
    finally:
        os.close(handle)
    return path


def _lock(handle: int) -> None:
    """Hold the file until it is closed, where the system can."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)


def _ends_inside_a_line(handle: int) -> bool:
    if os.fstat(handle).st_size == 0:
        return False
    os.lseek(handle, -1, os.SEEK_END)
    return os.read(handle, 1) != b"\n"


def one_of_each(found: Iterable[T], plan_of: Callable[[T], Plan]) -> list[T]:
    """The first row of each `memory_key`: the others compare with every plan in the same way.

    A table may have a hundred thousand rows, and each is compared with hundreds of plans.
    """
    first: dict[object, T] = {}
    seen: set[int] = set()  # by the plan itself, which rows of a file share
    for one in found:
        plan = plan_of(one)
        if id(plan) not in seen:
            seen.add(id(plan))
            first.setdefault(memory_key(plan), one)
    return list(first.values())
