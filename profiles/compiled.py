"""What compiled decoder layers take less of the card than plain ones, read off measured steps.

Rows: benchmarks/lean.jsonl (speed-compiled-*, qwen-*) and lattice_measured.jsonl (from draw-120
on); inductor's own code for a layer says why (docs/decisions.md). Figures are bytes of a position.
"""

from __future__ import annotations

from profiles.families import DecoderShape
from profiles.plan import Plan
from profiles.settings import Lora


def saved_bytes(plan: Plan) -> tuple[int, int]:
    """What all layers of a compiled plan save, after the forward pass and at the backward's peak.

    The second is below zero where a layer that is recomputed takes more than a plain one.
    """
    decoder, lora = plan.profile.decoder, plan.lora
    kept = decoder.layers - plan.checkpointed_layers
    each = _fused(decoder, True) + _undropped(decoder, lora)
    if kept > 1 or not plan.checkpointed_layers:
        return kept * each, kept * each
    once = _recomputed(decoder, lora)
    return kept * each, min(each, once) if kept else once


def _fused(decoder: DecoderShape, kept: bool) -> int:
    """What a layer saves whatever its adapters are, as measured with adapters on q and v.

    Fused, it keeps neither the product of its gate nor a widened input of a norm: [I] in bf16 and
    [H] in fp32. Where heads are normed, the normed keys are not kept either, and of the queries one
    copy in bf16; a layer while it is recomputed has no widened queries.
    """
    saved = 2 * decoder.intermediate + 4 * decoder.hidden
    if decoder.normed_heads:
        saved += (2 if kept else 4) * decoder.query_channels + 2 * decoder.key_channels
    return saved


def _recomputed(decoder: DecoderShape, lora: Lora | None) -> int:
    """What a layer saves while it is recomputed, in one graph with its backward pass.

    There dropout's random numbers stay, 4 bytes of each input where a plain layer has a mask of
    one; `_fused` counts those of q and v. With adapters on the MLP a product of it stays as well.
    """
    saved = _fused(decoder, False)
    if lora is None:
        return saved
    drawn = [3 * inputs for inputs, _ in decoder.adapted(lora)]
    saved -= sum(drawn[2:]) if lora.dropout else -sum(drawn[:2])
    if lora.targets == "all-linear":
        saved -= 2 * (decoder.intermediate - decoder.hidden)
        if not lora.dropout:  # seen in three storages (draw-147, -150, -169); why is not known
            saved -= 4 * decoder.intermediate
    return saved + _undropped(decoder, lora)


def _undropped(decoder: DecoderShape, lora: Lora | None) -> int:
    """What is saved without dropout: no mask and no copy of an input, but one for all that read it.

    Plain layers make both at probability 0, too. Attention keeps the input of o anyway.
    """
    if lora is None or lora.dropout:
        return 0
    saved = sum(3 * inputs for inputs, _ in decoder.adapted(lora)) - 2 * decoder.hidden
    if lora.targets == "all-linear":
        saved -= 2 * (decoder.hidden + decoder.intermediate)
    return saved
