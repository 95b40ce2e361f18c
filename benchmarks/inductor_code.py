"""Inductor's code for a compiled decoder layer on a card, made on a machine without one.

torch 2.13 traces the layer on fake CPU tensors; each graph is then given to Inductor as one of fake
CUDA tensors, up to its code: the buffers that it takes, gives and takes again. What of torch is
replaced here asks for a device that is not there. One process can do it for one layer, since the
tracing must come first. benchmarks/compiled_layers.py makes profiles/compiled_layers.jsonl of it.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo.device_interface as interfaces
import torch._functorch.config
import torch._functorch.partitioners as partitioners
import torch._inductor.config
import torch._inductor.fx_passes.reinplace as reinplace
import torch.utils._triton
from torch._dynamo.utils import detect_fake_mode
from torch._inductor import compile_fx, lowering
from torch._inductor.graph import GraphLowering
from torch._library.utils import get_layout_constraint_tag
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map

from profiles.plan import Plan
from trainer.model.layers.decoder import recompute_layer, run_layer
from trainer.rehearse import fake

CARD = torch.device("cuda:0")
HOPPER = SimpleNamespace(
    major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, L2_cache_size=50 << 20,
    total_memory=80 << 30, shared_memory_per_block=49152, name="H100", gcnArchName="",
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
)  # fmt: skip


class Written(Exception):
    """The code is there: nothing is to be run."""


def pretend() -> None:
    """Have torch's compiler believe in a card, after the layer was traced on the CPU."""
    cuda = interfaces.CudaInterface
    for owner in (cuda, cuda.Worker, torch.cuda):
        owner.get_device_properties = staticmethod(lambda device=None: HOPPER)
        owner.current_device = staticmethod(lambda: 0)
    cuda.get_compute_capability = staticmethod(lambda device=None: 90)
    cuda.is_available = cuda.is_bf16_supported = staticmethod(lambda *_, **__: True)
    cuda.device_count = staticmethod(lambda: 1)
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda._lazy_init = lambda: None
    torch._C._cuda_getCurrentRawStream = lambda index=0: 0
    torch.utils._triton.triton_hash_with_backend = lambda *_: "none"
    for module in [m for name, m in sys.modules.items() if name.startswith("torch.")]:
        for name in {"has_triton", "has_triton_package"} & set(vars(module)):
            setattr(module, name, lambda *_: True)


def prepare() -> None:
    """Compile here and now, both ways at once, and propagate no shapes that are known already."""
    torch._inductor.config.fx_graph_cache = False
    torch._inductor.config.compile_threads = 1
    torch._functorch.config.enable_autograd_cache = False
    torch._functorch.config.force_non_lazy_backward_lowering = True
    # On a card the state of random numbers that it keeps is in host memory.
    partitioners.functionalize_rng_ops = lambda joint, forward, backward, numbers: (
        forward, backward,
    )  # fmt: skip
    reinplace._inplace_generalized_scatter = lambda into, source, views: into
    compile_fx.fake_tensor_prop = lambda graph, inputs, *_, **__: detect_fake_mode(inputs)


def remember_products() -> None:
    """What Inductor does where it first meets an operator that it cannot write itself. Before, it
    does not know that the operator reads its input from memory, and writes that once for each."""
    for packet in (torch.ops.lisa_preflight.nf4_product, torch.ops.lisa_preflight.int8_product):
        tag = get_layout_constraint_tag(packet.default, with_default=True)
        lowering.make_fallback(packet.default, lowering.tag_to_layout_constraint(tag))


def on_card(graph: torch.fx.GraphModule, inputs: list[Any]) -> list[Any]:
    """The inputs as fake tensors of the card; so become the graph's own."""
    mode = detect_fake_mode(inputs)

    def moved(value: Any) -> Any:
        if isinstance(value, torch.device):
            return CARD
        if not isinstance(value, FakeTensor) or value.device.type != "cpu":
            return value
        shape, strides = value.shape, value.stride()
        with mode:
            meta = torch.empty_strided(shape, strides, dtype=value.dtype, device="meta")
            return FakeTensor(mode, meta, CARD)

    for node in graph.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = tree_map(moved, node.meta["val"])
        node.args, node.kwargs = tree_map(moved, node.args), tree_map(moved, node.kwargs)
    graph.recompile()
    return [moved(value) for value in inputs]


def written(graph: torch.fx.GraphModule, inputs: list[Any], back: bool) -> str:
    """The wrapper's code for the graph."""
    found: list[str] = []

    def stop(graph: GraphLowering) -> None:
        found.append(graph.codegen()[0].value)
        raise Written

    GraphLowering.compile_to_module = GraphLowering._compile_to_module = stop
    inputs = on_card(graph, inputs)
    pretend()
    try:
        compile_fx.compile_fx_inner(graph, inputs, is_backward=back)
    except Exception:
        if not found:
            raise
    return found[0]


@dataclass(frozen=True)
class Code:
    """A graph as torch reads it, and what Inductor wrote for it."""

    back: bool
    readable: str
    code: str


def graphs_of(plan: Plan, tokens: int, recomputed: bool, later: bool) -> list[Code]:
    """The forward and the backward graph of one decoder layer on the plan's rows of so many tokens.

    Rows of several questions share their prefix: attention gets a mask. `later` than another graph
    of the same process the code is another.
    """
    parts: list[Code] = []

    def compiled(graph: torch.fx.GraphModule, inputs: list[Any], **facts: Any) -> Any:
        back = bool(facts.get("is_backward"))
        readable = graph.print_readable(print_output=False)
        parts.append(Code(back, readable, written(graph, inputs, back)))

        def run(*_: Any) -> Any:
            raise Written

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    prepare()
    if later:
        remember_products()
    tokenizer = fake.counting_tokenizer(plan)
    fake.make_scale_code()
    bones = fake.skeleton(plan.profile, tokenizer)
    with fake.fake_tensors():
        cpu = torch.device("cpu")
        fake.fill(bones, plan, tokenizer, cpu, fake.ShapesAlone("cpu")).train()
        layer, bf16 = bones.decoder_layers[1], torch.bfloat16
        rows, masked = plan.micro_batch, plan.questions_per_picture > 1
        hidden = torch.empty(rows, tokens, plan.profile.decoder.hidden, dtype=bf16)
        # LLaVA's positions are those of all rows.
        angles = rows if masked or plan.profile.decoder.normed_heads else 1
        rope = [torch.empty(angles, tokens, layer.self_attn.head_dim, dtype=bf16) for _ in "cs"]
        mask = torch.empty(rows, 1, tokens, tokens, dtype=bf16) if masked else None
        run = torch.compile(
            recompute_layer if recomputed else run_layer, dynamic=False,
            backend=lambda graph, given: compile_fx.compile_fx(graph, given, compiled),
        )  # fmt: skip
        with suppress(Written):
            run(layer, hidden.requires_grad_(), tuple(rope), mask)
    return parts
