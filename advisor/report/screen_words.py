"""The words of the first screen: verdicts, rows, and what their figures are made of."""

from __future__ import annotations

VERDICTS = {
    "FITS": "The plan's pool stays below what is usable, and its host memory below what may be "
    "taken.",
    "TIGHT": "The plan fits only by using up the margin. It can be trained; an out-of-memory error "
    "is likelier.",
    "SPILLS": "It does not fit, and the driver (Windows, WSL) would move tensors to host memory "
    "instead of failing: steps become very slow.",
    "OOM": "It does not fit: training would run out of memory.",
    "UNKNOWN": "Nothing is known that could decide.",
}

ROWS = {
    "card": "A card's name that several cards have: which is assumed, and how to name the others.",
    "plan": "All settings of one training run, in short: how the base weights are stored, the "
    "adapters, what is recomputed or kept in host memory, and how a step is divided. A pass is one "
    "forward and backward pass of a micro-batch.",
    "memory": "The card's pool at its peak as a bar: what the plan fills, what stays free, the "
    "limit of what is usable, and what context and margin take beyond it.",
    "base": "The frozen weights of the language model; bf16 as published, int8 and nf4 rounded.",
    "weights": "In the memory bar: frozen weights and encoders.",
    "trained": "In the memory bar: adapters and all other trained numbers, with their gradients "
    "and the optimizer's state.",
    "activations": "In the memory bar: all else in the pool at the peak of a step: activations "
    "kept, transient memory, workspaces, and gaps of the pool.",
    "caching": "Building the feature cache, before the model loads: an encoder, its activations, "
    "and gaps of the pool. On small cards this takes more than a step and decides what fits; then "
    "it is the whole memory bar.",
    "interpolated": "A figure between shipped forecasts of similar plans, which is never below the "
    "true peak. lisa-advise check counts the very plan instead: that figure is exact, and the same "
    "or a little lower.",
    "exact": "Counted: a forecast of the very plan, as lisa-advise check, forecast, --plot and "
    "report make it.",
    "forecast": "Counted without a GPU, by a training step on tensors that have shapes alone.",
    "tested": "What a row of lisa-advise table took that needed no less than the plan.",
    "measured": "What this GPU took in a trial (--measure).",
    "policy": "A number that we chose, such as a margin.",
    "time": "The whole training on that card, with a range in brackets, and what it is spent on; "
    "for ReasonSeg's size without --data-dir. Its steps have as many questions a picture as the "
    "data do: a rate of questions a second for pictures with more questions is higher.",
    "start": "Libraries and model, and compiling layers.",
    "features": "What the frozen encoders make of each picture. They are computed once and read "
    "from disk afterwards: the time to build them, and the room they take.",
    "training": "All steps of all epochs.",
    "evaluation": "Scoring before training and after each epoch, with the checkpoints.",
    "cards": "The same training on one card and on more.",
    "disk": "What a training takes of disk, from the download to the last checkpoint.",
    "download": "The published checkpoints, in the hub's cache.",
    "converted": "The folder that lisa-train convert writes.",
    "run folder": "Checkpoints, adapters and records of a run.",
    "speed": "Questions a second; as the name of another plan: the fastest one that fits.",
    "precision": "Another plan: base weights as published come first, then all on the card.",
    "headroom": "Another plan: all on the card comes first, then the least memory.",
    "prefer": "The order in which plans are preferred (--prefer; docs/advice.md).",
    "on a larger card": "'on 16 GiB': the next better plan, and the smallest usual card for it.",
    "note": "What you should know or fix; after -> how.",
    "more": "What else lisa-advise prints.",
}
