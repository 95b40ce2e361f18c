"""Hostile requests to `lisa-segment --serve`: a right answer or a clear error, never status 500.

    python benchmarks/serve_fuzz.py [--seed N] [--cases N]        # some minutes

Pictures and texts are those of tests/fuzz. A case fails that ends the server or the model's
process, takes more than 10 s of processor time, gets a status that is no refusal, or reads of a
path or a traceback; hypothesis makes it smaller and prints it. Exit code 1 then.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from served import MIB, ROOT, Served, keep, served, untrained_run, write_tables

sys.path.insert(0, str(ROOT))
from tests.fuzz import hostile  # noqa: E402
from tests.fuzz.surfaces import LARGEST  # noqa: E402
from trainer.data.images import size_of  # noqa: E402
from trainer.serve.limits import Limits  # noqa: E402

SECONDS = 10  # of processor time a case; six times as many by the clock
REFUSALS = {400, 403, 404, 405, 413, 415, 422}
SOUND = hostile.png(64, 48)
SIDE = int(Limits().pixels ** 0.5)
LARGE = LARGEST | {"as large as the server allows": lambda: hostile.png(SIDE, SIDE, 8, 2),
                   "one row more": lambda: hostile.png(SIDE, SIDE + 2, 8, 2)}  # fmt: skip
Draw = Callable[[st.SearchStrategy[Any]], Any]
Send = Callable[[httpx2.Client, Any], httpx2.Response]


class Wrong(AssertionError):
    """An answer that is not the right one."""


@dataclass
class Tally:
    """What became of a kind's cases."""

    name: str
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def row(self) -> dict[str, Any]:
        """Plain values."""
        cases = self.answered + sum(self.refused.values())
        return {"name": self.name, "cases": cases, "answered": self.answered,
                "refused": dict(self.refused), "slowest": round(self.slowest, 2)}  # fmt: skip


def form(picture: bytes = SOUND, **fields: Any) -> httpx2.Request:
    """A request as a client makes it, to be changed."""
    fields.setdefault("question", ["What is hot?"])
    return httpx2.Request(
        "POST", "http://127.0.0.1/segment", files={"picture": ("a", picture)}, data=fields
    )


texts = st.one_of(st.sampled_from(hostile.TEXTS), st.text(max_size=40)).map(
    lambda text: text.encode("utf-8", "replace").decode()
)


@st.composite
def asked(draw: Draw) -> dict[str, Any]:
    """Fields of a form: questions, flags, and what is none of them."""
    fields: dict[str, Any] = {"question": draw(st.lists(texts, min_size=1, max_size=3))}
    for name in ("kind", "path", "picture"):
        if draw(st.integers(0, 9)) == 0:
            fields[name] = draw(st.sampled_from(["phrase", "explain", "", "1", "../../x", "\0"]))
    return fields


@st.composite
def bodies(draw: Draw) -> tuple[dict[str, str], bytes]:
    """A form's bytes, damaged, under headers that need not be true."""
    request = form(draw(st.sampled_from([SOUND, b"", b"\r\n--b"])))
    kind = request.headers["content-type"]
    wrong = [
        "",
        "text/plain",
        "multipart/form-data",
        "application/json",
        f"{kind}; charset=utf-7",
        kind.replace("boundary", "yradnuob"),
        f"{kind}x",
        "multipart/form-data; boundary=",
    ]
    headers = {"Content-Type": draw(st.sampled_from([kind] * 8 + wrong))}
    body = request.read()
    return headers, body if draw(st.integers(0, 3)) == 0 else hostile.damaged(draw, body)


@st.composite
def raw(draw: Draw) -> tuple[bytes, bool]:
    """What is sent over a connection, HTTP or not, and whether the connection ends behind it."""
    request = form()
    lines = [b"POST /segment HTTP/1.1", b"Host: 127.0.0.1"]
    lines += [b"%s: %s" % one for one in request.headers.raw if one[0].lower() != b"host"]
    lines += [b"Connection: close"]
    lines.append(draw(st.sampled_from([b"X: y", b"Expect: 100-continue", b"Upgrade: websocket",
                                       b"Transfer-Encoding: chunked", b"Content-Length: 5",
                                       b"Content-Length: -1", b"Host: evil.example",
                                       b"X: " + b"y" * 70_000, b"\xff: \xff"])))  # fmt: skip
    whole = b"\r\n".join([*lines, b"", request.read()])
    cut = draw(st.integers(0, 3)) > 0
    return (hostile.damaged(draw, whole) if cut else whole), cut


def send_picture(client: httpx2.Client, picture: bytes) -> httpx2.Response:
    found = client.send(_here(client, form(picture)))
    if found.status_code == 200:
        _check(found, picture, 1)
    return found


