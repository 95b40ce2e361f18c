"""Mixtures: each format read to the pixel, draws by rates, dialogues without masks, bad inputs."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from profiles.plan import Plan
from tests.conftest import PHOTOS, tiny_plan
from tests.trainer.data.small_sets import (
    HEIGHT,
    SQUARE,
    WIDTH,
    coco,
    expected,
    picture,
    plain_runs,
    reference,
    talk,
    text_runs,
    write,
    write_ade20k,
    write_all,
    write_coco,
    write_refer_seg,
    write_vqa,
)
from trainer.cli.train import app
from trainer.data.contents import Contents
from trainer.data.findings import DataError
from trainer.data.formats.reasonseg import read_split
from trainer.data.micro_batches import MicroBatches
from trainer.data.mixture import READERS, MixedSets, check_data, read_training
from trainer.data.pictures import DataSet, SegmentedPicture
from trainer.data.samples import SampleSet, collate, image_tokens
from trainer.model.build import build, read_tokenizer
from trainer.model.tokenizer import TooLong
from trainer.model.trained import GradientCheck, trained_names
from trainer.rehearse.worst_sample import worst_sample
from trainer.run.data_digests import digests
from trainer.run.step_batches import Rows
from trainer.step import accumulate, make_optimizer, total_of, training_step

RATES = {"reason_seg": 1, "refer_seg": 3, "sem_seg": 9, "vqa": 3}


def mixed_plan(**settings: Any) -> Plan:
    mixture = RATES | {"samples": 8} | settings.pop("mixture", {})
    return tiny_plan(mixture=mixture, **settings)


def sound(kind: str, root: Path) -> list[DataSet]:
    sets, findings = READERS[kind](root, None)
    assert findings == []
    return sets


def masks(picture: SegmentedPicture) -> dict[str, np.ndarray[Any, Any]]:
    return {target.phrases[0]: target.paint(HEIGHT, WIDTH) for target in picture.targets}


# ------------------------------------------------------------------------------ what is read


def test_references_by_picture(tmp_path: Path) -> None:
    for name in ("refcocog", "refclef", "refcoco"):
        write_refer_seg(tmp_path, name)
    sets = sound("refer_seg", tmp_path)
    assert [found.name for found in sets] == [
        "refer_seg/refclef", "refer_seg/refcoco", "refer_seg/refcocog",
    ]  # fmt: skip
    for found in sets:
        (only,) = found.pictures  # the other one has no reference of the training split
        assert isinstance(only, SegmentedPicture)
        assert [target.phrases for target in only.targets] == [
            ("the left bin", "can."), ("a dog",),
        ]  # fmt: skip
        bin_, dog = masks(only).values()
        assert np.array_equal(dog, expected((1, 1, 3, 4)))
        runs = coco_mask.frPyObjects([[float(x) for x in SQUARE]], HEIGHT, WIDTH)
        assert np.array_equal(bin_, coco_mask.decode(runs)[..., 0])
        assert np.array_equal(bin_, expected((2, 2, 9, 7)))
    assert "saiapr_tc-12" in str(sets[0].pictures[0].image_path)


def test_all_of_a_category_is_one_mask(tmp_path: Path) -> None:
    hole = expected((0, 0, 6, 6)) - expected((2, 2, 4, 4))
    write_coco(
        tmp_path, (0, 7, [SQUARE, [12, 1, 15, 1, 15, 3, 12, 3]]), (0, 7, plain_runs(hole)),
        (0, 8, text_runs(hole)), (0, 8, []),
    )  # fmt: skip
    (found,) = sound("sem_seg", tmp_path)
    (only,) = found.pictures
    assert isinstance(only, SegmentedPicture)
    painted = masks(only)
    assert list(painted) == ["trash can", "dog"]
    assert np.array_equal(painted["dog"], hole)
    both = np.maximum(expected((2, 2, 9, 7), (12, 1, 15, 3)), hole)
    assert np.array_equal(painted["trash can"], both)


def test_class_numbers(tmp_path: Path) -> None:
    write_ade20k(tmp_path)
    (found,) = sound("sem_seg", tmp_path)
    (only,) = found.pictures  # the other one has no class
    assert isinstance(only, SegmentedPicture)
    painted = masks(only)
    assert list(painted) == ["wall", "screen"]
    wall, screen = painted.values()
    assert (wall[:, :5] == 255).all() and (wall[:, 5:10] == 1).all() and (wall[:4, 10:] == 0).all()
    # classes of one name are one: nobody could tell them apart by the question
    assert (screen[:4, 10:] == 1).all() and (screen[8:, 10:] == 1).all()
    assert (screen[4:8, 10:] == 255).all() and (screen[:, 5:10] == 0).all()


def test_parts_are_asked_for_both_ways_and_names_lose_what_tells_them_apart(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    names = {7: "mouse_(computer_equipment):scroll_wheel", 8: "bat_(animal)", 9: "bat_(sports)"}
    categories = [{"id": number, "name": name} for number, name in names.items()]
    shapes = coco([(0, number, [SQUARE]) for number in names])
    write(folder / "annotations.json", shapes | {"categories": categories})
    (only,) = sound("sem_seg", tmp_path)[0].pictures
    assert isinstance(only, SegmentedPicture)
    assert [target.phrases for target in only.targets] == [
        ("mouse scroll wheel", "scroll wheel of the mouse"), ("bat",)
    ]  # fmt: skip


def write_numbered(folder: Path, images: str, labels: str, *numbers: int) -> None:
    """One picture, striped with the class numbers, two columns each and the last one the rest."""
    picture(folder / images / "a.jpg")
    columns = np.minimum(np.arange(WIDTH) // 2, len(numbers) - 1)
    label = np.broadcast_to(np.array(numbers, np.uint8)[columns], (HEIGHT, WIDTH))
    (folder / labels).mkdir(parents=True)
    Image.fromarray(np.ascontiguousarray(label)).save(folder / labels / "a.png")


STUFF = "0: unlabeled\n1: person\n171: wall-brick\n182: wood\n"
VISTAS = {"labels": [{"readable": "Bird"}, {"readable": "Lane Marking - General"},
                     {"readable": "Unlabeled"}]}  # fmt: skip


def test_a_picture_of_class_numbers_may_be_of_any_kind(tmp_path: Path) -> None:
    folder = tmp_path / "sem_seg" / "cocostuff"
    write_numbered(folder, "images/train2017", "annotations/train2017", 0)
    write(folder / "labels.txt", STUFF)
    shown = folder / "images/train2017/a.jpg"
    Image.open(shown).save(shown.with_suffix(".webp"))
    shown.unlink()
    (only,) = sound("sem_seg", tmp_path)[0].pictures
    assert only.image_path.suffix == ".webp"


def test_cocostuff_counts_from_0_and_ignores_255(tmp_path: Path) -> None:
    """Its README: things and stuff are 0-181 in the pictures, 1-182 in labels.txt, 255 is void."""
    folder = tmp_path / "sem_seg" / "cocostuff"
    write_numbered(folder, "images/train2017", "annotations/train2017", 0, 255, 170, 181)
    write(folder / "labels.txt", STUFF)
    (only,) = sound("sem_seg", tmp_path)[0].pictures
    assert isinstance(only, SegmentedPicture)
    painted = masks(only)
    assert list(painted) == ["person", "wood"]
    assert painted["person"][0, :8].tolist() == [1, 1, 255, 255, 255, 255, 0, 0]
    write(folder / "labels.txt", STUFF.replace("182: wood", "wood"))
    assert "labels.txt: line 4: got 'wood'" in problems("sem_seg", tmp_path)[0]
    write(folder / "labels.txt", STUFF.replace("182: wood", "99: wood"))
    assert "class numbers: got [181]" in problems("sem_seg", tmp_path)[0]


def test_mapillary_names_its_classes_by_place(tmp_path: Path) -> None:
    folder = tmp_path / "sem_seg" / "mapillary"
    write_numbered(folder, "training/images", "training/v2.0/labels", 0, 2, 1)
    write(folder / "config_v2.0.json", VISTAS)
    (only,) = sound("sem_seg", tmp_path)[0].pictures
    assert isinstance(only, SegmentedPicture)
    painted = masks(only)
    assert list(painted) == ["bird", "lane marking - general"]
    assert painted["bird"][0, :6].tolist() == [1, 1, 255, 255, 0, 0]
    for wrong in ({"labels": []}, {"labels": [3]}, {"labels": 3}, {}, {"labels": [{}]}):
        write(folder / "config_v2.0.json", wrong)
        assert "config_v2.0.json: labels" in problems("sem_seg", tmp_path)[0]


def test_palettes_hold_class_numbers_too(tmp_path: Path) -> None:
    folder = write_ade20k(tmp_path)
    label = Image.open(folder / "annotations" / "training" / "a.png")
    coloured = Image.fromarray(np.array(label), mode="P")
    coloured.putpalette([9, 9, 9] * 256)
    coloured.save(folder / "annotations" / "training" / "a.png")
    assert len(sound("sem_seg", tmp_path)[0].pictures) == 1


def test_dialogues(tmp_path: Path) -> None:
    picture(tmp_path / "gqa" / "images" / "9.jpg")
    write_vqa(tmp_path, talk("<image>\nWhat?", " A. "), talk("Q", "A", image="gqa/images/9.jpg"))
    (found,) = sound("vqa", tmp_path)
    first, second = found.pictures
    (asked,) = first.draw_one(np.random.default_rng(0), 3)
    assert (asked.turn.question, asked.turn.answer) == ("<image>\nWhat?", "A.")
    assert asked.paint is None and list(first.all_masks()) == []
    assert second.image_path.name == "9.jpg"


def test_dialogues_about_no_picture_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "ReasonSeg").symlink_to(PHOTOS / "ReasonSeg")
    text = talk("Q", "A")
    del text["image"]
    write_vqa(tmp_path, text, talk("Q", "A"), text, talk("Q", "B"))
    assert [p.where[-3:] for p in sound("vqa", tmp_path)[0].pictures] == ["[1]", "[3]"]
    assert len(READERS["vqa"](tmp_path, 1)[0][0].pictures) == 1
    done = CliRunner().invoke(app, ["--check-data", str(tmp_path)])
    assert done.exit_code == 0
    assert "vqa/llava_instruct: 2 pictures, 0 masks, left out 2 without a picture" in done.output


def test_the_limit_holds_for_each_data_set(tmp_path: Path) -> None:
    write_all(tmp_path)
    write_coco(tmp_path, (0, 7, [SQUARE]), (1, 7, [SQUARE]))
    write_vqa(tmp_path, talk("Q", "A"), talk("Q", "B"))
    for kind in READERS:
        sets, findings = READERS[kind](tmp_path, 1)
        assert findings == [] and {len(found.pictures) for found in sets} == {1}


# -------------------------------------------------------------------------------- what is drawn


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def mixed(root: Path) -> MixedSets:
    found = read_training(root, mixed_plan())
    assert isinstance(found, MixedSets)
    return found


def kind_of(path: Path) -> str:
    kinds = {"ReasonSeg": "reason_seg", "refer_seg": "refer_seg", "coco": "vqa"}
    return next((kinds[part] for part in path.parts if part in kinds), "sem_seg")


def test_rates(mixed: MixedSets) -> None:
    rng = np.random.default_rng(5)
    drawn = [mixed.draw(rng).image_path for _ in range(4000)]
    count = Counter(map(kind_of, drawn))
    for kind, rate in RATES.items():
        share = rate / sum(RATES.values())
        assert abs(count[kind] / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5, kind
    # within a kind every data set is as likely, however large
    sets = Counter("ade20k" in path.parts for path in drawn if kind_of(path) == "sem_seg")
    assert abs(sets[True] / sets[False] - 1) < 0.2


def test_the_annotation_files_of_every_kind_are_digested(mixed: MixedSets, root: Path) -> None:
    """A run goes on with the masks and questions that it began with."""
    found = digests(mixed, [], (), Contents(root))["train annotations"]
    files = {name for name in found if "/" in name}
    assert {"refer_seg/refcoco/instances.json", "refer_seg/refcoco/refs(unc).p"} <= files
    assert {"ade20k/objectInfo150.txt", "ade20k/annotations/training/a.png"} <= files
    assert {path.relative_to(root).as_posix() for path in root.rglob("*.json")
            if path.parent.name not in ("train", "val")} <= files  # fmt: skip
    assert len(found) > len(files)  # and ReasonSeg's items


def test_no_rate_no_draw_and_no_need_for_data(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    only = read_training(
        tmp_path, mixed_plan(mixture={"reason_seg": 0, "refer_seg": 0, "sem_seg": 0})
    )
    assert isinstance(only, MixedSets)
    rng = np.random.default_rng(0)
    assert {kind_of(only.draw(rng).image_path) for _ in range(20)} == {"vqa"}
    with pytest.raises(DataError) as raised:
        read_training(tmp_path, mixed_plan())
    told = str(raised.value)
    assert "mixture.refer_seg: got 'no data set'" in told and "mixture.sem_seg" in told
    assert "ReasonSeg/train" in told and "--set mixture.refer_seg=0" in told


def test_reason_seg_alone_is_read_as_ever(root: Path) -> None:
    items = read_training(root, tiny_plan(max_train_samples=2))
    assert [i.texts for i in items] == [i.texts for i in read_split(PHOTOS, "train", 2)]  # type: ignore[union-attr]


def test_draws_depend_on_seed_epoch_and_index_alone(mixed: MixedSets) -> None:
    plan = mixed_plan(micro_batch=2, effective_batch=4)
    tokenizer = read_tokenizer(plan)

    def visited(plan: Plan, workers: int = 0, epoch: int = 0) -> list[tuple[Any, ...]]:
        """What is drawn, sorted: which micro-batch it comes in depends on its length."""
        samples = SampleSet(mixed, plan, tokenizer, {}, training=True)
        ranks = []
        for rank in range(plan.processes):
            sampler = MicroBatches(samples, plan, rank)
            sampler.epoch = epoch
            ranks.append(DataLoader(Rows(samples, sampler), sampler=sampler, batch_size=None,
                                    num_workers=workers, collate_fn=list))  # fmt: skip
        return sorted(
            (s.name, tuple(s.encoded.input_ids), s.targets.tobytes(),
             *(float(one.sum()) for one in s.inputs["vision"].values()))
            for loader in ranks for batch in loader for s in batch
        )  # fmt: skip

    once = visited(plan)
    assert len(once) == 8
    assert once == visited(plan, workers=2)
    assert once == visited(plan.override(["micro_batch=1"]))
    assert once == visited(plan.override(["processes=2", "micro_batch=1"]))
    assert once != visited(plan, epoch=1)
    assert once != visited(plan.override(["seed=1"]))


def test_what_a_run_draws_is_known_beforehand(mixed: MixedSets) -> None:
    plan = mixed_plan(schedule={"epochs": 3})
    samples = SampleSet(mixed, plan, read_tokenizer(plan), {}, training=True)
    visits = list(MicroBatches(samples, plan).visits())
    assert sorted(visits) == [(epoch, number, 1) for epoch in range(3) for number in range(8)]
    for visit in visits:
        assert samples[visit].name == samples.picture(visit.lap, visit.picture).name


def test_prompts_and_masks_of_a_visit(mixed: MixedSets) -> None:
    plan = mixed_plan(mixture={"samples": 60})
    tokenizer = read_tokenizer(plan)
    samples = SampleSet(mixed, plan, tokenizer, {}, training=True)
    seen = Counter[int]()
    for index in range(60):
        sample = samples[0, index]
        text = tokenizer.decode([i for i in sample.encoded.input_ids if i != tokenizer.image_id])
        segs = sample.encoded.input_ids.count(tokenizer.seg_id)
        assert segs == len(sample.targets) == text.count("[SEG]") and text.count("<im_start>") == 1
        assert sample.targets.shape[1:] == (64, 64)
        seen[segs] += 1
        if segs == 2:
            assert text.count("USER:") == 2 and text.count("</s>") == 2
            assert {"bin", "can", "dog", "wall", "screen"} & set(text.replace(".", " ").split())
    assert set(seen) == {0, 1, 2}


def test_the_plan_bounds_masks_and_text(mixed: MixedSets, tmp_path: Path) -> None:
    one = mixed_plan(tokens={"max_masks": 1}, mixture={"samples": 40})
    tokenizer = read_tokenizer(one)
    samples = SampleSet(mixed, one, tokenizer, {}, training=True)
    assert max(samples.encoded((0, n)).input_ids.count(tokenizer.seg_id) for n in range(40)) == 1
    # Turns that do not fit are left out from the end; the first one has to.
    long = " ".join(["word"] * 60)
    write_vqa(tmp_path, talk("What?", "This.", "And?", long, "Then?", "That."))
    vqa = {"reason_seg": 0, "refer_seg": 0, "sem_seg": 0}
    plan = mixed_plan(mixture=vqa, tokens={"max_text_tokens": 96})
    dialogues = read_training(tmp_path, plan)
    encoded = SampleSet(dialogues, plan, tokenizer, {}, training=True).encoded((0, 0))
    assert tokenizer.decode(encoded.input_ids).endswith("ASSISTANT: This.</s>")
    write_vqa(tmp_path, talk(long, long))
    with pytest.raises(TooLong, match=r"llava_instruct.json: \[0\]: .*allows 96"):
        SampleSet(read_training(tmp_path, plan), plan, tokenizer, {}, training=True)[0, 0]
    # and a run is told before it begins
    write_vqa(tmp_path, *[talk("Q", "A")] * 9, talk(long, long))
    rare = plan.override(["mixture.samples=50"])
    with pytest.raises(TooLong, match=r"\[9\]"):
        looked_at(SampleSet(read_training(tmp_path, rare), rare, tokenizer, {}, training=True))
    assert looked_at(samples) == 0


def looked_at(samples: SampleSet) -> int:
    return samples.check_lengths(MicroBatches(samples, samples.plan).visits())


def test_the_worst_sample_of_the_whole_mixture(
    mixed: MixedSets, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = mixed_plan(mixture={"samples": 40}, tokens={"max_text_tokens": 512})
    alone = worst_sample(tiny_plan(), root)
    opened: list[Path] = []
    monkeypatch.setattr("trainer.data.samples.image_tokens", lambda path, plan: (
        opened.append(path) or image_tokens(path, plan)))  # fmt: skip
    worst = worst_sample(plan, root)
    assert alone.masks == 1 and worst.masks == 2
    assert len(opened) == len(set(opened)) > 5
    assert worst.text_tokens >= alone.text_tokens and worst.answer_tokens > 5
    only_long = root.parent / "long"
    only_long.mkdir()
    (only_long / "ReasonSeg").symlink_to(PHOTOS / "ReasonSeg")
    write_vqa(only_long, talk("Tell me.", " ".join(["word"] * 90)))
    found = worst_sample(mixed_plan(mixture={"refer_seg": 0, "sem_seg": 0}), only_long)
    assert found.text_tokens > found.answer_tokens > 90 and found.masks == 1


def test_how_much_data_there_is_is_counted_on_the_way() -> None:
    plan = tiny_plan(effective_batch=4, micro_batch=4)
    counts = worst_sample(plan, PHOTOS).counts
    train, val = (read_split(PHOTOS, split) for split in ("train", "val"))
    assert (counts.epoch_questions, counts.val_questions) == (len(train), len(val))
    assert counts.train_pictures == len({item.image_path for item in train}) > 0
    assert counts.val_pictures == len({item.image_path for item in val}) > 0
    samples = SampleSet(train, plan, read_tokenizer(plan), {}, training=True)
    rows = [len(samples.encoded(visit).input_ids) for visit in MicroBatches(samples, plan).visits()]
    assert counts.row_tokens == pytest.approx(sum(rows) / len(rows), abs=0.05)


# ------------------------------------------------------------------------- a batch without masks


def gradients(plan: Plan, places: list[list[int]], samples: SampleSet) -> dict[str, torch.Tensor]:
    """Gradients of one effective batch that is cut into these micro-batches."""
    tokenizer = samples.tokenizer
    model = build(plan, tokenizer, torch.device("cpu")).train()
    batches = [collate([samples[0, n] for n in micro], tokenizer) for micro in places]
    accelerator = Accelerator(cpu=True)
    sums = accumulate(model, batches, total_of(batches, accelerator), accelerator)
    assert bool(sums.isfinite().all())
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_micro_batches_without_masks_change_nothing(mixed: MixedSets) -> None:
    plan = mixed_plan(mixture={"samples": 60}, mask_loss_resolution=32)
    tokenizer = read_tokenizer(plan)
    samples = SampleSet(mixed, plan, tokenizer, {}, training=True)
    counts = {n: samples.encoded((0, n)).input_ids.count(tokenizer.seg_id) for n in range(60)}
    (talks, asks) = ([n for n in counts if (counts[n] > 0) == asked][:2] for asked in (False, True))
    whole = gradients(plan, [talks + asks], samples)
    cut = gradients(plan, [talks, asks], samples)
    assert whole.keys() == cut.keys()
    total = torch.cat([value.flatten() for value in whole.values()]).norm()
    for name, value in whole.items():
        assert (value - cut[name]).norm() <= 1e-5 * value.norm() + 1e-7 * total, name
    without = gradients(plan, [talks], samples)
    assert without.keys() == whole.keys()
    decoder = [name for name in without if name.startswith(("sam.", "text_hidden_fcs"))]
    assert decoder and not any(bool(without[name].any()) for name in decoder)


def test_an_answer_without_a_mask_predicts_none() -> None:
    plan = tiny_plan()
    tokenizer = read_tokenizer(plan)
    items = read_split(PHOTOS, "train", 1)
    batch = collate([SampleSet(items, plan, tokenizer, {}, training=False)[0]], tokenizer)
    model = build(plan, tokenizer, torch.device("cpu")).eval()
    with_mask = model.predict(batch)
    none = model.predict(replace(batch, segs=batch.segs[:0]))
    assert with_mask.shape[0] == 1 and none.shape == (0, *with_mask.shape[1:])


def test_the_gradient_check_waits_for_masks(mixed: MixedSets) -> None:
    plan = mixed_plan(mixture={"samples": 60})
    tokenizer = read_tokenizer(plan)
    samples = SampleSet(mixed, plan, tokenizer, {}, training=True)
    counts = [samples.encoded((0, n)).input_ids.count(tokenizer.seg_id) for n in range(60)]
    model = build(plan, tokenizer, torch.device("cpu")).train()
    check = GradientCheck(model, trained_names(model, plan))
    optimizer = make_optimizer(model, plan)
    for place in (counts.index(0), counts.index(2), counts.index(1)):
        batch = collate([samples[0, place]], tokenizer)
        result = training_step(model, [batch], optimizer, plan, Accelerator(cpu=True), check)
        assert np.isfinite(result.loss)
        assert (result.bce == 0) == (counts[place] == 0)
        assert counts[place] or not check.done
    assert check.done


# -------------------------------------------------------------------------------- what is broken


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_nothing_of_a_pickle_is_run(tmp_path: Path) -> None:
    folder = write_refer_seg(tmp_path)
    evil = tmp_path / "evil"
    bad = pickle.dumps([reference(0, 0, "x"), Malicious(evil)])
    (folder / "refs(unc).p").write_bytes(bad)
    found = problems("refer_seg", tmp_path)
    assert len(found) == 1 and "cannot be read: it asks" in found[0] and "mkdir" in found[0]
    assert not evil.exists()
    pickle.loads(bad)
    assert evil.is_dir(), "it would have been"
    for content in (b"", b"\x80", b"junk", pickle.dumps({"a": 1}), pickle.dumps(3)):
        (folder / "refs(unc).p").write_bytes(content)
        (told,) = problems("refer_seg", tmp_path)
        assert "a pickled list of plain values" in told


def problems(kind: str, root: Path) -> list[str]:
    findings = READERS[kind](root, None)[1]
    for finding in findings:
        assert re.search("got |cannot be read: ", finding.what) and finding.fix
        assert "allowed: " in finding.what and "Error" not in finding.what
    return [str(finding) for finding in findings]


@pytest.mark.parametrize(
    "name",
    ["../0.jpg", "/etc/passwd", "C:\\0.jpg", "..\\0.jpg", "a/../../0.jpg", "", "\0", 3, None],
)
def test_names_do_not_lead_out_of_the_folder(tmp_path: Path, name: object) -> None:
    write_vqa(tmp_path, talk("Q", "A") | {"image": name})
    picture(tmp_path.parent / "0.jpg")
    (told,) = problems("vqa", tmp_path)
    assert "[0].image" in told
    assert ("none outside of it is read" in told) == (isinstance(name, str) and len(name) > 1)
    folder = write_coco(tmp_path)
    changed = coco([(0, 7, [SQUARE])])
    changed["images"][0]["file_name"] = name
    write(folder / "annotations.json", changed)
    (told,) = problems("sem_seg", tmp_path)
    assert "images[0].file_name" in told


BAD_SHAPES: list[object] = [
    None, "x", 3, [3], [[1, 2, 3, 4]], [SQUARE[:7]], [[*SQUARE[:7], "3"]], [[*SQUARE[:7], 1e9]],
    [[*SQUARE[:7], float("nan")]], [[*SQUARE[:7], True]],
    {"size": [HEIGHT, WIDTH]}, {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]},
    {"size": [HEIGHT, WIDTH], "counts": [1, 2]}, {"size": [HEIGHT, WIDTH], "counts": [-1, 241]},
    {"size": [HEIGHT, WIDTH], "counts": [10**30]}, {"size": [HEIGHT, WIDTH], "counts": "zzzz"},
    {"size": [HEIGHT, WIDTH], "counts": ""}, {"size": [HEIGHT, WIDTH], "counts": "é"},
]  # fmt: skip


@pytest.mark.parametrize("shape", BAD_SHAPES, ids=range(len(BAD_SHAPES)))
def test_bad_segmentations(tmp_path: Path, shape: object) -> None:
    write_coco(tmp_path, (0, 7, [SQUARE]), (1, 7, shape))
    (told,) = problems("sem_seg", tmp_path)
    assert "annotations[1].segmentation" in told


BAD_COCO: list[tuple[str, object, str]] = [
    ("images", None, "images: got nothing"),
    ("images", [{"id": 0}], "images[0] height, width"),
    ("images", [3], "images[0].id"),
    ("categories", [{"id": 7, "name": " "}, {"id": 8, "name": "dog"}], "categories[0].name"),
    ("categories", [{"id": 7, "name": "[SEG]"}], "categories[0].name"),
    ("categories", [{"id": 8, "name": "dog"}], "annotations[0].category_id: got 7"),
    ("annotations", {}, "annotations: got {}"),
    ("annotations", [{"id": True}], "annotations[0].id: got True"),
    ("annotations", [{"id": 1, "image_id": 9}], "annotations[0].image_id: got 9"),
]


@pytest.mark.parametrize(("key", "value", "told"), BAD_COCO)
def test_bad_annotation_files(tmp_path: Path, key: str, value: object, told: str) -> None:
    folder = write_coco(tmp_path)
    write(folder / "annotations.json", coco([(0, 7, [SQUARE])]) | {key: value})
    assert any(told in line for line in problems("sem_seg", tmp_path))


BAD_REFERENCES: list[tuple[object, str]] = [
    (3, "[0]: got 3"),
    (reference(9, 0, "x"), "[0].ann_id: got 9"),
    (reference(0, 0), "[0].sentences: got []"),
    (reference(0, 0, " ", "?"), "[0].sentences"),
    (reference(0, 0, "fine", "the <image>"), "[0].sentences[1].sent: got 'the <image>'"),
    (reference(0, 0) | {"sentences": [{"sent": 3}]}, "[0].sentences[0].sent: got 3"),
]


@pytest.mark.parametrize(("bad", "told"), BAD_REFERENCES)
def test_bad_references(tmp_path: Path, bad: object, told: str) -> None:
    folder = write_refer_seg(tmp_path)
    (folder / "refs(unc).p").write_bytes(pickle.dumps([bad, reference(1, 0, "a dog")]))
    (line,) = problems("refer_seg", tmp_path)
    assert told in line


BAD_TALKS: list[tuple[object, str]] = [
    (3, "[0].conversations: got nothing"),
    (talk(), "[0].conversations: got []"),
    (talk("only asked"), "[0].conversations: got ['human']"),
    (talk("Q", "A") | {"conversations": [{"from": "gpt", "value": "A"}] * 2}, "['gpt', 'gpt']"),
    (talk("<image>", "A"), "[0].conversations[0].value: got ''"),
    (talk("Q", "[SEG]"), "[0].conversations[1].value: got '[SEG]'"),
]


@pytest.mark.parametrize(("bad", "told"), BAD_TALKS)
def test_bad_dialogues(tmp_path: Path, bad: object, told: str) -> None:
    write_vqa(tmp_path, bad)  # type: ignore[arg-type]
    assert any(told in line for line in problems("vqa", tmp_path))


def test_bad_class_numbers(tmp_path: Path) -> None:
    folder = write_ade20k(tmp_path, np.full((HEIGHT, WIDTH), 9, np.uint8))
    assert "class numbers: got [9]" in problems("sem_seg", tmp_path)[0]
    labels = folder / "annotations" / "training"
    Image.new("L", (WIDTH, 3), 1).save(labels / "a.png")
    assert "size: got 'height 3" in problems("sem_seg", tmp_path)[0]
    Image.new("RGB", (WIDTH, HEIGHT)).save(labels / "a.png")
    assert "8 bits a pixel" in problems("sem_seg", tmp_path)[0]
    (labels / "a.png").write_bytes(b"no picture")
    assert "a complete" in problems("sem_seg", tmp_path)[0]
    (folder / "images" / "training" / "void.jpg").unlink()
    assert len(problems("sem_seg", tmp_path)) == 2
    for text in ("", "Idx\tName\n0\tx\n", "Idx\tName\n1\t \n", "1,wall\n"):
        write(folder / "objectInfo150.txt", text)
        assert "objectInfo150.txt" in problems("sem_seg", tmp_path)[0]


def test_check_data_decodes_and_paints_everything(tmp_path: Path) -> None:
    write_all(tmp_path)
    sets, findings = check_data(tmp_path)
    assert findings == [] and len(sets) == 7
    image = tmp_path / "sem_seg" / "things" / "images" / "0.jpg"
    Image.new("RGB", (HEIGHT, WIDTH)).save(image)
    (tmp_path / "coco" / "train2017" / "0.jpg").write_bytes(b"no picture")
    told = "\n".join(map(str, check_data(tmp_path)[1]))
    assert "images[0], picture: got 'height 20, width 12'" in told and "train2017" in told


# --------------------------------------------------------------------------------- the whole path


def test_the_command_checks_and_trains(root: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    told = runner.invoke(app, ["--check-data", str(root)])
    assert told.exit_code == 0, told.output
    assert "refer_seg/refcoco+: 1 picture, 2 masks" in told.output
    assert "vqa/llava_instruct: 1 picture, 0 masks" in told.output
    plan = mixed_plan(cached_encoders=["mask", "vision"], effective_batch=4, workers=1)
    (tmp_path / "plan.json").write_text(plan.to_json())
    done = runner.invoke(app, [
        "--plan", str(tmp_path / "plan.json"), "--data-dir", str(root),
        "--output-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache"),
        "--set", "mixture.samples=6", "--set", "max_val_samples=1",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["after"]["images"] == 1
    assert Plan.read(tmp_path / "run" / "plan.json").mixture.sem_seg == 9
