"""Questions asked together get the answers that each gets alone, whoever else asks or leaves.

    python benchmarks/serve_groups.py        # some minutes

One client asks `lisa-segment --serve` every question alone. Then 20 clients ask them in groups of
different sizes, each group twice. Between them some leave in the middle of a group, and some have a
question in theirs that is refused. The memory of the model's process is read after each request.
Exit code 1 if an answer differs, or a mask by more than rounding does, if the process ends, or if
the second round takes more memory than the first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import httpx2
from pycocotools import mask as coco
from serve_load import questions
from served import MIB, Served, keep, served, untrained_run, write_tables

PICTURES, CLIENTS = 150, 20
SIZES = (1, 3, 1, 2, 24, 1, 6, 1, 2, 1)  # questions of a request, by turns
KINDS = ("sentence", "sentence", "phrase", "explain")
LEAVES_AFTER = (0.05, 0.2, 0.5, 1.0, 2.0)  # seconds
MOST_PIXELS = 16  # of 65 536, by which a mask may differ: several rows are summed in another order
GROWTH_MIB = 64  # from one round to the next, which has the same groups
TOO_LONG, RESERVED = "hot " * 499, "<image>"  # a group is refused for one question, wherever it is
REFUSED = (("512 are allowed", ("What is hot?", TOO_LONG)), ("reserved token", (RESERVED, "a")))
Row = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """A request."""

    picture: bytes
    texts: tuple[str, ...]
    kind: str

    def ask(self, client: httpx2.Client, *texts: str) -> httpx2.Response:
        """Ask these of its questions, or other ones."""
        fields = {"question": list(texts), "kind": self.kind}
        return client.post("/segment", files={"picture": self.picture}, data=fields)


def groups(folder: Path, number: int) -> list[Group]:
    """So many requests, each about another picture."""
    asked = questions(folder, number)
    texts = [texts[0] for _, texts in asked]
    return [
        Group(picture, tuple(texts[(n - m) % number] for m in range(SIZES[n % len(SIZES)])),
              KINDS[n % len(KINDS)])
        for n, (picture, _) in enumerate(asked)
    ]  # fmt: skip


def alone(server: Served, asked: list[Group]) -> Iterator[list[Row]]:
    """The right answers: each question in a request of its own, by one client."""
    with httpx2.Client(base_url=server.url, timeout=300) as client:
        for group in asked:
            yield [row for text in group.texts for row in rows(group.ask(client, text))]


def rows(found: httpx2.Response) -> list[Row]:
    """A request's answers without their times; none where it is refused."""
    told: list[Row] = found.json().get("answers", [])
    return [{name: row[name] for name in row if name != "seconds"} for row in told]


def _masks(found: list[Row]) -> list[Any]:
    return [coco.decode(mask) for row in found for mask in row["masks"]]


@dataclass
class Crowd:
    """Many clients, and what became of what they asked."""

    server: Served
    asked: list[Group]
    right: list[list[Row]]
    counts: Counter[str] = field(default_factory=Counter)
    held: list[int] = field(default_factory=list)  # bytes, after each request
    most_pixels: int = 0  # by which a mask differs from the right one
    lock: Lock = field(default_factory=Lock)

    def run(self) -> int:
        """Ask all; the most bytes that the model's process held behind an answer."""
        self.held.clear()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(self._client, range(CLIENTS)))
        return max(self.held)

    def _client(self, first: int) -> None:
        with httpx2.Client(base_url=self.server.url, timeout=300) as client:
            for number in range(first, len(self.asked), CLIENTS):
                self._disturb(client, number)
                found = rows(self.asked[number].ask(client, *self.asked[number].texts))
                self._compare(found, self.right[number])
                process = self.server.model_process()
                self.held.append(process.memory_info().rss if process is not None else 0)

    def _disturb(self, client: httpx2.Client, number: int) -> None:
        """Be refused, or leave in the middle of a group."""
        group = self.asked[number]
        if number % 5 == 0:
            why, texts = REFUSED[number // 5 % len(REFUSED)]
            found = group.ask(client, *texts, *group.texts)
            right = found.status_code == 422 and why in found.text
            self._count("refused" if right else f"status {found.status_code}: {found.text}")
        elif number % 5 == 1:
            after = LEAVES_AFTER[number // 5 % len(LEAVES_AFTER)]
            try:
                with httpx2.Client(base_url=self.server.url, timeout=after) as leaving:
                    group.ask(leaving, *self.asked[-1].texts, *group.texts[:8])
                self._count("had its answer first")
            except httpx2.TimeoutException:
                self._count("left")

    def _compare(self, found: list[Row], right: list[Row]) -> None:
        """Count equal masks, and pixels of others that rounding may have moved over the border."""
        if [row["answer"] for row in found] != [row["answer"] for row in right]:
            return self._count(f"{found} instead of {right}")
        for one, other in zip(_masks(found), _masks(right), strict=True):
            pixels = int((one != other).sum())
            self._count("equal" if pixels == 0 else "rounded")
            self.most_pixels = max(self.most_pixels, pixels)
        return self._count("answered")

    def _count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1


def main() -> None:
    """Try it, keep the row, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=PICTURES)
    number = parser.parse_args().pictures
    with tempfile.TemporaryDirectory() as place:
        asked = groups(Path(place) / "data", number)
        with served(untrained_run(Path(place) / "run")) as server:
            before, right = server.model_process(), list(alone(server, asked))
            crowd = Crowd(server, asked, right)
            rounds = [crowd.run() // MIB for _ in range(2)]
            same = server.model_process() == before
    print(crowd.counts, rounds)
    counts = crowd.counts
    keep("groups", {
        "requests": 2 * number, "questions": 2 * sum(len(group.texts) for group in asked),
        "clients": CLIENTS, "answered": counts["answered"], "masks_equal": counts["equal"],
        "masks_rounded": counts["rounded"], "most_pixels": crowd.most_pixels,
        "refused": counts["refused"], "left": counts["left"], "same_process": same,
        "rounds_mib": rounds,
    })  # fmt: skip
    write_tables()
    grown = rounds[1] > rounds[0] + GROWTH_MIB
    if not same or counts["answered"] < 2 * number or crowd.most_pixels > MOST_PIXELS or grown:
        sys.exit("answers were lost or others, or the memory grows")


if __name__ == "__main__":
    main()
