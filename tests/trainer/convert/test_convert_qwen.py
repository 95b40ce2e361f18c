"""Qwen3-VL, SAM 2 and Sa2VA as published -> the layout, judged by SAM 2's own code."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration, Sam2Model

from profiles.families import MASK, VISION
from profiles.plan import Plan
from tests.conftest import PHOTOS
from tests.published_code import without_its_top
from tests.small_qwen import forget, register, small
from trainer.convert.convert import convert, needed_shapes
from trainer.convert.export import card as export_card
from trainer.convert.export import licences_of
from trainer.data.formats.reasonseg import read_split
from trainer.data.samples import SampleSet, collate
from trainer.model.build import build, read_tokenizer
from trainer.model.families import NamesError
from trainer.model.families.qwen3_sam2.configs import qwen_config, sam_config
from trainer.model.families.qwen3_sam2.names import target_names
from trainer.model.families.qwen3_sam2.tokenizer import QwenTokenizer
from trainer.model.weights import WeightsError

Tensors = dict[str, Tensor]
SMALL = small()
APART = SMALL.decoder.model_copy(update={"tied_head": False})


@pytest.fixture(autouse=True)
def both_are_known() -> Iterator[None]:
    register(SMALL)
    register(small("small-sa2va", decoder=APART))
    yield
    forget("small-qwen")
    forget("small-sa2va")


def plan_for(model: str, weights: str) -> Plan:
    return Plan.parse({
        "model": model, "weights": weights, "device": "cpu", "dtype": "fp32", "lora": None,
        "quantization": "none", "train": ["mask_decoder"], "cached_encoders": [],
    })  # fmt: skip


def drawn(module: nn.Module) -> None:
    """Values that bf16 holds exactly, all of them different, none of them small."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in module.state_dict().values():
            found = torch.randn(value.shape, generator=generator) * 0.12
            value.copy_((found + (value.dim() == 1)).bfloat16())


@pytest.fixture(scope="module")
def original() -> SimpleNamespace:
    """SAM 2's own modules, without its package's top, which wants hydra and more."""
    without_its_top("sam2")
    files = ModuleType("iopath.common.file_io")
    files.g_pathmgr = None  # type: ignore[attr-defined]
    sys.modules |= {"iopath": ModuleType("iopath"), "iopath.common": ModuleType("iopath.common"),
                    "iopath.common.file_io": files}  # fmt: skip
    parts = {
        "Hiera": "backbones.hieradet", "ImageEncoder": "backbones.image_encoder",
        "FpnNeck": "backbones.image_encoder", "PromptEncoder": "sam.prompt_encoder",
        "MaskDecoder": "sam.mask_decoder", "TwoWayTransformer": "sam.transformer",
        "PositionEmbeddingSine": "position_encoding",
    }  # fmt: skip
    return SimpleNamespace(**{
        name: getattr(importlib.import_module(f"sam2.modeling.{place}"), name)
        for name, place in parts.items()
    })  # fmt: skip


class Sam2(nn.Module):
    """The original parts, as its SAM2Base holds and runs them for a picture."""

    def __init__(self, code: SimpleNamespace) -> None:
        super().__init__()
        sam = SMALL.sam
        width, side = sam.channels, sam.image_pixels // 16
        trunk = code.Hiera(
            embed_dim=sam.hidden[0], num_heads=sam.heads[0], stages=sam.blocks,
            global_att_blocks=sam.global_blocks, window_spec=sam.windows,
            window_pos_embed_bkg_spatial_size=sam.background,
        )  # fmt: skip
        neck = code.FpnNeck(
            position_encoding=code.PositionEmbeddingSine(width), d_model=width,
            backbone_channel_list=list(reversed(sam.hidden)), fpn_top_down_levels=[2, 3],
            fpn_interp_model="nearest",
        )  # fmt: skip
        self.image_encoder = code.ImageEncoder(trunk, neck, scalp=1)
        self.sam_prompt_encoder = code.PromptEncoder(
            width, (side, side), (sam.image_pixels,) * 2, 16
        )
        self.sam_mask_decoder = code.MaskDecoder(
            transformer_dim=width,
            transformer=code.TwoWayTransformer(2, width, 8, sam.decoder_intermediate),
            use_high_res_features=True, iou_prediction_use_sigmoid=True, pred_obj_scores=True,
            pred_obj_scores_mlp=True, iou_head_depth=3, iou_head_hidden_dim=width,
        )  # fmt: skip
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(7, 1, 1, 8))  # of its video part
        drawn(self)

    @torch.no_grad()
    def mask(self, pixels: Tensor, prompt: Tensor) -> Tensor:
        """The best low-resolution mask [L, L] of a picture [1, 3, R, R] for a prompt [E]."""
        fine, middle, coarse = self.image_encoder(pixels)["backbone_fpn"]
        decoder = self.sam_mask_decoder
        points = torch.zeros(1, 1, 2), -torch.ones(1, 1, dtype=torch.int32)
        sparse, dense = self.sam_prompt_encoder(points, None, None)
        masks, scores, *_ = decoder(
            image_embeddings=coarse + self.no_mem_embed.view(1, -1, 1, 1),
            image_pe=self.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=torch.cat([sparse, prompt[None, None]], 1),
            dense_prompt_embeddings=dense, multimask_output=True, repeat_image=False,
            high_res_features=[decoder.conv_s0(fine), decoder.conv_s1(middle)],
        )  # fmt: skip
        best: Tensor = masks[0, scores[0].argmax()]
        return best


