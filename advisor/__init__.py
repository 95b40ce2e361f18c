"""lisa-preflight's part that decides: from a machine to a plan with its reasons. Without torch."""
