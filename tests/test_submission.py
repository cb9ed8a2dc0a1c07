"""What `featlib submit` refuses before it asks a cluster, and how it follows a job through broken connections; the
rest is in tests/cluster."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace

import pytest

from featlib import submission
from featlib.errors import ConfigError, StoppedError
from featlib.submission import dashboard_address, is_open, submit


def test_address_of_the_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert dashboard_address("http://h:8265/") == "http://h:8265"
    assert dashboard_address("http://h:8265/#/jobs") == "http://h:8265"
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:6379.*dashboard"):
        dashboard_address(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://g:8265")
    assert dashboard_address(None) == "http://g:8265"


def test_labels_that_sound_like_a_key_are_submitted() -> None:
    with pytest.raises(StoppedError, match="no Ray dashboard answers"):
        submit("http://127.0.0.1:9", ("extract", "--model", "cls_token=vit_b_16"), say=print, log=print)


def test_nobody_there() -> None:
    with pytest.raises(StoppedError, match="no Ray dashboard answers"):
        is_open("http://127.0.0.1:9")


def test_keys_are_neither_taken_nor_shown() -> None:
    for address in ("http://me:HID/DEN@h:8265", "me:HIDDEN@head:8265", "http://h:8265/?token=HIDDEN"):
        with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN") as caught:
            dashboard_address(address)
        assert "DEN" not in str(caught.value)
    signed = ("s3://b/list.csv?X-Amz-Signature=HIDDEN", "https://h/w.pth?sig=HIDDEN", "--weights=https://h/w?HIDDEN")
    for word in ("s3://KEY:HID/DEN@b/list.csv", *signed):
        with pytest.raises(ConfigError, match="no keys in URLs") as caught:
            submit("http://127.0.0.1:9", ("extract", word), say=print, log=print)
        assert "DEN" not in str(caught.value)


@pytest.mark.parametrize("arguments", [(), ("models",), ("drop", "--yes")])
def test_only_commands_for_a_cluster(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="is not run on a cluster"):
        submit("http://127.0.0.1:9", arguments, say=print, log=print)


class _Connection:
    """Stands for Ray's client: no real connection can be made to break at a chosen word of the log.

    Args:
        tails: What each connection tells of the log before it breaks.
        states: What each question for the job's state is answered with; an exception is raised.
    """

    def __init__(self, tails: Sequence[Sequence[str]], states: Sequence[object]) -> None:
        self._tails, self.states = iter(tails), list(states)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for lines in next(self._tails, ()):
            yield lines
        raise ConnectionError("the server closed the connection")

    def get_job_info(self, job: str) -> object:
        state = self.states.pop(0)
        if isinstance(state, BaseException):
            raise state
        return state


def _state(status: str, code: int | None = None, message: str = "") -> object:
    return SimpleNamespace(status=SimpleNamespace(value=status), driver_exit_code=code, message=message)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_AGAIN_S", 0.0)


def _follow(*states: object, tails: Sequence[Sequence[str]] = ()) -> tuple[int, str, list[str]]:
    """The exit code, the log that was shown, and what was said."""
    client, shown, said = _Connection(tails, states), list[str](), list[str]()
    code = submission._followed(client, "job-1", said.append, shown.append)
    assert client.states == [], "it asked until the end"
    return code, "".join(shown), said


def test_the_log_is_shown_once_however_often_the_connection_breaks() -> None:
    tails = [["one\n", "two\nth"], ["one\ntwo\n"], ["one\ntwo\nthr", "ee\n"], ["one\ntwo\nthree\n", "four\n"]]
    running = [_state("RUNNING")] * 3
    assert _follow(*running, _state("SUCCEEDED"), tails=tails) == (0, "one\ntwo\nthree\nfour\n", [])


def test_a_cluster_that_is_away_for_a_while_is_asked_again() -> None:
    away = [ConnectionError("refused")] * (submission._LOST - 1)
    assert _follow(*away, _state("RUNNING"), *away, _state("SUCCEEDED"))[0] == 0


def test_a_cluster_that_stays_away_is_given_up_with_the_way_to_go_on() -> None:
    code, _, (said,) = _follow(*[ConnectionError("refused")] * submission._LOST)
    assert code == 1
    assert "refused" in said
    assert "ray job logs --follow job-1" in said


@pytest.mark.parametrize("code", [None, -9])
def test_a_job_that_was_killed_has_no_exit_code_of_its_own(code: int | None) -> None:
    gave, _, (said,) = _follow(_state("FAILED", code, "the driver\nwas killed"))
    assert gave == 1
    assert said == "job-1: FAILED: the driver was killed; submit it again to go on"


def test_the_exit_code_is_that_of_the_job() -> None:
    assert _follow(_state("FAILED", 3)) == (3, "", [])


def test_ctrl_c_leaves_the_job_alone_and_tells_how_to_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(_Connection):
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "one\n"
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)

    client, shown, said = Interrupted([], []), list[str](), list[str]()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    monkeypatch.setattr(submission, "is_open", lambda address: False)
    monkeypatch.setattr(submission, "_submitted", lambda *_: (client, "job-1"))
    try:
        assert submit("http://127.0.0.1:9", ("verify",), say=said.append, log=shown.append) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert shown == ["one\n"]
    assert said[0] == "submitted as job-1"
    assert "ray job stop job-1" in said[1]
