"""Greedy answers: a row of questions is read at once, then a token of each question a step.

Shapes: n questions that go on, T tokens of the row, S slots for keys and values, H hidden channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from profiles.families import MASK
from trainer.batch import Batch
from trainer.model.layers.decoder import KeyValues, added_to_scores, seen_by
from trainer.model.layers.replayed import Replayed
from trainer.model.segmentation_model import SegmentationModel


def not_stopped() -> bool:
    """Somebody always waits."""
    return False


@dataclass
class Said:
    """An answer: its tokens, mask logits [L, L] of each [SEG], and whether it came to an end."""

    tokens: list[int] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    ended: bool = False


class Answering:
    """A model, room for the keys and values of a row and its answers, and how a step is run.

    It may be used again for other rows: `past.forget` says how much of the next one is known.
    """

    def __init__(self, model: SegmentationModel, most: int) -> None:
        self.model, self.past = model, KeyValues(most)
        # Weights of host layers are copied beside the arithmetic, by events of their own.
        on_card = next(model.decoder.norm.parameters()).is_cuda  # type: ignore[union-attr]
        self.replayed = Replayed(on_card and model.host_layers is None)

    @torch.no_grad()
    def answers(
        self, batch: Batch, most: int, end_id: int, stopped: Callable[[], bool] = not_stopped
    ) -> list[Said]:
        """Of every question of ONE row, at most `most` tokens; not ended where the room was.

        `stopped` is asked at each token; then none has ended that had not.
        """
        model = self.model
        image = model.features(MASK, batch)
        # The state of [SEG] itself comes with the token behind it, which may be one too many.
        behind = int(model.prompting.at_seg)
        found = [Said() for _ in _ends(batch)]
        going = list(range(len(found)))
        for tokens, states in self.greedy(batch, going):
            if stopped():
                break
            values = zip([*going], tokens.tolist(), states.split(1), strict=True)
            for number, token, state in values:
                said = found[number]
                said.tokens.append(token)
                count = len(said.tokens)
                if model.seg_token_id in said.tokens[count - 1 - behind : count - behind]:
                    said.masks.append(model.masks_of(model.prompts_of(state), image)[0].float())
                if token == end_id or count == most + behind:
                    said.tokens, said.ended = said.tokens[:most], True
                    going.remove(number)
        return found

    @torch.no_grad()
    def greedy(self, batch: Batch, going: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """The likeliest next token [n] of each question in `going` (0 is the first of the row) and
        the states [n, H] that predict them, again and again.

        The caller removes questions that have ended from `going`. It also ends when room runs out.
        """
        model, past = self.model, self.past
        head = model.computed(model.head)
        ends = _ends(batch)
        start, past.slots = past.length, None
        states = model.read(batch, lambda index: past.run_layer, start)[0]
        states = states[[ends[number][0] - start for number in going]]
        past.length = batch.input_ids.shape[1]
        later = _Later(batch, past.most, going, [ends[number][1] + 1 for number in going])
        while True:
            tokens = head(model.for_head(states)).argmax(-1)
            asked = [*going]
            yield tokens, states
            if not going or past.length + len(going) > past.most:
                return
            if going != asked:
                left = [asked.index(number) for number in going]
                tokens = tokens[left]
                later.keep(left)
            states = self._step(batch, tokens, later)

    def _step(self, batch: Batch, tokens: Tensor, later: _Later) -> Tensor:
        """The states [n, H] of the questions' next tokens [n]."""
        model, past = self.model, self.past
        first, past.length = past.length, past.length + len(tokens)
        hidden = model.embedding(tokens[None]).to(model.dtype)
        visible, places = later.step(first)
        mask = added_to_scores(visible[:, None], model.dtype)
        positions = torch.cat([model.positions(batch, place, 1) for place in places], -1)
        rope = model.decoder.rotary_emb(hidden, positions)  # type: ignore[operator]
        slots = torch.arange(first, past.length, device=tokens.device)
        run = self.replayed if len(tokens) == 1 else _plainly
        return run(self._through, hidden, *rope, mask, slots)[0]

    def _through(
        self, hidden: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor, slots: Tensor
    ) -> Tensor:
        """States [1, n, H] of tokens' embeddings, whose keys and values go into `slots` [n]."""
        past = self.past
        past.slots = slots
        rope = cosine, sine
        return self.model.through_layers(hidden, rope, mask, lambda index: past.run_layer, {})


class _Later:
    """The questions still being answered, and where their next tokens go: slots and positions."""

    def __init__(self, batch: Batch, slots: int, going: list[int], places: list[int]) -> None:
        ids = batch.input_ids
        self.owners = ids.new_full((1, slots), -1)  # 0: the prefix, n: the n-th question
        self.owners[:, : ids.shape[1]] = 0 if batch.blocks is None else batch.blocks
        self.own = torch.tensor([[number + 1 for number in going]], device=ids.device)
        self.places = places

    def keep(self, numbers: list[int]) -> None:
        """Continue with these questions only."""
        self.own, self.places = self.own[:, numbers], [self.places[n] for n in numbers]

    def step(self, first: int) -> tuple[Tensor, list[int]]:
        """One more token of each, in the slots from `first` on: what they see, their places."""
        self.owners[:, first : first + len(self.places)] = self.own
        places, self.places = self.places, [place + 1 for place in self.places]
        return seen_by(self.own, self.owners), places


def _plainly(run: object, *given: Tensor) -> Tensor:
    result: Tensor = run(*given)  # type: ignore[operator]
    return result


def _ends(batch: Batch) -> list[tuple[int, int]]:
    """The last token of each question of ONE row: its number in the row and in its own row."""
    if batch.blocks is None or batch.places is None:
        last = batch.input_ids.shape[1] - 1
        return [(last, last)]
    blocks, places = batch.blocks[0].tolist(), batch.places[0].tolist()
    last_of = {block: slot for slot, block in enumerate(blocks)}
    return [(slot, places[slot]) for block, slot in sorted(last_of.items()) if block]