def qwen() -> Qwen3VLForConditionalGeneration:
    """transformers' own, its ids those of lisa-tiny's vocabulary with Qwen's tokens."""
    tokenizer = QwenTokenizer.stand_in(SMALL)
    model = Qwen3VLForConditionalGeneration(
        qwen_config(SMALL, tokenizer.image_id, tokenizer.pad_id)
    )
    drawn(model)
    return model.eval()


def head() -> nn.Sequential:
    hidden, width = SMALL.decoder.hidden, SMALL.sam.channels
    layers = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width))
    drawn(layers)
    return layers


def save(folder: Path, tensors: Tensors, tokenizer: bool = False, **config: Any) -> Path:
    """A checkpoint in two shards, in fp32."""
    folder.mkdir()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        values = {name: tensors[name].float().contiguous().clone() for name in part}
        save_file(values, folder / f"model-{number:05}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        made = QwenTokenizer.stand_in(SMALL).tokenizer
        made.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def as_sa2va(language: Qwen3VLForConditionalGeneration, sam: Sam2, fcs: nn.Module) -> Tensors:
    tensors = {f"model.{name}": value for name, value in language.state_dict().items()}
    tensors |= {
        f"grounding_encoder.sam2_model.{name}": value for name, value in sam.state_dict().items()
    }
    return tensors | {f"text_hidden_fcs.{name}": v for name, v in fcs.state_dict().items()}


def test_sa2vas_names_give_the_masks_of_the_original_code(
    tmp_path: Path, original: SimpleNamespace
) -> None:
    """Every tensor perturbed; the language side by transformers, the mask side by SAM 2's code."""
    language, sam, fcs = qwen(), Sam2(original).eval(), head()
    tensors = as_sa2va(language, sam, fcs)
    rows = 880  # fewer than the model has: they are padded
    for name in ("model.model.language_model.embed_tokens.weight", "model.lm_head.weight"):
        tensors[name] = tensors[name][:rows]
    folder = save(tmp_path / "sa2va", tensors, tokenizer=True)
    report = convert([folder], tmp_path / "out", "small-sa2va", lambda line: None)
    assert set(report.padded) == {"qwen.model.language_model.embed_tokens.weight",
                                  "qwen.lm_head.weight"}  # fmt: skip
    assert report.initialised == []
    left = {name.rpartition("sam2_model.")[2] for name in report.unused["sa2va"]}
    assert all(name.startswith(("maskmem", "sam_prompt_encoder.")) for name in left)
    assert set(report.used) == set(needed_shapes(small("small-sa2va", decoder=APART)))

    plan = plan_for("small-sa2va", str(tmp_path / "out"))
    tokenizer = read_tokenizer(plan)
    model = build(plan, tokenizer, torch.device("cpu")).eval()
    samples = SampleSet(read_split(PHOTOS, "train"), plan, tokenizer, {}, training=False)
    batch = collate([samples[0], samples[3]], tokenizer)
    found = model.predict(batch)
    with torch.no_grad():
        states = language.model(
            input_ids=batch.input_ids,
            pixel_values=batch.inputs[VISION]["patches"],
            image_grid_thw=functional.pad(2 * batch.inputs[VISION]["grid"], (1, 0), value=1),
            mm_token_type_ids=(batch.input_ids == tokenizer.image_id).int(),
        ).last_hidden_state
        ours = model.hidden_states(batch)
        torch.testing.assert_close(ours, states, atol=5e-5, rtol=1e-4)
        owner, place = batch.segs.unbind(1)
        prompts = fcs(ours[owner, place])  # without the rounding on the language side
    for number, pixels in enumerate(batch.inputs[MASK]["pixels"]):
        expected = sam.mask(pixels[None], prompts[number])
        torch.testing.assert_close(found[number], expected, atol=1e-5, rtol=1e-4)


def test_plain_checkpoints_of_the_libraries_are_read(tmp_path: Path) -> None:
    """What transformers itself writes; [SEG]'s layers start afresh, the same every time."""
    language, mask_side = qwen(), Sam2Model(sam_config(SMALL))
    drawn(mask_side)
    language.save_pretrained(tmp_path / "qwen")
    mask_side.save_pretrained(tmp_path / "sam2")
    made = QwenTokenizer.stand_in(SMALL).tokenizer
    made.backend_tokenizer.save(str(tmp_path / "qwen" / "tokenizer.json"))
    folders = [tmp_path / "qwen", tmp_path / "sam2"]
    # An untied head in a tied model is another model's.
    with pytest.raises(WeightsError, match="lm_head.weight is trained apart"):
        convert(folders, tmp_path / "out", "small-qwen", lambda line: None)
    report = convert(folders, tmp_path / "out", "small-sa2va", lambda line: None)
    assert all(name.startswith("text_hidden_fcs.") for name in report.initialised)
    assert report.warnings == []
    found = {
        k: v for p in (tmp_path / "out").glob("*.safetensors") for k, v in load_file(p).items()
    }
    for name, value in language.state_dict().items():
        assert torch.equal(found[f"qwen.{name}"].float(), value), name
    assert torch.equal(
        found["mask_encoder.conv_s0.weight"].float(), mask_side.mask_decoder.conv_s0.weight
    )


@pytest.mark.parametrize("present", [False, True])
def test_a_tied_head_may_be_in_the_files_or_not(tmp_path: Path, present: bool) -> None:
    language, mask_side = qwen(), Sam2Model(sam_config(SMALL))
    tensors = {**language.state_dict()}
    table = "model.language_model.embed_tokens.weight"
    del tensors["lm_head.weight"]
    if present:
        tensors["lm_head.weight"] = tensors[table]
    folders = [save(tmp_path / "qwen", tensors, tokenizer=True),
               save(tmp_path / "sam2", mask_side.state_dict())]  # fmt: skip
    report = convert(folders, tmp_path / "out", "small-qwen", lambda line: None)
    assert f"qwen.{table}" in report.used
    assert not any("lm_head" in name for name in report.used)


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        ({"text_config": {"rms_norm_eps": 1e-5}}, "rms_norm_eps"),
        ({"text_config": {"rope_theta": 1e6}}, "rope_theta"),
        ({"text_config": {"rope_scaling": {"mrope_section": [4, 3, 1]}}}, "mrope_section"),
    ],
)
def test_other_settings_are_told(tmp_path: Path, config: dict[str, Any], warning: str) -> None:
    tensors = {**qwen().state_dict()}
    del tensors["lm_head.weight"]
    folders = [save(tmp_path / "qwen", tensors, tokenizer=True, **config),
               save(tmp_path / "sam2", Sam2Model(sam_config(SMALL)).state_dict())]  # fmt: skip
    report = convert(folders, tmp_path / "out", "small-qwen", lambda line: None)
    assert len(report.warnings) == 1 and warning in report.warnings[0]


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\ntags: [a]\nlicense: apache-2.0\n---\n# Qwen\nlicense: mit", "apache-2.0"),
        ("---\ntags: [a]\n---\n# Qwen\nlicense: mit", None),
        ("# license: mit", None),
        (None, None),
    ],
)
def test_licences_are_noted_and_shown(
    tmp_path: Path, card: str | None, licence: str | None
) -> None:
    tensors = {**qwen().state_dict()}
    del tensors["lm_head.weight"]
    folders = [save(tmp_path / "qwen", tensors, tokenizer=True),
               save(tmp_path / "sam2", Sam2Model(sam_config(SMALL)).state_dict())]  # fmt: skip
    if card is not None:
        (folders[0] / "README.md").write_text(card)
    report = convert(folders, tmp_path / "out", "small-qwen", lambda line: None)
    shown = licence or "not stated"
    assert [one["licence"] for one in report.sources] == [licence, None]
    assert f"licence of qwen: {shown}" in report.lines()
    found = licences_of(plan_for("small-qwen", str(tmp_path / "out")))
    assert found == {"qwen": licence, "sam2": None}
    text = export_card(plan_for("small-qwen", "default"), {}, False, found)
    assert f"- qwen: {shown}" in text.replace("\\", "")


@pytest.mark.parametrize(
    "change",
    [lambda name: f"base_model.model.{name}.lora_A.default.weight", lambda name: name],
)
def test_names_that_can_be_read_in_two_ways_are_refused(change: Callable[[str], str]) -> None:
    names = ["lm_head.weight", change("model.lm_head.weight")]
    with pytest.raises(NamesError):
        target_names(names)
