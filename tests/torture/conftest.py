"""Processes that are shared, because each of them loads torch."""

from collections.abc import Iterator

import pytest

from tests.torture.publishing import Tellers


@pytest.fixture(scope="session")
def tellers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tellers]:
    tellers = Tellers(tmp_path_factory.mktemp("tellers") / "first")
    yield tellers
    tellers.close()


@pytest.fixture(scope="session")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tellers]:
    rival = Tellers(tmp_path_factory.mktemp("tellers") / "rival")
    yield rival
    rival.close()
