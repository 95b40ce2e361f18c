"""Published checkpoints in all their namings -> the layout, tensor by tensor and by their masks."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from huggingface_hub import errors
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import trainer.convert.convert
from benchmarks.forked import end, fork, lisa_train
from profiles.models import model_profile
from profiles.plan import Plan
from tests.conftest import PHOTOS, ROOT, tiny_plan
from tests.published_code import without_its_top
from trainer.cli.train import app
from trainer.convert.convert import Conversion, convert, needed_shapes
from trainer.convert.hub import checkpoint_folder
from trainer.data.formats.reasonseg import read_split
from trainer.data.samples import SampleSet, collate
from trainer.frame import MEAN, STD, Frame, inner_size
from trainer.model.build import build, read_tokenizer, save_model
from trainer.model.families import NamesError
from trainer.model.families.llava_sam.configs import llava_config, sam_config
from trainer.model.families.llava_sam.model import Lisa
from trainer.model.families.llava_sam.names import target_names
from trainer.model.weights import WeightsError, model_folder, packaged_folder

CPU = torch.device("cpu")
TINY = model_profile("tiny")
ONE_LAYER = TINY.model_copy(update={"projector_layers": 1})
LLAMA, CLIP = "llava.model.language_model.", "llava.model.vision_tower."
PROJECTOR, HEAD = "llava.model.multi_modal_projector.", "llava.lm_head.weight"
EMBEDDING = f"{LLAMA}embed_tokens.weight"
Tensors = dict[str, Tensor]

# The original SAM's names, read off its class tree.
TO_ORIGINAL_SAM = {
    "shared_image_embedding.positional_embedding":
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "prompt_encoder.point_embed.": "prompt_encoder.point_embeddings.",
    "prompt_encoder.mask_embed.conv1.": "prompt_encoder.mask_downscaling.0.",
    "prompt_encoder.mask_embed.layer_norm1.": "prompt_encoder.mask_downscaling.1.",
    "prompt_encoder.mask_embed.conv2.": "prompt_encoder.mask_downscaling.3.",
    "prompt_encoder.mask_embed.layer_norm2.": "prompt_encoder.mask_downscaling.4.",
    "prompt_encoder.mask_embed.conv3.": "prompt_encoder.mask_downscaling.6.",
    "mask_decoder.upscale_conv1.": "mask_decoder.output_upscaling.0.",
    "mask_decoder.upscale_layer_norm.": "mask_decoder.output_upscaling.1.",
    "mask_decoder.upscale_conv2.": "mask_decoder.output_upscaling.3.",
    "mask_decoder.transformer.layer_norm_final_attn.": "mask_decoder.transformer.norm_final_attn.",
    "vision_encoder.neck.conv1.": "image_encoder.neck.0.",
    "vision_encoder.neck.layer_norm1.": "image_encoder.neck.1.",
    "vision_encoder.neck.conv2.": "image_encoder.neck.2.",
    "vision_encoder.neck.layer_norm2.": "image_encoder.neck.3.",
    "vision_encoder.patch_embed.projection.": "image_encoder.patch_embed.proj.",
    "vision_encoder.layers.": "image_encoder.blocks.",
    "vision_encoder.pos_embed": "image_encoder.pos_embed",
}  # fmt: skip
SMALL_NETWORK = re.compile(
    r"(mask_decoder\.(?:iou_pred|output_hyper).+?)\.(proj_in|layers\.0|proj_out)"
)
PLACES = {"proj_in": "layers.0", "layers.0": "layers.1", "proj_out": "layers.2"}


def original_sam(name: str) -> str:
    """transformers' name of a SAM tensor -> the original one."""
    if found := SMALL_NETWORK.match(name):
        return name.replace(found[0], f"{found[1]}.{PLACES[found[2]]}", 1)
    old = next((pre for pre in TO_ORIGINAL_SAM if name.startswith(pre)), "")
    name = TO_ORIGINAL_SAM.get(old, "") + name[len(old) :]
    return re.sub(r"\.layer_norm(\d)\.", r".norm\1.", name)


