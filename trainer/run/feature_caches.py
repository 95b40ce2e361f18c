"""The feature caches that a plan names, filled before the model loads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from profiles.plan import Plan
from profiles.settings import Encoder
from trainer.data.feature_cache import FeatureCache, encoder_key, fill_cache
from trainer.model.build import FrozenEncoder, read_tokenizer, skeleton
from trainer.model.weights import weight_source
from trainer.parallel.ranks import Ranks
from trainer.reporter import Reporter


def prepare_caches(
    plan: Plan,
    images: list[Path],
    root: Path,
    accelerator: Accelerator,
    reporter: Reporter,
    ranks: Ranks | None = None,
) -> dict[Encoder, FeatureCache]:
    """The feature caches that the plan names, filled for `images` before the model loads.

    The ranks of a machine fill its cache together; machines may have one each, or share one.
    """
    ranks = ranks or Ranks()
    part = reporter.of_one_of(len(ranks.of_machine))
    caches: dict[Encoder, FeatureCache] = {}
    if not plan.cached_encoders:
        return caches
    source = weight_source(plan)

    def load(encoder: Encoder) -> FrozenEncoder:
        model = skeleton(plan.profile, read_tokenizer(plan))
        return FrozenEncoder(model, plan, encoder, accelerator.device, source)

    for encoder in plan.cached_encoders:
        name = plan.profile.encoders[encoder].name
        cache = FeatureCache(root, encoder_key(plan, encoder, source.fingerprint))
        built = fill_cache(
            cache,
            plan,
            encoder,
            share_of(images, ranks),
            partial(load, encoder),
            partial(part.progress, f"{name} features"),
            reporter.line,
        )
        counts = ranks.exchange(f"{name} features", str(built))
        built = sum(int(counts[rank]) for rank in ranks.of_machine)
        reporter.line(f"{name} features: {built} built, {len(images) - built} found in {root}")
        caches[encoder] = cache
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()  # free the encoder's memory for what loads next
    return caches


def lacking(plan: Plan, images: list[Path], root: Path) -> list[Path]:
    """The pictures for which `root` lacks features that the plan names."""
    if not plan.cached_encoders:
        return []
    fingerprint = weight_source(plan).fingerprint
    keys = [encoder_key(plan, encoder, fingerprint) for encoder in plan.cached_encoders]
    caches = [FeatureCache(root, key) for key in keys]
    return [one for one in images if not all(cache.entry(one).is_file() for cache in caches)]


def share_of(images: list[Path], ranks: Ranks) -> list[Path]:
    """This rank's share of the pictures; on each machine every picture belongs to one rank.

    Machines begin at different places, so that machines with a common folder build few twice.
    """
    machine = ranks.of_machine
    share = images[ranks.rank - machine.start :: len(machine)]
    begin = len(share) * machine.start // ranks.count
    return share[begin:] + share[:begin]
