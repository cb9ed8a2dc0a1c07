"""Small heads train faster on one thread; and nobody else drives."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _nobody_else_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featlib.drivers.SETTLE_S", 0.01)


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
