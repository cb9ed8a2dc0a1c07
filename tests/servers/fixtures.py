"""Servers that live for one test session and start when the first test asks for them."""

from collections.abc import Iterator

import pytest

from tests.servers.swift import SwiftServer, has_swift


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """A Swift with S3 API on loopback: ``endpoint_url``, ``key``, ``secret``, ``bucket(name)``."""
    if not has_swift():
        pytest.skip("the PyPI package swift is for Linux alone")
    with SwiftServer(tmp_path_factory.mktemp("swift") / "root") as server:
        yield server


@pytest.fixture(scope="session")
def s3_env(s3_server: SwiftServer) -> Iterator[SwiftServer]:
    """The same server, with its keys and endpoint in the environment for the whole session."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
            patch.delenv(name, raising=False)
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        yield s3_server
