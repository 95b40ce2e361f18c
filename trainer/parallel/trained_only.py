"""What data-parallel processes exchange: trained tensors, and nothing that is frozen."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def leave_out_frozen(model: nn.Module) -> None:
    """Keep DDP from sending frozen tensors, which every process has read from the same files.

    Packed weights are buffers, and DDP sends all buffers at each step: 3.3 GB of a 7B in NF4.
    """
    parameters = model.named_parameters(remove_duplicate=False)
    frozen = [name for name, value in parameters if not value.requires_grad]
    frozen += [name for name, _ in model.named_buffers(remove_duplicate=False)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
