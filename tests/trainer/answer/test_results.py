"""What becomes of a trained model: evaluated, asked, exported, merged."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from profiles.plan import Plan
from tests.conftest import PHOTOS, tiny_plan
from trainer.answer.evaluate import _forced_mask, _row, generated, teacher_forced, write
from trainer.answer.output import run_lengths, stems, write_pictures
from trainer.answer.question import Answer, Question
from trainer.answer.questions import question_of, read_questions
from trainer.answer.scored import replaced, scores_folder
from trainer.answer.segmenter import SILENT, Segmenter
from trainer.answer.trained_model import Trained, find_trained
from trainer.batch import Batch
from trainer.cli.segment import _answered, _answers, planned_for
from trainer.cli.segment import app as segment_app
from trainer.cli.train import app
from trainer.convert import export
from trainer.data.contents import Contents
from trainer.data.formats.reasonseg import read_split
from trainer.data.images import read_image
from trainer.data.polygons import paint_mask
from trainer.model.answering import Said
from trainer.model.build import build, read_tokenizer
from trainer.model.weights import weight_source
from trainer.run import checkpoint
from trainer.run.checkpoint import CheckpointError
from trainer.run.data_digests import digests
from trainer.run.metrics import MaskScores, intersection_union
from trainer.run.started import Started

CPU = torch.device("cpu")
QUESTION = "Which of these could somebody drink from?"
BRIEF = {"tokens.max_new_tokens": "4"}


def make_run(folder: Path, **settings: Any) -> Path:
    """A run folder whose adapters and rows are no longer where they began."""
    plan = tiny_plan(cached_encoders=["mask", "vision"], **settings)
    model = build(plan, read_tokenizer(plan), CPU)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and (".lora_B." in name or ".rows" in name):
                parameter += 0.02 * torch.randn_like(parameter)
    facts = {"step": 7, "base": weight_source(plan).fingerprint, "hardware": "a test",
             "data": {"train": 3, "val": 2}, "versions": {"torch": "x"},
             "metrics": {"giou": 0.5, "ciou": 0.4, "images": 2},
             "peak_reserved_bytes": 2**30, "forecast_bytes": 2**30 + 2**28}  # fmt: skip
    checkpoint.save(folder / "best", model, plan, facts)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


PICTURES = [item.image_path for item in read_split(PHOTOS, "val")]


def opened(where: Path, cache: Path, **override: str) -> Segmenter:
    trained = find_trained(where, [f"{key}={value}" for key, value in override.items()])
    return Segmenter(trained, PICTURES, cache)


def logits_of(segmenter: Segmenter) -> torch.Tensor:
    """Teacher-forced mask logits [pictures, L, L]."""
    found = []
    for picture in PICTURES:
        batch = with_answer(segmenter, picture)
        found.append(segmenter.model.predict(batch)[0])
    return torch.stack(found)


def asked_alone(segmenter: Segmenter, picture: Path) -> Batch:
    (row,) = segmenter._rows([Question(picture, QUESTION)])
    return segmenter._batch(picture, row)


def with_answer(segmenter: Segmenter, picture: Path) -> Batch:
    """A question with one [SEG] behind it."""
    batch = asked_alone(segmenter, picture)
    seg = torch.tensor([[segmenter.tokenizer.seg_id]])
    ids = torch.cat([batch.input_ids, seg], 1)
    rest = {"targets": batch.targets, "inputs": batch.inputs}
    return Batch.of(ids, torch.full_like(ids, -100), segmenter.tokenizer.seg_id, **rest)


def test_questions_about_a_picture_share_its_prefix(run: Path, cache: Path) -> None:
    """Each answer is that of a question asked alone, whatever came before it."""
    texts = (QUESTION, "What is it?", "Where can one sit, in this picture, to read a long book?")
    asked = [Question(picture, text) for picture in PICTURES[:2] for text in (*texts, QUESTION)]
    # Of three answers one comes to no end: it would have 52 masks.
    dozen = {"tokens.max_new_tokens": "12"}
    segmenter, alone = opened(run, cache, **dozen), opened(run, cache, **dozen)
    passed: list[int] = []
    read = segmenter.model.read

    def counted(batch: Batch, run: Any, start: int = 0) -> torch.Tensor:
        passed.append(batch.input_ids.shape[1] - start)
        return read(batch, run, start)

    segmenter.model.read = counted  # type: ignore[method-assign]
    whole = []
    for question in asked:
        passed.clear()
        found = segmenter.ask(question)
        whole.append(max(passed) > segmenter.tokenizer.image_tokens)
        alone.read = []
        expected = alone.ask(question)
        assert found.text == expected.text
        assert np.mean(found.masks != expected.masks) < 1e-4
    # The first of a picture goes through it, and what needs more room than there is.
    assert whole == [True, False, False, False] * 2


def says_seg(segmenter: Segmenter) -> Segmenter:
    """Its answers begin with what it takes for [SEG]."""
    spoken = segmenter.ask(Question(PICTURES[0], QUESTION)).text
    ids = segmenter.tokenizer.tokenizer(spoken, add_special_tokens=False).input_ids
    segmenter.model.seg_token_id = ids[0]
    return segmenter


def same(one: Answer, other: Answer) -> bool:
    return one.text == other.text and np.array_equal(one.masks, other.masks)


def test_what_is_kept_of_a_picture_is_of_this_file_and_whole(
    run: Path, cache: Path, tmp_path: Path
) -> None:
    """It goes if the file changes, and if an answer breaks off."""
    segmenter = says_seg(opened(run, cache, **BRIEF))
    expected = [segmenter.ask(Question(picture, QUESTION)) for picture in PICTURES[:2]]
    question = Question(tmp_path / "frame.jpg", QUESTION)  # of a camera, say
    segmenter.model.cached = frozenset()
    for picture, before in zip(PICTURES, expected, strict=False):
        shutil.copyfile(picture, question.image)
        hook = segmenter.model.decoder_layers[2].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            segmenter.ask(question)
        hook.remove()
        assert not segmenter.model.cached  # as it was
        assert same(segmenter.ask(question), before)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_questions_may_be_about_any_pictures_or_none_and_come_from_any_thread(
    run: Path, cache: Path
) -> None:
    segmenter, used = opened(run, cache, **BRIEF), []
    segmenter.use_stream = lambda: used.append(threading.get_ident())
    assert [*segmenter.ask_all([])] == []
    asked = [Question(PICTURES[n], QUESTION) for n in (0, 1, 0)]
    with ThreadPoolExecutor(1) as other:
        found = other.submit(lambda: [*segmenter.ask_all(asked)]).result()
    assert len(used) == 3 and threading.get_ident() not in used
    assert all(same(one, segmenter.ask(q)) for one, q in zip(found, asked, strict=True))
    assert found[0].masks.shape[1:] != found[1].masks.shape[1:]


def test_every_seg_of_an_answer_has_its_mask(run: Path, cache: Path) -> None:
    segmenter = opened(run, cache, **{"tokens.max_new_tokens": "12"})
    spoken = segmenter.ask(Question(PICTURES[0], QUESTION)).text
    ids = segmenter.tokenizer.tokenizer(spoken, add_special_tokens=False).input_ids
    segmenter.model.seg_token_id = ids[0]
    answer = segmenter.ask(Question(PICTURES[0], QUESTION))
    size = Image.open(PICTURES[0]).size[::-1]
    assert answer.masks.shape == (ids.count(ids[0]), *size)
    segmenter.model.seg_token_id = -1
    nothing = segmenter.ask(Question(PICTURES[0], QUESTION))
    assert nothing.masks.shape == (0, *size) and not nothing.mask.any()


def test_evaluation_gives_what_training_did_and_splits_it(run: Path, cache: Path, tmp_path) -> None:
    items = read_split(PHOTOS, "val")
    segmenter = opened(run, cache)
    found = teacher_forced(segmenter, items, SILENT)
    summary = found.summary()
    assert (
        summary["all"]["images"]
        == len(items)
        == sum(summary[kind]["images"] for kind in ("short", "long"))
    )
    write(found, segmenter, tmp_path / "out", {"split": "val"})
    rows = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").open()]
    assert [row["iou"] for row in rows] == sorted(row["iou"] for row in rows)
    assert MaskScores.from_rows(rows).giou == summary["all"]["giou"]
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["all"] == {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in summary["all"].items()
    }
    assert Image.open(tmp_path / "out" / "extremes.png").size[0] == 3 * 256
    iou = {row["name"]: row["iou"] for row in rows}
    for item in items[:2]:
        predicted = _row(item, _forced_mask(segmenter, item)).tiles[1]
        assert predicted.caption == f"prediction, IoU {iou[item.name]:.2f}"


def test_generated_answers_about_a_picture_are_given_together(
    run: Path, cache: Path, tmp_path: Path
) -> None:
    """With the scores, in the order, of answers given one by one."""
    (tmp_path / "copy.jpg").write_bytes(PICTURES[0].read_bytes())
    items = read_split(PHOTOS, "val")[:2]
    items.append(replace(items[0], name="again", texts=("What is it?",),
                         image_path=tmp_path / "copy.jpg"))  # fmt: skip
    segmenter, rows = says_seg(opened(run, cache, **BRIEF)), []
    said = segmenter._said
    segmenter._said = lambda image, group: rows.append(len(group.rows)) or said(image, group)  # type: ignore
    spoken = generated(segmenter, items, SILENT)
    assert rows == [2, 1]
    scored = spoken.scores.rows()
    assert [row["name"] for row in scored] == [item.name for item in items]
    for item, row in zip(items, scored, strict=True):
        answer = segmenter.ask(question_of(item))
        assert answer.text == spoken.answers[item.name] and answer.mask.any()
        alone = intersection_union(answer.mask, paint_mask(item.polygons, *answer.mask.shape))
        assert (row["intersection"], row["union"]) == pytest.approx(alone, rel=1e-3, abs=20)
    segmenter.plan = segmenter.plan.model_copy(update={"questions_per_picture": 2})
    forced = teacher_forced(segmenter, items, SILENT)
    assert [row["name"] for row in forced.scores.rows()] == [item.name for item in items]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of many small samples of a known population, about 95 % of intervals hold its mean IoU."""
    generator = np.random.default_rng(3)
    held = 0
    for trial in range(200):
        scores = MaskScores()
        for number in range(40):
            scores.add_counts(f"{trial}-{number}", int(generator.integers(0, 101)), 100)
        low, high = scores.intervals(resamples=300)["giou"]
        held += low <= 0.5 <= high
    assert 0.88 <= held / 200 <= 0.99
    one = MaskScores()
    one.add_counts("a", 1, 2)
    assert one.intervals() == {}


