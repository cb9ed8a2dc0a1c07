"""The one retry policy: repeat what a store did not answer properly, until a deadline."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from featlib.errors import TransientError
from featlib.redaction import redact

T = TypeVar("T")

FIRST_WAIT_S = 0.2
MAX_WAIT_S = 10.0
_TRANSIENT_ERRNOS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EIO,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ESTALE,
        getattr(errno, "EREMOTEIO", errno.EIO),  # Linux only
    }
)


def now() -> float:
    """Seconds that go on while the machine sleeps, where the system counts them."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


def is_transient(error: BaseException) -> bool:
    """Whether an error of the operating system may go away by itself."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS


def retrying(
    what: str,
    call: Callable[[], T],
    *,
    deadline_s: float,
    transient: Callable[[BaseException], bool] = is_transient,
    clock: Callable[[], float] = now,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Calls until it succeeds; waits 0.2 s, 0.4 s … 10 s, each times a random share of one half to one.

    Args:
        what: Operation and URL, for the message.
        call: Must be harmless when done twice: a lost reply means that it was done already.
        deadline_s: No new try begins later than this after the first, time in which the machine slept included.

    Raises:
        TransientError: Still no proper answer at the deadline; the last error is its cause.
    """
    end = clock() + deadline_s
    wait_s = FIRST_WAIT_S
    while True:
        try:
            return call()
        except Exception as error:
            if not transient(error):
                raise
            pause_s = wait_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
            is_over = clock() + pause_s > end
            if not is_over:
                sleep(pause_s)
                is_over = clock() > end  # the machine may have slept meanwhile
            if is_over:
                reason = " ".join(redact(f"{type(error).__name__}: {error}").split())
                raise TransientError(
                    f"{redact(what)}: no proper answer within {deadline_s:g} s ({reason}); run the same command again"
                ) from error
        wait_s = min(2 * wait_s, MAX_WAIT_S)