@cache
def reference(projector_layers: int = 2) -> Lisa:
    """lisa-tiny with random values that bf16 holds exactly, all of them different."""
    tokenizer = read_tokenizer(tiny_plan())
    model = Lisa(
        TINY.model_copy(update={"projector_layers": projector_layers}),
        llava_config(TINY, tokenizer.image_id, tokenizer.pad_id),
        sam_config(TINY),
        tokenizer.seg_id,
    )
    generator = torch.Generator().manual_seed(3)
    for value in model.state_dict().values():
        drawn = torch.randn(value.shape, generator=generator) * 0.1
        value.copy_((drawn + (value.dim() == 1)).bfloat16())
    model.sam.prompt_encoder.shared_embedding = model.sam.shared_image_embedding
    return model.eval()


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """The reference in the layout, as this project writes it."""
    return load_file(save_model(reference(), tmp_path_factory.mktemp("truth"), torch.bfloat16))


def part(tensors: Tensors, change: Callable[[str], str | None]) -> Tensors:
    """Tensors under other names; those that get none are left out."""
    return {new: value.clone() for name, value in tensors.items() if (new := change(name))}


def old_llava(name: str) -> str | None:
    if name.startswith(LLAMA):
        return f"language_model.model.{name.removeprefix(LLAMA)}"
    if name.startswith(CLIP):
        return f"vision_tower.vision_model.{name.removeprefix(CLIP)}"
    if name == HEAD:
        return "language_model.lm_head.weight"
    return name.removeprefix("llava.model.") if name.startswith(PROJECTOR) else None


def new_llava(name: str) -> str | None:
    if not name.startswith("llava."):
        return None
    return name.removeprefix("llava.").replace("vision_tower.", "vision_tower.vision_model.")


def newest_llava(name: str) -> str | None:
    """As transformers 5.23 saves it."""
    old = old_llava(name)
    return old and old.replace("vision_model.", "")


def lisa(name: str) -> str | None:
    for ours, theirs in {
        LLAMA: "model.",
        HEAD: "lm_head.weight",
        f"{PROJECTOR}linear_1.": "model.mm_projector.0.",
        f"{PROJECTOR}linear_2.": "model.mm_projector.2.",
        f"{PROJECTOR}linear.": "model.mm_projector.",
        "text_hidden_fcs.": "model.text_hidden_fcs.0.",
    }.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    if name.startswith("sam."):
        return "model.visual_model." + original_sam(name.removeprefix("sam."))
    return None


def trained_lisa(name: str) -> str | None:
    new = lisa(name)
    return new and f"base_model.model.{new}"


def clip(name: str) -> str | None:
    return f"vision_model.{name.removeprefix(CLIP)}" if name.startswith(CLIP) else None


def sam(name: str) -> str | None:
    return name.removeprefix("sam.") if name.startswith("sam.") else None


def sam_pth(name: str) -> str | None:
    new = sam(name)
    return new and original_sam(new)


def folder_with(
    folder: Path, tensors: Tensors, tokenizer: bool = False, pickled: str | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    if pickled:
        torch.save(tensors, folder / pickled)
    else:
        save_file(tensors, folder / "model.safetensors")
    if tokenizer:
        source = packaged_folder() / "tokenizer.json"
        (folder / "tokenizer.json").write_bytes(source.read_bytes())
    return folder


def sources(path: Path, truth: Tensors, leave_out: tuple[str, ...] = ()) -> list[Path]:
    """A released LISA and CLIP: together the whole model."""
    language = part(truth, lisa)
    for name in leave_out:
        del language[name]
    return [
        folder_with(path / "lisa", language, tokenizer=True),
        folder_with(path / "clip", part(truth, clip)),
    ]


def made(folders: list[Path], target: Path, **rest: int) -> Conversion:
    return convert(folders, target, "tiny", lambda line: None, **rest)


def read_back(folder: Path) -> Tensors:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name], value), name


def masks(model: Lisa, plan: Plan) -> Tensor:
    tokenizer = read_tokenizer(plan)
    samples = SampleSet(read_split(PHOTOS, "train"), plan, tokenizer, {}, training=True)
    return model.eval().predict(collate([samples[n] for n in (0, 3)], tokenizer))


@cache
def reference_masks() -> Tensor:
    return masks(reference(), tiny_plan())


