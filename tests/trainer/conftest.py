"""A folder of features for tests whose subject is another."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of pictures that some test has had encoded: none of these tests encodes them again."""
    return tmp_path_factory.mktemp("features")
