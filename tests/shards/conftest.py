"""An output for each test."""

from pathlib import Path

import pytest

from featlib.storage import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One on a disk, with nothing in it."""
    return Store(str(tmp_path))