@pytest.mark.parametrize(
    "layout",
    [
        [old_llava, sam],
        [new_llava, sam_pth],
        [newest_llava, sam],
        [lisa, clip],
        [trained_lisa, clip],
    ],
    ids=lambda changes: "+".join(change.__name__ for change in changes),
)
@pytest.mark.parametrize("pickled", [None, "pytorch_model.bin"])
def test_every_naming_gives_the_same_tensors_and_masks(
    tmp_path: Path, truth: Tensors, layout: list[Callable], pickled: str | None
) -> None:
    folders = [
        folder_with(tmp_path / change.__name__, part(truth, change), n == 0, pickled)
        for n, change in enumerate(layout)
    ]
    if lisa not in layout and trained_lisa not in layout:
        # LISA's own layers, as this project's name for them is not a published one.
        own = part(truth, lambda n: lisa(n) if n.startswith("text_hidden") else None)
        folders.append(folder_with(tmp_path / "own", own))
    report = made(folders, tmp_path / "out")
    assert (report.padded, report.initialised, report.unused) == ({}, [], {})
    assert set(report.used) == set(truth) == set(needed_shapes(TINY))
    assert_same(read_back(tmp_path / "out"), truth)
    plan = tiny_plan(lora=None, train=["mask_decoder"], weights=str(tmp_path / "out"))
    converted = masks(build(plan, read_tokenizer(plan), CPU), plan)
    assert torch.equal(converted, reference_masks())


def test_transformers_own_files(tmp_path: Path) -> None:
    """What transformers itself writes and builds, not what this test takes for its names."""
    model = reference()
    model.llava.save_pretrained(tmp_path / "llava")
    model.sam.save_pretrained(tmp_path / "sam")
    folder_with(tmp_path / "extra", {}, tokenizer=True)
    (tmp_path / "extra" / "tokenizer.json").rename(tmp_path / "llava" / "tokenizer.json")
    report = made([tmp_path / "llava", tmp_path / "sam"], tmp_path / "out")
    found = read_back(tmp_path / "out")
    for name, value in model.state_dict().items():
        if name in found and not name.startswith("text_hidden_fcs."):
            assert torch.equal(found[name].float(), value), name
    assert [name for name in found if name.startswith("text_hidden_fcs.")] == sorted(
        report.initialised, key=list(found).index
    )
    made([tmp_path / "llava", tmp_path / "sam"], tmp_path / "again")
    assert_same(read_back(tmp_path / "again"), found)  # the fresh layers are always the same


@pytest.fixture(scope="module")
def modeling() -> Any:
    """SAM's original modules, without their package's other parts, which want torchvision."""
    without_its_top("segment_anything")
    return importlib.import_module("segment_anything.modeling")


def test_the_way_back_to_the_pictures_size_is_the_original_sams(modeling: Any) -> None:
    """Low-resolution logits up to the frame, the padding off, to any size and shape; pixels too."""
    low = torch.randn(2, 64, 64)
    for height, width in ((70, 200), (333, 100), (256, 256), (1, 40)):
        sam = SimpleNamespace(image_encoder=SimpleNamespace(img_size=256),
                              pixel_mean=torch.tensor(MEAN)[:, None, None],
                              pixel_std=torch.tensor(STD)[:, None, None])  # fmt: skip
        inner = inner_size(height, width, 256)
        theirs = modeling.Sam.postprocess_masks(sam, low[:, None], inner, (height, width))
        torch.testing.assert_close(Frame(256).to_original(low, height, width), theirs[:, 0])
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
        resized = Image.fromarray(image).resize(inner[::-1], Image.Resampling.BILINEAR)
        shown = torch.tensor(np.asarray(resized)).permute(2, 0, 1).float()
        expected = modeling.Sam.preprocess(sam, shown)
        torch.testing.assert_close(torch.tensor(Frame(256).pixels(image)), expected)


