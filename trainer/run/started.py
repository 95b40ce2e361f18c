"""What a run was started with, kept in its run.json for --resume."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from profiles.files import read_regular, reason, write_whole
from profiles.preferences import Preference
from profiles.wrong_values import what_is_wrong
from trainer.run.folder import LAST, RECORD
from trainer.run.trackers import TENSORBOARD, Tracker

# split -> item -> digest of its annotation and its picture's size;
# split's pictures -> path, or data set -> digest of the content, or of its pictures' sizes
Digests: TypeAlias = dict[str, dict[str, str]]


class CannotResume(ValueError):
    """A run that cannot be resumed; the message says why."""


@dataclass(frozen=True)
class Keeping:
    """When a run saves, what it keeps, where it logs, and how long it waits for memory."""

    minutes: float = 10.0  # between two checkpoints: the most that a kill can cost
    steps: int | None = None  # the same in optimizer steps
    checkpoints: int = 2
    wait_minutes: float = 0.0  # for other processes to free memory
    trackers: tuple[Tracker, ...] = (TENSORBOARD,)

    def earlier(self, folder: Path) -> list[Path]:
        """The folders of the checkpoints before the last one in a run folder, newest first."""
        return [folder / f"{LAST}-{n}" for n in range(1, self.checkpoints)]


USUAL = Keeping()


@dataclass(frozen=True)
class Started:
    """A run's data and cache folders, the digests of its data, and the options of its start."""

    data: Path
    cache: Path
    digests: Digests
    keeping: Keeping = USUAL
    pinned: tuple[str, ...] = ()  # settings that the user named
    prefer: Preference = "usual"  # what counted first when the plan was chosen
    environment: dict[str, str] = field(default_factory=dict)  # such as which card
    skip_broken: int = 0  # how many broken entries of the data may be left out
    left_out: tuple[str, ...] | None = None  # the entries left out, by their paths from `data`
    adapter: Path | None = None  # what the training starts from, before its first checkpoint
    launcher: str = ""  # the process that started this one and may start it again

    def to_json(self) -> str:
        """As run.json has it, with folders by their full paths."""
        folders = {"data": self.data, "cache": self.cache, "adapter": self.adapter}
        document = asdict(self) | {k: v and str(v.resolve()) for k, v in folders.items()}
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> None:
        """Write run.json into the run folder."""
        write_whole(folder / RECORD, self.to_json())

    @classmethod
    def parse(cls, text: str | bytes) -> Started:
        """From the text of a run.json. Raises ValidationError."""
        return TypeAdapter(cls).validate_json(text)

    @classmethod
    def read(cls, folder: Path) -> Started:
        """Read run.json of a run folder. Raises CannotResume."""
        try:
            return cls.parse(read_regular(folder / RECORD))
        except ValidationError as error:
            what = what_is_wrong(error.errors(include_url=False, include_input=False)[0])
            raise CannotResume(
                f"{folder / RECORD}: damaged ({what})\n    hint: no run to resume; begin a new one"
            ) from None
        except OSError as error:
            what = f"no run to resume ({RECORD}: {reason(error)})"
            if not folder.is_dir():
                what = "is a file" if folder.exists() else "no such folder"
            raise CannotResume(
                f"{folder}: {what}\n    hint: --resume names the --output-dir of a lisa-train run"
            ) from None
