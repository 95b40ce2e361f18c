"""Pretraining examples for lisa-tiny: drawn scenes with questions, as batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from profiles.families import MASK, VISION
from profiles.models import model_profile
from trainer.batch import Batch
from trainer.data.synthetic.questions import make_questions
from trainer.data.synthetic.scenes import COLOURS, FORMS, TEXTURES, Scene, draw_scene
from trainer.frame import Frame
from trainer.ignored import IGNORE_LABEL, IGNORE_PIXEL
from trainer.model.families.llava_sam.pictures import clip_pixels
from trainer.model.families.llava_sam.tokenizer import LisaTokenizer
from trainer.prompts import Turn, answer_for, evaluation_turn, question_for

PROFILE = model_profile("tiny")
QUESTIONS = 6  # per scene
SIDE = 128  # of the mask loss
FRAME = Frame.of(PROFILE)
CLASSES = (len(COLOURS) + 1, len(FORMS) + 1, len(TEXTURES) + 1)  # the last one is the ground


def attributes(scene: Scene) -> np.ndarray:
    """[shapes + 1, 5]: colour, form, texture class and centre x, y; the last row is the ground."""
    size = scene.ids.shape[0]
    table = np.full((len(scene.shapes) + 1, 5), np.nan, np.float32)
    table[-1, :3] = [n - 1 for n in CLASSES]
    for row, shape in enumerate(scene.shapes):
        table[row] = (
            list(COLOURS).index(shape.colour),
            FORMS.index(shape.form),
            TEXTURES.index(shape.texture),
            shape.centre[0] / size,
            shape.centre[1] / size,
        )
    return table


def attribute_map(scene: Scene, side: int) -> np.ndarray:
    """[5, side, side]: what stands at the middle of each cell of a grid."""
    middles = ((np.arange(side) + 0.5) * scene.ids.shape[0] / side).astype(int)
    return attributes(scene)[scene.ids[np.ix_(middles, middles)]].transpose(2, 0, 1)


class Scenes(IterableDataset):
    """Endless pretraining examples: one scene with QUESTIONS questions each."""

    def __init__(self, tokenizer: LisaTokenizer, seed: int, kinds: tuple[str, ...], split: str):
        self.tokenizer, self.seed, self.kinds, self.split = tokenizer, seed, kinds, split

    def __iter__(self) -> Iterator[dict[str, np.ndarray | list]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            scene = draw_scene(rng, PROFILE.sam.image_pixels)
            questions = make_questions(rng, scene, self.kinds, self.split)
            if questions:
                yield self.example(rng, scene, questions)

    def example(self, rng: np.random.Generator, scene: Scene, questions: list) -> dict:
        def choose(options):  # noqa: ANN001, ANN202
            return options[rng.integers(len(options))]

        chosen = [questions[i] for i in rng.permutation(len(questions))[:QUESTIONS]]
        while len(chosen) < QUESTIONS:
            chosen.append(chosen[rng.integers(len(chosen))])
        encoded, targets, asked = [], [], []
        for question in chosen:
            text = question.texts[rng.integers(len(question.texts))]
            turn = (
                Turn(question_for(text, question.is_sentence, choose), answer_for(choose))
                if self.split == "train"
                else evaluation_turn(text, question.is_sentence)
            )
            encoded.append(self.tokenizer.encode([turn]))
            mask = np.isin(scene.ids, question.targets).astype(np.uint8)
            if scene.ignore is not None:
                mask[scene.ignore] = IGNORE_PIXEL
            targets.append(FRAME.mask(mask, SIDE))
            single = len(question.targets) == 1
            asked.append(attributes(scene)[question.targets[0]] * (1 if single else np.nan))
        return {
            "clip": clip_pixels(scene.image, PROFILE.clip.image_pixels),
            "sam": FRAME.pixels(scene.image),
            "encoded": encoded,
            "targets": np.stack(targets),
            "asked": np.array(asked, np.float32),
            "clip_map": attribute_map(scene, math.isqrt(PROFILE.clip.image_tokens)),
            "sam_map": attribute_map(scene, PROFILE.sam.embedding_pixels),
            "kinds": [q.kind for q in chosen],
        }


@dataclass
class PretrainBatch:
    batch: Batch
    clip_map: Tensor  # [S, 5, N^½, N^½]
    sam_map: Tensor  # [S, 5, G, G]
    asked: Tensor  # [S·QUESTIONS, 5]: attributes of a single target, NaN for several
    kinds: list[str]

    def pin_memory(self) -> PretrainBatch:
        return self


def collate(tokenizer: LisaTokenizer):  # noqa: ANN201
    def run(examples: list[dict]) -> PretrainBatch:
        encoded = [e for example in examples for e in example["encoded"]]
        longest = max(len(e.input_ids) for e in encoded)
        longest = (longest + 7) // 8 * 8
        ids = torch.full((len(encoded), longest), tokenizer.pad_id)
        labels = torch.full((len(encoded), longest), IGNORE_LABEL)
        for row, e in enumerate(encoded):
            n = len(e.input_ids)
            ids[row, :n] = torch.tensor(e.input_ids)
            labels[row, :n] = torch.tensor(e.labels)
        stack = {
            key: torch.from_numpy(np.stack([example[key] for example in examples]))
            for key in ("clip", "sam", "targets", "asked", "clip_map", "sam_map")
        }
        batch = Batch.of(
            ids,
            labels,
            tokenizer.seg_id,
            targets=stack["targets"].flatten(0, 1),
            inputs={VISION: {"pixels": stack["clip"]}, MASK: {"pixels": stack["sam"]}},
        )
        kinds = [kind for example in examples for kind in example["kinds"]]
        return PretrainBatch(
            batch, stack["clip_map"], stack["sam_map"], stack["asked"].flatten(0, 1), kinds
        )

    return run
