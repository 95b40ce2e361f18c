"""Host memory of frozen weights: a process's own, or one copy for all ranks of a machine."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from profiles.files import reason
from profiles.sizes import GIB


class HostMemory:
    """Memory of this process alone."""

    fills = True  # whether this process writes the values, or finds them there

    def block(self, size: int, device: torch.device) -> Tensor:
        """`size` bytes for weights that are copied to `device`."""
        home = "meta" if device.type == "meta" else "cpu"
        return torch.empty(size, dtype=torch.uint8, device=home)

    def table(self, shape: torch.Size, dtype: torch.dtype, read: Callable[[], Tensor]) -> Tensor:
        """The tensor that `read` gives."""
        return read()

    def complete(self) -> None:
        """Returns when all values are there."""


class SharedMemory(HostMemory):
    """Memory that the ranks of a machine share: one anonymous file, mapped by each of them.

    Every rank asks for the same blocks in the same order; the one that `fills` writes them. The
    system frees the file with the last process that maps it, however that one ends. It has no name
    and is in no folder, so the size of /dev/shm (64 MiB in a Docker container) does not limit it.
    """

    def __init__(self, file: int, fills: bool, wait: Callable[[], object]) -> None:
        self.file, self.fills, self._wait = file, fills, wait
        self.size = 0

    @staticmethod
    def file_of(process: int, file: int) -> int:
        """Open the anonymous file of another process of this user. Raises OSError."""
        return os.open(f"/proc/{process}/fd/{file}", os.O_RDWR)

    def block(self, size: int, device: torch.device) -> Tensor:
        start, length = self.size, -(-size // mmap.ALLOCATIONGRANULARITY)
        length *= mmap.ALLOCATIONGRANULARITY
        self.size += length
        try:  # takes the memory now: a later write that finds none would kill the run
            os.posix_fallocate(self.file, start, length)
        except OSError as error:
            raise RuntimeError(
                f"the ranks cannot share {self.size / GIB:.2f} GiB of host memory: "
                f"{reason(error)}\n    hint: free host memory, or use fewer host_layers"
            ) from None
        place = mmap.mmap(self.file, length, offset=start)
        return torch.frombuffer(place, dtype=torch.uint8)[:size]

    def table(self, shape: torch.Size, dtype: torch.dtype, read: Callable[[], Tensor]) -> Tensor:
        block = self.block(shape.numel() * dtype.itemsize, torch.device("cpu"))
        values = block.view(dtype).view(shape)
        return values.copy_(read()) if self.fills else values

    def complete(self) -> None:
        self._wait()
        os.close(self.file)  # the blocks stay


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` in page-locked host memory if `device` is a GPU; otherwise unchanged, on the CPU.

    The exact bytes are registered: torch's own pinned allocator rounds up to a power of two. Each
    rank registers memory that it shares for its own card.
    """
    if device.type == "meta":
        return tensor
    tensor = tensor.cpu().contiguous()
    if device.type != "cuda" or tensor.is_pinned():
        return tensor
    runtime: Any = torch.cuda.cudart()
    place, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    error = runtime.cudaHostRegister(place, size, 0)
    if int(error) != 0:
        raise RuntimeError(
            f"the system does not let {size / GIB:.2f} GiB of host memory be pinned ({error})\n"
            "    hint: raise the limit on locked memory (ulimit -l), or use fewer host_layers"
        )
    weakref.finalize(tensor.untyped_storage(), runtime.cudaHostUnregister, place)
    return tensor
