"""What `featlib submit` refuses before it asks a cluster; the rest is in tests/cluster."""

import pytest

from featlib.errors import ConfigError, StoppedError
from featlib.submission import dashboard_address, is_open, submit


def test_address_of_the_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert dashboard_address("http://h:8265/") == "http://h:8265"
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:6379.*dashboard"):
        dashboard_address(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://g:8265")
    assert dashboard_address(None) == "http://g:8265"


def test_nobody_there() -> None:
    with pytest.raises(StoppedError, match="no Ray dashboard answers"):
        is_open("http://127.0.0.1:9")


def test_keys_are_neither_taken_nor_shown() -> None:
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN") as caught:
        dashboard_address("http://me:HID/DEN@h:8265")
    assert "DEN" not in str(caught.value)
    for word in ("s3://KEY:HID/DEN@b/list.csv", "s3://b/list.csv?X-Amz-Signature=HIDDEN"):
        with pytest.raises(ConfigError, match="no keys in URLs") as caught:
            submit("http://127.0.0.1:9", ("extract", word), say=print, log=print)
        assert "DEN" not in str(caught.value)


@pytest.mark.parametrize("arguments", [(), ("models",), ("drop", "--yes")])
def test_only_commands_for_a_cluster(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="is not run on a cluster"):
        submit("http://127.0.0.1:9", arguments, say=print, log=print)
