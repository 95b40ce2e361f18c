"""Answers over HTTP: a server without torch, and a process with the model for each card."""
