"""Training and inference: the LISA model, its data, its training step and its runs."""
