"""What runs: the LISA model, its data, its training step and its loop."""
