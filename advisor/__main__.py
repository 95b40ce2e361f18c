"""`python -m advisor` is `lisa-advise`."""

from __future__ import annotations

from advisor.cli.__main__ import main

if __name__ == "__main__":
    main()