def test_the_original_sam_code_computes_the_same(modeling: Any) -> None:
    shapes = TINY.sam
    side, width = shapes.image_pixels // shapes.patch_pixels, shapes.output_channels
    encoder = modeling.ImageEncoderViT(
        depth=shapes.layers, embed_dim=shapes.hidden, img_size=shapes.image_pixels,
        mlp_ratio=shapes.intermediate / shapes.hidden, num_heads=shapes.heads,
        norm_layer=lambda n: torch.nn.LayerNorm(n, eps=1e-6), patch_size=shapes.patch_pixels,
        qkv_bias=True, use_rel_pos=True, global_attn_indexes=shapes.global_layers,
        window_size=shapes.window_patches, out_chans=width,
    )  # fmt: skip
    prompts = modeling.PromptEncoder(width, (side, side), (shapes.image_pixels,) * 2, 16)
    way = modeling.TwoWayTransformer(2, width, 8, shapes.decoder_intermediate)
    decoder = modeling.MaskDecoder(
        transformer_dim=width, transformer=way, iou_head_depth=3, iou_head_hidden_dim=width
    )
    original = modeling.Sam(encoder, prompts, decoder).eval()
    ours = reference().sam
    state = part({f"sam.{k}": v for k, v in ours.state_dict().items()}, sam_pth)
    del state["prompt_encoder.shared_embedding.positional_embedding"]
    targets = target_names(state)
    assert all(targets.values())
    original.load_state_dict(state, strict=True)
    pixels = torch.randn(1, 3, shapes.image_pixels, shapes.image_pixels)
    close = {"rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad():
        image = encoder(pixels)
        torch.testing.assert_close(ours.vision_encoder(pixels)[0], image, **close)
        places = ours.get_image_wide_positional_embeddings()
        torch.testing.assert_close(places, prompts.get_dense_pe())
        sparse, (_, dense) = torch.randn(2, 1, width), prompts(None, None, None)
        theirs, _ = decoder(image, places, sparse, dense, multimask_output=False)
        found, _ = ours.mask_decoder(
            image.expand(2, -1, -1, -1), places.expand(2, -1, -1, -1), sparse[:, None],
            dense.expand(2, -1, -1, -1), multimask_output=False,
        )  # fmt: skip
        torch.testing.assert_close(found[:, 0], theirs, **close)


def test_a_one_layer_projector_fits_only_its_model(
    tmp_path: Path, truth: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model(reference(1), tmp_path / "truth", torch.bfloat16)
    folders = sources(tmp_path, load_file(path))
    with pytest.raises(WeightsError, match=r"linear_1.weight(.|\n)*try 7b-v1"):
        made(folders, tmp_path / "out")
    monkeypatch.setattr("trainer.convert.convert.model_profile", lambda name: ONE_LAYER)
    made(folders, tmp_path / "out")
    assert_same(read_back(tmp_path / "out"), load_file(path))


def test_short_tables_are_padded_with_their_mean(tmp_path: Path, truth: Tensors) -> None:
    short = {name: truth[name][:700].clone() for name in (EMBEDDING, HEAD)}
    report = made(sources(tmp_path, truth | short), tmp_path / "out")
    assert report.padded == {EMBEDDING: [700, 768], HEAD: [700, 768]}
    found = read_back(tmp_path / "out")
    for name, table in short.items():
        assert torch.equal(found[name][:700], table)
        mean = table.float().mean(0).bfloat16()
        assert torch.equal(found[name][700:], mean.expand(68, -1))
    assert "padded with the mean of their rows: 2" in "\n".join(report.lines())


def test_a_trained_seg_token_needs_a_row_of_its_own(tmp_path: Path, truth: Tensors) -> None:
    short = {name: truth[name][:5].clone() for name in (EMBEDDING, HEAD)}
    with pytest.raises(WeightsError, match=r"\[SEG\] the id 5 and its embeddings have 5 rows"):
        made(sources(tmp_path, truth | short), tmp_path / "out")


def changed(name: str, value: Tensor | None) -> Callable[[Tensors], Tensors]:
    return lambda t: {k: v for k, v in (t | {name: value}).items() if v is not None}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(EMBEDDING, torch.zeros(769, 192)), r"lisa/model.*\[769, 192\].*more rows"),
        (changed(EMBEDDING, torch.zeros(768, 190)), r"\[768, 190\].*needs \[768, 192\]"),
        (changed(f"{LLAMA}norm.weight", None), r"norm.weight \[192\] is in none .* LLaVA or a"),
        (changed("text_hidden_fcs.0.bias", None), r"text_hidden_fcs.0.bias .* released LISA"),
        (changed("sam.mask_decoder.iou_token.weight", None), r"facebook/sam-vit-huge"),
        (changed(f"{CLIP}pre_layrnorm.bias", None), r"pre_layrnorm.bias .* openai/clip"),
        (changed(f"{CLIP}pre_layrnorm.bias", torch.zeros(3)), r"clip/model.*has shape \[3\]"),
        (
            changed(f"{LLAMA}norm.weight", torch.zeros(192, dtype=torch.int8)),
            r"lisa/model.safetensors: model.norm.weight is stored as I8: quantised",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, truth: Tensors, change: Callable[[Tensors], Tensors], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        made(sources(tmp_path, change(truth)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unused_and_later_tensors_are_reported(tmp_path: Path, truth: Tensors) -> None:
    folders = sources(tmp_path, truth)
    extra = {"text_model.x": torch.zeros(1), "logit_scale": torch.zeros(1)}
    folder_with(folders[1], part(truth, clip) | extra)
    late = {name: value + 1 for name, value in part(truth, sam_pth).items()}
    folders.append(folder_with(tmp_path / "late", late, pickled="sam.pth"))
    report = made(folders, tmp_path / "out")
    assert report.unused == {"clip": ["logit_scale", "text_model.x"], "late": sorted(late)}
    assert_same(read_back(tmp_path / "out"), truth)  # the earlier source won
    whole = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert [source["name"] for source in whole["sources"]] == ["lisa", "clip", "late"]
    assert len({source["fingerprint"] for source in whole["sources"]}) == 3
    assert str(tmp_path) not in json.dumps(whole)


def test_facts_of_the_sources_are_kept(tmp_path: Path, truth: Tensors) -> None:
    folders = sources(tmp_path, truth)
    config = {"architectures": ["LISA"], "rms_norm_eps": 1e-6, "_name_or_path": "/home/someone"}
    (folders[0] / "config.json").write_text(json.dumps(config))
    notes = folders[0] / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text("ab" * 20 + "\nsomething\n")
    report = made(folders, tmp_path / "out")
    assert report.sources[0]["revision"] == "ab" * 20
    assert report.sources[0]["config"] == {"architectures": ["LISA"]}
    assert ["rms_norm_eps 1e-06" in text for text in report.warnings] == [True]


def test_files_are_written_as_they_fill(tmp_path: Path, truth: Tensors) -> None:
    made(sources(tmp_path, truth), tmp_path / "out", shard_bytes=1 << 20)
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 8
    assert max(path.stat().st_size for path in files) < (1 << 20) + (64 << 10)
    assert_same(read_back(tmp_path / "out"), truth)


def test_all_shards_must_be_there(tmp_path: Path, truth: Tensors) -> None:
    folders = sources(tmp_path, truth)
    only = folders[0] / "model.safetensors"
    only.rename(folders[0] / "model-00001-of-00002.safetensors")
    with pytest.raises(WeightsError, match="model-00002-of-00002.safetensors"):
        made(folders, tmp_path / "out")
    (folders[0] / "model-00001-of-00002.safetensors").rename(only)
    index = {"weight_map": {"a": "model.safetensors", "b": "other.safetensors"}}
    (folders[0] / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="not here: other.safetensors"):
        made(folders, tmp_path / "out")
    odd = json.dumps({"weight_map": {"a": "model.safetensors", "b": "\ud800\x1b[2J"}})
    (folders[0] / "model.safetensors.index.json").write_text(odd)
    with pytest.raises(WeightsError) as caught:  # must go into any log, and move no cursor
        made(folders, tmp_path / "out")
    assert r"not here: \ud800\u001b[2J;" in str(caught.value).encode().decode()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_is_told(tmp_path: Path, truth: Tensors, name: str) -> None:
    folders = sources(tmp_path, truth)
    (folders[1] / "model.safetensors").unlink()
    folder_with(folders[1], part(truth, clip), pickled=None if "safe" in name else name)
    path = folders[1] / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=f"clip/{name}: cannot be read"):
        made(folders, tmp_path / "out")


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_unrun(tmp_path: Path, truth: Tensors, zipped: bool) -> None:
    folders = sources(tmp_path, truth)
    (folders[1] / "model.safetensors").unlink()
    mark = tmp_path / "ran"
    held = {"vision_model.x": Evil(mark)}
    path = folders[1] / "pytorch_model.bin"
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"pytorch_model.bin: .*safetensors") as caught:
        made(folders, tmp_path / "out")
    assert "weights_only" not in str(caught.value)
    assert not mark.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("7b", [old_llava, sam]),
        ("7b-v1", [lisa, clip]),
        ("13b", [new_llava, sam_pth]),
        ("13b-v1", [lisa, clip]),
    ],
)
def test_names_at_true_sizes(model: str, layout: list[Callable]) -> None:
    needed = needed_shapes(model_profile(model))
    found: set[str | None] = set()
    for change in layout:
        found |= set(target_names(filter(None, map(change, needed))).values())
    missing = {name for name in needed if name not in found}
    assert found <= set(needed)
    assert all(name.startswith("text_hidden_fcs.") for name in missing)
    assert bool(missing) == (lisa not in layout)


