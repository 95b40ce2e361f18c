"""lisa-preflight's training and inference: the model, its data, its training step and its runs."""
