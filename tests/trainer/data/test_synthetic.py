"""The synthetic data set: repeatable, true, and disjoint between its splits."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from trainer.data.synthetic.dataset import write_dataset
from trainer.data.synthetic.questions import (
    HELD_OUT,
    KINDS,
    PRETRAINING,
    all_words,
    make_questions,
    sample_texts,
)
from trainer.data.synthetic.scenes import (
    COLOURS,
    FORMS,
    LAYOUTS,
    MINIMUM_VISIBLE,
    Scene,
    draw_scene,
    extent,
    is_one_piece,
)
from trainer.data.synthetic.wording import (
    CARRIERS,
    COLOUR_CLUES,
    FORM_CLUES,
    SPLITS,
    agreement,
    patterns,
    tokens,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(11)
    return [draw_scene(rng) for _ in range(250)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder, seed=3, train=78, val=26, test=26)


def phrases(scenes: list[Scene], kind: str, split: str = "train"):
    """(scene, phrase, targets) of every short text of a kind."""
    rng = np.random.default_rng(1)
    for scene in scenes:
        for question in make_questions(rng, scene, [kind], split):
            if not question.is_sentence:
                for text in question.texts:
                    yield scene, text, set(question.targets)


def fit(scene: Scene, noun: str) -> set[int]:
    """The shapes that a noun phrase such as "red circles" or "striped shape" fits."""
    singular = {f"{form}s": form for form in (*FORMS, "shape")} | {"crosses": "cross"}
    words = [singular.get(word, word) for word in noun.split()]
    return {
        i
        for i, s in enumerate(scene.shapes)
        if all(w in ("shape", s.form, s.colour, s.texture) for w in words)
    }


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*.*"))
    }


def test_same_state_of_the_generator_gives_the_same_scene() -> None:
    first, again, other = (draw_scene(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image) and first.shapes == again.shapes
    assert np.array_equal(first.ids, again.ids)
    assert not np.array_equal(first.image, other.image)


def test_scene_arrays_have_the_promised_types(scenes: list[Scene]) -> None:
    for scene in scenes[:20]:
        assert scene.image.shape == (256, 256, 3) and scene.image.dtype == np.uint8
        assert scene.ids.shape == (256, 256) and scene.ids.dtype == np.int16
        assert 3 <= len(scene.shapes) <= 6


@pytest.mark.parametrize("size", [64, 128, 256])
def test_visible_regions_are_one_piece_without_holes_and_large(size: int) -> None:
    rng = np.random.default_rng(size)
    hidden = 0
    for _ in range(100):
        scene = draw_scene(rng, size)
        for index, shape in enumerate(scene.shapes):
            mask = (scene.ids == index).astype(np.uint8)
            pieces, _ = cv2.connectedComponents(mask, connectivity=4)
            outside, _ = cv2.connectedComponents(
                np.pad(1 - mask, 1, constant_values=1), connectivity=8
            )
            assert (pieces, outside) == (2, 2)
            assert mask.sum() >= MINIMUM_VISIBLE * shape.area
            assert mask.sum() >= 300 * (size / 256) ** 2
            assert shape.area == pytest.approx(np.pi * shape.radius**2, rel=30 / size)
            hidden += int(mask.sum() < shape.area)
    assert hidden > 5, "partial overlaps should occur"


def test_colours_on_the_picture_are_those_of_the_shapes(scenes: list[Scene]) -> None:
    names, table = list(COLOURS), np.array(list(COLOURS.values()), dtype=float)
    for scene in scenes[:60]:
        clean = np.ones_like(scene.ids, bool) if scene.ignore is None else ~scene.ignore
        for index, shape in enumerate(scene.shapes):
            pixels = scene.image[(scene.ids == index) & clean].astype(float)
            # Dark stripes and dots cover less than half: the brighter pixels show the colour.
            bright = pixels[pixels.sum(axis=1) >= np.median(pixels.sum(axis=1))].mean(axis=0)
            assert names[int(np.argmin(((table - bright) ** 2).sum(axis=1)))] == shape.colour


def test_smudges_are_smaller_than_what_they_touch(scenes: list[Scene]) -> None:
    smudged = [scene for scene in scenes if scene.ignore is not None]
    assert 0.1 < len(smudged) / len(scenes) < 0.4
    assert any((scene.ids[scene.ignore] >= 0).any() for scene in smudged)
    for scene in smudged:
        for index in set(scene.ids[scene.ignore].tolist()) - {-1}:
            assert (scene.ids == index).sum() > scene.ignore.sum()


@pytest.mark.parametrize("attribute", ["colour", "form", "texture"])
def test_odd_one_out_layouts(attribute: str) -> None:
    assert f"odd-{attribute}" in LAYOUTS
    rng = np.random.default_rng(2)
    for _ in range(20):
        scene = draw_scene(rng, 96, layout=f"odd-{attribute}")
        counts = Counter(getattr(shape, attribute) for shape in scene.shapes)
        assert len(counts) == 2 and min(counts.values()) == 1


def test_draw_scene_refuses_nonsense() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="layout"):
        draw_scene(rng, layout="spiral")
    with pytest.raises(ValueError, match="minimum"):
        draw_scene(rng, minimum=5, maximum=4)


def test_crowded_scenes_can_be_drawn() -> None:
    rng = np.random.default_rng(0)
    assert all(len(draw_scene(rng, minimum=8, maximum=8).shapes) == 8 for _ in range(5))


def test_one_piece_tells_rings_and_pairs_apart() -> None:
    ring = np.ones((5, 5), bool)
    assert is_one_piece(ring)
    ring[2, 2] = False
    assert not is_one_piece(ring)
    assert not is_one_piece(np.eye(2, dtype=bool))
    assert not is_one_piece(np.zeros((3, 3), bool))


def test_extent_bounds_the_visible_pixels(scenes: list[Scene]) -> None:
    for scene in scenes[:40]:
        for index, shape in enumerate(scene.shapes):
            ys, xs = np.nonzero(scene.ids == index)
            left, top, right, bottom = extent(shape)
            assert left - 2 <= xs.min() and xs.max() <= right + 2
            assert top - 2 <= ys.min() and ys.max() <= bottom + 2


def test_every_kind_occurs_in_every_split(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for split in SPLITS:
        seen = Counter(q.kind for scene in scenes for q in make_questions(rng, scene, KINDS, split))
        assert set(seen) == set(KINDS) and min(seen.values()) > len(scenes) / 4
    assert set(PRETRAINING) | set(HELD_OUT) == set(KINDS)
    assert not set(PRETRAINING) & set(HELD_OUT)


def test_questions_are_well_formed(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for scene in scenes:
        for question in make_questions(rng, scene, KINDS, "train"):
            assert 1 <= len(question.texts) <= 4
            assert 0 < len(question.targets) < len(scene.shapes)
            assert list(question.targets) == sorted(set(question.targets))
            for text in question.texts:
                assert "{" not in text
                assert text[0].isupper() == question.is_sentence
                assert text.endswith((".", "?")) == question.is_sentence
                assert question.is_sentence or not text.startswith("the ")


def test_ask_refuses_what_it_does_not_know(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="taste"):
        make_questions(rng, scenes[0], ["taste"], "train")
    with pytest.raises(ValueError, match="dev"):
        make_questions(rng, scenes[0], KINDS, "dev")


# --- the answers, found again from the text alone ---


def test_attributes_are_true(scenes: list[Scene]) -> None:
    checked = 0
    for kind, pattern in (
        ("colour", r"(\w+ shapes?)"),
        ("colour-shape", r"(\w+ \w+)"),
        ("texture", r"(\w+ shapes?)"),
        ("shape", r"(\w+)"),
    ):
        for scene, text, targets in phrases(scenes, kind):
            match = re.fullmatch(pattern, text)
            if match:
                assert fit(scene, match[1]) == targets, text
                assert (len(targets) > 1) == text.endswith("s") or text.endswith("cross")
                checked += 1
    assert checked > 100


def test_sizes_are_true_by_whole_and_by_visible_area(scenes: list[Scene]) -> None:
    checked = 0
    for scene, text, targets in phrases(scenes, "size"):
        match = re.fullmatch(r"(largest|biggest|smallest) (.*?)(?: of all| in this picture)?", text)
        if match:
            pick = min if match[1] == "smallest" else max
            members = fit(scene, match[2])
            assert targets == {pick(members, key=lambda i: scene.shapes[i].area)}
            assert targets == {pick(members, key=lambda i: int((scene.ids == i).sum()))}
            (target,) = targets
            ratios = [scene.shapes[target].area / scene.shapes[i].area for i in members - targets]
            assert all(ratio >= 1.4 or ratio <= 1 / 1.4 for ratio in ratios)
            checked += 1
    assert checked > 40


def test_positions_are_true_by_visible_pixels(scenes: list[Scene]) -> None:
    measures = {
        "left side": lambda y, x: x.min(),
        "right side": lambda y, x: -x.max(),
        "top": lambda y, x: y.min(),
        "bottom": lambda y, x: -y.max(),
    }
    checked = 0
    for scene, text, targets in phrases(scenes, "position"):
        match = re.fullmatch(r"(.*) nearest to the (.*)", text)
        if match and match[2] in measures:
            members = fit(scene, match[1])
            whole = {i for i in members if (scene.ids == i).sum() == scene.shapes[i].area}
            if whole == members:
                places = {i: measures[match[2]](*np.nonzero(scene.ids == i)) for i in members}
                assert targets == {min(places, key=places.__getitem__)}
                checked += 1
    assert checked > 15


def test_relations_are_true_and_leave_no_second_answer(scenes: list[Scene]) -> None:
    pattern = r"(.*?)(?: placed| that lies)? (to the left of|to the right of|above|below) the (.*)"
    steps = {
        "to the left of": (0, -1),
        "to the right of": (0, 1),
        "above": (1, -1),
        "below": (1, 1),
    }
    checked = 0
    for scene, text, targets in phrases(scenes, "relation"):
        match = re.fullmatch(pattern, text)
        assert match
        (reference,) = fit(scene, match[3])
        axis, sign = steps[match[2]]
        gaps = {
            i: sign * (scene.shapes[i].centre[axis] - scene.shapes[reference].centre[axis])
            for i in fit(scene, match[1]) - {reference}
        }
        assert {i for i, gap in gaps.items() if gap > 0} == targets
        assert min(abs(gap) for gap in gaps.values()) >= 0.06 * 256
        checked += 1
    assert checked > 50


def test_countings_are_true(scenes: list[Scene]) -> None:
    times = {"once": 1, "twice": 2, "three times": 3, "four times": 4}
    checked = Counter()
    for scene, text, targets in phrases(scenes, "counting"):
        if match := re.fullmatch(r"shapes? whose (\w+) appears exactly (.*)", text):
            values = [getattr(shape, match[1]) for shape in scene.shapes]
            fitting = {v for v, n in Counter(values).items() if n == times[match[2]]}
            assert len(fitting) == 1
            assert targets == {i for i, value in enumerate(values) if value in fitting}
            checked["times"] += 1
        elif match := re.fullmatch(r"(?:only|single) (.*?)(?: of the picture)?", text):
            assert fit(scene, match[1]) == targets and len(targets) == 1
            checked["only"] += 1
        elif match := re.fullmatch(r"shapes? with the most common (\w+)", text):
            values = [getattr(shape, match[1]) for shape in scene.shapes]
            (first, most), (_, next_most) = Counter(values).most_common(2)
            assert most > next_most
            assert targets == {i for i, value in enumerate(values) if value == first}
            checked["most"] += 1
    assert len(checked) == 3 and min(checked.values()) > 5


def test_negations_are_true(scenes: list[Scene]) -> None:
    checked = Counter()
    for _ in range(3):
        for scene, text, targets in phrases(scenes, "negation"):
            everything = set(range(len(scene.shapes)))
            if match := re.fullmatch(r"(only |one )?shapes? that (?:is|are) not (?:a )?(.*)", text):
                assert everything - fit(scene, match[2]) == targets
                assert not match[1] or len(targets) == 1
                checked["not"] += 1
            elif match := re.fullmatch(r"shapes? other than the (.*)", text):
                assert everything - fit(scene, match[1]) == targets
                checked["other"] += 1
            elif match := re.fullmatch(r"shapes? without (dots|stripes)", text):
                texture = {"dots": "dotted", "stripes": "striped"}[match[1]]
                assert everything - fit(scene, texture) == targets
                checked["without"] += 1
    assert len(checked) == 3


@pytest.mark.parametrize(
    "kind, attribute, clues",
    [("colour-clue", "colour", COLOUR_CLUES), ("shape-clue", "form", FORM_CLUES)],
)
def test_clues_are_true(
    scenes: list[Scene], kind: str, attribute: str, clues: dict[str, tuple[str, ...]]
) -> None:
    values = {clue: value for value, nouns in clues.items() for clue in nouns}
    assert set(clues) == set(COLOURS if attribute == "colour" else FORMS)
    assert all(len(nouns) >= 2 for nouns in clues.values())
    assert len(values) == sum(map(len, clues.values())), "a clue may mean one thing only"
    rng = np.random.default_rng(4)
    for scene in scenes:
        for question in make_questions(rng, scene, [kind], "test"):
            for text in question.texts:
                # The longest clue that fits: "a sign" might be part of another.
                clue = max((c for c in values if c in text), key=len)
                assert set(question.targets) == {
                    i
                    for i, shape in enumerate(scene.shapes)
                    if getattr(shape, attribute) == values[clue]
                }


def test_size_clues_are_true(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(4)
    checked = 0
    for scene in scenes:
        for question in make_questions(rng, scene, ["size-clue"], "val"):
            least = any(word in question.texts[0] for word in ("least", "quickest"))
            areas = [shape.area for shape in scene.shapes]
            assert areas[question.targets[0]] == (min(areas) if least else max(areas))
            checked += 1
    assert checked > 50


# --- the wording ---


def test_no_text_occurs_in_two_splits_for_the_same_kind(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(9)
    texts: dict[tuple[str, str], set[str]] = {}
    for scene in scenes * 2:
        for split in SPLITS:
            for question in make_questions(rng, scene, KINDS, split):
                texts.setdefault((question.kind, split), set()).update(
                    text.lower() for text in question.texts
                )
    for kind in KINDS:
        train, val, test = (texts[kind, split] for split in SPLITS)
        assert not train & val and not train & test and not val & test, kind


def test_no_pattern_occurs_in_two_splits() -> None:
    assert len(CARRIERS["train"]) >= 12
    assert min(len(CARRIERS[split]) for split in SPLITS) >= 4
    sets = [set(CARRIERS[split]) for split in SPLITS]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_val_and_test_use_words_of_train() -> None:
    known = {word for text in patterns("train") for word in tokens(text)}
    known |= {*agreement(False).values(), *agreement(True).values()}
    for split in ("val", "test"):
        words = {word for text in patterns(split) for word in tokens(text)}
        assert not words - known


def test_all_words_covers_the_texts() -> None:
    texts = sample_texts(np.random.default_rng(0), 3000)
    assert len(texts) == 3000
    known = set(all_words())
    assert not {word for text in texts for word in tokens(text)} - known
    assert texts == sample_texts(np.random.default_rng(0), 3000)


# --- the written data set ---


def paint(shapes: list[dict], side: int) -> np.ndarray:
    """The mask as readers of ReasonSeg paint it: large polygons first, ignored ones as 255."""

    def area(points: np.ndarray) -> int:
        canvas = np.zeros((side, side), np.uint8)
        cv2.polylines(canvas, [points], True, 1, 1)
        cv2.fillPoly(canvas, [points], 1)
        return int(canvas.sum())

    kept = [s for s in shapes if s["label"] != "flag"]
    arrays = [(np.array(s["points"], dtype=np.int32), s["label"]) for s in kept]
    mask = np.zeros((side, side), np.uint8)
    for points, label in sorted(arrays, key=lambda pair: -area(pair[0])):
        value = 255 if "ignore" in label else 1
        cv2.polylines(mask, [points], True, value, 1)
        cv2.fillPoly(mask, [points], value)
    return mask


def test_files_have_the_reasonseg_format(root: Path) -> None:
    counts = {"train": 78, "val": 26, "test": 26}
    assert root.name == "ReasonSeg"
    assert {folder.name for folder in root.iterdir()} == set(counts)
    labels = set()
    for split, count in counts.items():
        files = sorted((root / split).glob("*.json"))
        assert len(files) == len(list((root / split).glob("*.jpg"))) == count
        kinds = Counter()
        for file in files:
            data = json.loads(file.read_text(encoding="utf-8"))
            labels |= {shape["label"] for shape in data["shapes"]}
            assert any(shape["label"] == "target" for shape in data["shapes"])
            assert data["text"] and isinstance(data["is_sentence"], bool)
            kinds[data["kind"]] += 1
            with Image.open(file.with_suffix(".jpg")) as image:
                assert image.size == (256, 256) and image.mode == "RGB"
        assert set(kinds.values()) == {count // len(KINDS)}
    assert labels == {"target", "ignore", "flag"}


def test_painted_polygons_give_back_the_visible_masks(root: Path) -> None:
    files = sorted((root / "train").glob("*.json"))
    for file in files:
        number = int(file.stem.split("_")[1])
        scene = draw_scene(np.random.default_rng([3, 0, number]))
        data = json.loads(file.read_text(encoding="utf-8"))
        painted = paint(data["shapes"], 256)
        touched = {int(i) for i in np.unique(scene.ids[painted == 1])} - {-1}
        truth = np.isin(scene.ids, sorted(touched))
        if scene.ignore is not None:
            assert ((painted == 255) == scene.ignore).mean() > 0.999
            truth &= ~scene.ignore
        union = ((painted == 1) | truth).sum()
        assert ((painted == 1) & truth).sum() / union >= 0.97
        with Image.open(file.with_suffix(".jpg")) as image:
            assert np.abs(np.asarray(image).astype(int) - scene.image).mean() < 6


def test_splits_share_no_scene(root: Path) -> None:
    pictures = {
        split: {hashlib.sha256(p.read_bytes()).digest() for p in (root / split).glob("*.jpg")}
        for split in SPLITS
    }
    assert len(set.union(*pictures.values())) == sum(map(len, pictures.values()))
    assert len(pictures["train"]) < 78, "questions should share scenes"


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    size = {"train": 8, "val": 3, "test": 0, "size": 96}
    first, again, other = (
        write_dataset(tmp_path / name, seed=seed, **size)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert digest(first) == digest(again) != digest(other)
    assert not (first / "test").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["ReasonSeg"]


def test_kinds_can_be_chosen(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, seed=0, train=4, val=0, test=0, kinds=["size", "negation"])
    kinds = Counter(json.loads(p.read_text())["kind"] for p in folder.rglob("*.json"))
    assert kinds == {"size": 2, "negation": 2}


def test_an_existing_data_set_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ReasonSeg").mkdir()
    write_dataset(tmp_path, seed=0, train=1, val=0, test=0)
    before = digest(tmp_path)
    with pytest.raises(FileExistsError, match="move or delete it"):
        write_dataset(tmp_path, seed=0, train=1, val=0, test=0)
    assert digest(tmp_path) == before


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.data.synthetic.dataset._annotation", stop)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, seed=0, train=1, val=0, test=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": 0},
        {"val": -1},
        {"seed": -1},
        {"kinds": ["taste"]},
        {"kinds": []},
        {"kinds": ["size", "size"]},
    ],
)
def test_write_dataset_refuses_nonsense(tmp_path: Path, wrong: dict) -> None:
    arguments = {"seed": 0, "train": 1, "val": 0, "test": 0} | wrong
    with pytest.raises(ValueError):
        write_dataset(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())
