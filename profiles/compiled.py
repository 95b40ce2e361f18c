"""What compiled decoder layers take less of the card than plain ones, read off measured steps.

Rows: benchmarks/lean.jsonl (speed-compiled-*, qwen-*) and lattice_measured.jsonl (from draw-120
on); inductor's own code for a layer says why (docs/decisions.md). Figures are bytes of a position.
"""

from __future__ import annotations

from profiles.families import DecoderShape
from profiles.plan import Plan
from profiles.settings import Lora


def saved_bytes(plan: Plan) -> tuple[int, int]:
    """Bytes a position that compiling saves over all layers: (kept activations, backward's peak).

    The second is negative where a recomputed layer takes more compiled than plain.
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

    A fused layer does not keep its gate's product ([I] in bf16) or a norm's input in fp32 ([H]).
    Where heads are normed, it does not keep the normed keys, nor one bf16 copy of the queries.
    While it is recomputed, it has no fp32 copy of the queries either.
    """
    saved = 2 * decoder.intermediate + 4 * decoder.hidden
    if decoder.normed_heads:
        saved += (2 if kept else 4) * decoder.query_channels + 2 * decoder.key_channels
    return saved


def _recomputed(decoder: DecoderShape, lora: Lora | None) -> int:
    """What a layer saves while it is recomputed, in one graph with its backward pass.

    That graph keeps dropout's random numbers: 4 bytes a value, where a plain layer keeps a mask of
    1 byte; `_fused` counts them for q and v. With adapters on the MLP it also keeps a product.
    """
    saved = _fused(decoder, False)
    if lora is None:
        return saved
    drawn = [3 * inputs for inputs, _ in decoder.adapted(lora)]
    saved -= sum(drawn[2:]) if lora.dropout else -sum(drawn[:2])
    if lora.targets == "all-linear":
        saved -= 2 * (decoder.intermediate - decoder.hidden)
        if not lora.dropout:  # seen in three storages (draw-147, -150, -169), cause unknown
            saved -= 4 * decoder.intermediate
    return saved + _undropped(decoder, lora)


def _undropped(decoder: DecoderShape, lora: Lora | None) -> int:
    """What a layer saves without dropout: masks, and an input's copies, as its readers share one.

    Plain layers make masks and copies even at probability 0. Attention keeps o's input anyway.
    """
    if lora is None or lora.dropout:
        return 0
    saved = sum(3 * inputs for inputs, _ in decoder.adapted(lora)) - 2 * decoder.hidden
    if lora.targets == "all-linear":
        saved -= 2 * (decoder.hidden + decoder.intermediate)
    return saved
