"""Nobody else drives."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def _nobody_else_drives() -> Iterator[None]:
    """Claims have tests of their own; here each job would wait a second and a half for others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featlib.drivers.SETTLE_S", 0.05)
        yield
