"""A trained model for others: the trained tensors alone, or the whole model with them merged in."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from profiles.files import read_regular
from profiles.plan import Plan
from profiles.sizes import GIB
from profiles.text import argument, one_line, some
from trainer import adapter_files
from trainer.answer.trained_model import ORIGIN, Trained
from trainer.atomic_folder import atomic_folder, refuse_taken
from trainer.convert.convert import SHARD_BYTES, Shards, needed_shapes
from trainer.model.adapters import merged
from trainer.model.build import TORCH_DTYPES, read_tokenizer
from trainer.model.families import family_of
from trainer.model.weights import FolderWeights, WeightsError, model_folder
from trainer.run.checkpoint import read_trained, verify
from trainer.run.checkpoint_files import MANIFEST, altered, read_facts, seal
from trainer.run.folder import TRAINED
from trainer.tensor_files import save_file

CPU = torch.device("cpu")
NONE: Mapping[str, str | None] = {}


_Count = Annotated[int, Field(ge=0, le=2**53)]


class _Scores(TypedDict, total=False):
    images: _Count
    giou: float | None
    ciou: float | None


class _Items(TypedDict):
    train: _Count
    val: _Count


class _Facts(TypedDict, total=False):
    """The part of a run's record that its model card shows."""

    step: _Count | None
    metrics: _Scores | None
    before: _Scores | None
    data: _Items | None
    hardware: str | None
    peak_reserved_bytes: _Count | None
    forecast_bytes: _Count | None
    base: str | None
    versions: dict[str, str]


_FACTS = TypeAdapter(_Facts)


