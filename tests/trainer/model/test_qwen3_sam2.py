"""Qwen3-VL and SAM 2 against a composition of transformers' own whole models."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3VLForConditionalGeneration, Sam2Model
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from profiles.families import MASK, VISION, Prompting
from profiles.garbage import not_collected
from profiles.plan import Plan
from profiles.pool_events import stream_of
from tests.conftest import PHOTOS
from tests.small_qwen import AS_IN_LISA, AS_IN_SA2VA, Uneven, forget, register, small
from trainer.answer.segmenter import SILENT
from trainer.batch import Batch, Encoded, sharing_prefix
from trainer.data.formats.reasonseg import read_split
from trainer.data.images import read_image
from trainer.data.samples import SampleSet, batch_of, collate
from trainer.frame import Frame
from trainer.model.build import FrozenEncoder, build, read_tokenizer, skeleton
from trainer.model.families.qwen3_sam2 import pictures
from trainer.model.families.qwen3_sam2.configs import qwen_config, sam_config
from trainer.model.segmentation_model import SegmentationModel
from trainer.model.trained import GradientCheck, trained_names
from trainer.parallel.accelerator import make_accelerator
from trainer.prompts import IMAGE_PREFIX, Turn
from trainer.rehearse.fake import fake_rehearsal
from trainer.rehearse.fake_answer import DEFAULT_STREAM, fake_answer
from trainer.run.feature_caches import prepare_caches
from trainer.step import make_optimizer, training_step

CPU = torch.device("cpu")
SMALL = {
    "model": "small-qwen", "weights": "random", "device": "cpu", "dtype": "fp32",
    "quantization": "none", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
    "micro_batch": 2, "effective_batch": 2, "mask_loss_resolution": 32, "cached_encoders": [],
    "schedule": {"learning_rate": 1e-2, "warmup_steps": 0, "epochs": 1},
    "tokens": {"max_new_tokens": 4},
}  # fmt: skip


@pytest.fixture(autouse=True)
def the_small_one_is_known() -> Iterator[None]:
    register(small())
    yield
    forget()


def small_plan(**settings: object) -> Plan:
    return Plan.parse(SMALL | settings)


def made(plan: Plan, folder: Path | None = None) -> tuple[SegmentationModel, Batch, list[Path]]:
    """The model, and two photographs that take different numbers of tokens."""
    tokenizer = read_tokenizer(plan)
    items = read_split(PHOTOS, "train")
    images = [item.image_path for item in items]
    caches = prepare_caches(plan, images, folder or Path(), make_accelerator(plan, None), SILENT)
    samples = SampleSet(items, plan, tokenizer, caches, training=False)
    counts = [samples.encoded(n).image_tokens for n in range(len(samples))]
    other = next(n for n, count in enumerate(counts) if count != counts[0])
    batch = collate([samples[0], samples[other]], tokenizer)
    return build(plan, tokenizer, CPU, Uneven(0)), batch, [images[0], images[other]]


def test_an_encoder_and_its_pixels_go_before_the_model_loads(tmp_path: Path) -> None:
    """At once, not when Python next looks for garbage: they may not fit beside the model."""
    plan = small_plan(cached_encoders=["vision", "mask"])
    images = [item.image_path for item in read_split(PHOTOS, "train")][:2]

    def tensors() -> set[int]:
        known = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
        return {id(one) for one in known if not one.is_meta}

    gc.collect()
    with not_collected():
        before = tensors()
        prepare_caches(plan, images, tmp_path, make_accelerator(plan, None), SILENT)
        assert tensors() <= before and any(tmp_path.rglob("*.safetensors"))


def whole_models(model: SegmentationModel) -> tuple[Qwen3VLForConditionalGeneration, Sam2Model]:
    """transformers' whole models with the values of ours."""
    plan = small_plan()
    tokenizer = read_tokenizer(plan)
    config = qwen_config(plan.profile, tokenizer.image_id, tokenizer.pad_id)
    qwen = Qwen3VLForConditionalGeneration(config).eval()
    sam = Sam2Model(sam_config(plan.profile)).eval()
    mine = {
        name.replace(".base_layer", ""): value
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }
    encoder = {
        name.removeprefix("mask_encoder."): value
        for name, value in mine.items()
        if name.startswith("mask_encoder.")
    }
    sam_values = {
        name.removeprefix("sam."): value for name, value in mine.items() if name.startswith("sam.")
    }
    for name, value in encoder.items():
        sam_values[f"mask_decoder.{name}" if name.startswith("conv_") else name] = value
    # Its prompts of points and masks, which only its own code runs.
    for name, value in sam.state_dict().items():
        if name.startswith(("prompt_encoder.point_embed", "prompt_encoder.mask_embed")):
            sam_values[name] = value
    sam.load_state_dict(sam_values)
    theirs = {
        name.removeprefix("qwen."): value
        for name, value in mine.items()
        if name.startswith("qwen.")
    }
    qwen.load_state_dict(theirs)
    return qwen, sam


