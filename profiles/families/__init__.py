"""The sizes of every model family, without torch.

A family is `profiles/families/<name>.py`, whose `Profile` reads a row of models.toml, and
`trainer/model/families/<name>/`, which computes. Nothing else names a family.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import ClassVar, Literal

from profiles.records import Frozen
from profiles.settings import Encoder, Lora, TrainedPart

# The names that plans have for the two frozen encoders: what the language model sees, and what the
# mask decoder sees.
VISION: Encoder = "vision"
MASK: Encoder = "mask"
FEATURE_BYTES = 2  # of one cached value
Shapes = dict[str, tuple[int, ...]]
VOCABULARIES = {"LLaMA": 32_000, "Qwen3": 151_669}  # tokens of those in profiles/vocabularies/


class DecoderShape(Frozen):
    """Sizes of the language model: `hidden` and `intermediate` in channels; the norms' epsilon."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    key_heads: int | None = None  # of keys and values; None: the same number as of queries
    head_channels: int | None = None  # None: hidden / heads
    tied_head: bool = False  # the head's matrix is the embedding table
    normed_heads: bool = False  # queries and keys are normed, head by head
    norm_eps: float = 1e-5

    @cached_property
    def query_channels(self) -> int:
        """Channels of the queries of a position, and of what attention returns."""
        return self.heads * (self.head_channels or self.hidden // self.heads)

    @cached_property
    def key_channels(self) -> int:
        """Channels of the keys of a position, and of the values."""
        return self.query_channels * (self.key_heads or self.heads) // self.heads

    @cached_property
    def layer_weights(self) -> int:
        """Weights of one layer's seven linears: q, k, v, o, and the three of the gated MLP."""
        attention = 2 * self.hidden * (self.query_channels + self.key_channels)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def linear_outputs(self) -> int:
        """Channels that one layer's seven linears return, together."""
        return self.query_channels + 2 * (self.key_channels + self.hidden + self.intermediate)

    def linear_flops(self, tokens: int) -> int:
        """Products of one layer's linears, forward: 2 operations a weight and token."""
        return 2 * tokens * self.layer_weights

    def attention_flops(self, tokens: int) -> int:
        """Attention's two products in one layer for one sample: causal, half of 4·T²·channels."""
        return 2 * tokens**2 * self.query_channels

    def adapted(self, lora: Lora) -> list[tuple[int, int]]:
        """Channels into and out of each linear of one layer that has an adapter."""
        hidden, query, key = self.hidden, self.query_channels, self.key_channels
        found = [(hidden, query), (hidden, key)]  # q and v
        if lora.targets != "qv":
            found += [(hidden, key), (query, hidden)]  # k and o
        if lora.targets == "all-linear":
            found += [(hidden, self.intermediate)] * 2 + [(self.intermediate, hidden)]
        return found

    def adapter_values(self, lora: Lora) -> int:
        """Values of the adapters on all layers: r for each channel into and out of a linear."""
        return self.layers * lora.rank * sum(map(sum, self.adapted(lora)))

    def adapter_bytes(self, lora: Lora) -> int:
        """Bytes that the adapters of one layer keep of one position for the backward pass, at most.

        Of each linear: the input after dropout in bf16, dropout's mask, and rank values more than
        once. Read off forecasts (docs/decisions.md).
        """
        linears = self.adapted(lora)
        return sum(3 * inputs for inputs, _ in linears) + 24 * lora.rank * len(linears)

    def moved_values(self, tokens: int) -> int:
        """Values that the element-wise work of one layer writes, forward."""
        attention = 2 * (self.query_channels + self.key_channels)
        return tokens * (4 * self.hidden + attention + 3 * self.intermediate)


class Prompting(Frozen):
    """How a [SEG] prompts the mask decoder. By default as in LISA (arXiv:2308.00692)."""

    at_seg: bool = False  # by the state of [SEG] itself; else by the one that predicts it
    before_norm: bool = False  # by the state before the language model's last norm
    stretched: bool = False  # pictures, into the square frame; else shrunk and padded
    masks: Literal[1, 3] = 1  # candidates: the one that the mask decoder scores highest is taken
    padding_points: int = 0  # prompt tokens before the state's own


@dataclass(frozen=True)
class EncoderFacts:
    """A frozen encoder: its input for the largest picture, and the features that are cached."""

    name: str  # in the names of cache folders
    sizes: str  # JSON: two encoders of equal sizes and weights make equal features
    pixels: Shapes  # fp32; several pictures' are joined along the first axis
    features: Shapes  # in the plan's dtype; likewise
    flops: float  # of one picture, forward
    caching_bytes: int  # of the allocator's pool while it encodes pictures for the cache; measured
    numbers: Shapes = field(default_factory=dict)  # whole numbers that go with both, as a row
    blocks: int = 0  # whose kernels the CPU launches one by one
    moved_bytes: float = 0.0  # by element-wise work and attention's scores of one picture

    @property
    def pixel_values(self) -> int:
        """Values in the encoder's input for one picture."""
        return sum(map(prod, self.pixels.values()))

    @property
    def cached_bytes(self) -> int:
        """Bytes that one picture takes in the feature cache."""
        return FEATURE_BYTES * sum(map(prod, self.features.values()))


class ModelProfile(Frozen):
    """One size of a family."""

    tokens_vary: ClassVar[bool] = False  # with the picture's size
    reserved: ClassVar[tuple[str, ...]] = ()  # tokens that mean something to the model
    vocabulary: ClassVar[str] = ""  # the language model's, if it is one of VOCABULARIES
    code_bytes: ClassVar[int] = 0  # resident in host memory, beyond what every run takes
    has_projector: ClassVar[bool] = True  # a part of its own between vision and language model
    new_tokens: ClassVar[int] = 1  # whose rows `token_rows` trains

    name: str
    title: str
    family: str
    vocabulary_rows: int
    decoder: DecoderShape
    prompting: Prompting = Prompting()
    min_pixels: int | None = None  # of a picture, where its tokens vary: a smaller one is enlarged
    max_pixels: int | None = None  # a larger one is shrunk
    values: int = 0  # of all tensors of its folder
    download_gb: float = 0.0  # of the sources' weights, in 1e9 bytes
    sources: tuple[str, ...]
    start: str = ""  # why to start from it: what was published of it, and its licence

    def __hash__(self) -> int:
        return hash(self.name)  # all fields: a tenth of a choice's time

    @cached_property  # a choice asks a thousand times; `model_copy` would copy what is kept
    @abstractmethod
    def encoders(self) -> dict[Encoder, EncoderFacts]:
        """The frozen encoders by the name that plans have for them."""

    @property
    @abstractmethod
    def frame_pixels(self) -> int:
        """Side of the mask decoder's square frame."""

    @property
    @abstractmethod
    def most_image_tokens(self) -> int:
        """Positions that the largest picture takes in the decoder."""

    @property
    def own_parts(self) -> dict[TrainedPart, int]:
        """Values of those trained parts whose shapes are the family's."""
        return {}

    def part_values(self, part: TrainedPart) -> int:
        """Trained values of a part."""
        matrices = 1 if self.decoder.tied_head else 2  # embedding and head
        rows = self.vocabulary_rows
        shared: dict[TrainedPart, int] = {
            "token_rows": matrices * self.new_tokens * self.decoder.hidden,
            "head": rows * self.decoder.hidden,
            "embeddings": matrices * rows * self.decoder.hidden,
        }
        return (shared | self.own_parts)[part]

    def image_tokens(self, height: int, width: int) -> int:
        """Positions of a picture of that size in pixels."""
        del height, width
        return self.most_image_tokens

    def needs_no_more(self, other: ModelProfile) -> bool:
        """Whether this model is sure to take no more memory than `other`."""
        return self.name == other.name

    @property
    def packaged(self) -> bool:
        """Whether the weights come with this package."""
        return self.sources == ("packaged",)

    @property
    def shipped_vocabulary(self) -> str:
        """The one of VOCABULARIES that counts text without weights; empty: lisa-tiny's."""
        known = VOCABULARIES.get(self.vocabulary, self.vocabulary_rows + 1)
        return self.vocabulary if known <= self.vocabulary_rows else ""

    @property
    def counts(self) -> str:
        """What counts text where the weights, and so the model's own tokenizer, are missing."""
        shipped = self.shipped_vocabulary
        return f"{shipped}'s vocabulary, shipped" if shipped else "lisa-tiny's tokenizer"

    @property
    def conversion(self) -> str:
        """The command that makes this model's folder from its sources on the hub."""
        return f"lisa-train convert {' '.join(self.sources)} FOLDER --model {self.name}"
