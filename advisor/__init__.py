"""The part that decides: from a machine to a plan with its reasons. Never imports torch."""
