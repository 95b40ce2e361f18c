"""A plan's settings: every field with its limits and its description."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from profiles.families import ModelProfile
from profiles.pictures import LARGEST, LEAST, limits_for, profile_of
from profiles.settings import (
    EFFECTIVE_BATCH,
    LONG_ANSWERS,
    MOST,
    MOST_PROCESSES,
    MOST_QUESTIONS,
    SEVERAL_MASKS,
    TARGETS_PER_PICTURE,
    Dtype,
    Encoder,
    Lora,
    Mixture,
    Quantization,
    Schedule,
    Settings,
    TokenLimits,
    TrainedPart,
)  # fmt: skip


class PlanSettings(Settings):
    """The fields of a Plan, each valid by itself; a Plan's can run together."""

    schema_version: Literal[2] = Field(2, description="version of this schema")
    model: str = Field(
        "tiny", description="size, a name in models.toml, such as tiny, 7b or qwen3-vl-4b"
    )
    weights: str = Field(
        "default",
        description="'default' (packaged or the published source), 'random' (true shapes, random "
        "values) or a folder of safetensors in this project's layout",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the training step runs")
    processes: int = Field(
        1,
        ge=1,
        le=MOST_PROCESSES,
        description="data-parallel processes over all machines, one per GPU",
    )
    nodes: int = Field(
        1,
        ge=1,
        le=MOST_PROCESSES,
        description="machines, each with an equal share of the processes",
    )
    quantization: Quantization = Field(
        "nf4",
        description="storage of the decoder's frozen linears: nf4 with double quantisation, int8 "
        "with a scale a row, or none",
    )
    dtype: Dtype = Field("bf16", description="compute dtype of frozen weights and activations")
    products: Literal["dtype", "fp8"] = Field(
        "dtype",
        description="arithmetic of the decoder's frozen linears: in dtype, or in FP8 (e4m3, a "
        "scale a row), which is faster from compute capability 8.9 on and rounds more",
    )
    lora: Lora | None = Field(Lora(), description="adapters on the decoder, or none")
    train: tuple[TrainedPart, ...] = Field(
        ("mask_decoder", "text_hidden_fcs", "token_rows"),
        description="trained parts beside LoRA: mask_decoder, text_hidden_fcs, projector, "
        "token_rows (rows of the new tokens in embedding and head), head (the whole output "
        "projection), embeddings (embedding and head, both whole)",
    )
    effective_batch: int = Field(
        EFFECTIVE_BATCH, ge=1, le=MOST, description="questions per optimizer step"
    )
    questions_per_picture: int = Field(
        1, ge=1, le=MOST_QUESTIONS, description="questions in a row, at most: system prompt and "
        "picture are computed once, and no question sees another",
    )  # fmt: skip
    micro_batch: int = Field(
        2, ge=1, le=MOST, description="rows, one picture each, per forward pass and process"
    )
    accumulation: int = Field(
        10, ge=1, le=MOST, description="forward passes per optimizer step, if all rows are full"
    )
    checkpointed_layers: int = Field(
        0, ge=0, description="decoder layers whose activations are recomputed, 0 … all"
    )
    cached_encoders: tuple[Encoder, ...] = Field(
        ("mask", "vision"),
        description="frozen encoders whose features are read from disk: vision (for the "
        "language model), mask (for the mask decoder)",
    )
    host_embeddings: bool = Field(
        False,
        description="embedding table and head stay in host memory: looked up there, the head "
        "streamed in chunks",
    )
    host_layers: int = Field(
        0,
        ge=0,
        description="checkpointed decoder layers whose frozen weights stay in host memory and are "
        "copied to the card one layer ahead, 0 … checkpointed_layers",
    )
    compile: bool = Field(
        False, description="compile decoder layers with torch.compile (needs Triton on the GPU)"
    )
    logits: Literal["supervised", "all"] = Field(
        "supervised", description="positions at which the head is computed in training"
    )
    mask_loss_resolution: int = Field(
        256, ge=32, le=2048, description="side of the mask loss in the mask decoder's frame, pixels"
    )
    min_pixels: int | None = Field(
        None, ge=LEAST, le=LARGEST,
        description="pixels to which smaller pictures are enlarged for the language model; "
        "null: the model sees all pictures at one size",
    )  # fmt: skip
    max_pixels: int | None = Field(
        None, ge=LEAST, le=LARGEST,
        description="pixels to which larger pictures are shrunk for the language model; "
        "null: the model sees all pictures at one size",
    )  # fmt: skip
    optimizer: Literal["adamw", "paged_adamw"] = Field(
        "adamw",
        description="AdamW, or AdamW whose moments move to host memory where the card is full",
    )
    optimizer_state: Literal["fp32", "8bit"] = Field(
        "fp32", description="precision of Adam's two moments"
    )
    schedule: Schedule = Field(Schedule(), description="learning rate and epochs")
    tokens: TokenLimits = Field(TokenLimits(), description="limits of one sample")
    mixture: Mixture = Field(Mixture(), description="data sets to train on, and their rates")
    allocator: str = Field(
        "expandable_segments:True", description="PyTorch's CUDA allocator settings; '' for none"
    )
    workers: int = Field(0, ge=0, le=64, description="data-loading processes per training process")
    seed: int = Field(0, ge=0, le=2**64 - 1, description="seed of weights, data order and dropout")
    max_train_samples: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="first n training samples (of a mixture: of each data set)",
    )
    max_val_samples: int | None = Field(
        None, ge=1, le=MOST, description="first n validation samples"
    )

    def __hash__(self) -> int:
        # What the plans of a choice differ in: all fields would be a twentieth of its time.
        layers = self.checkpointed_layers, self.host_layers
        batch = self.micro_batch, self.questions_per_picture, self.processes
        moved = self.quantization, self.host_embeddings, self.compile
        return hash((self.model, self.max_pixels, *layers, *batch, *moved))

    @property
    def most_masks(self) -> int:
        """[SEG] tokens that a training sample holds at most."""
        if self.questions_per_picture > 1:
            return self.questions_per_picture
        several = self.mixture.draws(SEVERAL_MASKS)
        return min(TARGETS_PER_PICTURE if several else 1, self.tokens.max_masks)

    @property
    def local_processes(self) -> int:
        """Processes of each machine."""
        return self.processes // self.nodes

    @property
    def most_answer_tokens(self) -> int | None:
        """Supervised tokens of a training sample at most; None: some five for each mask."""
        return self.tokens.max_text_tokens if self.mixture.draws(LONG_ANSWERS) else None

    @property
    def profile(self) -> ModelProfile:
        """Shapes of the plan's model, looking at pictures as the plan says."""
        return profile_of(self)

    def with_pictures_of(self, image_tokens: int | None) -> Self:
        """The plan for pictures of at most `image_tokens`, as many as the data's largest takes."""
        limits = limits_for(self, image_tokens)
        return self.model_copy(update=limits) if limits else self
