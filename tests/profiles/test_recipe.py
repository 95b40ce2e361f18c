"""Recipes: settings of a file, between the command line's and the advice."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError
from typer.testing import CliRunner

from advisor.cli.main import app as advise
from profiles.findings import PlanError
from profiles.plan import Plan
from profiles.recipe import SHIPPED, read_recipe, shipped_recipes, with_recipe
from trainer.cli.train import app as train
from trainer.cli.train_options import TrainOptions

SCHEMA = Path(__file__).parents[2] / "docs" / "recipe.schema.json"
TOML = """
description = "mine"
train = ["mask_decoder"]
lora = { rank = 16, alpha = 32 }
[schedule]
epochs = 3
learning-rate = 1e-4
"""
YAML = """
description: mine
train: [mask_decoder]
lora: {rank: 16, alpha: 32}
schedule:
  epochs: 3
  learning_rate: 1e-4   # text to YAML 1.1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    return path


def test_toml_and_yaml_say_the_same(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.yaml"
    other.write_text(YAML)
    plans = [Plan().override(with_recipe(str(path), [])) for path in (recipe, other)]
    assert plans[0] == plans[1]
    assert (plans[0].lora.rank, plans[0].train) == (16, ("mask_decoder",))  # type: ignore[union-attr]
    assert (plans[0].schedule.epochs, plans[0].schedule.learning_rate) == (3, 1e-4)


def test_flags_count_more_than_the_recipe(recipe: Path) -> None:
    options = TrainOptions(recipe=str(recipe), epochs=7, settings=["lora.alpha=64"])
    plan = Plan().override(options.assignments())
    assert (plan.schedule.epochs, plan.schedule.learning_rate) == (7, 1e-4)
    assert plan.lora is not None and (plan.lora.rank, plan.lora.alpha) == (16, 64)
    none = TrainOptions(recipe=str(recipe), settings=["lora=null"])  # not the recipe's rank either
    assert Plan().override(none.assignments()).lora is None


TWINS = [one.name for one in fields(TrainOptions) if one.name not in ("recipe", "settings")
         and TrainOptions(**{one.name: 2}).assignments()]  # fmt: skip


@pytest.mark.parametrize("option", TWINS)
def test_an_option_and_its_twin_in_set_must_agree(option: str) -> None:
    for text in TrainOptions(**{option: 2}).assignments():
        if (option, text) == ("lora_r", "lora.alpha=4"):
            continue  # follows the rank, and gives way
        assert TrainOptions(**{option: 2}, settings=[text]).assignments().count(text) == 1
        name = text.partition("=")[0]
        with pytest.raises(PlanError, match=rf"{name}: has two values \(got .* and 7\)"):
            TrainOptions(**{option: 2}, settings=[f"{name}=7"]).assignments()


def test_a_table_and_a_part_of_it_contradict_each_other() -> None:
    for both in (["lora.rank=4", "lora=null"], ["lora=null", "lora.rank=4"]):
        with pytest.raises(PlanError, match="lora: is set as a whole and in part"):
            Plan().override(both)
    assert Plan().override(["schedule.learning_rate=1e-4", "schedule.learning_rate=0.0001"])


def test_a_recipe_counts_more_than_the_advice(recipe: Path, rehearsals_here: None) -> None:
    told = CliRunner().invoke(advise, ["--model", "tiny", "--recipe", str(recipe), "--json"])
    plan = json.loads(told.stdout)["plan"]
    assert (plan["lora"]["rank"], plan["schedule"]["epochs"]) == (16, 3)
    recipe.write_text('model = "7b"\nmicro_batch = 1')
    told = CliRunner().invoke(advise, ["--model", "tiny", "--recipe", str(recipe), "--json"])
    plan = json.loads(told.stdout)["plan"]
    assert (plan["model"], plan["micro_batch"]) == ("tiny", 1)


def test_everything_wrong_is_said_at_once(recipe: Path) -> None:
    recipe.write_text('lora.rnak = 4\nepoch = 3\n[schedule]\nepochs = {}\n[own]\nx = "y"\n')
    with pytest.raises(PlanError) as caught:
        read_recipe(str(recipe))
    said = str(caught.value)
    assert (
        f"{recipe}: lora.rnak: no such setting (got 4)\n    hint: did you mean lora.rank?" in said
    )
    assert f"{recipe}: epoch: no such setting" in said and f"{recipe}: own: no such" in said
    for app, more in ((train, ["--data-dir", "."]), (advise, [])):
        done = CliRunner().invoke(app, ["--recipe", str(recipe), *more])
        assert done.exit_code == 2 and "did you mean lora.rank?" in done.output, done.output


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.toml", "= 1", "cannot be read: Invalid"),
    ("a.yaml", "a: [", "cannot be read: while parsing"),
    ("a.yaml", "a: &x [1]\nb: [*x, *x]", "it has aliases"),
    ("a.yaml", "[" * 60_000, "more than 100 brackets"),
    ("a.yaml", "lora:\n  rank: 8\n  rank: 16", "names 'rank' twice, below line 2"),
    ("a.yaml", "lora: {rank: 8}\nlora: {rank: 16}", "names 'lora' twice"),
    ("a.yml", "seed: 1\nhost_layers: 010", "line 2: 010 is no plain number"),
    ("a.yaml", "- 1", "must be a table of settings"),
    ("a.ini", "", "allowed: files that end in .toml, .yaml, .yml"),
    ("a.yaml", None, "cannot be read: no such file"),
])  # fmt: skip
def test_what_is_no_recipe(name: str, text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(PlanError, match=said):
        read_recipe(str(tmp_path / name))


@pytest.mark.parametrize(("name", "text"), [("a.toml", "seed = 3"), ("a.yaml", "seed: 3")])
def test_a_mark_of_notepad_before_the_first_letter_is_no_part(tmp_path: Path, name, text) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_recipe(str(tmp_path / name)) == {"seed": "3"}
    (tmp_path / "plan.json").write_text(Plan(seed=3).to_json(), encoding="utf-8-sig")
    assert Plan.read(tmp_path / "plan.json").seed == 3


def test_those_that_come_along_are_plans_and_fit_the_schema() -> None:
    assert shipped_recipes() == ["own-photos", "published", "trial"]
    check = Draft202012Validator(json.loads(SCHEMA.read_text()))
    for name in shipped_recipes():
        settings = read_recipe(name)
        plan = Plan.parse({"model": "7b"}).override(with_recipe(name, []))
        assert all(len(text) for text in settings.values()) and plan.model == "7b"
        document = tomllib.loads((SHIPPED / f"{name}.toml").read_text())
        assert document["description"]
        check.validate(document)
        with pytest.raises(ValidationError, match="epoch"):
            check.validate(document | {"epoch": 3})
    with pytest.raises(PlanError, match="one of own-photos, published, trial"):
        read_recipe("publishd")


def test_a_run_that_goes_on_has_its_plan_already() -> None:
    done = CliRunner().invoke(train, ["--resume", "x", "--recipe", "trial"])
    assert done.exit_code == 2 and "leave out --recipe" in done.output
