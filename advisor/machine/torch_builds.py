"""Which builds of torch serve a card, by its compute capability."""

from __future__ import annotations

from advisor.machine.gpu import Gpu
from profiles.findings import Finding

TORCH = "torch"  # what a finding about the build is about
OLDEST_BUILT = (5, 0)  # compute capability in torch's builds for CUDA 12.6, the oldest that do
# In torch's builds (2.11 and later) for CUDA 12.8 and later: pytorch#172352.
OLDEST_IN_WHEELS = (7, 5)
# The last torch with builds for CUDA 12.6, which serve 5.0 and later: pytorch#190385.
LAST_WITH_OLDER = "2.14"


def wants_older(capability: tuple[int, int] | None) -> bool:
    """Whether the builds that plain pip installs lack kernels for such a card."""
    return capability is not None and capability < OLDEST_IN_WHEELS


def older_torch() -> str:
    """Which torch supports a card that the usual builds do not."""
    return f"install torch for CUDA 12.6, up to {LAST_WITH_OLDER}: docs/install.md#older-cards"


def older_build(gpu: Gpu, installed: str) -> Finding | None:
    """A note if the card needs an older build than the one `installed` ('' if it is elsewhere)."""
    if gpu.compute_capability is None or not wants_older(gpu.compute_capability):
        return None
    if "+cu126" in installed:
        return None
    version = "{}.{}".format(*gpu.compute_capability)
    what = f"later builds have no kernels for this card (compute capability {version})"
    return Finding(TORCH, what, fix=older_torch())


def too_old(gpu: Gpu) -> Finding | None:
    """Why no build of torch that runs this supports that card, if so."""
    if gpu.compute_capability is None or gpu.compute_capability >= OLDEST_BUILT:
        return None
    version = "{}.{}".format(*gpu.compute_capability)
    what = f"is too old: no build of torch that runs this serves compute capability {version}"
    return Finding(gpu.name, what, fix="use another card, or --model tiny --set device=cpu")
