"""200 requests from 20 clients against `lisa-segment --serve`: none lost, none mixed.

    python benchmarks/serve_load.py        # some minutes

One client first: its answers are the right ones, and its times are compared with. Then 20 at once,
and 20 at once while the model's process is killed (-9) again and again; a client that gets 503 asks
again. Exit code 1 if a request stays without an answer, or gets another one's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
from served import ROOT, Served, keep, served, untrained_run, write_tables

REQUESTS, CLIENTS, KILLS = 200, 20, 4
Asked = tuple[bytes, list[str]]


def questions(folder: Path, number: int) -> list[Asked]:
    """So many requests, each about another picture or with other questions."""
    sys.path.insert(0, str(ROOT))
    from trainer.data.formats.reasonseg import read_split
    from trainer.data.synthetic.dataset import write_dataset

    write_dataset(folder, seed=0, train=number, val=0, test=0)
    items = read_split(folder, "train")
    return [(item.image_path.read_bytes(), [item.texts[0], items[n - 1].texts[0]][: 1 + n % 2])
            for n, item in enumerate(items)]  # fmt: skip


class Phase:
    """All requests, by so many clients at once."""

    def __init__(self, server: Served, asked: Sequence[Asked], clients: int, kills: int) -> None:
        self.server, self.asked, self.clients, self.kills = server, asked, clients, kills
        self.answers: dict[int, Any] = {}
        self.seconds: list[float] = []
        self.retried = self.killed = 0
        self.ended = threading.Event()

    def run(self) -> float:
        """Ask all; the seconds that it took."""
        started, numbers = time.monotonic(), count()
        killer = threading.Thread(target=self._kill)
        killer.start()
        with ThreadPoolExecutor(self.clients) as pool:
            list(pool.map(lambda _: self._client(numbers), range(self.clients)))
        self.ended.set()
        killer.join()
        return time.monotonic() - started

    def _client(self, numbers: Any) -> None:
        with httpx2.Client(base_url=self.server.url, timeout=300) as client:
            while (number := next(numbers)) < len(self.asked):
                image, texts = self.asked[number]
                started = time.monotonic()
                while True:
                    files, fields = {"picture": image}, {"question": texts}
                    found = client.post("/segment", files=files, data=fields)
                    if found.status_code != 503:
                        break
                    self.retried += 1
                    if "process ended by signal 9" not in found.text:
                        raise SystemExit(f"an unclear error: {found.text}")
                self.seconds.append(time.monotonic() - started)
                if found.status_code == 200:
                    self.answers[number] = _without_time(found.json())

    def _kill(self) -> None:
        while self.killed < self.kills and not self.ended.wait(5):
            process = self.server.model_process()
            loaded = httpx2.get(f"{self.server.url}/health").json()["processes"]
            if process is not None and loaded:  # in the middle of an answer, not while it loads
                process.kill()
                self.killed += 1


def _without_time(document: Any) -> Any:
    for row in document["answers"]:
        row.pop("seconds")
    return document


def figures(phase: Phase, seconds: float, right: dict[int, Any]) -> dict[str, Any]:
    """What a phase came to."""
    times = sorted(phase.seconds)
    equal = sum(phase.answers.get(number) == answer for number, answer in right.items())
    return {
        "clients": phase.clients, "kills": phase.killed, "requests": len(phase.asked),
        "answered": len(phase.answers), "equal": equal, "retried": phase.retried,
        "median": round(statistics.median(times), 3),
        "p95": round(times[int(0.95 * len(times))], 3),
        "longest": round(times[-1], 3), "rate": round(len(times) / seconds, 2),
    }  # fmt: skip


def main() -> None:
    """Measure, keep the row, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=REQUESTS)
    number = parser.parse_args().requests
    found = []
    with tempfile.TemporaryDirectory() as place:
        asked = questions(Path(place) / "data", number)
        with served(untrained_run(Path(place) / "run")) as server:
            right: dict[int, Any] = {}
            for clients, kills in ((1, 0), (CLIENTS, 0), (CLIENTS, KILLS)):
                phase = Phase(server, asked, clients, kills)
                seconds = phase.run()
                right = right or phase.answers
                found.append(figures(phase, seconds, right))
                print(found[-1], flush=True)
    keep("load", {"phases": found})
    write_tables()
    if any(one["equal"] < number for one in found):
        sys.exit("requests were lost or mixed")


if __name__ == "__main__":
    main()
