"""lisa-preflight's training and inference: the model, its data, its training step and its runs."""

import logging

# Before anything imports bitsandbytes: on CPUs with AVX512-BF16 it warns that it lacks a package,
# which would fetch code from a hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
