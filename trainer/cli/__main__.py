"""Entry points of the commands: Ctrl-C ends them quietly even while Python still imports."""

from __future__ import annotations

import sys


def train() -> None:
    """Import `lisa-train` and run it."""
    try:
        from trainer.cli.train import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)


def segment() -> None:
    """Import `lisa-segment` and run it."""
    try:
        from trainer.cli.segment import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    train()