def test_an_export_answers_bit_for_bit_and_names_no_place_of_this_machine(
    run: Path, cache: Path, tmp_path: Path
) -> None:
    size = export.export_trained(find_trained(run), tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        "adapter_config.json", "adapter_model.safetensors", "trained.safetensors", "plan.json",
        "facts.json", "manifest.json", "README.md",
    }  # fmt: skip
    assert size > 10**5
    assert torch.equal(logits_of(opened(run, cache)), logits_of(opened(tmp_path / "out", cache)))
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("0.500", "3 training and 2", "on a test", "1.00 GiB", "torch x", "7 steps",
                 "1.25 GiB were forecast (+25.0%)"):  # fmt: skip
        assert text in card, text
    assert str(tmp_path) not in card + (tmp_path / "out" / "plan.json").read_text()
    with pytest.raises(FileExistsError, match="not an empty folder"):
        export.export_trained(find_trained(run), tmp_path / "out")


@pytest.mark.parametrize(
    ("storage", "tolerance"), [("none", 1e-4), ("nf4", 0.15)], ids=["exact", "rounded"]
)
def test_merged_weights_answer_alike(
    storage: str, tolerance: float, cache: Path, tmp_path: Path
) -> None:
    """Trained on NF4 and merged into full weights, the base is another: by NF4's rounding."""
    whole_rows = {"train": ["mask_decoder", "text_hidden_fcs", "token_rows"]}
    source = make_run(tmp_path / "run", quantization=storage, **whole_rows)
    export.export_merged(find_trained(source), tmp_path / "out", shard_bytes=4 << 20)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    before = logits_of(opened(source, cache))
    merged = find_trained(tmp_path / "out", ["device=cpu", "dtype=fp32"])
    assert merged.may_round and merged.plan.lora is None
    after = logits_of(Segmenter(merged, PICTURES, tmp_path / "cache2"))
    error = (after - before).norm() / before.norm()
    assert error < tolerance, float(error)
    if storage == "nf4":
        assert error > 1e-3, "merging into unrounded weights cannot be without effect"


