"""Nobody else drives."""

import pytest


@pytest.fixture(autouse=True)
def _nobody_else_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featlib.drivers.SETTLE_S", 0.01)
