"""What a training takes on disk: downloads, the converted model, feature caches, the run folder."""

from __future__ import annotations

from pydantic import Field

from advisor.cost.duration import REASON_SEG
from profiles.exchange import trained_values
from profiles.measurement import DataCounts
from profiles.plan import Plan
from profiles.records import Frozen

KEPT = 2  # checkpoints to resume from, by default; one more while it is written
STORED = 2  # bytes of a converted value, in bf16
TRAINED = 4  # bytes of a trained value, in fp32, as of each of Adam's two moments
MOMENT_BLOCK = 256  # values of an 8-bit moment that share a scale of four bytes


class Disk(Frozen):
    """Bytes on disk, by what they are."""

    download_bytes: int = Field(description="the published checkpoints' weights; 0: not needed")
    sources: tuple[str, ...] = Field((), description="what is downloaded")
    converted_bytes: int = Field(description="the folder of lisa-train convert")
    picture_bytes: int = Field(description="one picture's features")
    cache_bytes: int = Field(description="features of all pictures")
    run_bytes: int = Field(description="checkpoints, one of them on its way, and the best")
    total_bytes: int


def disk_of(plan: Plan, counts: DataCounts = REASON_SEG) -> Disk:
    """What the plan takes on disk from the download to the last checkpoint."""
    profile = plan.profile
    missing = plan.weights == "default" and not profile.packaged  # else there, or made up
    download = round(profile.download_gb * 1e9) if missing else 0
    converted = STORED * profile.values if missing else 0
    picture = sum(profile.encoders[name].cached_bytes for name in plan.cached_encoders)
    cache = (counts.train_pictures + counts.val_pictures) * picture
    run = run_bytes(plan)
    return Disk(
        download_bytes=download,
        sources=profile.sources if missing else (),
        converted_bytes=converted,
        picture_bytes=picture,
        cache_bytes=cache,
        run_bytes=run,
        total_bytes=download + converted + cache + run,
    )


def run_bytes(plan: Plan, kept: int = KEPT) -> int:
    """Bytes of the run folder's checkpoints; those to resume from also hold Adam's moments."""
    values = trained_values(plan)
    moment = TRAINED if plan.optimizer_state == "fp32" else 1 + TRAINED / MOMENT_BLOCK
    best = TRAINED * values
    return round(best + (kept + 1) * values * (TRAINED + 2 * moment))