def test_a_run_in_fp8_answers_on_cards_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = make_run(tmp_path / "run", products="fp8", effective_batch=8)
    assert find_trained(where).plan.products == "dtype"
    export.export_merged(find_trained(where), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "fp32 and FP8 arithmetic" in card and "- batch 8," in card  # as it was trained
    monkeypatch.setattr("trainer.model.build.check_compiler", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda card: "RTX 3090")
    asked = Plan(device="cuda", products="fp8")
    with pytest.raises(ValueError, match=r"RTX 3090 has none(.|\n)*--set products=dtype"):
        planned_for(Trained(asked, None), lambda: (1, 1))


def test_other_base_weights_are_refused(run: Path, cache: Path, tmp_path: Path) -> None:
    export.export_trained(find_trained(run), tmp_path / "out")
    facts = tmp_path / "out" / "facts.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"base": "another"}))
    with pytest.raises(CheckpointError, match="on base weights another"):
        opened(tmp_path / "out", cache)


def test_what_holds_no_model_says_what_would(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no trained model here"):
        find_trained(tmp_path)
    (tmp_path / "conversion.json").write_text("{}")
    with pytest.raises(ValueError, match="names no model"):
        find_trained(tmp_path)
    with pytest.raises(ValueError, match="nothing was trained"):
        export.export_trained(Trained(Plan.parse({}), None), tmp_path / "x")


def test_uploading_is_told_and_its_failure_too(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    asked: list[Any] = []

    class Hub:
        def create_repo(self, name: str, **options: object) -> None:
            asked.append((name, options))

        def upload_folder(self, repo_id: str, folder_path: Path) -> str:
            if len(asked) > 1:
                raise OSError("no network")
            return f"hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert export.upload(tmp_path, "me/lisa", lambda line: None) == "hub/me/lisa"
    assert asked[0][1]["private"] is True
    with pytest.raises(RuntimeError, match="no network\n    hint: .* hf upload me/lisa"):
        export.upload(tmp_path, "me/lisa", lambda line: None)


def test_run_lengths_are_cocos() -> None:
    mask = np.random.default_rng(0).random((37, 53)) > 0.7
    row = run_lengths(mask)
    again = coco.decode({"size": row["size"], "counts": row["counts"].encode()})
    assert np.array_equal(again == 1, mask) and row["area"] == mask.sum()


def test_questions_come_from_a_file_and_all_that_is_wrong_is_told(tmp_path: Path) -> None:
    folder = PICTURES[0].parent
    file = tmp_path / "questions.jsonl"
    good = {"image": PICTURES[0].name, "question": "the cup", "phrase": True}
    file.write_text("\ufeff" + json.dumps(good) + "\n\n" + json.dumps(good | {"phrase": False}))
    asked = read_questions(folder, None, file, False, False)
    assert [question.is_sentence for question in asked] == [False, True]
    assert [stem.name for stem in stems(asked, tmp_path)] == [
        PICTURES[0].stem, f"{PICTURES[0].stem}-2"
    ]  # fmt: skip
    bad = [{"image": "../x.jpg", "question": "a"}, {"image": "nope.jpg", "question": "a"},
           {"image": PICTURES[0].name, "question": "[SEG]"}, {"image": 3, "question": "a"}, [1],
           {"image": PICTURES[0].name, "question": "a", "colour": "red"},
           {"image": PICTURES[0].name, "question": " "}]  # fmt: skip
    lines = [*(json.dumps(row).encode() for row in bad), b"nonsense", b'{"image": "\xe9"}']
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError) as caught:
        read_questions(folder, None, file, False, False)
    told = str(caught.value).splitlines()
    for line, text in zip(told, (
        "line 1: image: got '../x.jpg'", "line 2: image: got 'nope.jpg'",
        "line 3: question: got '[SEG]'; allowed: words", "line 4: image: got 3",
        "line 5: got '[1]'; allowed: a JSON object",
        "line 6: colour: got 'red'; allowed: image, picture, label, question, phrase, explain",
        "line 7: question: got ' '; allowed: text", "line 8: got 'nonsense'",
        "line 9: got 'bytes that are not UTF-8'"), strict=True):  # fmt: skip
        assert text in line and ". Fix: " in line, line
    assert "outside" in told[0] and "reserved token" in told[2]
    wrong = [
        {"question": "a", "phrase": "no"},
        good | {"picture": "b.jpg"},
        good | {"explain": True},
    ]
    file.write_text("\n".join(map(json.dumps, wrong)))
    with pytest.raises(ValueError) as caught:
        read_questions(folder, None, file, False, False)
    for text in ("line 1: phrase: got 'no'; allowed: true or false", "line 1: image: got nothing",
                 "line 2: picture: got 'b.jpg'; allowed: an image or a picture",
                 "line 3: explain: got True; allowed: false for a phrase"):  # fmt: skip
        assert text in str(caught.value), text
    with pytest.raises(ValueError, match="one of the two"):
        read_questions(folder, None, None, False, False)
    with pytest.raises(ValueError, match="whole sentence"):
        read_questions(PICTURES[0], "a", None, phrase=True, explain=True)
    assert len(read_questions(folder, "a", None, False, False)) == len(PICTURES)
    assert "explain" in read_questions(PICTURES[0], "Why?", None, False, True)[0].turn().question


def test_pictures_of_several_masks(tmp_path: Path) -> None:
    height, width = np.asarray(Image.open(PICTURES[0])).shape[:2]
    masks = np.zeros((2, height, width), bool)
    masks[0, :5], masks[1, -5:] = True, True
    question = Question(PICTURES[0], "a")
    files = write_pictures(question, Answer("x", masks, 0.1), tmp_path / "a.b")
    names = ["a.b.mask-1.png", "a.b.mask-2.png", "a.b.overlay.png"]
    assert [path.name for path in files] == names
    assert np.array_equal(np.asarray(Image.open(files[1])) > 0, masks[1])
    assert write_pictures(question, Answer("x", masks[:0], 0.1), tmp_path / "c") == []


def test_an_earlier_answers_pictures_go_and_no_other_file(tmp_path: Path) -> None:
    height, width = np.asarray(Image.open(PICTURES[0])).shape[:2]
    masks, question = np.ones((2, height, width), bool), Question(PICTURES[0], "a")
    others = {"a.bc.mask-1.png", "a.mask.png", "a.b.mask-x.png", "a.b.mask-01.png", "a.b.png"}
    for name in others:
        (tmp_path / name).touch()
    stem = tmp_path / "a.b"
    for count, left in (
        (2, {"a.b.mask-1.png", "a.b.mask-2.png", "a.b.overlay.png"}),
        (1, {"a.b.mask.png", "a.b.overlay.png"}),
        (0, set()),
    ):
        write_pictures(question, Answer("x", masks[:count], 0.1), stem)
        assert {path.name for path in tmp_path.iterdir()} == left | others


def test_files_of_another_are_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "images.jsonl").write_text("mine")
    out = ["--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["evaluate", str(run), "--data-dir", str(PHOTOS), *out])
    assert done.exit_code == 2 and "images.jsonl: exists and is not an evaluation" in done.stderr
    mask = tmp_path / f"{PICTURES[0].stem}.mask.png"
    Image.new("L", (2, 2)).save(mask)  # such as a truth that is kept beside its picture
    before = mask.read_bytes()
    done = CliRunner().invoke(segment_app, [str(PICTURES[0]), "hot?", "--run", str(run), *out])
    assert done.exit_code == 2 and f"{mask}: exists and is not an answer" in done.stderr
    assert mask.read_bytes() == before and (tmp_path / "images.jsonl").read_text() == "mine"


def test_figures_of_other_data_are_not_replaced_without_a_word(tmp_path: Path) -> None:
    data, model = tmp_path / "data", tmp_path / "run"
    assert replaced(tmp_path, data, model) == []
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"data": str(data), "model": str(model)}))
    assert replaced(tmp_path, tmp_path / "x" / ".." / "data", model) == []
    assert replaced(tmp_path, tmp_path / "other", model) == [str(data)]
    assert replaced(tmp_path, data, tmp_path / "other") == [str(model)]
    for damaged in ("[", "[]", '{"data": "\\u0000"}', '{"data": 3}'):
        scores.write_text(damaged)
        assert replaced(tmp_path, data, model) == []


