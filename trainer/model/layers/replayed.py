"""The same arithmetic at the same addresses, again and again: a CUDA graph in place of launches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from profiles.files import reason
from profiles.streams import tell


class Replayed:
    """Calls a function of tensors whose shapes never change; on a card, recorded and replayed.

    One token of an answer takes thousands of small kernels, and launching them from Python takes
    ten times as long as their work. The first call runs as it is, so that libraries load and
    allocate their workspaces; the second call is recorded. If the function allocates, the recording
    keeps that memory. Tensors that it reads beside its arguments must stay where they are.
    """

    def __init__(self, on_card: bool) -> None:
        self.records, self.warm = on_card, False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.given: tuple[Tensor, ...] = ()
        self.result = torch.empty(0)

    def __call__(self, run: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """`run(*given)`; always of the same `run`, which is no attribute: it may hold this."""
        if self.graph is None and self.records and self.warm:
            self._record(run, given)
        self.warm = True
        if self.graph is None:
            return run(*given)
        for place, value in zip(self.given, given, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.result.clone()

    def _record(self, run: Callable[..., Tensor], given: tuple[Tensor, ...]) -> None:
        self.given = tuple(map(torch.clone, given))
        graph, now = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # The default stream cannot be recorded. Another has a cuBLAS workspace of its own, so
        # answering runs on a stream that can be recorded (`own_stream`).
        stream = None if now == torch.cuda.default_stream() else now
        try:
            # Other threads, such as one that reads pictures, may do with the card what they like.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.result = run(*self.given)
            self.graph = graph
        except RuntimeError as error:
            self.records = False
            tell(f"note: answers are slower: no CUDA graph was recorded: {reason(error)}")


def own_stream(device: torch.device) -> Callable[[], None]:
    """Move the calling thread's work on a card to a new stream, which `Replayed` can record.

    Every thread that uses this work must call it: others would not wait for the stream.
    """
    if device.type != "cuda":
        return lambda: None
    return partial(torch.cuda.set_stream, torch.cuda.Stream(device))
