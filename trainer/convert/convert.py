"""Published checkpoints -> one folder in this project's layout, in bounded memory.

The folder is written beside its target and renamed when it is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from profiles.families import ModelProfile
from profiles.models import model_profile
from profiles.sizes import GIB
from profiles.text import some
from trainer.atomic_folder import atomic_folder, refuse_taken
from trainer.convert.checkpoint_folder import Found, Source, TensorFile
from trainer.convert.tokenizer import convert_tokenizer
from trainer.model.build import shared_prefixes, skeleton
from trainer.model.families import Family, family_of
from trainer.model.weights import PLAIN_DTYPES, WeightsError
from trainer.prompts import SEG_TOKEN
from trainer.tensor_files import save_file

SHARD_BYTES = 2 << 30
DTYPE = torch.bfloat16  # of every tensor, as in the packaged folder
SEED = 0  # of what no source has and may start afresh
SHOWN = 3
Tell = Callable[[str], None]


@dataclass
class Conversion:
    """The source of every tensor; `conversion.json` holds all of it."""

    model: str
    sources: list[dict[str, Any]] = field(default_factory=list)
    used: dict[str, str] = field(default_factory=dict)  # model's name -> folder/file: name
    renamed: dict[str, str] = field(default_factory=dict)  # checkpoint's name -> model's
    padded: dict[str, list[int]] = field(default_factory=dict)  # name -> rows there, rows needed
    initialised: list[str] = field(default_factory=list)
    unused: dict[str, list[str]] = field(default_factory=dict)  # folder -> names
    tokens_added: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as a user reads it."""
        unused = [f"{folder}: {name}" for folder, names in self.unused.items() for name in names]
        padded = [f"{name} ({a} -> {b} rows)" for name, (a, b) in self.padded.items()]
        return [
            _summary("used", list(self.used)),
            _summary("renamed", [f"{old} -> {new}" for old, new in self.renamed.items()]),
            _summary("padded with the mean of their rows", padded),
            _summary(f"initialised afresh (seed {SEED})", self.initialised),
            _summary("unused", unused),
            _summary("tokens added", [f"{t} ({n})" for t, n in self.tokens_added.items()]),
            *(f"licence of {s['name']}: {s['licence'] or 'not stated'}" for s in self.sources),
            *(f"warning: {text}" for text in self.warnings),
        ]


