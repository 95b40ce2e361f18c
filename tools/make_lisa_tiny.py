"""Make lisa-tiny: its tokenizer, and its pretrained weights from the generator's scenes.

    python tools/make_lisa_tiny.py tokenizer                      # seconds, any machine
    python tools/make_lisa_tiny.py pretrain --seconds 535 --out D # one GPU, or a CPU for a trial

All of LISA is pretrained together, encoders included, on question kinds that exclude those held
out for fine-tuning. Auxiliary heads (dropped afterwards) ask CLIP's patches, SAM's cells and the
[SEG] state for colour, form, texture and the shape's centre: without them the path from question
to mask is too long to be found from scratch.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lisa_tiny_scenes import CLASSES, PROFILE, QUESTIONS, PretrainBatch, Scenes, collate
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from profiles.families import MASK, VISION
from trainer.data.synthetic.questions import (
    HELD_OUT,
    KINDS,
    PRETRAINING,
    sample_texts,
)
from trainer.losses import mask_bce_per_mask, mask_dice_per_mask
from trainer.model.build import save_model
from trainer.model.families.llava_sam.configs import llava_config, sam_config
from trainer.model.families.llava_sam.conversation import SYSTEM_PROMPT
from trainer.model.families.llava_sam.model import Lisa
from trainer.model.families.llava_sam.tokenizer import LisaTokenizer
from trainer.model.weights import packaged_folder
from trainer.prompts import question_for


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE on the generator's sentences; any text still has a spelling in bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    rng = np.random.default_rng(0)
    corpus = sample_texts(rng, 30_000, kinds=KINDS)
    corpus += [SYSTEM_PROMPT] * 400
    for short in (False, True):
        corpus += [
            question_for("shape", short, lambda options: str(rng.choice(list(options))))
            for _ in range(400)
        ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>", *LisaTokenizer.new_tokens]
    trainer = trainers.BpeTrainer(
        vocab_size=PROFILE.vocabulary_rows,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    print(f"{tokenizer.get_vocab_size()} tokens -> {folder / 'tokenizer.json'}")


class Pretrainer(nn.Module):
    """Lisa with auxiliary heads; encoders get gradients here, and only here."""

    def __init__(self, lisa: Lisa) -> None:
        super().__init__()
        self.lisa = lisa
        lisa.cached = frozenset((VISION, MASK))  # they are computed here, with gradients
        outputs = sum(CLASSES) + 2
        self.clip_head = nn.Linear(PROFILE.clip.hidden, outputs)
        self.sam_head = nn.Linear(PROFILE.sam.output_channels, outputs)
        self.target_head = nn.Linear(PROFILE.sam.output_channels, outputs)

    def dense(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Attribute and centre loss of outputs [S, n, channels] against a map [S, 5, g, g]."""
        truth = truth.flatten(2).transpose(1, 2)
        parts = outputs.float().split([*CLASSES, 2], dim=-1)
        loss = sum(
            functional.cross_entropy(parts[i].flatten(0, 1), truth[..., i].flatten().long())
            for i in range(3)
        )
        known = ~truth[..., 3].isnan()
        return loss + 20 * functional.smooth_l1_loss(parts[3][known], truth[known][:, 3:], beta=0.1)

    def forward(self, data: PretrainBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss, the mask logits [M, L, L] and the named parts."""
        lisa, batch = self.lisa, data.batch
        vision = lisa.llava.model.vision_tower(
            batch.inputs[VISION]["pixels"], output_hidden_states=True
        )
        clip = vision.hidden_states[-2][:, 1:]
        sam = lisa.sam.vision_encoder(batch.inputs[MASK]["pixels"])[0]
        many = clip.repeat_interleave(QUESTIONS, 0)
        seen = {
            VISION: {"features": many},
            MASK: {"features": sam.repeat_interleave(QUESTIONS, 0)},
        }
        batch = replace(batch, inputs=seen)
        states = lisa.hidden_states(batch)
        masks = lisa.decode_masks(states, batch)
        rows, places = batch.segs.unbind(1)
        asked = self.target_head(lisa.text_hidden_fcs(states[rows, places - 1]))
        single = ~data.asked[:, 3].isnan()
        parts = {
            "ce": lisa.answer_loss(states, batch) / len(batch.answers),
            "bce": mask_bce_per_mask(masks.float(), batch.targets).mean(),
            "dice": mask_dice_per_mask(masks.float(), batch.targets).mean(),
            "clip": self.dense(self.clip_head(clip), data.clip_map),
            "sam": self.dense(self.sam_head(sam.flatten(2).transpose(1, 2)), data.sam_map),
            "asked": self.dense(asked[single][None], data.asked[single].T[None, :, :, None]),
        }
        weights = {"ce": 1, "bce": 2, "dice": 0.5, "clip": 0.5, "sam": 0.5, "asked": 0.5}
        loss = sum(weights[name] * value for name, value in parts.items())
        return loss, masks.detach(), parts


def iou_by_kind(masks: Tensor, data: PretrainBatch, found: dict[str, list[float]]) -> None:
    """Add each mask's IoU at the loss's resolution to its kind."""
    truth = data.batch.targets
    valid = truth != 255
    predicted = (masks > 0) & valid
    target = (truth == 1) & valid
    intersection = (predicted & target).flatten(1).sum(1)
    union = (predicted | target).flatten(1).sum(1)
    for kind, value in zip(data.kinds, (intersection / union.clamp(min=1)).tolist(), strict=True):
        found.setdefault(kind, []).append(value)


def to_device(data: PretrainBatch, device: torch.device) -> PretrainBatch:
    return PretrainBatch(
        data.batch.to(device),
        data.clip_map.to(device),
        data.sam_map.to(device),
        data.asked.to(device),
        data.kinds,
    )


def new_model(tokenizer: LisaTokenizer) -> Lisa:
    """lisa-tiny with fresh weights."""
    torch.manual_seed(0)
    model = Lisa(
        PROFILE,
        llava_config(PROFILE, tokenizer.image_id, tokenizer.pad_id),
        sam_config(PROFILE),
        tokenizer.seg_id,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.05)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.sam.vision_encoder.pos_embed, std=0.05)
    return model.float()


def evaluate(
    trainer: Pretrainer,
    tokenizer: LisaTokenizer,
    kinds: tuple[str, ...],
    device: torch.device,
    batches: int,
    autocast: torch.dtype | None,
) -> dict[str, float]:
    """Mean IoU by kind on validation wording and unseen scenes."""
    found: dict[str, list[float]] = {}
    loader = iter(
        DataLoader(
            Scenes(tokenizer, 999, kinds, "val"),
            batch_size=32,
            collate_fn=collate(tokenizer),
        )
    )
    trainer.eval()
    for _ in range(batches):
        data = to_device(next(loader), device)
        with torch.no_grad(), torch.autocast(device.type, autocast, enabled=autocast is not None):
            iou_by_kind(trainer(data)[1], data, found)
    trainer.train()
    return {kind: round(float(np.mean(values)), 3) for kind, values in sorted(found.items())}


def pretrain(arguments: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast = torch.bfloat16 if device.type == "cuda" else None
    tokenizer = LisaTokenizer.read(packaged_folder(), PROFILE.clip.image_tokens)
    lisa = new_model(tokenizer).to(device)
    print(f"{sum(p.numel() for p in lisa.parameters()) / 1e6:.2f} M parameters", flush=True)
    trainer = Pretrainer(lisa).to(device)
    optimizer = torch.optim.AdamW(
        trainer.parameters(), lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.02
    )
    loader = DataLoader(
        Scenes(tokenizer, 1, PRETRAINING, "train"),
        batch_size=arguments.scenes,
        num_workers=arguments.workers,
        collate_fn=collate(tokenizer),
        prefetch_factor=6 if arguments.workers else None,
    )
    start = time.monotonic()
    log, step, found = [], 0, {}
    for data in loader:
        spent = (time.monotonic() - start) / arguments.seconds
        if spent >= 1:
            break
        lr = arguments.lr * min(1, (step + 1) / 300) * (0.5 + 0.5 * math.cos(math.pi * spent))
        for group in optimizer.param_groups:
            group["lr"] = lr
        data = to_device(data, device)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss, masks, parts = trainer(data)
        loss.backward()
        nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            iou_by_kind(masks, data, found)
        step += 1
        if step % arguments.every == 0:
            row = {name: round(value.item(), 4) for name, value in parts.items()}
            row |= {k: round(float(np.mean(v)), 3) for k, v in sorted(found.items())}
            row |= {"step": step, "seconds": round(time.monotonic() - start)}
            found = {}
            log.append(row)
            print(json.dumps(row), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    seen = evaluate(trainer, tokenizer, PRETRAINING, device, arguments.checks, autocast)
    unseen = evaluate(trainer, tokenizer, HELD_OUT, device, arguments.checks, autocast)
    save_model(lisa, arguments.out, torch.bfloat16)
    report = {
        "steps": step,
        "scenes_per_step": arguments.scenes,
        "questions_per_scene": QUESTIONS,
        "seconds": round(time.monotonic() - start),
        "validation": seen,
        "held_out": unseen,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "log": log,
    }
    (arguments.out / "pretraining.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: report[key] for key in ("steps", "validation", "held_out")}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tokenizer")
    run = commands.add_parser("pretrain")
    run.add_argument("--seconds", type=float, default=535)
    run.add_argument("--scenes", type=int, default=32)
    run.add_argument("--workers", type=int, default=15)
    run.add_argument("--every", type=int, default=200)
    run.add_argument("--lr", type=float, default=1e-3)
    run.add_argument("--checks", type=int, default=12, help="validation batches of 32 scenes")
    run.add_argument("--out", type=Path, default=packaged_folder())
    arguments = parser.parse_args()
    if arguments.command == "tokenizer":
        make_tokenizer(packaged_folder())
    else:
        pretrain(arguments)


if __name__ == "__main__":
    main()
