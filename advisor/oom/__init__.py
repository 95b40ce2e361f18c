"""Explains an out-of-memory error from the text that a training printed."""