def test_scores_of_other_data_lie_beside_those_of_the_runs_own(tmp_path: Path) -> None:
    own, run = tmp_path / "own", tmp_path / "run"
    run.mkdir()
    others = [tmp_path / place / "my photos" for place in "ab"]
    assert (
        scores_folder(run, run, others[0], "val") == run / "evaluation-val"
    )  # nothing is recorded
    Started(own, tmp_path, {}).write(run)
    assert scores_folder(run, run, tmp_path / "x" / ".." / "own", "val") == run / "evaluation-val"
    names = ["evaluation-test-generated-on-my-photos", "evaluation-test-generated-on-my-photos-2"]
    for data, name in zip(others * 2, names * 2, strict=True):  # the second time each finds its own
        folder = scores_folder(run, run, data, "test", generated=True)
        assert folder == run / name
        folder.mkdir(exist_ok=True)
        (folder / "scores.json").write_text(json.dumps({"data": str(data), "model": str(run)}))
    assert (
        scores_folder(Path(), run / "best", others[0], "val").name == "evaluation-val-on-my-photos"
    )


def test_a_questions_file_of_another_kind_is_refused_once(tmp_path: Path) -> None:
    folder, file = PICTURES[0].parent, tmp_path / "q.txt"
    file.write_text("picture,label,question\n" + "a.jpg,cup,What is hot?\n" * 3)
    with pytest.raises(ValueError) as caught:
        read_questions(folder, None, file, False, False)
    assert str(caught.value).count("q.txt") == 1 and '{"image": "a.jpg", "q' in str(caught.value)
    row = {"picture": PICTURES[0].name, "label": "cup", "question": "What is hot?"}
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # Notepad's, and PowerShell's >
        file.write_text(json.dumps(row) + "\n", encoding)
        (one,) = read_questions(folder, None, file, False, False)
        assert one.image.name == PICTURES[0].name


