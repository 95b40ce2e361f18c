"""The part that trains: the LISA model, its data, its training step and its loop."""
