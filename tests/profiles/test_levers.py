"""Every setting is classified once, and its traits agree with one another."""

import pytest

from advisor.choice.candidates import families
from advisor.report.plan_words import LEVERS
from profiles.levers import (
    MAY_CHANGE_ON_FALLBACK,
    MAY_CHANGE_ON_RESUME,
    SETTINGS,
    from_most_to_least,
    memory_key,
    needs_no_more,
    next_relief,
    phrases,
    priced,
    value_text,
)
from profiles.plan import Plan, setting_names

CARD = Plan.parse({"model": "7b", "device": "cuda", "checkpointed_layers": "all"})
# What a run learns, and from what: no later plan of the same run may differ in these.
RECIPE = {"effective_batch", "seed", "model", "dtype", "lora", "train", "optimizer", "mixture",
          "schedule", "tokens", "max_train_samples", "mask_loss_resolution", "logits"}  # fmt: skip


def test_every_setting_is_classified():
    assert set(SETTINGS) == set(setting_names())


def test_what_may_change_leaves_the_recipe_alone():
    assert MAY_CHANGE_ON_FALLBACK < MAY_CHANGE_ON_RESUME < set(Plan.model_fields)
    assert not MAY_CHANGE_ON_RESUME & RECIPE
    assert {"micro_batch", "accumulation", "checkpointed_layers"} <= MAY_CHANGE_ON_FALLBACK
    assert {"cached_encoders", "processes", "workers"} <= (
        MAY_CHANGE_ON_RESUME - MAY_CHANGE_ON_FALLBACK
    )


def test_what_the_fallback_changes_by_itself_saves_memory():
    for name in MAY_CHANGE_ON_FALLBACK - {"accumulation"}:  # which follows the micro-batch
        assert SETTINGS[name].saves is not None, name


def test_who_goes_through_the_levers_by_name_leaves_none_out():
    """The words of a plan, and the choice: a new lever fails here until both have it."""
    spoken = {name for name in MAY_CHANGE_ON_FALLBACK if SETTINGS[name].phrase is not None}
    assert spoken == set(LEVERS)
    plans = [one.at(step) for one in families(CARD, ()) for step in range(len(one.path))]
    chosen = {name for name in Plan.model_fields if len({getattr(p, name) for p in plans}) > 1}
    assert chosen == MAY_CHANGE_ON_FALLBACK


@pytest.mark.parametrize("name", [name for name, t in SETTINGS.items() if t.saves and t.counts])
def test_a_lever_is_compared_in_the_direction_in_which_it_saves(name):
    traits = SETTINGS[name]
    most, least = {"less": (2, 1), "more": (1, 2)}.get(str(traits.saves), (None, None))
    if name == "cached_encoders":
        most, least = (), ("mask",)
    elif isinstance(traits.saves, tuple):
        most, least = traits.saves[0], traits.saves[-1]
    assert traits.counts(most, most) and not traits.counts(most, least)
    # Storage and compilation are compared for being equal: see the table.
    assert traits.counts(least, most) == (traits.saves is not None and name not in EQUAL_ALONE)


EQUAL_ALONE = {"quantization", "compile", "optimizer"}


def test_a_price_is_told_against_a_value_of_the_setting():
    assert priced("forecast") == ["host_layers", "checkpointed_layers", "host_embeddings",
                                  "compile"]  # fmt: skip
    for name in priced("forecast"):
        assert SETTINGS[name].off == Plan.model_fields[name].default
    assert priced("rows") == ["cached_encoders", "logits"]


def test_plans_that_differ_in_what_is_not_compared_have_one_key():
    same = CARD.override(["seed=9", "workers=2", "schedule.epochs=3", "allocator=", "weights=x"])
    assert memory_key(same) == memory_key(CARD)
    assert needs_no_more(same, CARD) and needs_no_more(CARD, same)
    for text in ("lora.rank=9", "mixture.vqa=1", "tokens.max_masks=3", "compile=true"):
        assert memory_key(CARD.override([text])) != memory_key(CARD)


def test_the_next_relief_is_the_cheapest_that_is_left():
    plan = CARD.override(["cached_encoders=", "quantization=none", "train=head"])
    found = []
    for settings in ("cached_encoders=vision,mask", "train=token_rows", "host_embeddings=true",
                     "quantization=nf4", "host_layers=8"):  # fmt: skip
        found.append(next_relief(plan))
        plan = plan.override([settings])
    words = ("cached_encoders", "token_rows", "host_embeddings=true", "quantization=nf4",
             "host_layers=N")  # fmt: skip
    assert all(word in hint for word, hint in zip(words, found, strict=True))


def test_settings_in_words():
    plan = CARD.override(["host_embeddings=true", "host_layers=4", "quantization=none"])
    names = ("quantization", "micro_batch", "checkpointed_layers", "host_layers",
             "host_embeddings", "compile")  # fmt: skip
    assert phrases(plan, names) == (
        "bf16 base, micro-batch 2, 32 of 32 layers checkpointed, 4 layers on the host, "
        "embeddings on the host, not compiled"
    )
    assert phrases(CARD, ("quantization", "host_layers", "seed")) == "nf4 base"
    assert value_text("host_layers", 4) == "4 layers" and value_text("compile", False) == "off"
    assert value_text("cached_encoders", ()) == "none" and value_text("logits", "all") == "all"
    with pytest.raises(TypeError, match="micro_batch"):
        from_most_to_least("micro_batch")
