"""Work on many pictures: in order, few ahead, and over at once when interrupted."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile

from tests.conftest import PHOTOS
from trainer.data import mixture, threads
from trainer.data.formats.reasonseg import check, check_data
from trainer.data.images import _decodes, _is_complete, _load_smallest, load_whole, open_image
from trainer.data.threads import AHEAD, in_processes, in_threads, one_ahead


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)


def test_results_come_in_order_from_several_threads() -> None:
    both = threading.Barrier(2, timeout=20)  # passed only if two work at once

    def work(number: int) -> int:
        both.wait()
        return number * number

    assert list(in_threads(work, range(40))) == [number * number for number in range(40)]


def test_the_next_picture_is_read_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(9)]

    def work(number: int) -> int:
        begun[number].set()
        return number

    for number in one_ahead(work, range(9)):
        assert begun[min(8, number + 1)].wait(20)
        assert not any(event.is_set() for event in begun[number + 2 :])


def test_little_is_begun_before_its_turn_and_an_interrupt_drops_the_rest() -> None:
    begun: list[int] = []
    results = in_threads(lambda number: begun.append(number) or number, iter(range(10_000)))
    with pytest.raises(KeyboardInterrupt):
        for result in results:
            assert len(begun) <= result + 2 * AHEAD + 2
            if result == 50:
                raise KeyboardInterrupt
    results.close()
    time.sleep(0.05)
    assert len(begun) < 80


def test_what_the_work_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // number, (2, 1, 0, 1)))


def test_a_check_decodes_each_picture_once_and_finds_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(PHOTOS, tmp_path / "data"))
    whole, findings = check(root)
    assert not findings
    pictures = sorted((root / "ReasonSeg" / "train").glob("*.jpg"))
    for picture in pictures[:3]:
        raw = picture.read_bytes()
        picture.write_bytes(raw[: len(raw) // 2])  # its header is sound
    decoded: Counter[str] = Counter()
    load = ImageFile.ImageFile.load

    def counted(image: ImageFile.ImageFile) -> object:
        if image.tile:
            decoded[str(image.filename)] += 1
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    counts, sets, findings = mixture.check(root)
    assert [Path(finding.where) for finding in findings] == pictures[:3] and sets == []
    assert counts["train"]["items"] == whole["train"]["items"] - 3
    # The others' headers are known from the first check.
    assert decoded == {str(picture): 1 for picture in pictures[:3]}
    assert findings == check_data(root)


def test_progress_tells_each_item(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    check(PHOTOS, lambda *of: told.append(of))
    trained = [(done, total) for what, done, total in told if what == "checking train"]
    assert trained == [(n + 1, len(trained)) for n in range(len(trained))] and trained


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_smaller_decoding_sees_the_same_damage(
    mode: str, progressive: bool, tmp_path: Path
) -> None:
    """Where a JPEG breaks off it is refused, wherever that is."""
    from trainer.data.findings import Report
    from trainer.data.images import _to_rgb

    path = tmp_path / "a.jpg"
    noise = Image.effect_noise((200, 120), 60).convert(mode)
    noise.save(path, progressive=progressive)
    raw, seen = path.read_bytes(), set()
    for cut in (*range(1, len(raw), len(raw) // 40), len(raw)):
        path.write_bytes(raw[:cut])
        sound = [open_image(Report(path), read) is not None for read in (load_whole, _to_rgb)]
        assert sound[0] == sound[1], cut
        seen.add(sound[0])
    assert seen == {True, False}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_a_jpeg_that_is_not_decoded_is_one_that_decoding_takes(options: dict[str, Any]) -> None:
    """Damage of all kinds, in header and pixels, is refused in the same words."""
    rng, file = random.Random(0), BytesIO()
    thumbnail = b"Exif\0\0" + b"\xff\xda\xff\xd9" * 9  # its markers are not the picture's
    Image.effect_noise((64, 48), 60).save(file, "JPEG", exif=thumbnail, **options)
    raw, seen = file.getvalue(), Counter[str]()
    for number in range(400):
        damaged, at = bytearray(raw), rng.randrange(len(raw) if number % 2 else len(raw) // 3)
        damaged[at : at + rng.randrange(2)] = rng.choice((b"", b"\xff", b"\xff\xd9", b"\xff\xda\0"))
        said = [_refusal(bytes(damaged), read) for read in (load_whole, _load_smallest)]
        assert said[0] == said[1], at
        seen[said[0]] += 1
    assert len(seen) > 3 and seen[""] > 9
    with Image.open(file) as sound:
        assert _is_complete(sound) == (not options.get("progressive"))


def test_a_header_that_pictures_share_is_decoded_once() -> None:
    """Whatever each says in comments and metadata; other tables are another header."""
    _decodes.cache_clear()
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    for options in ({}, {"comment": b"second"}, {"exif": exif}, {"quality": 95}):
        file = BytesIO()
        Image.effect_noise((64, 48), 60).save(file, "JPEG", **options)
        with Image.open(file) as picture:
            load_whole(picture)
    assert _decodes.cache_info().misses == 2


def _refusal(raw: bytes, read: Callable[[Image.Image], None]) -> str:
    """What a picture is refused with; empty if it is not."""
    try:
        with Image.open(BytesIO(raw), formats=["JPEG"]) as opened:
            read(opened)
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}".partition("<")[0]


def test_processes_work_in_order_and_only_where_it_is_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = os.getpid()
    assert set(in_processes(process_of, range(99), threads.WORTH_PROCESSES - 1)) == {here}
    monkeypatch.setattr(threads, "GROUP", 1)
    found = list(in_processes(process_of, range(40), threads.WORTH_PROCESSES))
    assert here not in found
    assert list(in_processes(abs, range(-40, 0), threads.WORTH_PROCESSES)) == [*range(40, 0, -1)]
    with pytest.raises(TypeError):
        list(in_processes(abs, [1, "2", 3], threads.WORTH_PROCESSES))
    with pytest.raises(OSError, match="the system ended a process"):
        list(in_processes(os._exit, [1, 2], threads.WORTH_PROCESSES))


def process_of(number: int) -> int:
    """The process that works on it."""
    return os.getpid()


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, sys, time\n"
        "from trainer.data import threads\n"
        "def work(number):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    threads.usable_cores = lambda: 2\n"
        "    list(threads.in_processes(work, range(99), threads.WORTH_PROCESSES))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PHOTOS.parents[1]), *sys.path])}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) != parent.pid
        parent.kill()
        parent.communicate(timeout=20)  # to the end of what they write: when none of them is left
