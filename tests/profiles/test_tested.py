"""The tested-configuration table: rows keep what their source said and are never lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from profiles.levers import needs_no_more
from profiles.plan import Plan
from profiles.tested import (
    TestedRow,
    append,
    one_of_each,
    parse_table,
    read_table,
    user_table_path,
)

TABLE = read_table(Path("/nonexistent/tested.jsonl"))
ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30


def _row(**changes) -> TestedRow:
    row = {"id": "mine", "title": "t", "source": "user", "status": "works", "model": "7b"}
    facts = {"settings": {"device": "cuda"}, "verdict": "FITS"}
    return TestedRow.model_validate(row | facts | changes)


def test_the_shipped_rows_parse_and_have_their_own_names():
    assert TABLE.findings == ()
    names = [row.id for row in TABLE.rows]
    assert len(set(names)) == len(names)
    assert sum(not name.startswith(("lean-", "drawn-")) for name in names) == 24
    measured = [row for row in TABLE.rows if row.source == "measured"]
    assert len(measured) >= 80 and len({row.plan.content_hash for row in measured}) >= 80


def test_every_claim_of_the_seed_is_judged_by_measured_rows():
    seed = [row for row in TABLE.rows if row.source == "seed"]
    assert len(seed) == 7
    for row in seed:
        judges = [TABLE.row(name) for name in (*row.contradicted_by, *row.confirmed_by)]
        assert judges and all(judge.source == "measured" for judge in judges)
        assert all(judge.verdict == row.verdict == "OOM" for judge in judges
                   if judge.id in row.confirmed_by)  # fmt: skip


def test_measured_rows_are_the_benchmarks_records():
    records = {}
    for file, prefix in (("lean.jsonl", "lean-"), ("lattice_measured.jsonl", "drawn-")):
        for line in (ROOT / "benchmarks" / file).read_text().splitlines():
            record = json.loads(line)
            if prefix == "lean-" or record["measurement"]["verdict"] == "FITS":
                name = record["name"].removeprefix("draw-")
                records[prefix + name] = record["measurement"]
    rows = {row.id: row for row in TABLE.rows if row.id.startswith(("lean-", "drawn-"))}
    assert rows.keys() == records.keys()
    for name, row in rows.items():
        measured = records[name]
        assert row.verdict == measured["verdict"] and row.step_seconds == measured["step_seconds"]
        assert row.plan == Plan.parse(measured["plan"] | {"weights": "default"})
        if row.verdict == "FITS":
            assert row.peak_allocated_bytes == measured["peak_allocated_bytes"]
            assert row.needed_bytes == measured["peak_reserved_bytes"] + row.gradient_bytes
            assert row.gradient_bytes > 2**25 or row.model == "tiny"


def test_contradictions_name_rows_that_were_measured():
    for row in TABLE.rows:
        for name in row.contradicted_by:
            assert TABLE.row(name).source == "measured"


@pytest.mark.parametrize(
    ("row_id", "status", "words"),
    [
        ("seed-1", "works", "5.0 GB"),
        ("seed-2", "oom", "LoRA r=8, 8GB: OOM"),
        ("seed-3", "oom", "LoRA r=4, 8GB: OOM"),
        ("seed-4", "untested", "~10-12 GB"),
        ("seed-8gb", "recommended", "WITHOUT LoRA"),
        ("seed-12gb", "recommended", "WITHOUT quantization"),
        ("seed-16gb", "recommended", "BOTH"),
    ],
)
def test_the_seeds_rows_keep_their_status_and_claim(row_id, status, words):
    row = TABLE.row(row_id)
    assert (row.source, row.status) == ("seed", status)
    assert words in row.title
    assert row.needed_bytes is None, "no training peak of the seed's is known"


@pytest.mark.parametrize(
    ("row_id", "allocated_gib", "reserved_gib", "seconds"),
    [
        ("h100-7b-seed-nf4", 11.96, 13.49, 0.35),
        ("h100-7b-seed-nf4-r8", 12.51, 13.01, 0.27),
        ("h100-7b-nf4-r8-frozen", 9.58, 9.73, 0.27),
        ("h100-7b-nf4-r8-checkpointed", 7.12, 7.50, 0.47),
        ("h100-7b-nf4-r8-token-rows", 7.12, 7.54, 0.42),
        ("h100-7b-nf4-r8-sam-cached", 5.41, 5.59, 0.36),
        ("h100-7b-nf4-r8-cached", 4.73, 4.82, 0.38),
        ("h100-7b-nf4-r64-cached-paged8bit", 5.43, 5.58, 0.72),
        ("h100-7b-nf4-r8-cached-b4", 5.73, 6.01, 0.36),
        ("h100-7b-nf4-r8-cached-b8", 7.13, 7.46, 0.60),
        ("h100-7b-nf4-r8-cached-b2-kept", 10.80, 11.12, 0.23),
        ("h100-7b-nf4-r8-cached-b8-kept", 30.35, 30.73, 0.45),
        ("h100-7b-bf16-r16-cached", 13.65, 14.10, 0.22),
        ("h100-13b-nf4-r8-cached", 8.32, 8.49, 0.55),
    ],
)
def test_the_measured_rows(row_id, allocated_gib, reserved_gib, seconds):
    row = TABLE.row(row_id)
    assert row.peak_allocated_bytes == round(allocated_gib * GIB)
    assert row.peak_reserved_bytes == row.needed_bytes == round(reserved_gib * GIB)
    assert row.step_seconds == seconds
    assert row.versions["torch"] == "2.11.0+cu130"
    assert (row.data_shape.image_tokens, row.data_shape.text_tokens) == (576, 96)
    assert "random weights" in row.note


def test_a_row_must_be_a_plan():
    for changes in (
        {"settings": {"micro_bach": 1}},
        {"settings": {"device": "cpu", "dtype": "fp16"}},
        {"settings": {"model": "7b"}},
        {"model": "8b"},
        {"verdict": "MAYBE"},
        {"surprise": 1},
        {"peak_allocated_bytes": -1},
    ):
        with pytest.raises(ValidationError):
            _row(**changes)


@pytest.mark.parametrize("line", [b"{broken", b"[]", b"\xff\xfe", b'{"id": "x"}', b"null"])
def test_a_damaged_line_is_reported_and_the_rest_is_read(line):
    good = _row().model_dump_json().encode()
    table = parse_table(good + b"\n" + line + b"\n\n" + good, "mine.jsonl")
    assert [row.id for row in table.rows] == ["mine", "mine"]
    (finding,) = table.findings
    assert finding.where == "mine.jsonl:2" and "damaged" in finding.what


def test_rows_append_to_the_users_file_and_are_read_back(tmp_path):
    path = tmp_path / "new" / "tested.jsonl"
    row = _row(date="2026-01-02", peak_reserved_bytes=GIB)
    assert append(row, path) == path
    assert read_table(path).rows == (*TABLE.rows, row)


def test_rows_with_the_same_settings_are_parsed_into_one_plan(monkeypatch):
    parsed = []
    parse = Plan.parse
    monkeypatch.setattr(Plan, "parse", lambda data: parsed.append(data) or parse(data))
    lines = [_row(id=str(n), settings={"micro_batch": n % 2 + 1}).model_dump_json().encode()
             for n in range(50)]  # fmt: skip
    parsed.clear()
    rows = parse_table(b"\n".join(lines), "mine.jsonl").rows
    assert len(parsed) == 2 and [row.plan.micro_batch for row in rows] == [1, 2] * 25
    # A hundred thousand of either would take half a gigabyte.
    assert len({id(row.settings) for row in rows}) == len({id(row.plan) for row in rows}) == 2
    assert len({id(row.__pydantic_fields_set__) for row in rows}) == 2
    other = lines[0].replace(b'"note":"",', b"")
    fewer, whole = parse_table(b"\n".join([other, lines[0]]), "mine.jsonl").rows
    assert whole.model_fields_set - fewer.model_fields_set == {"note"} and whole == fewer
    wrong = lines[0].replace(b'"micro_batch":1', b'"micro_batch":-1')
    assert len(parse_table(b"\n".join([*lines, wrong, wrong]), "mine").findings) == 2


def test_one_row_stands_for_each_plans_memory():
    rows = [_row(id=str(n), settings={"seed": n, "micro_batch": n % 3 + 1}) for n in range(30)]
    assert [row.id for row in one_of_each(rows, lambda row: row.plan)] == ["0", "1", "2"]


def test_a_torn_last_line_does_not_swallow_the_next_row(tmp_path):
    path = tmp_path / "tested.jsonl"
    path.write_text('{"id": "to')
    append(_row(), path)
    table = read_table(path)
    assert table.rows[-1].id == "mine" and len(table.findings) == 1


def test_an_unreadable_user_file_is_a_finding(tmp_path):
    table = read_table(tmp_path)  # a folder
    assert table.rows == TABLE.rows
    assert "cannot be read" in table.findings[0].what


def test_the_users_file_lies_in_the_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = user_table_path()
    assert path.name == "tested.jsonl" and "lisa-preflight" in str(path)


WRITER = """
import sys
from pathlib import Path
from profiles.tested import TestedRow, append
for number in range(50):
    append(TestedRow(id=f"{sys.argv[2]}-{number}", title="t" * 2000, source="user", status="works",
                     model="7b", settings={"device": "cuda"}, verdict="FITS"), Path(sys.argv[1]))
