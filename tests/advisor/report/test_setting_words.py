"""--explain of settings: each from its own description, its values and its classification."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from advisor.cli.main import app
from advisor.report.glossary import EXPLANATIONS, explain
from profiles.levers import SETTINGS
from profiles.plan import Plan, setting_names


@pytest.mark.parametrize("name", setting_names())
def test_every_setting_is_explained_by_its_description(name):
    told = explain(name)
    assert told.startswith(f"{name}: ") and "default " in told
    field = Plan.model_fields.get(name)
    if field is not None and field.description:
        assert " ".join(field.description.split()) in told
    saves = SETTINGS[name].saves
    less = "take less memory" in told or "takes less memory" in told
    assert (less or "from most memory" in told) == (saves is not None)
    about = told.splitlines()[0]
    leaning = ("likewise", "as above", "the same", "ditto", "or paged")
    assert not [word for word in leaning if word in about], "it is read alone, not in a table"
    assert len(about.split()) > 3


def test_what_others_call_a_setting_is_explained_as_ours():
    assert explain("lr") == explain("schedule.learning_rate")
    assert explain("load-in-4bit").startswith("quantization: ")
    assert explain("DeepSpeed") == explain("zero3") and "docs/several-gpus.md" in explain("fsdp")


def test_a_name_of_both_is_explained_as_both():
    both = {key for key in EXPLANATIONS if key.replace(" ", "_") in setting_names()}
    assert both == {"model", "optimizer state", "processes", "weights"}
    told = explain("optimizer-state")
    assert told.startswith("optimizer_state: precision") and "\noptimizer state: Adam" in told


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("checkpointed_layers",
         ["checkpointed_layers: decoder layers whose activations are recomputed, 0 … all",
          "default 0; values: 0 or more", "a larger value takes less memory on the card",
          "a run changes it by itself after an out-of-memory error",
          "--set checkpointed_layers=all recomputes activations of all layers (elsewhere: "
          "gradient checkpointing)"]),
        ("Quantization", ["default nf4; values: nf4, int8, none",
                          "from most memory to least: none, int8, nf4"]),
        ("host-embeddings", ["default false", "from most memory to least: false, true"]),
        ("cached_encoders", ["default mask,vision; values: vision, mask",
                             "more of them take less memory on the card"]),
        ("lora.dropout", ["values: 0 or more and less than 1"]),
        ("lora.rank", ["lora.rank: rank r", "default 8; values: 1 … 256"]),
        ("rank", ["lora.rank: "]),
        ("lora", ["lora: adapters on the decoder, or none"]),
        ("max_pixels", ["pixels to which larger pictures are shrunk for the language model",
                        "default null; values: "]),
        ("learning_rate", ["default 0.0003; values: more than 0"]),
        ("epochs", ["schedule.epochs: passes over the training data"]),
        ("allocator", ["default expandable_segments:True", "--resume accepts another value"]),
        ("seed", ["it is the same from a run's beginning to its end"]),
    ],
)  # fmt: skip
def test_what_is_said(name, lines):
    told = explain(name)
    assert all(line in told for line in lines), told


@pytest.mark.parametrize(
    ("name", "hint"),
    [("checkpoint_layers", "'checkpointed_layers'"), ("host layer", "'host_layers'"),
     ("margn", "'margin'"), ("lora.rnak", "'lora.rank'")],
)  # fmt: skip
def test_a_slip_is_answered_with_the_setting(name, hint):
    with pytest.raises(ValueError, match=f"did you mean {hint}"):
        explain(name)


def test_from_the_command_line():
    result = CliRunner().invoke(app, ["--explain", "micro-batch"])
    assert result.exit_code == 0 and result.stdout.startswith("micro_batch: rows, one picture each")
    unknown = CliRunner().invoke(app, ["--explain", "nothing at all"])
    assert unknown.exit_code == 2 and "docs/plan.md every setting" in unknown.stderr