def call(module: str, *arguments: str, cwd: Path, **other: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    root = {"PYTHONPATH": str(PHOTOS.parents[1])} | other
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=cwd, env=os.environ | root
    )


def test_questions_come_from_the_table_that_an_import_reads(tmp_path: Path) -> None:
    folder, name = PICTURES[0].parent, PICTURES[0].name
    file = tmp_path / "questions.csv"
    file.write_text(f'Picture;label;question;note\r\n{name} ;cup;"Hot; or not?";x\r\n', "utf-8-sig")
    (question,) = read_questions(folder, None, file, False, False)
    assert question == Question(PICTURES[0], "Hot; or not?")
    file.write_text(f"image,question,phrase,explain\n{name},the cup,TRUE,\n{name},Why?,,true\n")
    phrase, why = read_questions(folder, None, file, False, False)
    assert not phrase.is_sentence and not phrase.explain and why.is_sentence and why.explain
    for text, told in (
        (f"image\n{name}\n", "line 1: got 'image'; allowed: a header with question"),
        ("question\nWhat is hot?\n", "line 2: image: got nothing"),
        (f"image,question,phrase\n{name},a,2\n", "line 2: phrase: got '2'; allowed: true or false"),
        (f"image,question\n../{name},a\n", f"line 2: image: got '../{name}'"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match=re.escape(told)):
            read_questions(folder, None, file, False, False)


def test_a_question_before_its_picture_is_told_so(tmp_path: Path) -> None:
    shown = tmp_path / "cup.jpg"
    shown.write_bytes(PICTURES[0].read_bytes())
    for question, swapped in ((str(shown), True), ("Where is it?", False)):
        with pytest.raises(ValueError, match="no such picture") as raised:
            read_questions(Path("What is hot?"), question, None, False, False)
        assert ("the picture comes before the question" in str(raised.value)) is swapped


def test_the_command_lines(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [str(PICTURES[0].parent), "the cup", "--phrase", "--run", str(run), "--json"]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(segment_app, asked)
    document = json.loads(done.stdout)
    assert [Path(row["image"]).name for row in document["answers"]] == [p.name for p in PICTURES]
    assert done.exit_code == (0 if all(row["masks"] for row in document["answers"]) else 1)
    lines = [{"image": p.name, "question": q} for q in (QUESTION, "What is it?") for p in PICTURES]
    (tmp_path / "q").write_text("\n".join(map(json.dumps, lines)))
    options = ["--questions", "q", "--run", str(run), "--json"]
    done = CliRunner().invoke(segment_app, [str(PICTURES[0].parent), *options])
    told = [
        (row["question"], Path(row["image"]).name) for row in json.loads(done.stdout)["answers"]
    ]
    assert told == [(line["question"], line["image"]) for line in lines], done.stderr
    done = CliRunner().invoke(app, ["evaluate", str(run)])
    assert (
        done.exit_code == 2
        and "has no run.json, which would name the data to score\n    hint: --data-dir"
        in done.stderr
    )
    absent = CliRunner().invoke(app, ["evaluate", "absent"])
    assert absent.exit_code == 2 and absent.stderr == "error: absent: there is no such run\n"
    learnt = digests(read_split(PHOTOS, "train"), [], contents=Contents(PHOTOS))
    Started(PHOTOS, tmp_path, learnt).write(run)
    done = CliRunner().invoke(app, ["evaluate", str(run)])
    assert "was trained on 3 of these 3 pictures: the scores do not say" in done.stderr
    assert f"scoring on the run's own data, {PHOTOS}" in done.stderr, done.stderr
    assert done.exit_code == 0 and "gIoU" in done.stdout and "[" in done.stdout, done.stderr
    assert (
        f"on val of {PHOTOS}, teacher-forced" in done.stdout and " over 1 question" in done.stdout
    )
    assert (run / "evaluation-val" / "images.jsonl").is_file()
    done = CliRunner().invoke(app, ["export", str(run), "out"])
    assert done.exit_code == 0 and "README.md" in done.stdout
    done = CliRunner().invoke(app, ["export", str(run), "out"])
    assert done.exit_code == 2 and "not an empty folder" in done.stderr


def test_an_unreadable_picture_does_not_stop_the_others(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    whole = PICTURES[0].read_bytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "b.jpg").write_bytes(whole)
    Image.new("L", (3000, 2)).save(folder / "c.png")  # of which SAM sees less than half a row
    asked = [str(folder), "the cup", "--phrase", "--run", str(run), "--json"]
    monkeypatch.chdir(tmp_path)
    for name in ("a.mask.png", "b.mask-2.png", "d.mask.png"):  # of `b` alone a picture is written
        (tmp_path / name).touch()
    done = CliRunner().invoke(segment_app, asked)
    note = "note: replacing the pictures of earlier answers: b.mask-2.png; another folder"
    assert note in done.stderr, done.stderr
    broken, answered, thin = json.loads(done.stdout)["answers"]
    assert done.exit_code == 1 and "answer" in answered and "answer" in thin
    assert "truncated" in broken["error"] and "answer" not in broken and not broken["masks"]
    assert "a.jpg" in done.stderr and "1 of 3 questions were skipped" in done.stderr


def test_a_picture_that_goes_takes_its_own_answers_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Losing(SimpleNamespace):
        def ask_all(self, questions: list[Question], most: int) -> Iterator[Answer]:
            yield Answer("It is here.", np.zeros((0, 4, 4), bool), 0.0)
            read_image(questions[1].image)

    asked = [(Question(tmp_path / "gone.jpg", f"{n}?"), tmp_path / f"{n}") for n in range(3)]
    plan = SimpleNamespace(tokens=SimpleNamespace(max_masks=8))
    first, *others = _answered(Losing(plan=plan), asked, as_json=False, several=True)  # type: ignore
    assert first["answer"] == "It is here." and len(others) == 2
    assert all("no such file" in row["error"] for row in others)
    assert capsys.readouterr().err.count("error: ") == 1


def test_a_full_disk_leaves_whole_answers_and_none_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no question more is asked; of one answer the error itself is said."""
    mask = np.ones((1, *np.asarray(Image.open(PICTURES[0])).shape[:2]), bool)
    asked, left = [], 6  # of 2 for each file: the second answer's overlay finds the disk full

    def ask_all(questions: list[Question], most: int) -> Iterator[Answer]:
        for one in questions:
            asked.append(one.text)
            yield Answer("It is here.", mask, 0.0)

    def fsync(file: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "2.overlay.png").touch()  # of an earlier answer
    segmenter: Any = SimpleNamespace(
        plan=SimpleNamespace(tokens=SimpleNamespace(max_masks=8)), ask_all=ask_all
    )
    named = [(Question(PICTURES[0], f"{n}?"), tmp_path / f"{n}") for n in range(3)]
    first, *others = _answers(segmenter, named, {}, as_json=True)
    assert first["files"] and all("no space left" in row["error"] for row in others)
    assert asked == ["0?", "1?"]
    names = {"0.mask.png", "0.overlay.png", "2.overlay.png"}
    assert {one.name for one in tmp_path.iterdir()} == names
    said = capsys.readouterr().err
    assert "1 of 3 answers are written" in said and "then the same command again" in said
    assert said.endswith(f"earlier answers are left: {tmp_path / '2.overlay.png'}\n")
    left = 2
    with pytest.raises(OSError, match="No space"):
        _answers(segmenter, named[:1], {}, as_json=True)
    assert not list(tmp_path.glob("0.*"))


def test_nothing_is_loaded_where_no_picture_can_be_read(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    arguments = ["a.jpg", "a cup", "--run", str(run), "--json"]
    done = call("trainer.cli.segment", *arguments, cwd=tmp_path, **without_torch(tmp_path))
    (row,) = json.loads(done.stdout)["answers"]
    assert done.returncode == 1 and "a.jpg" in row["error"], done.stderr


def without_torch(folder: Path) -> dict[str, str]:
    """An environment in which torch cannot be imported."""
    (folder / "broken" / "torch").mkdir(parents=True)
    (folder / "broken" / "torch" / "__init__.py").write_text("raise SystemExit('too early')")
    path = [str(folder / "broken"), str(PHOTOS.parents[1])]
    return {"PYTHONPATH": os.pathsep.join(path)}


@pytest.mark.parametrize(
    ("run", "split", "told"),
    [("begun", "val", "begun: this run has no best checkpoint yet"), ("begun", "test", "allowed: "
      "train, val"), ("nope", "train", "ReasonSeg/train: folder: got nothing"),
     ("planned", "val", "planned: this run has saved no checkpoint yet")],
)  # fmt: skip
def test_evaluation_without_a_model_or_a_split_says_so_at_once(
    run: str, split: str, told: str, tmp_path: Path
) -> None:
    shutil.copytree(PHOTOS / "ReasonSeg" / "val", tmp_path / "data" / "ReasonSeg" / "val")
    (tmp_path / "data" / "ReasonSeg" / "train").mkdir()
    (tmp_path / "begun" / "last").mkdir(parents=True)
    (tmp_path / "begun" / "last" / "trained.safetensors").touch()
    (tmp_path / "planned").mkdir()
    (tmp_path / "planned" / "plan.json").touch()
    arguments = ["evaluate", run, "--data-dir", "data", "--split", split]
    done = call("trainer.cli", *arguments, cwd=tmp_path, **without_torch(tmp_path))
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert not list(tmp_path.glob("*/evaluation-*"))


@pytest.mark.parametrize(
    ("image", "run", "told"),
    [("nope.jpg", "runs/x", "nope.jpg: no such picture"), (".", "nope", "nope: no such folder"),
     ("whole.jpg", ".", ".: no trained model here"), ("whole.jpg", "begun", "begun/last")],
)  # fmt: skip
def test_what_is_not_there_is_told_before_torch_is_imported(
    image: str, run: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "whole.jpg").write_bytes(PICTURES[0].read_bytes())
    (tmp_path / "begun" / "last").mkdir(parents=True)
    (tmp_path / "begun" / "last" / "trained.safetensors").touch()
    arguments = [image, "a cup", "--run", run]
    done = call("trainer.cli.segment", *arguments, cwd=tmp_path, **without_torch(tmp_path))
    assert done.returncode == 2 and told in done.stderr, done.stderr


def test_masks_beyond_the_limit_are_left_out_and_told(
    run: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A model that trained little says [SEG] again and again, and each mask fills a picture."""
    from trainer.cli.segment import _written

    segmenter = opened(run, cache)
    low = torch.full((3, 256, 256), -1.0)
    low[0] = 1.0
    end = segmenter.tokenizer.end_id
    monkeypatch.setattr(segmenter, "_said", lambda *_: [Said([end], list(low), True)])
    question = Question(PICTURES[0], "Where?")
    every, some = segmenter.ask(question), segmenter.ask(question, 2)
    assert (len(every.masks), every.left_out, len(some.masks), some.left_out) == (3, 0, 2, 1)
    assert some.masks[0].all() and not some.masks[1].any()  # the first ones are kept
    row = _written(question, some, tmp_path / "a", as_json=True, several=False)
    said = capsys.readouterr().err
    assert row["masks_left_out"] == 1 and "the first 2 are kept" in said
    assert "--set tokens.max_masks=3 keeps all" in said
    assert len(list(tmp_path.glob("a.mask*.png"))) == 2
