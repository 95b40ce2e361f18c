"""A kind of data to train on is known wherever its name or its files count."""

from __future__ import annotations

from pathlib import Path

from advisor.memory.forecast_cache import ANNOTATIONS
from profiles.settings import LONG_ANSWERS, SEVERAL_MASKS, Mixture
from profiles.splits import MIXED
from tests.trainer.data.small_sets import write_all
from trainer.data.formats.sem_seg import LAYOUTS
from trainer.data.mixture import PLACES, READERS


def test_every_kind_has_a_rate_a_reader_a_place_and_what_its_samples_may_hold() -> None:
    kinds = set(Mixture.model_fields) - {"samples"}
    assert set(READERS) == kinds
    assert set(PLACES) == set(SEVERAL_MASKS + LONG_ANSWERS) == kinds - {"reason_seg"}
    assert {place.split("/")[0] for named in PLACES.values() for place in named.split(" or ")} \
        == set(MIXED)  # fmt: skip


def test_a_kept_forecast_depends_on_every_annotation_file(tmp_path: Path) -> None:
    write_all(tmp_path)
    read = {path for reader in READERS.values() for one in reader(tmp_path, None)[0]
            for path in one.annotations}  # fmt: skip
    for number, layout in enumerate(LAYOUTS):
        folder = tmp_path / f"sem_seg/{number}"
        files = folder / layout.names, folder / layout.labels / "a.png"
        files[1].parent.mkdir(parents=True)
        for path in files:
            path.touch()
        read |= {*files}
    watched = {*tmp_path.rglob("*.json"), *(p for g in ANNOTATIONS for p in tmp_path.glob(g))}
    assert len(read) > 10 and read <= watched
