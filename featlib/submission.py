"""A featlib command as a job of a Ray cluster, by the Ray Jobs API."""

import asyncio
import http.client
import json
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from featlib.errors import ConfigError, StoppedError
from featlib.redaction import holds_key, redact

COMMANDS = ("extract", "aggregate", "train", "verify")
_ANSWER_S = 10.0
_REFUSED = (401, 403)
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_LOST = 5  # times in a row that the cluster may not answer while a job is followed
_AGAIN_S = 2.0
_SERVER, _ADDRESS = "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"

OPEN = (
    "{address} asks nobody for a token: whoever reaches it runs code on the cluster and reads its keys "
    "(CVE-2023-48022). Start it with RAY_AUTH_MODE=token, and let nobody but you reach it; cluster/README.md says how"
)


def dashboard_address(given: str | None) -> str:
    """Where jobs are submitted: as given, else as Ray's own variables say.

    Raises:
        ConfigError: Neither says, or it is no http address.
    """
    address = given or os.environ.get(_SERVER) or os.environ.get(_ADDRESS) or ""
    if holds_key(address):
        raise ConfigError("--address: holds a password; Ray takes a token instead, in RAY_AUTH_TOKEN")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address {address!r}: must be that of the cluster's dashboard, like http://127.0.0.1:8265 "
            "(`kubectl port-forward` or `ray dashboard` make it so)"
        )
    return address.partition("#")[0].rstrip("/")  # as a browser shows it


def is_open(address: str) -> bool:
    """Whether the cluster lists its jobs to somebody without a token.

    Raises:
        StoppedError: No Ray dashboard answers there.
    """
    try:
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=_ANSWER_S) as answer:  # noqa: S310 - http, checked
            jobs = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in _REFUSED:
            return False
        raise _nobody(address, error) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _nobody(address, error) from None
    if not isinstance(jobs, list):
        raise _nobody(address, "another program does")
    return True


def _nobody(address: str, reason: object) -> StoppedError:
    return StoppedError(f"--address {address}: no Ray dashboard answers there ({_line(reason)})")


def _line(reason: object) -> str:
    return redact(" ".join(str(reason).split()))[:300]


def submit(
    address: str,
    arguments: Sequence[str],
    *,
    working_dir: str | None = None,
    waits: bool = True,
    say: Callable[[str], None],
    log: Callable[[str], Any],
) -> int:
    """Submits ``featlib ARGUMENTS``; gives the exit code of the job, 0 when it is not waited for.

    Args:
        working_dir: Folder that the cluster gets a copy of, and in which the command runs.
        say: Takes what this side has to tell, a line each.
        log: Takes what the job prints, as it comes.

    Raises:
        ConfigError: It is no command that runs on a cluster.
        StoppedError: The cluster does not answer, or does not let this process in.
    """
    if not arguments or arguments[0] not in COMMANDS:
        raise ConfigError(f"{' '.join(arguments[:1])!r}: is not run on a cluster; {', '.join(COMMANDS)} are")
    for number, word in enumerate(arguments, 1):
        if holds_key(word):
            raise ConfigError(
                f"word {number} of the command holds a key, or looks so, which the cluster would show to all; "
                "no keys in URLs, and a file of such a name as ./NAME"
            )
    if is_open(address):
        say(OPEN.format(address=address))
    client, job = _submitted(address, shlex.join(["python", "-m", "featlib", *arguments]), working_dir)
    say(f"submitted as {job}")
    if not waits:
        return 0
    try:
        return _followed(client, job, say, log)
    except KeyboardInterrupt:
        say(f"{job} goes on; `ray job logs --follow {job}` shows it, `ray job stop {job}` stops it")
        return 1


def _submitted(address: str, entrypoint: str, working_dir: str | None) -> tuple[Any, str]:
    """The client, and the id of the job."""
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient
    from requests import RequestException

    runtime_env = {"working_dir": working_dir} if working_dir else None
    try:
        with _told(address):
            client = JobSubmissionClient(address)
        return client, client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
    except (RayError, RequestException, RuntimeError, ConnectionError, ValueError) as error:
        raise StoppedError(f"--address {address}: the job was not taken ({_line(error)})") from None


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Ray's variables say the same as ``address``: they beat what its client is given."""
    before = os.environ.get(_SERVER)
    os.environ[_SERVER] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SERVER]
        else:
            os.environ[_SERVER] = before


def _followed(client: Any, job: str, say: Callable[[str], None], log: Callable[[str], Any]) -> int:
    """Shows what the job prints until it ends; a connection that breaks is made anew."""
    tail, lost = _Tail(client, job, log), 0
    while True:
        try:
            with suppress(Exception):  # what counts is how the job is; its log is asked for again
                asyncio.run(tail.follow())
            info = client.get_job_info(job)
        except Exception as error:  # noqa: BLE001 - Ray lets through whatever aiohttp and requests raise
            lost += 1
            if lost == _LOST:
                say(f"the cluster does not answer any more ({_line(error)}); `ray job logs --follow {job}` goes on")
                return 1
        else:
            lost = 0
            if info.status.value in _ENDED:
                return _exit_code(job, info, say)
        time.sleep(_AGAIN_S)


class _Tail:
    """The log of a job, each part of it once: every connection tells it from its beginning."""

    def __init__(self, client: Any, job: str, log: Callable[[str], Any]) -> None:
        self._client, self._job, self._log = client, job, log
        self._shown = 0

    async def follow(self) -> None:
        """Until the connection ends."""
        passed = 0
        async for lines in self._client.tail_job_logs(self._job):
            new = lines[max(0, self._shown - passed) :]
            passed += len(lines)
            self._shown = max(self._shown, passed)
            if new:
                self._log(new)


def _exit_code(job: str, info: Any, say: Callable[[str], None]) -> int:
    if info.status.value == "SUCCEEDED":
        return 0
    code = info.driver_exit_code
    if code is None or code < 0:
        say(f"{job}: {info.status.value}: {_line(info.message)}; submit it again to go on")
        return 1
    return int(code)


def to_stdout(text: str) -> None:
    """Writes what a job printed."""
    sys.stdout.write(text)
    sys.stdout.flush()
