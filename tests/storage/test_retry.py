"""The retry policy, with a clock that is moved by hand."""

import errno
import time

import pytest

from featlib.errors import StoppedError, TransientError
from featlib.storage.retry import is_transient, retrying


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def failing(times: int, error: Exception):  # type: ignore[no-untyped-def]
    left = [times]

    def call() -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "done"

    return call


def run(call, deadline_s: float = 60.0) -> tuple[str, Clock]:  # type: ignore[no-untyped-def]
    clock = Clock()
    return retrying("read s3://b/k", call, deadline_s=deadline_s, clock=lambda: clock.now, sleep=clock.sleep), clock


def test_transient_errors_are_outlived_with_growing_pauses() -> None:
    done, clock = run(failing(8, ConnectionResetError("reset")))
    assert done == "done"
    assert len(clock.pauses) == 8
    for i, pause in enumerate(clock.pauses):
        full = min(0.2 * 2**i, 10.0)
        assert full / 2 <= pause <= full


def test_the_deadline_ends_in_one_line_that_names_operation_and_cause() -> None:
    clock = Clock()
    error = OSError(errno.EIO, "broken\ncable s3://KEY:SECRET@b/k")
    with pytest.raises(TransientError) as caught:
        retrying(
            "read s3://KEY:SECRET@b/k",
            failing(10**6, error),
            deadline_s=60,
            clock=lambda: clock.now,
            sleep=clock.sleep,
        )
    text = str(caught.value)
    assert clock.now <= 60
    assert text.startswith("read s3://***@b/k: no proper answer within 60 s")
    assert "\n" not in text
    assert "SECRET" not in text
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, StoppedError)


def test_no_try_begins_when_the_machine_slept_beyond_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have taken over meanwhile what it was about to put."""
    clock, tries = Clock(), list[float]()
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock.now)

    def call() -> None:
        tries.append(clock.now)
        if len(tries) == 5:
            return
        raise ConnectionResetError("reset")

    def asleep(seconds: float) -> None:
        clock.sleep(seconds + 100 * (len(tries) == 2))

    with pytest.raises(TransientError, match="no proper answer within 60 s"):
        retrying("write s3://b/k", call, deadline_s=60, sleep=asleep)
    assert len(tries) == 2


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ValueError("x"), KeyError("x")])
def test_what_repetition_does_not_mend_is_raised_at_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        run(failing(1, error))


def test_which_errors_of_the_system_are_transient() -> None:
    assert all(is_transient(OSError(code, "x")) for code in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EPIPE))
    assert not any(is_transient(OSError(code, "x")) for code in (errno.ENOSPC, errno.EROFS, errno.EINVAL, errno.EISDIR))
