"""What a rehearsal of the training step found; the JSON that its child process prints."""

from __future__ import annotations

from pydantic import Field

from profiles.plan import Plan
from profiles.records import Frozen
from profiles.tested import Verdict


class DataCounts(Frozen):
    """How much there is to train on and to evaluate with."""

    train_pictures: int = Field(description="different ones that a training looks at")
    val_pictures: int
    epoch_questions: int = Field(description="asked in an epoch")
    val_questions: int
    row_tokens: float | None = Field(None, description="of a training row, picture and text; mean")

    @property
    def most_questions(self) -> int:
        """Most questions that a picture has, if all pictures have about as many."""
        return max(1, -(-self.epoch_questions // max(1, self.train_pictures)))


class Measurement(Frozen):
    """Bytes (and, on a GPU, seconds) of a Plan's training step."""

    plan: Plan
    verdict: Verdict = Field(description="FITS or OOM on this GPU; UNKNOWN without one")
    error: str = Field("", description="the allocator's message after an OOM, with its phase")
    gpu: str = Field(description="name of the card")
    gpu_bytes: int = Field(description="its memory")
    cap_bytes: int | None = Field(None, description="limit put on the process's tensors")
    text_tokens: tuple[int, int] = Field(description="least and most text tokens of a sample")
    image_tokens: int | None = Field(
        None, description="of every picture; null: the model's or the plan's most"
    )
    masks: int = Field(description="[SEG] tokens of a sample")
    answer_tokens: int | None = Field(
        None, description="supervised tokens of a sample; null: five for each mask"
    )
    data: DataCounts | None = Field(None, description="of the data set that was looked through")
    steps: int = Field(0, description="optimizer steps done after warming up")
    load_peak_bytes: int | None = Field(None, description="tensors, while the model was built")
    static_bytes: int | None = Field(None, description="tensors that stay between two steps")
    peak_allocated_bytes: int | None = Field(None, description="tensors, over the steps")
    peak_reserved_bytes: int | None = Field(None, description="allocator pool, over the steps")
    process_bytes: int | None = Field(None, description="what NVML says the process took")
    host_bytes: int | None = Field(
        None, description="peak resident set; of a fake rehearsal, tensors in host memory"
    )
    phases: dict[str, int] = Field(
        default_factory=dict, description="most tensor bytes in each phase after loading"
    )
    live_at_peak: dict[str, int] = Field(
        default_factory=dict, description="bytes by component at the peak (fake rehearsals)"
    )
    assumed: tuple[str, ...] = Field((), description="what fake tensors do not show, as added")
    load_seconds: float | None = None
    step_seconds: float | None = Field(None, description="median of an optimizer step")
    samples_per_second: float | None = None
    model_flops_utilisation: float | None = Field(
        None, description="forward and input-gradient products, nothing recomputed, of the peak"
    )
    first_loss: float | None = None
    last_loss: float | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    random_weights: bool = Field(description="true shapes, random values")


class Timeline(Frozen):
    """Bytes of tensors over one training step, by component (from a fake rehearsal)."""

    plan: Plan
    parts: dict[str, list[int]] = Field(description="bytes of each component at each moment")
    phases: tuple[tuple[int, str], ...] = Field(description="(first moment, name)")

    def live_at_peak(self) -> dict[str, int]:
        """Bytes of each component at the moment when all together take the most."""
        totals = [sum(sizes) for sizes in zip(*self.parts.values(), strict=True)]
        place = totals.index(max(totals))
        return {name: sizes[place] for name, sizes in self.parts.items() if sizes[place]}
