"""Surfaces of what is shown and named: text on a terminal, file names, commands, cards, shells."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from pathlib import Path

import click
from hypothesis import strategies as st

from advisor.oom.explain import explain
from advisor.oom.log import decoded
from advisor.report.oom_text import print_explanation
from advisor.report.text import PlainConsole
from profiles.environment import RANKS, at_home, borrowed
from profiles.plan import Plan
from profiles.tested import parse_table
from profiles.text import argument, brief, one_line, printable
from tests.fuzz import surfaces
from tests.fuzz.hostile import TEXTS, Draw, changed, documents, lines, spelled
from tests.fuzz.surfaces import FACTS, PICTURE, ROWS, Surface, Wrong
from trainer.answer.output import stems
from trainer.answer.question import Question
from trainer.answer.questions import read_questions
from trainer.convert.export import card, facts_of
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import read_split
from trainer.data.mixture import check_data
from trainer.parallel.launch import is_launched, without_leftovers

ORDERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
PARTS = (
    "\x1b[2J", "\x1b]52;c;aGk=\x07", "\x1b]0;x\x1b\\", "\x9b1A", "\x9d0;x\x9c", "\u202e", "\u2066",
    "\u2028", "\x85", "\r", "\n", "\t", "\b", "\x00", "\ud83d", "\udcff", "\U000e0041", "\ufeff",
    "[/a]", "[red]", ":smile:", "---\n", "<b>", "](x)", "www.a.b", "http://a", "`", "|", "$x",
    "'", '"', "-x ", "--", "*", "~", "!", "\\", "%s", "{0}", "桌", "é", "👩‍🚀", "می‌خ", "a" * 120,
)  # fmt: skip
texts = st.lists(
    st.one_of(st.sampled_from(PARTS), st.sampled_from(TEXTS), st.text(max_size=6)), max_size=6
).map("".join)


def must_be_shown(said: str, lines_too: bool = False) -> None:
    """Raises Wrong if a terminal would obey a part of what is said, or show it as more lines."""
    if ORDERS.search(said) or (lines_too and re.search("[\n\t]", said)):
        raise Wrong(f"an order to the terminal in {said!r}")
    said.encode()


def feed_text(text: str, folder: Path) -> bool:
    must_be_shown(printable(text))
    must_be_shown(one_line(text), lines_too=True)
    must_be_shown(brief(text), lines_too=True)
    document = json.dumps([text], ensure_ascii=False)
    if json.loads(printable(document)) != [text]:
        raise Wrong(f"JSON of {text!r} says something else")
    if printable(printable(text)) != printable(text):
        raise Wrong("what is printable is changed")
    shown = io.StringIO()
    PlainConsole(file=shown, width=5000).print(text, soft_wrap=True)
    must_be_shown(shown.getvalue())
    return True


# What a file may be called, of bytes: no letter of any encoding need come out.
names = st.one_of(
    texts.map(lambda text: text.encode("utf-8", "surrogateescape" if ok(text) else "replace")),
    st.binary(min_size=1, max_size=24),
).map(lambda name: os.fsdecode(name.replace(b"/", b"").replace(b"\0", b"").lstrip(b".")[:250]))


def ok(text: str) -> bool:
    """Whether its half characters are bytes of a file name."""
    return not re.search("[\ud800-\udc7f\udd00-\udfff]", text)


def feed_file_name(name: str, root: Path) -> bool:
    """A picture of that name, with an annotation, or without and so a finding."""
    folder = root / "ReasonSeg" / "train"
    folder.mkdir(parents=True)
    name = os.fsdecode(os.fsencode(name)[:240])
    (folder / f"x{name}.png").write_bytes(PICTURE)
    if len(name) % 4:
        (folder / f"x{name}.json").write_text(json.dumps(surfaces.ANNOTATION))
    for finding in check_data(root)[1]:
        must_be_shown(str(finding), lines_too=True)
    (item,) = read_split(root, "train")
    item.name.encode()  # figures about it are written in UTF-8
    return item.image_path.is_file()


def feed_answer_names(case: list[str], folder: Path) -> bool:
    for number, name in enumerate(case):
        stem = os.fsdecode(os.fsencode(name)[:240])
        (folder / f"x{stem}.png").write_bytes(PICTURE + b"\0" * number)
    asked = read_questions(folder, "where?", None, False, False)
    found = stems(asked + asked, folder / "out")
    (folder / "out").mkdir()
    for stem in found:
        stem.with_name(stem.name + ".mask-12.png").write_bytes(b"")
        stem.with_name(stem.name + ".overlay.png").write_bytes(b"")
    if len(list((folder / "out").iterdir())) != 4 * len(asked):
        raise Wrong("two answers have one name")
    return Question(asked[0].image, "where?") in asked


def feed_command(name: str, folder: Path) -> bool:
    name = name.replace("\0", "") or "x"
    words = shlex.split(f"lisa-train evaluate {argument(name)} --data-dir {argument(name)}")

    @click.command()
    @click.argument("run")
    @click.option("--data-dir")
    def evaluate(run: str, data_dir: str) -> None: ...

    told = evaluate.make_context("evaluate", words[2:]).params
    if not all(Path(value) == Path(name) for value in told.values()) or len(told) != 2:
        raise Wrong(f"{words} names something else than {name!r}")
    return True


@st.composite
def records(draw: Draw) -> bytes:
    """Facts of a run with planted text, or otherwise changed."""
    if draw(st.booleans()):
        return draw(documents(FACTS))
    planted = {"hardware": draw(texts), "base": draw(texts), "versions": {draw(texts): draw(texts)}}
    return json.dumps(FACTS | planted).encode()


def feed_card(data: bytes, folder: Path) -> bool:
    (folder / "facts.json").write_bytes(data)
    told = card(Plan(), facts_of(folder), merged=False)
    must_be_shown(told)
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", told.partition("## Training")[2])
    if told.count("---\n") != 2 or re.search(r"[<>`|\[\]]|https?:|www\.", bare.replace("`", "", 2)):
        raise Wrong(f"a mark of its own in a card: {bare!r}")
    return "| after |" in told


def feed_listing(data: bytes, folder: Path) -> bool:
    table = parse_table(data, "tested.jsonl")
    for finding in table.findings:
        must_be_shown(str(finding))
    for row in table.rows:
        must_be_shown(row.id, lines_too=True)
        must_be_shown(row.title, lines_too=True)
    return bool(table.rows)


@st.composite
def planted_rows(draw: Draw) -> bytes:
    """Of the tested table, with hostile text in names, titles and versions."""
    if draw(st.booleans()):
        return draw(lines(ROWS))
    rows = changed(draw, ROWS)
    for row in rows:
        if isinstance(row, dict) and draw(st.booleans()):
            row |= {draw(st.sampled_from(["id", "title", "note", "status"])): draw(texts)}
    return "\n".join(map(spelled, rows)).encode()


VARIABLES = (
    *RANKS, "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP",
    "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_CPU",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_LOG_LEVEL", "ACCELERATE_", "PMI_SIZE",
    "OMPI_COMM_WORLD_RANK", "PATH", "HF_HOME", "OMP_WAIT_POLICY", "accelerate_use_fsdp",
)  # fmt: skip
VALUES = ("", "0", "1", "2", "no", "NO", "False", "true", "fp16", "29500", "127.0.0.1", "-1", "１",
          " 1", "1.0", "9" * 5000, "default")  # fmt: skip
shells = st.dictionaries(st.sampled_from(VARIABLES), st.sampled_from(VALUES) | texts)


def feed_shell(environment: dict[str, str], folder: Path) -> bool:
    launched = is_launched(environment)
    left = dict(environment)
    said = without_leftovers(left)
    if {pair.partition("=")[0] for pair in said} != environment.keys() - left.keys():
        raise Wrong("more is taken out than is said")
    if not left.items() <= environment.items() or set(borrowed(left)) - {"ACCELERATE_USE_CPU"}:
        raise Wrong(f"left: {left}")
    if not launched and (set(RANKS) & left.keys() or borrowed(left)):
        raise Wrong(f"a launcher's are left without one: {left}")
    must_be_shown(printable(", ".join(said)))
    return not borrowed(at_home(environment))


OOM = (
    "[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a "
    "total capacity of 8.00 GiB of which 1.00 GiB is free. Of the allocated memory 6.00 GiB is "
    "allocated by PyTorch, and 100.00 MiB is reserved by PyTorch but unallocated."
)


@st.composite
def logs(draw: Draw) -> bytes:
    """A log with an out-of-memory message, which text is planted into or cut out of."""
    text = OOM
    for _ in range(draw(st.integers(0, 4))):
        start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        text = text[:start] + draw(texts) + text[end if draw(st.booleans()) else start :]
    whole = draw(texts) + "\n" + text + "\n" + draw(texts)
    return whole.encode(draw(st.sampled_from(["utf-8", "utf-16"])), "surrogatepass")


def feed_log(data: bytes, folder: Path) -> bool:
    told = explain(decoded(data))
    shown = io.StringIO()
    print_explanation(told, PlainConsole(file=shown, width=100))
    must_be_shown(shown.getvalue())
    must_be_shown(json.dumps(told.model_dump(mode="json")))
    return told.exit_code == 0


SURFACES = (
    *surfaces.SURFACES,
    Surface("text on a terminal", texts, feed_text, "桌子", (), 2.0),
    Surface("file names", names, feed_file_name, "y", (DataError,)),
    Surface("names of answers", st.lists(names, min_size=1, max_size=3, unique=True),
            feed_answer_names, ["a" * 240, "a" * 239 + "b"], (), 0.5),
    Surface("printed commands", texts, feed_command, "-run x"),
    Surface("model card", records(), feed_card, json.dumps(FACTS).encode()),
    Surface("table as listed", planted_rows(), feed_listing,
            "\n".join(map(json.dumps, ROWS)).encode()),
    Surface("out-of-memory log", logs(), feed_log, OOM.encode()),
    Surface("variables of a shell", shells, feed_shell, {"ACCELERATE_USE_FSDP": "1"}),
)  # fmt: skip
