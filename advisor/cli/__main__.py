"""Where `lisa-advise` begins: Ctrl-C ends it quietly from here on, while Python still imports."""

from __future__ import annotations

import sys


def main() -> None:
    """Import the command and run it."""
    try:
        from advisor.cli.main import main as advise

        advise()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
