"""The words of the first screen: verdicts, rows, and what their figures are made of."""

from __future__ import annotations

VERDICTS = {
    "FITS": "The plan's pool stays below the usable memory of the card, and its host memory below "
    "its own limit.",
    "TIGHT": "The plan fits only if it uses the margin. It can be trained, but may run out of "
    "memory.",
    "SPILLS": "It does not fit, and the driver (Windows, WSL) would move tensors to host memory "
    "instead of failing: steps become very slow.",
    "OOM": "It does not fit: training would run out of memory.",
    "UNKNOWN": "There is neither a forecast nor a measurement to decide by.",
}

# Words of the row "plan", and of the rows that compare it with other plans.
PLAN_WORDS = {
    "base": "The frozen weights of the language model: bf16 or fp16 as published, int8 and nf4 "
    "rounded.",
    "bf16": "Two bytes a number, with the range of fp32 and 8 bits of precision. Weights are "
    "published so; cards from compute capability 8.0 on compute in it.",
    "fp16": "Two bytes a number, for cards without bf16: a scaler keeps gradients in its range.",
    "fp32": "Four bytes a number: what is trained, and all of lisa-tiny on a CPU.",
    "int8": "Frozen weights rounded to one byte each, with a scale for each row.",
    "nf4": "Frozen weights rounded to 4 bits each, with a scale for each block (QLoRA's "
    "NormalFloat).",
    "LoRA": "Adapters of low rank beside frozen linears; they are trained instead of the weights.",
    "r": "LoRA's rank: a larger one trains more numbers. lora.rank sets it.",
    "q,v": "The linears that have adapters: those of attention's queries and values. "
    "lora.targets=all-linear adapts every linear of the language model.",
    "all-linear": "Adapters on every linear of the language model (lora.targets).",
    "compiled": "Layers are fused by torch.compile: faster and smaller, after a start of some "
    "minutes at most. Needs Triton and a C compiler.",
    "checkpointed": "'2 of 36 layers checkpointed': these layers keep only their input and are "
    "computed again in the backward pass (gradient checkpointing): slower, with less memory.",
    "in host memory": "'20 layers in host memory', or 'on the host': frozen layers that lie in the "
    "machine's memory and are copied to the card when it is their turn; embeddings are looked up "
    "there, and the output head is copied in chunks.",
    "embeddings": "The table that turns tokens into vectors, and the output head.",
    "step": "One update of the trained numbers; 'questions a step' is how many it learns from "
    "(effective_batch).",
    "question": "One sample: a question about a picture, with the mask that answers it.",
    "picture": "Questions about one picture are computed together, up to questions_per_picture, "
    "so a step has fewer pictures than questions where pictures have several.",
    "at a time": "Pictures of one forward and backward pass, the micro-batch. A smaller one takes "
    "less memory, but a step then has more passes.",
    "pass": "One forward and backward pass of a micro-batch.",
    "micro-batch": "Pictures that are computed at once: 'at a time' in a plan.",
    "b": "'b2' in docs/cards.md: a micro-batch of 2.",
    "kept": "'2 kept' in docs/cards.md: layers whose activations are kept for the backward pass; "
    "the others are checkpointed.",
    "processes": "One for each card; they divide the pictures of a step.",
    "text tokens": "Pieces of words, as the model reads them; a picture's tokens are not included.",
}

# Of scores and data that rows quote.
SCORE_WORDS = {
    "epoch": "One training pass over all questions of the training split.",
    "ReasonSeg": "The published data set of questions that need reasoning: 239 pictures to train.",
    "RefCOCO": "Published questions that name a thing in a picture. The score is that of the "
    "released model on its validation split, as published.",
    "IoU": "Pixels in both the predicted and the true mask, divided by those in at least one.",
    "gIoU": "The mean of all questions' IoU.",
    "cIoU": "Pixels in both masks, summed over all questions, divided by the sum of those in at "
    "least one: large things count more.",
    "GiB": "1024 x 1024 x 1024 bytes. A card sold with 8 GB has 8 GiB.",
    "FP8": "Products of frozen weights in one byte a number: faster, and rounded. "
    "--set products=fp8 asks for it (docs/fp8.md).",
}