def test_adapters_apart_and_mixed_names_are_refused(tmp_path: Path) -> None:
    adapter = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    with pytest.raises(NamesError, match="not merged yet"):
        target_names([adapter])
    with pytest.raises(NamesError, match="named in two ways"):
        target_names(["image_encoder.pos_embed", "vision_encoder.pos_embed"])
    with pytest.raises(NamesError, match="both become"):
        target_names(["lm_head.weight", "language_model.lm_head.weight"])


def test_small_networks_of_both_sams_are_told_apart() -> None:
    first = "mask_decoder.iou_prediction_head.layers.0.weight"
    head = "sam.mask_decoder.iou_prediction_head."
    assert target_names([first])[first] == f"{head}proj_in.weight"
    beside = first.replace("layers.0", "proj_in")
    assert target_names([first, beside])[first] == f"{head}layers.0.weight"


def test_positions_saved_twice_count_once() -> None:
    tied = "prompt_encoder.shared_embedding.positional_embedding"
    own = "shared_image_embedding.positional_embedding"
    assert target_names([tied, own]) == {tied: None, own: f"sam.{own}"}
    assert target_names([tied]) == {tied: f"sam.{own}"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, truth: Tensors, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    folders = sources(tmp_path, truth)
    before = sorted(tmp_path.iterdir())
    write = trainer.convert.convert.save_file
    written: list[Path] = []

    def fail(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
        write(tensors, path, metadata)
        written.append(path)
        if len(written) == 3:
            raise error

    monkeypatch.setattr("trainer.convert.convert.save_file", fail)
    with pytest.raises(error):
        made(folders, tmp_path / "out", shard_bytes=1 << 20)
    assert len(written) == 3
    assert sorted(tmp_path.iterdir()) == before


def test_a_taken_folder_is_refused_and_an_empty_one_filled(tmp_path: Path, truth: Tensors) -> None:
    folders = sources(tmp_path, truth)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        made(folders, out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    made(folders, out)
    assert (out / "conversion.json").is_file()


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, truth: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.convert.convert.shutil.disk_usage", lambda path: os.statvfs_result)
    monkeypatch.setattr("os.statvfs_result.free", 1 << 20, raising=False)
    with pytest.raises(WeightsError, match="0.0 GiB free on this disk"):
        made(sources(tmp_path, truth), tmp_path / "out")


def without_new_tokens(folder: Path) -> dict[str, int]:
    """Take LISA's own tokens out of the folder's tokenizer; returns what is left."""
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    gone = {"[SEG]", "<im_start>", "<im_end>", "<image>", "<pad>"}
    kept = [t for t in whole["model"]["vocab"] if t not in gone]
    whole["model"]["vocab"] = {token: number for number, token in enumerate(kept)}
    whole["added_tokens"] = [
        t | {"id": kept.index(t["content"])} for t in whole["added_tokens"] if t["content"] in kept
    ]
    whole["post_processor"] = None
    path.write_text(json.dumps(whole))
    vocabulary: dict[str, int] = whole["model"]["vocab"]
    return vocabulary


def test_the_tokenizer_gets_lisas_tokens_in_upstreams_order(tmp_path: Path, truth: Tensors) -> None:
    folders = sources(tmp_path, truth)
    count = len(without_new_tokens(folders[0]))
    report = made(folders, tmp_path / "out")
    tokens = ["[SEG]", "<im_start>", "<im_end>", "<image>", "<pad>"]
    assert report.tokens_added == {token: count + n for n, token in enumerate(tokens)}
    tokenizer = read_tokenizer(tiny_plan(weights=str(tmp_path / "out")))
    assert tokenizer.seg_id == count and tokenizer.pad_id == count + 4
    ids = tokenizer.tokenizer("a [SEG].").input_ids
    assert ids[0] == tokenizer.tokenizer.bos_token_id and ids.count(count) == 1


def test_recorded_token_ids_are_kept_or_refused(tmp_path: Path, truth: Tensors) -> None:
    folders = sources(tmp_path, truth)
    count = len(without_new_tokens(folders[0]))
    record = folders[0] / "added_tokens.json"
    record.write_text(json.dumps({"[SEG]": count + 1, "<pad>": count}))
    report = made(folders, tmp_path / "out")
    assert (report.tokens_added["<pad>"], report.tokens_added["[SEG]"]) == (count, count + 1)
    record.write_text(json.dumps({"[SEG]": count + 7}))
    with pytest.raises(WeightsError, match=rf"\[SEG\] has id {count + 7}"):
        made(folders, tmp_path / "other")


def test_the_tokenizer_comes_with_the_language_model(tmp_path: Path, truth: Tensors) -> None:
    folders = sources(tmp_path, truth)
    (folders[0] / "tokenizer.json").rename(folders[1] / "tokenizer.json")  # CLIP has one too
    with pytest.raises(WeightsError, match="lisa: no tokenizer.json and no tokenizer.model"):
        made(folders, tmp_path / "out")
    (folders[0] / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="tokenizer.* cannot be read"):
        made(folders, tmp_path / "out")


def test_without_sentencepiece_the_package_is_named(
    tmp_path: Path, truth: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = sources(tmp_path, truth)
    (folders[0] / "tokenizer.json").unlink()
    (folders[0] / "tokenizer.model").write_bytes(b"no model")
    monkeypatch.setattr("trainer.model.families.llava_sam.tokenizer.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"tokenizer.model: .*\n.*pip install sentencepiece"):
        made(folders, tmp_path / "out")


def test_a_sentencepiece_model_is_read(tmp_path: Path, truth: Tensors) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    folders = sources(tmp_path, truth)
    (folders[0] / "tokenizer.json").unlink()
    (tmp_path / "text").write_text("the red circle\nall of the blue squares\n" * 200)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(folders[0] / "tokenizer"),
        model_type="bpe", vocab_size=300, byte_fallback=True,
    )  # fmt: skip
    report = made(folders, tmp_path / "out")
    assert report.tokens_added == {
        token: 300 + n
        for n, token in enumerate(["[SEG]", "<im_start>", "<im_end>", "<image>", "<pad>"])
    }
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folders[0] / "tokenizer.model"))
    ids = read_tokenizer(tiny_plan(weights=str(tmp_path / "out"))).tokenizer("the red").input_ids
    assert ids == [1, *pieces.encode("the red")]


@pytest.mark.parametrize("model", ["7b", "7b-v1", "13b", "13b-v1"])
def test_docs_and_errors_say_the_command(model: str) -> None:
    command = model_profile(model).conversion
    pages = [(ROOT / "docs" / "weights.md").read_text(), (ROOT / "docs" / "train.md").read_text()]
    assert command.replace("FOLDER", "DST") in pages[0]
    assert command in pages[1] or model.startswith("13b")
    with pytest.raises(WeightsError, match=re.escape(command)):
        model_folder(Plan.parse({"model": model}))


def test_the_command(tmp_path: Path, truth: Tensors) -> None:
    folders = [str(folder) for folder in sources(tmp_path, truth)]
    arguments = ["convert", *folders, str(tmp_path / "out"), "--model", "tiny"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert f"used: {len(truth)} (" in done.stdout and "unused: 0" in done.stdout
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2 and "not an empty folder" in again.stderr
    absent = CliRunner().invoke(app, ["convert", "no-such", "x", "--model", "tiny"])
    assert absent.exit_code == 2 and "no-such: no such folder" in absent.stderr


@pytest.mark.parametrize(
    ("target", "model", "why"),
    [("taken", "7b", "not an empty folder"), ("out", "9b", "unknown model '9b'")],
)
def test_what_is_wrong_is_said_before_anything_is_downloaded(
    target: str, model: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "kept").touch()
    asked = list[str]()
    hub = "trainer.convert.hub.checkpoint_folder"
    monkeypatch.setattr(hub, lambda source, *_: asked.append(source))
    given = ["convert", "owner/name", str(tmp_path / target), "--model", model]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2 and why in done.stderr and not asked


def test_a_terminated_command_leaves_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, truth: Tensors
) -> None:
    folders = sources(tmp_path, truth)
    before = sorted(tmp_path.iterdir())
    write = trainer.convert.convert.save_file

    def slowly(*given: Any, **options: Any) -> None:
        write(*given, **options)
        print("written", flush=True)
        time.sleep(60)

    def work() -> None:
        with mock.patch.object(trainer.convert.convert, "save_file", slowly):
            lisa_train("convert", *map(str, folders), str(tmp_path / "out"), "--model", "tiny")()

    log = tmp_path_factory.mktemp("log") / "log"
    pid = fork(work, log)
    while not log.exists() or "written" not in log.read_text():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), log.read_text()
        time.sleep(0.05)
    assert sorted(tmp_path.iterdir()) != before
    os.kill(pid, signal.SIGTERM)
    assert end(pid) == 130
    assert sorted(tmp_path.iterdir()) == before


class Hub:
    """Stands in for the hub: one repository, at one commit."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, names: list[str], folder: Path, error: Exception | None = None) -> None:
        self.names, self.folder, self.error = names, folder, error
        self.asked: list[Any] = []

    def model_info(self, name: str, revision: str | None) -> Any:
        self.asked.append((name, revision))
        if self.error is not None:
            raise self.error
        files = [SimpleNamespace(rfilename=file) for file in self.names]
        return SimpleNamespace(siblings=files, sha=self.commit)

    def fetch(self, name: str, revision: str, allow_patterns: list[str]) -> str:
        self.asked.append((name, revision, allow_patterns[0]))
        return str(self.folder)


def on_hub(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Hub:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.fetch)
    return hub


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["model-1.safetensors", "pytorch_model-1.bin", "x.pth"], "*.safetensors"),
        (["pytorch_model-1.bin", "config.json"], "pytorch_model*.bin"),
        (["sam_vit_h_4b8939.pth"], "*.pth"),
    ],
)
def test_a_name_on_the_hub_is_fetched_at_one_commit(
    names: list[str], pattern: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = on_hub(monkeypatch, Hub(names, tmp_path / "snapshot"))
    assert checkpoint_folder("me/model@v1", lambda line: None) == tmp_path / "snapshot"
    assert hub.asked == [("me/model", "v1"), ("me/model", Hub.commit, pattern)]
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    for local in ("a", str(tmp_path / "a"), "./no/such/folder", "nosuch"):
        assert checkpoint_folder(local, lambda line: None) == Path(local)
    assert len(hub.asked) == 2


def test_what_the_hub_refuses_says_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = SimpleNamespace(headers={}, request=None, status_code=403)
    for kind, message in (
        (
            errors.GatedRepoError,
            "is gated\n    hint: accept its terms on https://huggingface.co/me/x",
        ),
        (errors.RevisionNotFoundError, "has no revision v9"),
        (errors.RepositoryNotFoundError, "neither a folder here nor a public repository"),
        (
            None,
            "cannot be fetched: no network\n.*hf download me/x --local-dir FOLDER --revision v9",
        ),
    ):
        error = OSError("no network") if kind is None else kind("x", response=answer)
        on_hub(monkeypatch, Hub([], tmp_path, error))
        with pytest.raises(WeightsError, match=message):
            checkpoint_folder("me/x@v9", lambda line: None)


@pytest.mark.parametrize("source", ["./nope", "../nope", "~/nope", "./owner/name"])
def test_what_is_written_as_a_path_is_not_looked_for_on_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hub(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    assert not checkpoint_folder(source, pytest.fail).exists()
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["convert", source, "dst", "--model", "7b"])
    assert told.exit_code == 2 and "no such folder" in told.output
