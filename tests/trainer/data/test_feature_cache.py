"""The feature cache: built once, mended, safe under two writers and under a kill."""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Event
from weakref import ReferenceType, ref

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.forked import end, fork, run
from profiles.files import STALE_SECONDS
from profiles.models import model_profile
from tests.conftest import PHOTOS, tiny_plan
from trainer.data.feature_cache import BadEntry, FeatureCache, encoder_key, fill_cache
from trainer.data.formats.reasonseg import read_split
from trainer.data.images import read_image
from trainer.model.families.llava_sam.pictures import pixels

IMAGES = [item.image_path for item in read_split(PHOTOS, "train")]


def fill(
    cache: FeatureCache, encode=lambda shown: doubled(shown), images: Sequence[Path] = IMAGES
) -> tuple[int, list[str]]:
    """How many entries were built, and what was reported."""
    reports: list[str] = []
    built = fill_cache(
        cache, tiny_plan(), "vision", images, lambda: encode, lambda *_: None, reports.append
    )
    return built, reports


def doubled(shown: dict[str, Tensor]) -> dict[str, Tensor]:
    """What stands for an encoder here."""
    return {"features": shown["pixels"] * 2}


def is_whole(cache: FeatureCache) -> bool:
    """Whether every picture's entry holds what `fill` makes of it."""
    return all(torch.equal(cache.read(image)["features"], expected(image)) for image in IMAGES)


def expected(image: Path) -> Tensor:
    return torch.from_numpy(pixels(read_image(image), "vision", model_profile("tiny")))[None] * 2


def test_cache_builds_once_and_mends_damage(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "clip-test")
    assert fill(cache) == (len(IMAGES), [])
    assert fill(cache, lambda shown: pytest.fail("built again")) == (0, [])
    entry = cache.entry(IMAGES[0])
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadEntry):
        cache.read(IMAGES[0])
    built, reports = fill(cache)
    assert built == 1 and str(entry) in reports[0]
    flipped = bytearray(whole)
    flipped[-1] ^= 0xFF
    entry.write_bytes(bytes(flipped))
    assert fill(cache)[0] == 1
    entry.write_bytes(whole)
    other = FeatureCache(tmp_path, "clip-other")
    other.folder.mkdir()
    other.entry(IMAGES[0]).write_bytes(whole)
    with pytest.raises(BadEntry, match="another encoder"):
        other.read(IMAGES[0])


def test_copies_of_a_picture_in_a_row_are_built_once(tmp_path: Path) -> None:
    """The next picture is read while one is encoded, so it cannot know yet."""
    copies = [tmp_path / f"{number}.jpg" for number in range(3)]
    for copy in copies:
        copy.write_bytes(IMAGES[0].read_bytes())

    def slowly(shown: dict[str, Tensor]) -> dict[str, Tensor]:
        time.sleep(0.1)
        return doubled(shown)

    assert fill(FeatureCache(tmp_path, "clip-test"), slowly, copies)[0] == 1


def test_a_picture_is_written_while_the_next_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, encoded, second = FeatureCache.write, [], Event()

    def encode(shown: dict[str, Tensor]) -> dict[str, Tensor]:
        encoded.append(shown)
        if len(encoded) == 2:
            second.set()
        return doubled(shown)

    def waiting(cache: FeatureCache, image: Path, features: dict[str, Tensor]) -> None:
        assert second.wait(20)
        write(cache, image, features)

    monkeypatch.setattr(FeatureCache, "write", waiting)
    cache = FeatureCache(tmp_path, "clip-test")
    assert fill(cache, encode) == (len(IMAGES), []) and is_whole(cache)


def test_features_leave_the_card_before_the_next_are_made(tmp_path: Path) -> None:
    made: list[ReferenceType[Tensor]] = []

    def encode(shown: dict[str, Tensor]) -> dict[str, Tensor]:
        assert all(earlier() is None for earlier in made)
        found = shown["pixels"].mT  # is copied before it is written, as from a card
        made.append(ref(found))
        return {"features": found}

    assert fill(FeatureCache(tmp_path, "clip-test"), encode)[0] == len(made) == len(IMAGES)


def test_two_writers_at_once(tmp_path: Path) -> None:
    # Each waits for the other before every picture: both find it missing and both write it.
    cache, log = FeatureCache(tmp_path, "clip-test"), tmp_path / "log"
    cache.folder.mkdir()

    def write(me: str, other: str) -> None:
        count = 0

        def encode(shown: dict[str, Tensor]) -> dict[str, Tensor]:
            nonlocal count
            count += 1
            cache.folder.joinpath(f"{me}{count}").touch()
            deadline = time.monotonic() + 60
            while not cache.folder.joinpath(f"{other}{count}").exists():
                assert time.monotonic() < deadline
                time.sleep(0.001)
            return doubled(shown)

        print(fill(cache, encode))

    pair = [fork(partial(write, *names), log) for names in ("ab", "ba")]
    assert [end(pid) for pid in pair] == [0, 0], log.read_text()
    assert log.read_text().splitlines() == [f"({len(IMAGES)}, [])"] * 2
    assert is_whole(cache)
    assert not list(cache.folder.glob(".*"))
    assert len(list(cache.folder.glob("*.safetensors"))) == len(IMAGES)


def test_a_killed_writer_costs_only_what_was_missing(tmp_path: Path) -> None:
    # Killed with the third entry written aside and not yet renamed.
    cache = FeatureCache(tmp_path, "clip-test")

    def write() -> None:
        whole, replace = [], os.replace

        def renamed(source: Path, target: Path) -> None:
            if len(whole) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            whole.append(target)
            replace(source, target)

        os.replace = renamed
        fill(cache)

    assert run(write, tmp_path / "log") == -signal.SIGKILL
    (aside,) = cache.folder.glob(".*")
    assert len(list(cache.folder.glob("*.safetensors"))) == 2
    assert fill(cache) == (len(IMAGES) - 2, [])
    assert is_whole(cache)
    # It may be a living writer's: it goes once it is too old for that.
    assert aside.exists()
    old = time.time() - STALE_SECONDS - 60
    os.utime(aside, (old, old))
    assert fill(cache) == (0, []) and not list(cache.folder.glob(".*"))


def test_an_entry_holds_several_tensors_and_older_ones_are_read(tmp_path: Path) -> None:
    """Of an older entry, without an axis for the picture, nothing is built again."""
    cache = FeatureCache(tmp_path, "clip-test")
    features = {"features": torch.randn(1, 4, 3), "grid": torch.tensor([[2, 2]])}
    cache.write(IMAGES[0], features)
    found = cache.read(IMAGES[0])
    assert found.keys() == features.keys()
    assert all(torch.equal(found[name], value) for name, value in features.items())
    kept = torch.randn(4, 3)
    crc32 = str(zlib.crc32(kept.numpy().tobytes()))
    save_file({"features": kept}, cache.entry(IMAGES[0]), {"key": "clip-test", "crc32": crc32})
    assert cache.problem(IMAGES[0]) is None
    assert torch.equal(cache.read(IMAGES[0])["features"], kept[None])


def test_caches_of_before_the_roles_stay_valid() -> None:
    # Names as the version wrote them whose plans named the encoders clip and sam.
    plan = tiny_plan(dtype="fp32")
    assert encoder_key(plan, "vision", "x") == "clip-50b4b73b40c3becf"
    assert encoder_key(plan, "mask", "x") == "sam-8a7624b54b9b9179"