def export_trained(trained: Trained, target: Path) -> int:
    """Write trained tensors, plan and card to `target`; returns the bytes written.

    With LoRA, PEFT's part is an adapter in its format. Raises WeightsError where the tokenizer
    that says which rows are new is not here.

    Raises FileExistsError, and ValueError where nothing was trained.
    """
    source = _folder(trained)
    refuse_taken(target)
    with atomic_folder(target) as folder:
        # As trained, without the folder of the base weights, which is this machine's.
        plan = Plan.read(source / "plan.json")
        portable = plan.model_copy(update={"weights": "default"})
        (folder / "plan.json").write_text(portable.to_json(), encoding="utf-8")
        rest = read_trained(source, family_of(plan.profile).model)
        if plan.lora is not None:
            rows = "token_rows" in plan.train
            new_ids = read_tokenizer(trained.plan).new_ids if rows else ()
            rest = adapter_files.write(folder, plan, plan.lora, rest, new_ids)
        save_file(rest, folder / TRAINED)
        facts = facts_of(source)
        (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        seal(folder)  # all but the card, which is the user's to write on
        text = card(plan, facts, False, licences_of(trained.plan))
        (folder / "README.md").write_text(text, encoding="utf-8")
    return _bytes(target)


def export_merged(trained: Trained, target: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """The whole model under this project's names, unquantised; returns the bytes written.

    PEFT merges adapters into the published weights in fp32, whatever storage they were trained on.
    At most one file is in memory. Raises WeightsError, FileExistsError, and ValueError where
    nothing was trained.
    """
    source, plan = _folder(trained), trained.plan
    if plan.weights == "random":
        raise ValueError("weights: the base weights are random, so there is nothing to merge into")
    refuse_taken(target)
    base = FolderWeights(model_folder(plan))
    tokenizer = read_tokenizer(plan)
    merge = _Merge(plan, read_trained(source, family_of(plan.profile).model), tokenizer.new_ids)
    dtype = TORCH_DTYPES[plan.dtype]
    with atomic_folder(target) as folder:
        shards = Shards(folder, shard_bytes)
        for name, shape in needed_shapes(plan.profile).items():
            value = base.get(name, shape, CPU, torch.float32)
            shards.add(name, merge(name, value).to(dtype).contiguous())
        shards.close()
        if merge.left:
            raise WeightsError(f"{source}: no place in the model for {some(sorted(merge.left))}")
        shutil.copyfile(model_folder(plan) / "tokenizer.json", folder / "tokenizer.json")
        facts = facts_of(source)
        origin = {"model": plan.model, "dtype": plan.dtype, "merged": plan.content_hash}
        (folder / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
        text = card(Plan.read(source / "plan.json"), facts, True, licences_of(plan))
        (folder / "README.md").write_text(text, encoding="utf-8")
    return _bytes(target)


class _Merge:
    """Base tensors by name -> those with what was trained in them."""

    def __init__(self, plan: Plan, trained: dict[str, Tensor], new_ids: list[int]) -> None:
        self.trained = trained
        self.left = set(self.trained)
        self.new_ids = new_ids
        self.lora = plan.lora
        self.tables = family_of(plan.profile).model.tables()

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """The tensor [...] called `name`, from its base `value` in fp32."""
        whole = self._take(name)
        if whole is not None:
            return whole
        stem = name.removesuffix(".weight")
        down, up = self._take(f"{stem}.lora_A.weight"), self._take(f"{stem}.lora_B.weight")
        if self.lora is not None and down is not None and up is not None:
            return merged(value, down, up, self.lora)
        rows = self._take(f"{stem}.rows") if name in self.tables else None
        return value if rows is None else value.index_copy(0, torch.tensor(self.new_ids), rows)

    def _take(self, name: str) -> Tensor | None:
        self.left.discard(name)
        found = self.trained.get(name)
        return None if found is None else found.float()


def upload(folder: Path, repository: str, tell: Callable[[str], None]) -> str:
    """Upload an exported folder to the model hub, a new repository as private; returns its address.

    Raises RuntimeError with what the hub said.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    tell(f"uploading {folder} to {repository} ...")
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
    except Exception as error:  # the hub's, httpx's, the system's: all mean it is not there
        raise RuntimeError(
            f"upload to {repository}: {error}\n    hint: {folder} is complete; hf auth login, then "
            f"hf upload {argument(repository)} {argument(folder)}"
        ) from None


def licences_of(plan: Plan) -> dict[str, str | None]:
    """Licence of each checkpoint behind the plan's base weights, as its conversion noted it."""
    try:
        report = json.loads(read_regular(model_folder(plan) / "conversion.json"))
        return {str(one["name"]): one.get("licence") for one in report["sources"]}
    except (WeightsError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # packaged, or converted before licences were noted


def card(
    plan: Plan, facts: dict[str, Any], merged: bool, licences: Mapping[str, str | None] = NONE
) -> str:
    """The model card: every figure is from the run's own records; what is not known is left out.

    The records may come from elsewhere: their text is escaped there, and none of it is in the
    block of YAML, which others act upon.
    """
    lines = [f"- {_text(n)}: {_text(str(one or 'not stated'))}" for n, one in licences.items()]
    title = f"LISA-{plan.model}, fine-tuned" + (" and merged" if merged else "")
    sections = [
        "---\nlibrary_name: lisa-preflight\ntags: [reasoning-segmentation, lisa]\n---",
        f"# {title}",
        _about(plan, merged),
        "## Results\n\n" + "\n".join(_results(facts)),
        "## Training\n\n" + "\n".join(_training(plan, facts)),
        *(["## Licences of the base weights\n\n" + "\n".join(lines)] if lines else []),
    ]
    return "\n\n".join(sections) + "\n"


def _about(plan: Plan, merged: bool) -> str:
    use = 'lisa-segment PICTURE "What would you drink from?" --run FOLDER_OF_THIS_CARD'
    if merged:
        return f"The whole model, ready for questions:\n\n    {use}"
    text = f"The trained tensors alone; they need the base weights of `{plan.model}`"
    if plan.profile.packaged:
        text = f"{text}, which come with the package:\n\n    {use}"
    else:
        text = (
            f"{text} ({' and '.join(plan.profile.sources)}):\n\n"
            f"    {plan.profile.conversion}\n    {use} --set weights=FOLDER"
        )
    if plan.lora is None:
        return text
    return (
        f"{text}\n\nWhat was trained of the language model is a LoRA adapter in PEFT's format, "
        "which works with the same weights in transformers, too; `trained.safetensors` has the "
        "rest:\n\n"
        "    PeftModel.from_pretrained(MODEL, FOLDER_OF_THIS_CARD)"
    )


def _results(facts: dict[str, Any]) -> Iterator[str]:
    found = facts.get("metrics") or {}
    if not found.get("images"):
        yield "No figures: none were recorded, or the record is no longer as the run wrote it."
        return
    yield "On the validation split of the data that it was trained on:\n"
    yield "| | gIoU | cIoU | questions |\n|---|---|---|---|"
    for name, row in (("before", facts.get("before") or {}), ("after", found)):
        if row.get("images") and None not in (row.get("giou"), row.get("ciou")):
            yield f"| {name} | {row['giou']:.3f} | {row['ciou']:.3f} | {row['images']} |"


def _training(plan: Plan, facts: dict[str, Any]) -> Iterator[str]:
    lora = f"LoRA r={plan.lora.rank} on {plan.lora.targets}" if plan.lora else "no LoRA"
    arithmetic = plan.dtype + (" and FP8" if plan.products == "fp8" else "")
    yield f"- base weights in {plan.quantization}, {arithmetic} arithmetic, {lora}; trained: " + (
        ", ".join(plan.train)
    )
    yield f"- batch {plan.effective_batch}, epochs: {plan.schedule.epochs}, rate " + (
        f"{plan.schedule.learning_rate:g}, kept after {facts.get('step', '?')} steps"
    )
    if data := facts.get("data"):
        yield f"- data: {data['train']} training and {data['val']} validation questions"
    if machine := facts.get("hardware"):
        yield f"- on {_text(machine)}"
    if measured := facts.get("peak_reserved_bytes"):
        text = f"- memory: {measured / GIB:.2f} GiB of the allocator's pool at the peak"
        if forecast := facts.get("forecast_bytes"):
            text += f"; {forecast / GIB:.2f} GiB were forecast ({forecast / measured - 1:+.1%})"
        yield text
    if plan.weights == "random":
        yield "- **the base weights were random values: a trial run, of no use**"
    yield f"- plan `{plan.content_hash}`, base weights {_text(facts.get('base') or 'unknown')}"
    yield "- versions: " + ", ".join(
        f"{_text(name)} {_text(number)}" for name, number in facts.get("versions", {}).items()
    )


def _text(value: str) -> str:
    """Text of a record as Markdown shows it unchanged: no mark of its own, no HTML, no address."""
    return re.sub(r"(?!(?<=\d)\.(?=\d))[!-'*.:-@\[-`{-~]", r"\\\g<0>", one_line(value))


def _folder(trained: Trained) -> Path:
    if trained.folder is None:
        raise ValueError("nothing was trained here: a converted folder needs no export")
    verify(trained.folder)
    return trained.folder


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What the run recorded about a checkpoint, and what its advice had forecast.

    Empty if the record is missing, unreadable, or not the one that the checkpoint was sealed with.
    """
    facts = read_facts(checkpoint)
    if (checkpoint / MANIFEST).exists() and altered(checkpoint, {"facts.json"}):
        return {}
    try:
        advice = json.loads(read_regular(checkpoint.parent / "advice.json"))
        forecast = {"forecast_bytes": int(advice["needs"]["bytes"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        forecast = {}  # a plan of the user's own
    for document in (forecast | facts, facts):
        with suppress(ValidationError):
            _FACTS.validate_python(document, strict=True)
            return document
    return {}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