@pytest.mark.parametrize("prompting", [AS_IN_SA2VA, AS_IN_LISA], ids=["Sa2VA", "LISA"])
def test_states_and_masks_are_those_of_the_libraries_whole_models(prompting: Prompting) -> None:
    """Pixels, grids, positions, deepstack, states, prompts, candidates, the way back."""
    register(small(prompting=prompting))
    plan = small_plan(lora=None, train=["mask_decoder"])
    model, batch, images = made(plan)
    model.eval()
    qwen, sam = whole_models(model)
    profile = plan.profile
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": profile.min_pixels, "longest_edge": profile.max_pixels},
    )  # fmt: skip
    pictures = [Image.fromarray(read_image(path)) for path in images]
    seen = processor(pictures, return_tensors="pt")
    ours = batch.inputs[VISION]
    assert torch.equal(seen["image_grid_thw"][:, 1:], 2 * ours["grid"])
    assert len(set(map(tuple, ours["grid"].tolist()))) == 2
    torch.testing.assert_close(ours["patches"], seen["pixel_values"], atol=1e-6, rtol=0)

    image = (batch.input_ids == qwen.config.image_token_id).int()
    with torch.no_grad():
        output = qwen.model(
            input_ids=batch.input_ids,
            attention_mask=None,
            pixel_values=seen["pixel_values"],
            image_grid_thw=seen["image_grid_thw"],
            mm_token_type_ids=image,
        )
        states = model.hidden_states(batch)
        torch.testing.assert_close(states, output.last_hidden_state, atol=2e-4, rtol=2e-4)
        logits = model.predict(batch)
        owner, place = batch.segs.unbind(1)
        place = place if prompting.at_seg else place - 1
        prompt = model.text_hidden_fcs(output.last_hidden_state[owner, place])
        for number, path in enumerate(images):
            expected = theirs(sam, read_image(path), prompt[number], prompting)
            found = Frame.of(profile).to_original(logits[number : number + 1], *expected.shape)
            torch.testing.assert_close(found[0], expected, atol=2e-4, rtol=2e-3)


