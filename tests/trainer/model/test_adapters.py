"""Adapters are PEFT's: its layers with our forward pass, its files, and what came before it."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as PeftLinear
from safetensors.torch import load_file, save_file
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import LlavaForConditionalGeneration

from profiles.families import VISION
from profiles.settings import Lora
from tests.conftest import PHOTOS, tiny_plan
from tests.trainer.model.test_model import loss_of, made
from trainer.answer.trained_model import find_trained
from trainer.cli.planned_run import PlannedRun
from trainer.cli.start import resume_run, start_run
from trainer.convert import export
from trainer.model.adapter_names import ADAPTER_NAME as NAME
from trainer.model.adapter_names import to_peft
from trainer.model.adapters import AdaptedLinear, peft_config
from trainer.model.build import build, read_tokenizer
from trainer.model.families.llava_sam.configs import llava_config
from trainer.model.families.llava_sam.model import Lisa
from trainer.model.families.llava_sam.names import from_adapter
from trainer.model.weights import FolderWeights, packaged_folder
from trainer.run import checkpoint
from trainer.run import start_from_adapter as starting
from trainer.run.folder import TRAINED
from trainer.run.started import Started

CPU = torch.device("cpu")
BEFORE = Path(__file__).parent / "before_peft"  # a run and an export of 0.1.0 before PEFT


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_our_forward_pass_is_pefts(dropout: float) -> None:
    torch.manual_seed(0)
    config = peft_config(Lora(rank=4, alpha=12, dropout=dropout, targets="qv"), Lisa)
    base = nn.Linear(32, 24, bias=False)
    pair: list[Any] = [kind(base, NAME, config=config, r=4, lora_alpha=12)
                       for kind in (AdaptedLinear, PeftLinear)]  # fmt: skip
    pair[0].begin(CPU)
    pair[0].lora_B[NAME].weight.data.normal_()
    pair[1].load_state_dict(pair[0].state_dict())
    x = torch.randn(2, 5, 32)
    outputs = []
    for layer in pair:
        torch.manual_seed(1)  # the same dropout
        outputs.append(layer(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    for factor in ("lora_A", "lora_B"):
        ours, theirs = (getattr(layer, factor)[NAME].weight.grad for layer in pair)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    pair[0].enable_adapters(False)  # PEFT's switches work on it
    assert torch.equal(pair[0](x), base(x))


@pytest.mark.parametrize("storage", ["nf4", "int8", "none"])
def test_adapters_begin_at_the_base_model_in_fp32(storage: str) -> None:
    plan = tiny_plan(quantization=storage, dtype="bf16")
    model = build(plan, read_tokenizer(plan), CPU)
    adapted = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    assert len(adapted) == 2 * 4 and model.llava.peft_config[NAME].r == 4
    for layer in adapted:
        down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        assert down.dtype == up.dtype == torch.float32 and not up.any()
        bound = down.shape[1] ** -0.5  # as a linear layer's
        assert 0.8 * bound < down.abs().max() <= bound


def theirs(folder: Path) -> PeftModel:
    """transformers' own LLaVA with lisa-tiny's weights, and on it what PEFT finds in a folder."""
    return PeftModel.from_pretrained(plain_llava(), folder)


def plain_llava(wider: int = 0) -> LlavaForConditionalGeneration:
    """transformers' own LLaVA with lisa-tiny's weights; of a `wider` decoder, with random ones."""
    plan = tiny_plan()
    tokenizer = read_tokenizer(plan)
    config = llava_config(plan.profile, tokenizer.image_id, tokenizer.pad_id)
    config.text_config.hidden_size += wider
    llava = LlavaForConditionalGeneration(config).eval()
    if not wider:
        source = FolderWeights(packaged_folder())
        llava.load_state_dict({
            name: source.get(f"llava.{name}", value.shape, CPU, torch.float32)
            for name, value in llava.state_dict().items()
        })  # fmt: skip
    return llava


WHOLE = ["projector", "text_hidden_fcs", "mask_decoder"]


@pytest.mark.parametrize(
    "settings",
    [
        {"train": ["mask_decoder", "text_hidden_fcs", "token_rows"]},
        {"train": [*WHOLE, "token_rows", "head"], "lora": Lora(targets="all-linear").model_dump()},
        {"train": [*WHOLE, "embeddings"], "lora": Lora(alpha=2.5).model_dump()},
        {"train": []},
    ],
    ids=["rows", "head and projector", "embeddings", "adapters alone"],
)
@torch.no_grad()
def test_peft_loads_an_export_onto_transformers_llava(settings: Any, tmp_path: Path) -> None:
    plan = tiny_plan(**settings)
    model, batch = made(plan)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * parameter.abs().mean().clamp(min=0.1) * torch.randn_like(parameter)
    checkpoint.save(tmp_path / "run" / "best", model, plan, {})
    export.export_trained(find_trained(tmp_path / "run"), tmp_path / "out")
    model.eval()
    mask = torch.ones(batch.input_ids.shape)  # causal: what comes after, padding too, is not seen
    ours = model.llava.lm_head(model.hidden_states(batch))
    inputs = {
        "input_ids": batch.input_ids,
        "pixel_values": batch.inputs[VISION]["pixels"],
        "attention_mask": mask,
    }
    peft = theirs(tmp_path / "out")
    found = peft(**inputs).logits
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-6 * float(ours.abs().max()))
    peft.base_model.disable_adapter_layers()  # takes all off again, also what was trained whole
    bare = plain_llava()(**inputs).logits
    assert torch.equal(peft(**inputs).logits, bare) and (bare - ours).abs().max() > 0.1
    again = build(plan, read_tokenizer(plan), CPU)
    checkpoint.load(tmp_path / "out", again)
    for (name, old), (_, new) in zip(
        model.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(old, new), name


def test_an_older_export_is_read_and_exported_as_pefts(tmp_path: Path) -> None:
    found = find_trained(BEFORE / "export")
    model = found.load(found.plan, read_tokenizer(found.plan), CPU)
    tensors = load_file(BEFORE / "export" / TRAINED)
    assert tensors.keys() == checkpoint.trained_tensors(model).keys()
    for name, value in checkpoint.trained_tensors(model).items():
        assert torch.equal(value, tensors[name]), name
    export.export_trained(found, tmp_path / "out")
    peft = theirs(tmp_path / "out")
    layer = "model.language_model.layers.1.self_attn.k_proj"
    factor = peft.base_model.model.get_submodule(layer).lora_B[NAME].weight
    assert torch.equal(factor, tensors[f"llava.{layer}.lora_B.weight"])
    file = tmp_path / "out" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(checkpoint.CheckpointError, match=f"{file.name} is damaged"):
        find_trained(tmp_path / "out").load(found.plan, read_tokenizer(found.plan), CPU)


def test_an_older_run_goes_on_where_it_would_have(tmp_path: Path) -> None:
    """Its last two steps come out as its own code had them: adapters, moments, their order."""
    run = shutil.copytree(BEFORE / "run", tmp_path / "run")
    resume_run(run, PHOTOS, tmp_path / "cache", {})
    found = load_file(run / "last" / TRAINED)
    expected = load_file(BEFORE / "export" / TRAINED)
    began = load_file(BEFORE / "run" / "last" / TRAINED)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5)
    adapters = [name for name in expected if "lora_" in name]
    moved = max(float((expected[name] - began[name]).abs().max()) for name in adapters)
    assert len(adapters) == 2 * 4 * 4 and moved > 5e-4  # far more than is allowed above


def trained_by_peft(folder: Path, wider: int = 0, **settings: Any) -> nn.Module:
    """An adapter on transformers' LLaVA as others train and save it; returns that LLaVA."""
    where = r".*language_model.*\.(q_proj|v_proj)"
    usual: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": where}
    model = get_peft_model(plain_llava(wider), LoraConfig(**usual | settings))
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.05)
    model.save_pretrained(str(folder))
    return model.eval()


