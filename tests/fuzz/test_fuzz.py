"""A sample of `make fuzz`: hostile cases for every surface, and that sound ones are answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.shown import SURFACES
from tests.fuzz.surfaces import Surface

SAMPLE = 25
QUICK = [surface for surface in SURFACES if surface.name != "largest pictures"]
named = pytest.mark.parametrize("surface", QUICK, ids=lambda surface: surface.name)


@named
def test_what_is_sound_is_answered(surface: Surface, tmp_path: Path) -> None:
    assert surface.feed(surface.sound, tmp_path)


@named
def test_hostile_cases_end_in_an_answer_or_a_clear_error(surface: Surface, tmp_path: Path) -> None:
    @settings(max_examples=SAMPLE, deadline=None, database=None, derandomize=True,
              phases=(Phase.generate,), suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(surface.cases)
    def case(one: Any) -> None:
        surface.try_one(one, tmp_path / "case")

    case()