def theirs(sam: Sam2Model, image: np.ndarray, prompt: Tensor, prompting: Prompting) -> Tensor:
    """SAM 2's own forward pass, its prompt encoder told to give our prompt; [H, W] logits."""
    side = sam.prompt_encoder.input_image_size
    height, width = image.shape[:2]
    if prompting.stretched:
        inner = side, side
    else:
        scale = side / max(height, width)
        inner = int(height * scale + 0.5), int(width * scale + 0.5)
    resized = Image.fromarray(image).resize((inner[1], inner[0]), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    values = (values - mean[:, None, None]) / std[:, None, None]
    values = functional.pad(values, (0, side - inner[1], 0, side - inner[0]))
    encoder = sam.prompt_encoder
    plain = encoder.forward

    def told(**prompts: object) -> tuple[Tensor, Tensor]:
        points, dense = plain(**prompts)
        given = prompt[None, None, None]
        return (torch.cat([points, given], 2) if prompting.padding_points else given), dense

    encoder.forward = told
    try:
        output = sam(
            pixel_values=values[None],
            input_points=torch.zeros(1, 1, 1, 2),
            input_labels=torch.full((1, 1, 1), -1, dtype=torch.int32),
            multimask_output=prompting.masks > 1,
        )
    finally:
        encoder.forward = plain
    best = output.iou_scores[0, 0].argmax()
    low = output.pred_masks[0, 0, best]
    framed = functional.interpolate(low[None, None], (side, side), mode="bilinear")
    framed = framed[..., : inner[0], : inner[1]]
    return functional.interpolate(framed, (height, width), mode="bilinear")[0, 0]


def test_cached_features_equal_pixels_to_the_last_bit(tmp_path: Path) -> None:
    online, batch, _ = made(small_plan())
    from_cache, cached, _ = made(small_plan(cached_encoders=[MASK, VISION]), tmp_path)
    assert online.prompting.masks == 3
    for encoder in (MASK, VISION):
        source = Uneven(0)
        alone = FrozenEncoder(
            skeleton(small_plan().profile, read_tokenizer(small_plan())),
            small_plan(), encoder, CPU, source,
        )  # fmt: skip
        again = alone(batch.inputs[encoder])
        for name, value in online.features(encoder, batch).items():
            assert torch.equal(value, again[name]), name
            assert value.shape == cached.inputs[encoder][name].shape
    assert from_cache.cached == {MASK, VISION}


def test_exactly_the_listed_tensors_learn(tmp_path: Path) -> None:
    plan = small_plan(
        cached_encoders=[MASK, VISION], checkpointed_layers=3, host_layers=1, quantization="nf4",
        lora={"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"},
    )  # fmt: skip
    model, batch, _ = made(plan, tmp_path)
    listed = trained_names(model, plan)
    assert not any("visual" in name or "mask_encoder" in name for name in listed)
    assert sum(".lora_A." in name for name in listed) == 7 * 5
    check = GradientCheck(model, listed)
    accelerator, optimizer = make_accelerator(plan, None), make_optimizer(model, plan)
    model.train()
    losses = [
        training_step(model, [batch], optimizer, plan, accelerator, check).loss for _ in range(4)
    ]
    assert check.done
    assert losses[-1] < losses[0]


def asked(plan: Plan, batch: Batch, turns: list[Turn]) -> tuple[list[Encoded], dict]:
    """Each turn as a row of its own about the batch's first picture, and that picture's input."""
    grid = batch.inputs[VISION]["grid"][:1]
    count = int(grid.prod())
    tokenizer = read_tokenizer(plan)
    inputs = {
        VISION: {"patches": batch.inputs[VISION]["patches"][: 4 * count], "grid": grid},
        MASK: {"pixels": batch.inputs[MASK]["pixels"][:1]},
    }
    return [tokenizer.encode([turn], count) for turn in turns], inputs


def test_questions_that_share_a_picture_are_answered_as_apart() -> None:
    """Positions begin anew behind the picture; deepstack reaches the one prefix."""
    plan = small_plan(lora=None)
    model, batch, _ = made(plan)
    model.eval()
    questions = ("What is red?", "Which thing on the left is longer than the others?")
    turns = [Turn(f"{IMAGE_PREFIX}{question}", "It is [SEG].") for question in questions]
    rows, inputs = asked(plan, batch, turns)
    rest = {"inputs": inputs, "targets": torch.zeros(1, 32, 32, dtype=torch.uint8)}
    tokenizer = read_tokenizer(plan)
    apart = [model.predict(batch_of([row], tokenizer, **rest)) for row in rows]
    shared = batch_of([sharing_prefix(rows)], tokenizer, 8, **rest)
    assert shared.blocks is not None and shared.blocks.max() == 2
    torch.testing.assert_close(model.predict(shared), torch.cat(apart), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (17, 23), (640, 480), (4000, 3000)])
def test_any_picture_has_a_grid_within_the_limits(shape: tuple[int, int]) -> None:
    profile = small_plan().profile
    image = np.zeros((*shape, 3), np.uint8)
    patches, (down, across) = pictures.patches(image, profile)
    assert 1 <= down * across <= profile.most_image_tokens
    assert profile.image_tokens(*shape) == down * across
    assert patches.shape == (4 * down * across, profile.vision.patch_values)


def test_flops_are_what_torch_counts() -> None:
    plan = small_plan(lora=None)
    model = skeleton(plan.profile, read_tokenizer(plan)).to("meta")
    facts = plan.profile.encoders[VISION]
    patches = torch.empty(facts.pixels["patches"], device="meta")
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model.encode(VISION, {"patches": patches, "grid": torch.tensor([facts.numbers["grid"]])})
    assert counted.get_total_flops() == facts.flops


def test_a_rehearsal_without_a_gpu_follows_both_encoders() -> None:
    """With nothing cached, and answering: the pictures' sizes are read, no value is."""
    plan = small_plan(device="cuda", dtype="bf16", quantization="nf4", checkpointed_layers=5)
    found, _ = fake_rehearsal(plan, 60, 1)
    cached, _ = fake_rehearsal(plan.override(["cached_encoders=mask,vision"]), 60, 1)
    assert cached.peak_allocated_bytes < found.peak_allocated_bytes
    answered, events = fake_answer(plan.override(["cached_encoders=mask,vision"]), 60)
    quantised = sum(size for block, size in events if stream_of(block) == DEFAULT_STREAM)
    decoder = plan.profile.decoder
    weights = decoder.layers * decoder.layer_weights
    assert weights / 2 <= quantised < weights  # 4 bits each, scales, blocks of 512 bytes
    assert {"mask encoder", "vision encoder", "answer"} <= set(answered.phases)
