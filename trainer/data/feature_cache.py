"""Cache of frozen encoders' features on disk: one safetensors file per picture and encoder.

An entry's key is made of the picture's bytes, the encoder's weights and the preprocessing, so a
stale entry is never read. An entry is written under another name and then renamed, so two writers
at once, or a kill, leave only complete entries.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from profiles.files import STALE_SECONDS, force, sweep
from profiles.plan import Plan
from profiles.settings import Encoder
from trainer.data.images import read_image
from trainer.data.threads import one_ahead
from trainer.model.families import family_of
from trainer.tensor_files import save_file

ASIDE = "writing"  # an entry on its way, with a random number: machines may share a cache


class BadEntry(ValueError):
    """A cache entry that is truncated, altered or another encoder's."""


class NoEntry(BadEntry):
    """A cache entry that is not there."""


def encoder_key(plan: Plan, encoder: Encoder, fingerprint: str) -> str:
    """Names the features: equal keys, equal features of equal pictures."""
    facts, version = plan.profile.encoders[encoder], family_of(plan.profile).pixels_version
    text = f"{facts.name}|{facts.sizes}|{plan.dtype}|{fingerprint}|preprocess {version}"
    return f"{facts.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class FeatureCache:
    """Features of one encoder under `root / key`."""

    def __init__(self, root: Path, key: str) -> None:
        self.folder = root / key
        self.key = key

    def entry(self, image: Path) -> Path:
        """Where the features of a picture are, or would be."""
        return self.folder / f"{_content_hash(image, image.stat().st_mtime_ns)}.safetensors"

    def read(self, image: Path) -> dict[str, Tensor]:
        """The features of a picture. Raises BadEntry."""
        try:
            return read_entry(self.entry(image), self.key)
        except BadEntry as error:
            hint = "start or --resume again: bad features are computed again"
            raise type(error)(f"{error}\n    hint: {hint}") from None

    def problem(self, image: Path) -> str | None:
        """Why a picture's entry must be built: '' if there is none yet, None if it is good."""
        try:
            read_entry(self.entry(image), self.key)
        except NoEntry:
            return ""
        except BadEntry as error:
            return str(error)
        return None

    def write(self, image: Path, features: Mapping[str, Tensor]) -> None:
        """Store a picture's features by name, contiguous ones: aside first, then renamed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{ASIDE}-{secrets.randbits(63)}"
        try:
            save_file(
                features,
                aside,
                metadata={
                    "key": self.key,
                    "crc32": str(_checksum(features)),
                    "axis": "picture",
                },
            )
            force(aside)
            os.replace(aside, self.entry(image))
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def read_entry(path: Path, key: str) -> dict[str, Tensor]:
    """Features from one file, with an axis for the picture. Raises BadEntry, NoEntry."""
    if not path.is_file():
        raise NoEntry(f"{path}: not there")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            features = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # an altered header may break its reader anywhere
        raise BadEntry(f"{path}: unreadable: {error}") from None
    if metadata.get("key") != key:
        raise BadEntry(f"{path}: made by another encoder: {metadata.get('key')}")
    if metadata.get("crc32") != str(_checksum(features)):
        raise BadEntry(f"{path}: checksum differs")
    if "axis" not in metadata:  # written before entries had one for the picture
        return {name: value[None] for name, value in features.items()}
    return features


def _checksum(features: Mapping[str, Tensor]) -> int:
    total = 0
    for _, value in sorted(features.items()):
        total = zlib.crc32(value.flatten().view(torch.uint8).numpy().data, total)
    return total


@lru_cache(maxsize=65536)
def _content_hash(image: Path, modified: int) -> str:
    del modified  # part of the memory's key: a changed file is hashed again
    return hashlib.sha256(image.read_bytes()).hexdigest()


def fill_cache(
    cache: FeatureCache,
    plan: Plan,
    encoder: Encoder,
    images: Sequence[Path],
    load_encoder: Callable[[], Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]],
    progress: Callable[[int, int], None],
    report: Callable[[str], None],
) -> int:
    """Build the missing and damaged entries; returns how many. The encoder loads only if needed."""
    # By age, not by process: a cache may be shared between machines. An entry takes a second.
    sweep(cache.folder, [ASIDE], STALE_SECONDS)
    family, the_encoder = family_of(plan.profile), lru_cache(load_encoder)

    def pixels_of(image: Path) -> Mapping[str, Tensor] | None:
        if cache.problem(image) is None:
            return None
        return family.pixels(read_image(image), encoder, plan.profile)

    def encoded() -> Iterator[tuple[Path, dict[str, Tensor]]]:
        begun: set[Path] = set()  # an import links a picture for every question about it
        pairs = zip(images, one_ahead(pixels_of, images), strict=True)
        for done, (image, pixels) in enumerate(pairs):
            progress(done, len(images))
            entry = cache.entry(image)
            if pixels is None or entry in begun or (problem := cache.problem(image)) is None:
                continue
            if problem:
                report(f"rebuilding {problem}")
            begun.add(entry)
            # No name for those on the card: it would hold them while the next are made.
            yield image, {n: value.contiguous().cpu() for n, value in the_encoder()(pixels).items()}

    # While a picture is encoded the next one is read and the one before is written.
    built = sum(1 for _ in one_ahead(lambda pair: cache.write(*pair), encoded()))
    progress(len(images), len(images))
    return built