@torch.no_grad()
def test_training_starts_from_an_adapter_that_peft_trained(tmp_path: Path) -> None:
    whole = ["multi_modal_projector"]
    peft = trained_by_peft(tmp_path / "adapter", modules_to_save=whole, use_dora=False)
    plan = tiny_plan(train=["projector", "mask_decoder", "token_rows"])
    model, batch = made(plan)
    starting.check_adapter(tmp_path / "adapter", plan)
    new_ids = read_tokenizer(plan).new_ids
    assert starting.load_adapter(tmp_path / "adapter", plan, model, new_ids) == 2 * 2 * 4 + 4
    ours = model.eval().llava.lm_head(model.hidden_states(batch))
    mask = torch.ones(batch.input_ids.shape)
    found = peft(
        input_ids=batch.input_ids, pixel_values=batch.inputs[VISION]["pixels"], attention_mask=mask
    ).logits
    torch.testing.assert_close(ours, found, rtol=0, atol=1e-6 * float(found.abs().max()))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model."])
def test_names_of_older_transformers_and_of_llama_alone_are_known(prefix: str) -> None:
    """LLaVA's decoder was `language_model.model` before transformers 4.52."""
    name = f"base_model.model.{prefix}layers.3.mlp.up_proj.lora_B.weight"
    found = from_adapter(name)
    assert found == "llava.model.language_model.layers.3.mlp.up_proj.lora_B.weight"
    assert found == from_adapter(to_peft(found.removeprefix("llava.")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, r"use_dora: got True; DoRA rescales"),
        ({"use_rslora": True}, r"use_rslora: got True; its scale is alpha / sqrt\(r\)"),
        ({"r": 2, "lora_alpha": 4}, r"r: got 2, the plan's lora.rank is 4\n.*lora_alpha: got 4, "
         r"[^\n]*8\n    hint: .*--lora-r 2 --lora-alpha 4 --set lora.targets=qv"),
        ({"rank_pattern": {"layers.0.self_attn.q_proj": 2}}, "rank_pattern: .*from linear to"),
        ({"lora_alpha": 3}, "lora_alpha: got 3, the plan's lora.alpha is 8"),
        ({"target_modules": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"},
         "16 tensors belong to no part that the plan trains: .*k_proj.*lora.targets=attention"),
        ({"target_modules": r".*language_model.*\.q_proj"}, "8 factors of lora.targets=qv are mis"),
        ({"target_modules": ["q_proj", "v_proj"]},
         r"\d+ tensors adapt the vision encoder, which is frozen here"),
        ({"modules_to_save": ["lm_head"]},
         "1 tensors belong to no part that the plan trains: .*lm_head"),
        ({"trainable_token_indices": {"embed_tokens": [5]}}, r"indices: got \[5\]; the new tokens"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: got 'olora'; it changed the base"),
        ({"wider": 64}, "another size than model tiny: .* has shape .4, 256., here .4, 192."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_a_plan_cannot_start_from_is_said(settings: Any, said: str, tmp_path: Path) -> None:
    trained_by_peft(tmp_path, **settings)
    with pytest.raises(starting.AdapterError, match=f"(?s){said}"):
        starting.check_adapter(tmp_path, tiny_plan())


def test_files_that_are_no_adapter_are_refused(tmp_path: Path) -> None:
    def refused(said: str) -> None:
        with pytest.raises(ValueError, match=said):
            starting.check_adapter(tmp_path, tiny_plan())

    refused("adapter_config.json: cannot be read: .*\n    hint: .*lisa-train export RUN DST")
    config = tmp_path / "adapter_config.json"
    config.write_text("[1]")
    refused("allowed: a table")
    config.write_text('{"peft_type": "IA3"}')
    refused(r"adapter_model.safetensors: missing\n    hint: save_pretrained")
    (tmp_path / "adapter_model.bin").touch()
    refused("pickled, and nothing is unpickled")
    tensors = tmp_path / "adapter_model.safetensors"
    save_file({"a": torch.full((1,), torch.nan)}, tensors)
    refused("peft_type: got 'IA3'; allowed: LORA(.|\n)*hold no finite numbers: 'a'")
    layer = "layers.0.mlp.up_proj.lora_A.weight"
    names = (f"base_model.model.{part}.{layer}" for part in ("model", "model.language_model"))
    save_file({name: torch.ones(1, 1) for name in names}, tensors)
    refused("up_proj.lora_A.w[.]+ once more")
    tensors.write_bytes(b"nonsense")
    refused("adapter_model.safetensors: cannot be read")


def test_an_export_over_other_base_weights_is_refused(tmp_path: Path) -> None:
    old = find_trained(BEFORE / "export")
    export.export_trained(old, tmp_path / "out")
    starting.check_adapter(tmp_path / "out", old.plan)
    facts = tmp_path / "out" / "facts.json"
    facts.write_text(facts.read_text().replace('"base": "', '"base": "1'))
    with pytest.raises(starting.AdapterError, match="was trained on base weights 1"):
        starting.check_adapter(tmp_path / "out", old.plan)


def test_a_run_starts_from_an_export_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = find_trained(BEFORE / "export")
    export.export_trained(old, tmp_path / "out")
    started = Started(PHOTOS, tmp_path / "cache", {}, adapter=tmp_path / "out")
    longer = old.plan.override(["max_train_samples=2", "max_val_samples=1"])
    plan = longer.override(["schedule.learning_rate=1e-9", "schedule.epochs=1"])
    start_run(PlannedRun(plan, tmp_path / "run", started))
    assert "starting from" in capsys.readouterr().err
    assert Started.read(tmp_path / "run").adapter == tmp_path / "out"
    found = load_file(tmp_path / "run" / "last" / TRAINED)
    for name, value in load_file(BEFORE / "export" / TRAINED).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_all_layers_compile_once_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny_plan(quantization="nf4", lora=Lora(targets="all-linear").model_dump())
    model, batch = made(plan)
    counter = CompileCounterWithBackend("aot_eager")
    whole = partial(torch.compile, dynamic=False, backend=counter, fullgraph=True)
    monkeypatch.setattr("trainer.model.segmentation_model.compiled_layer", whole)
    losses = []
    for compiled in (False, True):
        model.train().plan_layers(4, compiled)
        torch.manual_seed(1)
        losses.append(loss_of(model, batch))
        losses[-1].backward()
    assert torch.equal(*losses) and counter.frame_count == 1