def send_largest(client: httpx2.Client, name: str) -> httpx2.Response:
    return send_picture(client, LARGE[name]())


def send_fields(client: httpx2.Client, fields: dict[str, Any]) -> httpx2.Response:
    found = client.send(_here(client, form(**fields)))
    if found.status_code == 200:
        _check(found, SOUND, len(fields["question"]))
    return found


def send_body(client: httpx2.Client, case: tuple[dict[str, str], bytes]) -> httpx2.Response:
    return client.post("/segment", headers=case[0], content=case[1])


def send_raw(client: httpx2.Client, case: tuple[bytes, bool]) -> httpx2.Response:
    """The first answer's status; 400 if the server just hangs up, as it may."""
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, 3) as connection:
        try:
            connection.sendall(case[0])
            if case[1]:
                connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except OSError:  # it hangs up while we send, or waits for more
            answer = b""
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 400
    return httpx2.Response(status, content=answer)


def _here(client: httpx2.Client, request: httpx2.Request) -> httpx2.Request:
    request.url = client.base_url.join("/segment")
    request.headers["host"] = f"{client.base_url.host}:{client.base_url.port}"
    return request


def _check(found: httpx2.Response, picture: bytes, count: int) -> None:
    """An answer to each question, and masks of the picture's own size."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(picture)
        file.flush()
        size = size_of(Path(file.name))
    document = found.json()
    sizes = [tuple(mask["size"]) for row in document["answers"] for mask in row["masks"]]
    if len(document["answers"]) != count or {(document["height"], document["width"]), *sizes} != {
        size
    }:
        raise Wrong(f"{size}: {found.text[:300]}")


KINDS: tuple[tuple[str, st.SearchStrategy[Any], Send, float], ...] = (
    ("pictures", hostile.pictures(), send_picture, 0.4),
    ("largest pictures", st.sampled_from(sorted(LARGE)), send_largest, 0.02),
    ("texts and fields", asked(), send_fields, 0.25),
    ("forms", bodies(), send_body, 0.25),
    ("connections", raw(), send_raw, 0.15),
)


def feed(server: Served, name: str, cases: Any, send: Send, count: int, number: int) -> Tally:
    """Try the cases of a kind. Raises what the first bad case raised, after shrinking that case."""
    tally, before = Tally(name), server.model_process()

    with httpx2.Client(base_url=server.url, timeout=6 * SECONDS) as client:

        @seed(number)
        @settings(max_examples=count, deadline=None, database=None, print_blob=False,
                  phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
                  report_multiple_bugs=False)  # fmt: skip
        @given(cases)
        def case(one: Any) -> None:
            started = server.cpu_seconds()
            found = send(client, one)
            took = server.cpu_seconds() - started
            if found.status_code != 200 and found.status_code not in REFUSALS:
                raise Wrong(f"status {found.status_code}: {found.text[:300]}")
            if took > SECONDS or server.model_process() != before:
                raise Wrong(f"took {took:.1f} s, process {server.model_process()}")
            if found.status_code != 200 and any(
                word in found.text for word in ("Traceback", str(ROOT), tempfile.gettempdir())
            ):
                raise Wrong(f"says too much: {found.text[:300]}")
            tally.answered += found.status_code == 200
            tally.refused[str(found.status_code)] += found.status_code != 200
            tally.slowest = max(tally.slowest, took)

        case()
    tally.refused = +tally.refused
    print(tally.row(), flush=True)
    return tally


def held_mib(pid: int, key: str) -> int:
    """What a process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024 // MIB


def tracebacks(said: str) -> int:
    """How many a server printed of uvicorn's own: it answers a connection that it has given up.

    Exits with any other.
    """
    others = [one for one in said.split("Traceback")[1:] if "LocalProtocolError" not in one]
    if others:
        sys.exit(f"the server printed a traceback:\n{others[0][:8000]}")
    return said.count("Traceback")


def main() -> None:
    """Try all, keep the row, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = untrained_run(Path(place) / "run", new_tokens=4)
        with served(run) as server:
            model = server.model_process()
            assert model is not None
            both = {"server": server.process.pid, "model": model.pid}
            facts: dict[str, Any] = {"seed": arguments.seed}
            facts |= {f"{name}_before_mib": held_mib(pid, "VmRSS") for name, pid in both.items()}
            facts["surfaces"] = [
                feed(
                    server, name, cases, send, round(share * arguments.cases), arguments.seed
                ).row()
                for name, cases, send, share in KINDS
            ]
            facts |= {f"{name}_mib": held_mib(pid, "VmHWM") for name, pid in both.items()}
            facts["uvicorn"] = tracebacks("\n".join(server.said))
    keep("fuzz", facts)
    write_tables()


if __name__ == "__main__":
    main()
