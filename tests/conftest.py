"""Fixtures for all tests: folders of real material, and Ray and S3 servers that live for one session."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.swift import has_swift

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
# Jobs in processes of their own join the session's Ray, so they must know its token.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

pytest_plugins = ["tests.servers.fixtures"]

_LONG = ("e2e", "torture", "cluster", "test_secrets.py", "test_benchmarks.py", "extractors")
"""Folders and files that begin first, so that no core is idle while the last of them runs."""

_LEFT_OUT = ("long", "full")
"""Marks of what `make test` leaves to `make long` and `make conformance`."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out tests with a mark of ``_LEFT_OUT`` that is not asked for; puts the long files first."""
    items.sort(key=_turn)
    asked = config.getoption("-m") or ""
    marks = [mark for mark in _LEFT_OUT if mark not in asked]
    left_out = {item for item in items if any(map(item.get_closest_marker, marks))}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def _turn(item: pytest.Item) -> int:
    parts = item.nodeid.partition("::")[0].split("/")
    return next((i for i, name in enumerate(_LONG) if name in parts), len(_LONG))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """One thread for networks in the tests' own process: two on a busy two-core machine wait for each other most of
    the time."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def media_folder() -> Path:
    """The folder of real clips."""
    return _folder("FEATLIB_TEST_MEDIA")


@pytest.fixture(scope="session")
def weights_folder() -> Path:
    """The folder of real weights."""
    return _folder("FEATLIB_TEST_WEIGHTS")


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable}={value} is not a folder")
    return folder


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """One local Ray for the whole session; gives its address."""
    import ray

    from featlib.nodes import start_local_ray

    if has_swift() and any("s3_env" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("s3_env")  # Ray's workers have the environment of the moment at which Ray started
    address = start_local_ray(num_cpus=6, object_store_mb=400)
    yield address
    ray.shutdown()