def convert(
    folders: Sequence[Path],
    target: Path,
    model: str,
    tell: Tell,
    shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Write the model made of the sources' tensors; earlier sources come first.

    Raises WeightsError, FileExistsError.
    """
    profile = model_profile(model)
    refuse_taken(target)
    family = family_of(profile)
    table, _ = family.model.tables()
    sources = [Source.read(folder, family, tell) for folder in folders]
    needed = needed_shapes(profile)
    report = Conversion(model, [source.facts() for source in sources])
    chosen = choose(sources, needed, model, report)
    language = next(s for s in sources if s.tensors.get(table) == chosen[table])
    report.warnings += _config_differences(language, profile)
    with atomic_folder(target) as folder:
        _convert_tokenizer(language, folder, profile, chosen, report)
        _write(folder, chosen, needed, report, tell, shard_bytes)
        text = json.dumps({"dtype": "bf16", **asdict(report)}, indent=1, ensure_ascii=False)
        (folder / "conversion.json").write_text(text + "\n", encoding="utf-8")
    return report


def needed_shapes(profile: ModelProfile) -> dict[str, torch.Size]:
    """Every tensor that the model asks its folder for. Nothing is allocated."""
    # Which token is which changes no shape.
    tokenizer = family_of(profile).tokenizer.stand_in(profile)
    model = skeleton(profile, tokenizer)
    return {
        name: value.shape
        for name, value in model.state_dict().items()
        if not name.startswith(shared_prefixes(model))
    }


def choose(
    sources: Sequence[Source], needed: dict[str, torch.Size], model: str, report: Conversion
) -> dict[str, Found]:
    """The tensor for each name, and the report's lists. Raises WeightsError on all that is wrong.

    Tensors that may start afresh are left out if no source has any of them; they are initialised.
    """
    family = family_of(model_profile(model))
    chosen: dict[str, Found] = {}
    for source in sources:
        unused = list(source.unused)
        for name, found in source.tensors.items():
            if name in needed and name not in chosen:
                chosen[name] = found
                continue
            unused.append(found.name)
        if unused:
            report.unused.setdefault(source.name, []).extend(sorted(unused))
    absent = [name for name in needed if name not in chosen]
    if family.fresh and not any(name.startswith(family.fresh) for name in chosen):
        report.initialised = [name for name in absent if name.startswith(family.fresh)]
    problems = [_missing(n, needed[n], family) for n in absent if n not in report.initialised]
    problems += filter(None, (_misfit(n, found, needed[n], family) for n, found in chosen.items()))
    problems += _untied(sources, needed, family)
    if problems:
        raise WeightsError(_all_problems(problems, sources, needed, model))
    report.used = {name: found.where for name, found in chosen.items()}
    report.renamed = {found.name: n for n, found in chosen.items() if found.name != n}
    return chosen


def _missing(name: str, shape: torch.Size, family: Family[Any]) -> str:
    text = f"{name} {list(shape)} is in none of the sources"
    giver = next((giver for prefix, giver in family.givers if name.startswith(prefix)), "")
    return f"{text}; it comes with {giver}" if giver else text


def _misfit(name: str, found: Found, shape: torch.Size, family: Family[Any]) -> str | None:
    """What is wrong with a tensor, if anything; too few rows are not."""
    got = f"{found.where} has shape {list(found.shape)}, {name} needs {list(shape)}"
    if found.dtype not in PLAIN_DTYPES:
        return f"{found.where} is stored as {found.dtype}: quantised; give the unquantised weights"
    if name in family.model.tables() and found.shape[1:] == shape[1:]:
        if not found.shape[0]:
            return f"{got}: no row at all"
        return f"{got}: more rows than the model has" if found.shape[0] > shape[0] else None
    return got if found.shape != shape else None


def _untied(
    sources: Sequence[Source], needed: dict[str, torch.Size], family: Family[Any]
) -> list[str]:
    """Where a source has a head of its own and the model's head is the embedding table."""
    table, head = family.model.tables()
    if head in needed:
        return []
    problems = []
    for source in sources:
        pair = source.tensors.get(table), source.tensors.get(head)
        if pair[0] is None or pair[1] is None:
            continue
        one, other = (TensorFile(found.path).read(found.name, DTYPE) for found in pair if found)
        if not torch.equal(one, other):
            problems.append(f"{pair[1].where} is trained apart from the embedding table; the model "
                            "has one matrix for both")  # fmt: skip
    return problems


def _all_problems(
    problems: list[str], sources: Sequence[Source], needed: dict[str, torch.Size], model: str
) -> str:
    shown = problems[:SHOWN]
    if len(problems) > SHOWN:
        shown.append(f"… and {len(problems) - SHOWN} tensors more")
    text = f"{len(problems)} tensors keep these sources from being model {model}:\n"
    text += "\n".join(f"    - {line}" for line in shown)
    offered = {name for source in sources for name in source.tensors}
    hint = family_of(model_profile(model)).likely_model(needed, offered)
    return text + (f"\n    hint: {hint.format(model=model)}" if hint else "")


def _config_differences(language: Source, profile: ModelProfile) -> list[str]:
    """Settings that differ from those that the checkpoint was trained with and no shape shows."""
    differ = family_of(profile).other_settings(language.config, profile)
    return [f"{language.name}/config.json {what}" for what in differ]


def _convert_tokenizer(
    language: Source,
    folder: Path,
    profile: ModelProfile,
    chosen: dict[str, Found],
    report: Conversion,
) -> None:
    """The tokenizer of the source that gave the embeddings: no other one fits their rows."""
    path = folder / "tokenizer.json"
    family = family_of(profile)
    made = family.tokenizer
    report.tokens_added = convert_tokenizer(language.folder, path, profile.vocabulary_rows, made)
    seg = made.read(folder, profile.most_image_tokens).seg_id
    rows = chosen[family.model.tables()[0]].shape[0]
    trained = family.fresh and any(name.startswith(family.fresh) for name in language.tensors)
    if trained and seg >= rows:
        raise WeightsError(
            f"{language.folder}: trained to segment, but its tokenizer gives {SEG_TOKEN} the id "
            f"{seg} and its embeddings have {rows} rows; use the tokenizer that it was trained with"
        )


def _write(
    folder: Path,
    chosen: dict[str, Found],
    needed: dict[str, torch.Size],
    report: Conversion,
    tell: Tell,
    shard_bytes: int,
) -> None:
    _check_space(folder, needed)
    shards = Shards(folder, shard_bytes)
    of_path: list[tuple[Path, str]] = sorted((found.path, name) for name, found in chosen.items())
    for path, names in groupby(of_path, key=lambda item: item[0]):
        tell(f"reading {path.parent.name}/{path.name}")
        file = TensorFile(path)
        for _, name in names:
            value = file.read(chosen[name].name, DTYPE)
            if value.shape != needed[name]:
                report.padded[name] = [value.shape[0], needed[name][0]]
                value = with_rows(value, needed[name][0])
            shards.add(name, value)
    for name, value in fresh_seg_layers(needed, report.initialised).items():
        shards.add(name, value.to(DTYPE))
    shards.close()


def with_rows(table: Tensor, rows: int) -> Tensor:
    """[n, H] -> [rows, H]; the added rows are the mean of the others."""
    mean = table.mean(0, keepdim=True, dtype=torch.float32).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])


def fresh_seg_layers(needed: dict[str, torch.Size], names: Sequence[str]) -> dict[str, Tensor]:
    """Initial values as torch draws them for a linear layer, the same every time."""
    values: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for layer in sorted({name.rpartition(".")[0] for name in names}):
            rows, columns = needed[f"{layer}.weight"]
            linear = nn.Linear(columns, rows)
            values |= {f"{layer}.{key}": value for key, value in linear.state_dict().items()}
    return values


class Shards:
    """Safetensors files, each written when it is full, so that at most one is in memory."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.held: dict[str, Tensor] = {}
        self.bytes = self.count = 0

    def add(self, name: str, value: Tensor) -> None:
        """Take one tensor; a file holds more than the limit only if a single tensor does."""
        if self.held and self.bytes + value.nbytes > self.limit:
            self.close()
        self.held[name] = value
        self.bytes += value.nbytes

    def close(self) -> None:
        """Write what is held."""
        if self.held:
            self.count += 1
            path = self.folder / f"model-{self.count:05}.safetensors"
            save_file(self.held, path, metadata={"format": "pt"})
        self.held, self.bytes = {}, 0


def _check_space(folder: Path, needed: dict[str, torch.Size]) -> None:
    bytes_needed = sum(shape.numel() for shape in needed.values()) * DTYPE.itemsize
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise WeightsError(
            f"{folder.parent}: {free / GIB:.1f} GiB free on this disk, "
            f"the model takes {bytes_needed / GIB:.1f}; name a folder on another one"
        )


def _summary(what: str, items: list[str]) -> str:
    return f"{what}: {len(items)}" + (f" ({some(items, SHOWN)})" if items else "")
