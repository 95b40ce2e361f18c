"""The Plan: what goes in comes out, what cannot run is refused with every reason at once."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from profiles.findings import PlanError
from profiles.older_plans import as_first_written
from profiles.overrides import OTHER_NAMES
from profiles.plan import Plan, setting_names
from profiles.settings import Lora, Mixture, Schedule, TokenLimits

LAYERS = {"tiny": 4, "7b": 32, "7b-v1": 32, "13b": 40, "13b-v1": 40}
TRAINED = ["mask_decoder", "text_hidden_fcs", "projector", "token_rows"]


def subsets(values, least=0):
    return st.lists(st.sampled_from(values), unique=True, min_size=least)


@st.composite
def plans(draw) -> Plan:
    """Valid plans from all over the space."""
    model = draw(st.sampled_from(sorted(LAYERS)))
    device = draw(st.sampled_from(["cpu", "cuda"]))
    on_gpu = device == "cuda"
    rank = draw(st.integers(1, 256))
    lora = {"rank": rank, "alpha": draw(st.floats(0.5, 512)), "dropout": draw(st.floats(0, 0.9))}
    micro, accumulation, processes = (draw(st.integers(1, 64)) for _ in range(3))
    return Plan.parse(
        {
            "model": model,
            "device": device,
            "dtype": draw(st.sampled_from(["bf16", "fp16", "fp32"] if on_gpu else ["fp32"])),
            "quantization": draw(st.sampled_from(["nf4", "int8", "none"])),
            "lora": draw(st.sampled_from([None, lora])),
            "train": draw(subsets(TRAINED, least=1)),
            "micro_batch": micro,
            "accumulation": accumulation,
            "processes": processes,
            "checkpointed_layers": draw(st.integers(0, LAYERS[model])),
            "cached_encoders": draw(subsets(["mask", "vision"])),
            "logits": draw(st.sampled_from(["supervised", "all"])),
            "optimizer": draw(st.sampled_from(["adamw", "paged_adamw"])) if on_gpu else "adamw",
            "schedule": {"learning_rate": draw(st.floats(1e-8, 1))},
            "weights": draw(st.text(min_size=1, max_size=20)),
            "seed": draw(st.integers(0, 2**63)),
            "max_train_samples": draw(st.none() | st.integers(1, 10**6)),
        }
    )


def findings(data) -> dict[str, str]:
    """What Plan.parse refuses, by setting."""
    with pytest.raises(PlanError) as caught:
        Plan.parse(data)
    return {finding.where: str(finding) for finding in caught.value.findings}


@given(plans())
@settings(max_examples=100, deadline=None)
def test_json_round_trip(plan):
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).content_hash == plan.content_hash


@given(plans(), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_hash_does_not_see_the_order_of_keys(plan, random):
    items = list(json.loads(plan.to_json()).items())
    random.shuffle(items)
    assert Plan.parse(dict(items)).content_hash == plan.content_hash


CHANGES = {
    "model": "7b",
    "weights": "random",
    "device": "cuda",
    "quantization": "none",
    "dtype": "fp32",
    "lora": "null",
    "lora.rank": "9",
    "lora.alpha": "17",
    "lora.dropout": "0.1",
    "lora.targets": "all-linear",
    "train": "mask_decoder",
    "effective_batch": "40",
    "micro_batch": "4",
    "accumulation": "5",
    "questions_per_picture": "3",
    "checkpointed_layers": "1",
    "cached_encoders": "mask",
    "logits": "all",
    "mask_loss_resolution": "128",
    "schedule.learning_rate": "0.1",
    "schedule.shape": "cosine",
    "schedule.warmup_steps": "1",
    "schedule.epochs": "1",
    "schedule.beta1": "0.8",
    "schedule.beta2": "0.8",
    "schedule.weight_decay": "0.1",
    "schedule.grad_clip": "2",
    "schedule.max_skipped_steps": 3,
    "schedule.patience": 3,
    "tokens.max_text_tokens": "96",
    "tokens.max_masks": "1",
    "tokens.max_new_tokens": "1",
    "mixture.reason_seg": "2",
    "mixture.refer_seg": "3",
    "mixture.sem_seg": "9",
    "mixture.vqa": "3",
    "mixture.samples": "100",
    "allocator": "",
    "workers": "2",
    "seed": "1",
    "max_train_samples": "1",
    "max_val_samples": "1",
}
CUDA_CHANGES = {
    "optimizer": "paged_adamw",
    "optimizer_state": "8bit",
    "host_embeddings": "true",
    "compile": "true",
    "products": "fp8",
}
# Constants, tables whose leaves are changed above, and one that needs a second setting with it.
NOT_CHANGED_ALONE = {"schema_version", "schedule", "tokens", "mixture",
                     "processes", "nodes", "host_layers", "min_pixels", "max_pixels"}  # fmt: skip


def test_every_setting_is_tried():
    tried = {*CHANGES, *CUDA_CHANGES, *NOT_CHANGED_ALONE}
    assert tried == set(setting_names())


@pytest.mark.parametrize("key", [*CHANGES, *CUDA_CHANGES])
def test_any_change_changes_the_hash(key):
    plan = Plan(device="cuda", checkpointed_layers=4) if key in CUDA_CHANGES else Plan()
    changed = plan.override([f"{key}={(CHANGES | CUDA_CHANGES)[key]}"])
    assert changed.content_hash != plan.content_hash


def test_plans_from_before_later_settings_keep_their_hash():
    data = as_first_written(json.loads(Plan().to_json()))
    assert (data["schema_version"], data["cached_encoders"]) == (1, ["sam", "clip"])
    del data["mixture"], data["schedule"]["max_skipped_steps"], data["questions_per_picture"]
    del data["schedule"]["patience"]
    del data["min_pixels"], data["max_pixels"], data["nodes"], data["products"]
    data["schedule"]["warmup_steps"] = 100  # it was the default
    old = json.dumps(data, sort_keys=True, separators=(",", ":"))
    assert Plan().content_hash == hashlib.sha256(old.encode()).hexdigest()[:16]
    assert Plan.parse(data) == Plan(schedule=Schedule(warmup_steps=100))


@pytest.mark.parametrize("limit", ["min_pixels=501408", "max_pixels=802816"])
def test_limits_of_pictures_change_the_hash(limit):
    plan = Plan.parse({"model": "qwen3-vl-4b"})
    assert plan.override([limit]).content_hash != plan.content_hash


def test_limits_of_pictures_are_the_models_own_and_go_with_it():
    plan = Plan.parse({"model": "qwen3-vl-4b"})
    assert (plan.min_pixels, plan.max_pixels) == (401408, 1048576)
    assert plan.profile.most_image_tokens == 1024
    small = plan.override(["max_pixels=262144"])
    assert (small.min_pixels, small.profile.most_image_tokens) == (262144, 256)
    assert plan.override(["min_pixels=2097152"]).max_pixels == 2097152
    assert small.override(["model=qwen3-vl-2b"]).max_pixels == 1048576
    assert small.override(["model=7b"]).max_pixels is None
    assert Plan.from_json(small.to_json()) == small


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"model": "7b", "max_pixels": 100_000}, "max_pixels"),
        ({"model": "qwen3-vl-2b", "min_pixels": 200_000, "max_pixels": 100_000}, "min_pixels"),
        ({"model": "qwen3-vl-2b", "max_pixels": 10}, "max_pixels"),
        ({"model": "qwen3-vl-2b", "train": ["projector"]}, "train"),
    ],
)
def test_limits_and_parts_that_a_model_lacks_are_refused(settings, where):
    with pytest.raises(PlanError) as caught:
        Plan.parse(settings)
    assert [finding.where for finding in caught.value.findings] == [where]


def test_every_machine_runs_as_many_processes():
    four = Plan().override(["processes=4", "nodes=2"])
    assert four.content_hash != Plan().override(["processes=4"]).content_hash
    with pytest.raises(PlanError, match="a multiple of 2"):
        Plan().override(["processes=5", "nodes=2"])


def test_processes_change_the_hash():
    plan = Plan().override(["processes=2"])
    assert plan.content_hash != Plan().content_hash


@pytest.mark.parametrize("model", [Plan, Lora, Schedule, TokenLimits, Mixture])
def test_every_field_is_described(model: type[BaseModel]):
    for name, field in model.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("assignments", "batch"),
    [
        (["micro_batch=4"], (20, 4, 5)),
        (["accumulation=5"], (20, 4, 5)),
        (["effective_batch=40"], (40, 2, 20)),
        (["micro_batch=4", "effective_batch=8"], (8, 4, 2)),
        (["micro_batch=4", "accumulation=3"], (12, 4, 3)),
        (["accumulation=3", "effective_batch=12"], (12, 4, 3)),
        (["micro_batch=4", "accumulation=3", "effective_batch=12"], (12, 4, 3)),
        (["questions_per_picture=3"], (20, 2, 4)),  # 7 rows
        (["questions_per_picture=3", "micro_batch=4"], (20, 4, 2)),
        (["questions_per_picture=4", "accumulation=1"], (20, 5, 1)),
        (["questions_per_picture=4", "micro_batch=2", "accumulation=3"], (24, 2, 3)),
        (["questions_per_picture=3", "processes=2"], (20, 2, 2)),
        (["micro-batch=4"], (20, 4, 5)),
        (["seed=1"], (20, 2, 10)),
        (["processes=2"], (20, 2, 5)),
        (["processes=4"], (20, 1, 5)),
        (["processes=20"], (20, 1, 1)),
        (["processes=2", "micro_batch=5"], (20, 5, 2)),
    ],
)
def test_the_batch_sizes_follow_one_another(assignments, batch):
    plan = Plan().override(assignments)
    assert (plan.effective_batch, plan.micro_batch, plan.accumulation) == batch


@pytest.mark.parametrize(("assignment", "said"), [
    ("micro_batch=3", "must equal the effective batch"),
    ("micro_batch=64", "must equal the effective batch"),
    ("processes=3", r"same number of a step's 20 questions .*\n.*effective_batch=21"),
])  # fmt: skip
def test_a_batch_that_does_not_divide_is_refused(assignment, said):
    with pytest.raises(PlanError, match=said):
        Plan().override([assignment])


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("micro_batch=x", "micro_batch: must be a whole number (got 'x')"),
        ("micro_batch=1.5", "micro_batch: must be a whole number (got 1.5)"),
        ("micro_batch=0", "micro_batch: must be 1 … 1,000,000 (got 0)"),
        ("processes=1000", "processes: must be 1 … 64 (got 1000)"),
        ("lora.dropout=1", "lora.dropout: must be 0 or more and less than 1 (got 1)"),
        ("max_pixels=100", "max_pixels: must be 4,096 … 16,777,216 pixels (got 100)"),
        ("schedule.learning_rate=-1", "schedule.learning_rate: must be more than 0 (got -1)"),
        ("device=gpu", "device: must be cpu or cuda (got 'gpu')"),
        ("compile=maybe", "compile: must be true or false (got 'maybe')"),
        ("lora=5", "lora: must be a table of settings (got 5)"),
        ("cached_encoders=vision, msk", "cached_encoders: must be vision or mask (got 'msk')"),
    ],
)
def test_a_value_that_no_setting_has_is_one_finding(assignment, said):
    with pytest.raises(PlanError) as caught:
        Plan().override([assignment])
    assert str(caught.value) == f"  - {said}"


@pytest.mark.parametrize(("assignment", "hint"), [
    ("quantization=fp8", "products=fp8"), ("dtype=nf4", "quantization=nf4"),
    ("quantization=bf16", "quantization=none --set dtype=bf16"),
    ("batch_size=4", "micro_batch=VALUE"), ("load_in_4bit=true", "quantization=nf4"),
])  # fmt: skip
def test_another_trainer_s_name_or_setting_s_value_is_met_with_ours(assignment, hint):
    with pytest.raises(PlanError) as caught:
        Plan().override([assignment])
    assert str(caught.value).endswith(f"hint: --set {hint}")
    for one in hint.split(" --set "):
        Plan(device="cuda").override([one.replace("VALUE", "4")])


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_every_setting_that_another_name_stands_for_is_one(name):
    assert OTHER_NAMES[name].partition("=")[0] in setting_names() and name not in setting_names()


@pytest.mark.parametrize("value", ["x", "[1]", "1e300", "-1", "0.5", "{}", "true"])
def test_no_setting_is_refused_in_pydantics_words(value):
    for name in setting_names():
        try:
            Plan().override([f"{name}={value}"])
        except PlanError as error:
            for word in ("Input", "valid", "instance", "parse", "Value error", "dictionary"):
                assert word not in str(error), error


@pytest.mark.parametrize(
    ("assignment", "setting", "value"),
    [
        ("lora.rank=32", "lora", Lora(rank=32)),
        ("lora=null", "lora", None),
        ("train=mask_decoder, projector", "train", ("mask_decoder", "projector")),
        ('train=["projector"]', "train", ("projector",)),
        ("cached_encoders=", "cached_encoders", ()),
        ("weights=/some/a=b", "weights", "/some/a=b"),
        ("allocator=", "allocator", ""),
        ("max_train_samples=5", "max_train_samples", 5),
        ("checkpointed_layers=all", "checkpointed_layers", 4),
    ],
)
def test_override(assignment, setting, value):
    assert getattr(Plan().override([assignment]), setting) == value


@pytest.mark.parametrize(
    ("name", "must"),
    [("workers", "a whole number"), ("max_train_samples", "a whole number"),
     ("schedule.learning_rate", "a number")],
)  # fmt: skip
def test_true_is_no_number(name, must):
    """Python takes it for 1: a run would train on one sample."""
    with pytest.raises(PlanError, match=rf"{name}: must be {must} \(got 'true'\)"):
        Plan().override([f"{name}=true"])
    assert Plan().override(["host_embeddings=true"]).host_embeddings


def test_override_brings_lora_back():
    assert Plan(lora=None).override(["lora.rank=4"]).lora == Lora(rank=4)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("micro_bach=4", "did you mean micro_batch?"),
        ("lora.rnk=4", "did you mean lora.rank?"),
        ("micro_batch", "must read key=value"),
        ("=4", "must read key=value"),
        ("zzzzqq=1", "no such setting"),
        ("parallel=fsdp2", "weights are not sharded (FSDP2): host_layers=N"),
        ("fsdp.offload=true", "processes=N trains on N cards by DDP"),
    ],
)
def test_an_override_that_names_nothing(assignment, words):
    with pytest.raises(PlanError) as caught:
        Plan().override([assignment, "seed=1"])
    assert words in str(caught.value)


def test_overrides_report_every_bad_name():
    with pytest.raises(PlanError) as caught:
        Plan().override(["micro_bach=4", "lora.rnk=4"])
    assert len(caught.value.findings) == 2


def test_all_errors_at_once():
    found = findings(
        {
            "dtyp": "bf16",
            "lora": {"rank": 0, "alpha": -1},
            "device": "cpu",
            "dtype": "fp16",
            "optimizer": "paged_adamw",
            "train": ["token_rows", "embeddings"],
        }
    )
    assert set(found) >= {"dtyp", "lora.rank", "lora.alpha", "dtype", "optimizer", "train"}
    assert "did you mean dtype?" in found["dtyp"]


@pytest.mark.parametrize(
    ("data", "where", "words"),
    [
        ({"dtype": "fp16"}, "dtype", "needs a GPU"),
        ({"optimizer": "paged_adamw"}, "optimizer", "between GPU and host memory"),
        ({"lora": None, "train": []}, "train", "nothing is trained"),
        ({"mixture": {"reason_seg": 0}}, "mixture", "every rate is 0"),
        ({"mixture": {"vqa": float("inf")}}, "mixture.vqa", "finite"),
        ({"train": ["projector", "projector"]}, "train", "named twice"),
        ({"train": ["token_rows", "embeddings"]}, "train", "keep one"),
        ({"checkpointed_layers": 5}, "checkpointed_layers", "4 decoder layers"),
        ({"model": "8b"}, "model", "known: tiny"),
        ({"model": 7}, "model", "must be text"),
        ({"micro_batch": 0}, "micro_batch", "must be 1 … 1,000,000"),
        ({"schema_version": 3}, "schema_version", "2"),
    ],
)
def test_refused_combinations(data, where, words):
    assert words in findings(data)[where]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"model": 1e999}', "[" * 100_000])
def test_a_bad_document_is_a_plan_error(text):
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PlanError, match="nowhere.json"):
        Plan.read(tmp_path / "nowhere.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="binary.json"):
        Plan.read(tmp_path / "binary.json")


def test_bf16_is_refused_on_a_card_without_it():
    plan = Plan(device="cuda", dtype="bf16")
    assert [f.where for f in plan.refusals("Tesla T4", bf16=False)] == ["dtype"]
    assert plan.refusals("A100", bf16=True) == []
    assert Plan(device="cpu").refusals("Tesla T4", bf16=False) == []


def test_fp8_is_refused_on_a_card_without_it():
    plan = Plan(device="cuda", dtype="bf16", products="fp8")
    for lacking in ({"fp8": False}, {"triton": False}):
        assert [f.where for f in plan.refusals("RTX 3090", True, **lacking)] == ["products"]
    assert plan.refusals("RTX 4090", True) == []
    assert Plan(products="fp8").refusals("RTX 3090", True, fp8=False) == []  # on the CPU
    with pytest.raises(PlanError, match="products"):
        Plan.parse({"device": "cuda", "dtype": "fp16", "products": "fp8"})


@pytest.mark.parametrize(
    ("given", "steps", "warmup"),
    [(None, 120, 6), (None, 4000, 100), (None, 5, 0), (10, 120, 10), (100, 120, 60), (0, 120, 0)],
)
def test_the_warm_up_is_a_share_of_the_run(given, steps, warmup):
    """The recipe's 100 steps are a fiftieth of its run, and would be most of a small one."""
    assert Schedule(warmup_steps=given).warmup(steps) == warmup
