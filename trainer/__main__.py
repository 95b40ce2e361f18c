"""`python -m trainer` is `lisa-train`."""

from __future__ import annotations

from trainer.cli.__main__ import train

if __name__ == "__main__":
    train()
