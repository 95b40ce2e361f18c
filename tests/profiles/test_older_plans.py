"""What earlier versions wrote is read, and keeps its hash. `schema_1/` was written by them."""

from hashlib import sha256
from pathlib import Path

import pytest

from profiles.findings import PlanError
from profiles.measurement import Measurement
from profiles.plan import Plan
from profiles.tested import parse_table, shipped_table

OLD = Path(__file__).parent / "schema_1"
RUN = Path(__file__).parents[1] / "trainer" / "model" / "before_peft"


def test_a_plan_of_schema_1_is_read_and_keeps_its_hash():
    plan = Plan.read(OLD / "plan.json")
    assert (plan.model, plan.micro_batch, plan.host_layers, plan.seed) == ("7b", 4, 8, 7)
    assert plan.schema_version == 2 and plan.cached_encoders == ("vision",)
    assert plan.content_hash == "1f5e9ce0d84ef97e"
    assert "quantized_parts" not in plan.to_json()
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("path", ["run/plan.json", "run/last/plan.json", "export/plan.json"])
def test_plans_of_an_older_run_and_export_are_read(path):
    assert "quantized_parts" in (RUN / path).read_text()
    assert Plan.read(RUN / path).model == "tiny"


def test_the_hashes_of_schema_1_stay():
    # Feature caches do not depend on them, but ids of users' rows and records of benchmarks do.
    assert Plan().content_hash == "47b0a01083712c51"
    assert Plan.parse({"model": "13b", "device": "cuda"}).content_hash == "ca81899428ede3f7"
    rows = (row for row in shipped_table().rows if not row.id.startswith("lean-shared-"))
    of_one_size = (row for row in rows if not row.plan.profile.tokens_vary)
    newer = {"drawn-21", "drawn-35"}  # measured later than their neighbours
    older = (row for row in of_one_size if row.id not in newer
             and not (row.id.startswith("drawn-") and row.plan.compile))  # fmt: skip
    hashes = " ".join(row.plan.content_hash for row in older)
    assert sha256(hashes.encode()).hexdigest() == (
        "0e760da5a27b16b864079151d0ec64f1850d17886eff42410335cdb2cffeae16"
    )


def test_rows_of_schema_1_are_read():
    data = (OLD / "tested.jsonl").read_bytes()
    assert b"quantized_parts" in data
    table = parse_table(data, "tested.jsonl")
    assert {row.plan.cached_encoders for row in table.rows} == {("mask", "vision")}
    assert table.findings == () and [row.model for row in table.rows] == ["7b", "13b"]


@pytest.mark.parametrize(
    ("words", "roles", "content_hash"),
    [
        (["sam", "clip"], ("mask", "vision"), "206297277f24a8b7"),
        (["clip", "sam"], ("vision", "mask"), "a57eb58e990aba35"),
        (["sam"], ("mask",), "26e0e299bfbf26a5"),
        ([], (), "adcb390ecd6aa47b"),
    ],
)
def test_encoders_of_schema_1_are_read_as_their_roles(words, roles, content_hash):
    old = Plan.parse({"model": "7b", "device": "cuda", "cached_encoders": words})
    new = Plan.parse({"model": "7b", "device": "cuda", "cached_encoders": roles})
    assert old.cached_encoders == roles and old == new
    assert old.content_hash == new.content_hash == content_hash
    assert new.override([f"cached_encoders={','.join(words)}"]) == new


def test_neither_an_unknown_encoder_nor_a_wrong_type_is_translated():
    for bad in (["dino"], [1], "sam", {"sam": 1}, [["sam"]]):
        with pytest.raises(PlanError, match="cached_encoders"):
            Plan.parse({"cached_encoders": bad})


def test_a_plan_inside_another_record_is_read():
    measurement = {"plan": {"quantized_parts": ["llama"]}, "verdict": "UNKNOWN", "gpu": "",
                   "gpu_bytes": 0, "text_tokens": [1, 1], "masks": 1,
                   "random_weights": True}  # fmt: skip
    assert Measurement.model_validate(measurement).plan == Plan()


def test_a_retired_setting_cannot_be_set():
    with pytest.raises(PlanError, match="quantized_parts: no such setting"):
        Plan().override(["quantized_parts=llama"])
