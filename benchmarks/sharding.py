"""Frozen layers sharded over the ranks instead of kept in host memory: what would that bring?

    python benchmarks/sharding.py fsdp2|gather plan.json ...    as `python -m trainer.rehearse`

A trial, no part of the product (docs/decisions.md has the figures). The plan's host layers, packed
as for the host, are cut over the ranks. fsdp2: by torch's `fully_shard`, gathered one ahead through
its `unshard`; gather: by one `all_gather_into_tensor` into the two buffers of `HostLayers`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trainer.model.build
from trainer.model.layers import host
from trainer.model.layers.host import HostLayers, hidden_from_autograd
from trainer.model.layers.host_memory import HostMemory
from trainer.rehearse.__main__ import main


class Shards(HostLayers):
    """`HostLayers` whose blocks lie in shares on the ranks' cards."""

    def __init__(self, device: torch.device, memory: object = None) -> None:
        super().__init__(device, HostMemory())
        self.group = dist.new_group()

    def adopt(self, layer: nn.Module) -> int:
        """As `HostLayers.adopt`, but this rank keeps its share of the block alone."""
        number = super().adopt(layer)
        ranks, block = dist.get_world_size(), self.host[number]
        assert len(block) % ranks == 0, "blocks are multiples of 256 bytes"
        share = len(block) // ranks
        mine = block[dist.get_rank() * share :][:share]
        self.host[number] = mine.to(self.device, copy=True)
        return number

    def _begin(self, number: int) -> None:
        turn = number % 2
        if self.holds[turn] == number:
            return
        self.holds[turn] = number
        buffer, stream = self.buffers[turn], self.copier.stream
        if stream is None:
            with hidden_from_autograd(buffer):
                dist.all_gather_into_tensor(buffer, self.host[number], group=self.group)
            return
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), hidden_from_autograd(buffer):
            dist.all_gather_into_tensor(buffer, self.host[number], group=self.group)
        self.events[turn] = stream.record_event()


class Block(nn.Module):
    """A layer's packed weights, as one parameter: bf16 in name, since FSDP2 takes no bytes."""

    def __init__(self, block: Tensor) -> None:
        super().__init__()
        self.bits = nn.Parameter(block.view(torch.bfloat16), requires_grad=False)


class Fsdp2(HostLayers):
    """`HostLayers` whose blocks are parameters of torch's FSDP2."""

    def __init__(self, device: torch.device, memory: object = None) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__(device, HostMemory())
        self.mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        self.blocks: list[Any] = []
        self.places: list[list[tuple[nn.Module, str, int, int, torch.dtype, torch.Size]]] = []
        self.handles: dict[int, Any] = {}
        self.whole: set[int] = set()

    def adopt(self, layer: nn.Module) -> int:
        """Pack and shard a layer; its tensors are views into the gathered parameter for good."""
        from torch.distributed.fsdp import fully_shard

        places = []
        for owner, name in host.stored_tensors(layer):
            value = getattr(owner, name)
            places.append((owner, name, value.dtype, value.shape, value.numel()))
        size = sum(
            -(-count * dtype.itemsize // host.ALIGNMENT) * host.ALIGNMENT
            for _, _, dtype, _, count in places
        )
        self.buffers = [torch.empty(size, dtype=torch.uint8, device=self.device)] * 2
        number = super().adopt(layer)
        packed = Block(self.host[number].to(self.device, copy=True))
        block: Any = fully_shard(packed, mesh=self.mesh)
        self.host[number], self.buffers = torch.empty(0, dtype=torch.uint8), []
        block._get_fsdp_state()._lazy_init()
        block.unshard()
        bits, start = block.bits.detach().view(torch.uint8), 0
        for owner, name, dtype, shape, count in places:
            size = count * dtype.itemsize
            view = bits[start : start + size].view(dtype).view(shape)
            host._replace(owner, name, view.detach())
            start += -(-size // host.ALIGNMENT) * host.ALIGNMENT
        block.reshard()
        self.blocks.append(block)
        return number

    def fetch(self, number: int, step: int) -> None:
        """Gather layer `number`, start on the next, let all others go."""
        ahead = number + step
        for other in self.whole - {number, ahead}:
            self.blocks[other].reshard()
        self.whole &= {number, ahead}
        if number not in self.whole:
            handle = self.handles.pop(number, None) or self.blocks[number].unshard(async_op=True)
            handle.wait()
            self.whole.add(number)
        if 0 <= ahead < len(self.blocks) and ahead not in self.whole | self.handles.keys():
            self.handles[ahead] = self.blocks[ahead].unshard(async_op=True)


if __name__ == "__main__":
    kind = {"fsdp2": Fsdp2, "gather": Shards}[sys.argv.pop(1)]
    trainer.model.build.HostLayers = kind  # type: ignore[misc]
    main()
