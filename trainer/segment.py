"""Inference and pictures: a question about an image becomes an answer, masks and an overlay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from profiles.plan import Plan
from trainer import checkpoint
from trainer.data.preprocess import pixels
from trainer.data.prompts import Turn, question_for
from trainer.data.reasonseg import read_image
from trainer.losses import IGNORE_LABEL
from trainer.model.build import build, read_tokenizer
from trainer.model.lisa import Batch, to_original
from trainer.pictures import PREDICTED, TRUE, Row, overlay, write_sheet

if TYPE_CHECKING:
    from trainer.loop import Run


@dataclass(frozen=True)
class Answer:
    """What the model said, and a mask [H, W] bool for each [SEG] in it."""

    text: str
    masks: NDArray[np.bool_]  # [n, H, W]


class Segmenter:
    """A trained model ready for questions; `run` is a run folder or one of its checkpoints."""

    def __init__(self, run: Path) -> None:
        folder = run if (run / "trained.safetensors").is_file() else run / "best"
        if not folder.is_dir():
            raise ValueError(
                f"{run}: no run folder here, or none with a checkpoint\n"
                "    hint: --run names the --output-dir of a lisa-train run"
            )
        plan = Plan.read(folder / "plan.json")
        # Any picture may be asked about, so the encoders must be there.
        online: dict[str, object] = {"cached_encoders": [], "compile": False}
        if plan.device == "cuda" and not torch.cuda.is_available():
            online |= {"device": "cpu", "dtype": "fp32", "optimizer": "adamw"}
        self.plan = Plan.parse(plan.model_dump(mode="json") | online)
        self.device = torch.device(self.plan.device)
        self.tokenizer = read_tokenizer(self.plan)
        self.model = build(self.plan, self.tokenizer, self.device).eval()
        checkpoint.load(folder, self.model)
        for parameter in self.model.parameters():  # nothing is trained here: one dtype throughout
            parameter.data = parameter.data.to(self.model.dtype)

    def ask(self, image: NDArray[np.uint8], question: str, is_sentence: bool = True) -> Answer:
        """Answer one question about a picture [H, W, 3]. Raises PromptError."""
        turn = Turn(question_for(question, is_sentence, lambda options: options[0]), None)
        ids = torch.tensor([self.tokenizer.encode([turn]).input_ids], device=self.device)
        shown = {
            encoder: torch.from_numpy(pixels(image, encoder, self.plan.profile))[None]
            for encoder in ("clip", "sam")
        }
        batch = Batch.of(
            ids,
            torch.full_like(ids, IGNORE_LABEL),
            self.tokenizer.seg_id,
            targets=torch.zeros(0),
            clip=shown["clip"].to(self.device),
            sam=shown["sam"].to(self.device),
        )
        new, low = self.model.answer(
            batch,
            self.plan.tokens.max_new_tokens,
            eos_token_id=self.tokenizer.end_id,
            pad_token_id=self.tokenizer.pad_id,
        )
        height, width = image.shape[:2]
        if not len(low):
            return Answer(self._text(new), np.zeros((0, height, width), bool))
        frame = self.plan.profile.sam.image_pixels
        masks = to_original(low, frame, height, width) > 0
        return Answer(self._text(new), masks.cpu().numpy())

    def _text(self, ids: torch.Tensor) -> str:
        kept = [token for token in ids.tolist() if token != self.tokenizer.end_id]
        return self.tokenizer.decode(kept).strip()


def contact_sheet(run: Run, path: Path, count: int) -> Path:
    """Questions, predictions and truths of the first validation samples, as one PNG."""
    from trainer.loop import predict

    run.model.eval()
    step = max(1, len(run.val_set) // count)
    places = list(range(0, len(run.val_set), step))[:count]
    samples = [run.val_set[place] for place in places]
    masks = [predict(run.model, [s], run.tokenizer, run.accelerator)[0] for s in samples]
    rows = []
    for place, sample, logits in zip(places, samples, masks, strict=True):
        item = run.val[place]
        image = read_image(item.image_path)
        predicted = overlay(image, logits.numpy() > 0, PREDICTED)
        true = overlay(image, sample.truth == 1, TRUE)
        tiles = (("", image), ("prediction", predicted), ("truth", true))
        rows.append(Row(item.texts[0], tiles))
    return write_sheet(rows, path)