"""


def test_four_processes_append_and_none_is_lost(tmp_path):
    path = tmp_path / "tested.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)])
        for number in range(4)
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    rows = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert sorted(rows) == sorted(f"{w}-{n}" for w in range(4) for n in range(50))


BASE = {"model": "7b", "device": "cuda", "micro_batch": 4, "checkpointed_layers": 8}


@pytest.mark.parametrize(
    "less",
    [
        {},
        {"micro_batch": 2},
        {"checkpointed_layers": 32},
        {"lora": None},
        {"lora": {"rank": 4}},
        {"train": ["mask_decoder"]},
        {"dtype": "fp16"},
        {"optimizer_state": "8bit"},
        {"mask_loss_resolution": 128},
        {"tokens": {"max_text_tokens": 96}},
        {"model": "7b-v1"},
        {"host_embeddings": True},
        {"host_layers": 4},
        {"seed": 5, "schedule": {"learning_rate": 0.1}},
    ],
)
def test_what_surely_needs_no_more(less):
    assert needs_no_more(Plan.parse(BASE | less), Plan.parse(BASE))


@pytest.mark.parametrize(
    "other",
    [
        {"micro_batch": 5},
        {"checkpointed_layers": 7},
        {"lora": {"rank": 9}},
        {"lora": {"targets": "attention"}},
        {"train": ["projector"]},
        {"train": ["embeddings"]},
        {"dtype": "fp32"},
        {"quantization": "none"},
        {"quantization": "int8"},
        {"cached_encoders": ["mask"]},
        {"logits": "all"},
        {"optimizer": "paged_adamw"},
        {"mask_loss_resolution": 512},
        {"model": "13b"},
        {"device": "cpu"},
        {"processes": 2},
        {"mixture": {"vqa": 1}},
        {"compile": True},
        {"tokens": {"max_masks": 9}},
    ],
)
def test_what_may_need_more(other):
    assert not needs_no_more(Plan.parse(BASE | other), Plan.parse(BASE))


def test_token_rows_need_no_more_than_whole_embeddings():
    whole = Plan.parse(BASE | {"train": ["embeddings"]})
    rows = Plan.parse(BASE | {"train": ["token_rows"]})
    assert needs_no_more(rows, whole) and not needs_no_more(whole, rows)


def test_a_released_lisa_is_smaller_but_not_the_other_way_round():
    v1 = Plan.parse(BASE | {"model": "7b-v1"})
    assert not needs_no_more(Plan.parse(BASE), v1)