ROWS = {
    "batch": "The questions of a step (effective_batch). The first screen has this row if so many "
    "cards cannot share the usual 20, with the next number that they can share. Learning rates "
    "stay as they are.",
    "card": "If the name fits several cards, or the size may be GB or GiB: which one is assumed, "
    "and what to type for the others.",
    "data": "What to know about your data: for example that there are few pictures, or that "
    "another plan is better for one question a picture.",
    "model": "The advised model, and why; --model names another.",
    "plan": "All settings of one training run, in short: how the base weights are stored, the "
    "adapters, what is recomputed or kept in host memory, and how a step is divided.",
    "memory": "The card's pool at its peak as a bar: what the plan fills, what stays free, the "
    "limit of what is usable, and what context and margin take beyond it.",
    "weights": "In the memory bar: frozen weights and encoders.",
    "trained": "In the memory bar: adapters and all other trained numbers, with their gradients "
    "and the optimizer's state.",
    "activations": "In the memory bar: everything else in the pool at the peak of a step: kept "
    "activations, transient memory, workspaces, and gaps of the pool.",
    "caching": "Building the feature cache, before the model loads: an encoder, its activations, "
    "and gaps of the pool. On small cards this takes more than a step and decides what fits; then "
    "it is the whole memory bar.",
    "interpolated": "A figure between shipped forecasts of similar plans, never below the forecast "
    "of the plan itself. lisa-advise check, --plot and report forecast that plan: the same or a "
    "little lower.",
    "forecast": "Counted without a GPU for this plan: a training step runs on tensors that have "
    "shapes but no memory. docs/forecast.md has the errors of such figures, for which the margin "
    "is kept.",
    "exact": "Read from the driver, or given by you: nothing is estimated.",
    "tested": "Measured in a row of lisa-advise table whose plan needs at least as much.",
    "measured": "What this GPU took in a trial (--measure).",
    "policy": "A number that we chose, such as a margin.",
    "time": "The whole training on that card, with a range in brackets, and its parts; for "
    "ReasonSeg's size unless --data-dir or --pictures is given. It assumes the data's number of "
    "questions a picture and texts of usual length. Plans are compared by another rate: for the "
    "longest texts, and the plan's own number of questions a picture.",
    "start": "Loading libraries and model, and compiling layers.",
    "features": "What the frozen encoders compute from each picture, once; later steps read it "
    "from disk. Given are the time to build the features, and their size. A smaller max_pixels "
    "makes them smaller; --set cached_encoders= computes them in every step instead.",
    "training": "All steps of all epochs.",
    "evaluation": "Scoring the validation split before training and after each epoch, with the "
    "checkpoints. max_val_samples=N scores its first N pictures only: less time and disk, and a "
    "rougher score, which then chooses the best epoch.",
    "cards": "The same training on one card and on more, with the best plan for each number. "
    "'Each' is a card's speed as a share of its speed alone.",
    "disk": "The disk space that a training takes, from the download to the last checkpoint.",
    "download": "The published checkpoints, in the hub's cache.",
    "converted": "The folder that lisa-train convert writes.",
    "run folder": "Checkpoints, adapters and records of a run.",
    "speed": "Questions a second; as the name of another plan: the fastest one that fits.",
    "precision": "Another plan: prefers base weights as published, then all layers on the card.",
    "headroom": "Another plan: prefers all layers on the card, then the least memory.",
    "prefer": "The order in which plans are preferred (--prefer; docs/advice.md).",
    "larger": "The smallest usual card that the next better plan fits, and what it gains there.",
    "note": "What you should know or fix; the fix follows '->'.",
    "more": "What else lisa-advise prints.",
}
