"""Other stores with an S3 API, each a process on loopback that dies with this one: moto, a mock, and rclone, which
ignores conditions. Both take the keys of the tests' Swift."""

import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from tests.servers.buckets import Buckets
from tests.servers.swift import (
    START_DEADLINE_S,
    USER_KEY,
    USER_SECRET,
    begin_with_free_ports,
    die_with_parent,
    free_ports,
)

STORES = ("moto", "rclone")


def is_installed(name: str) -> bool:
    """Whether the program of one of ``STORES`` is there."""
    return _program(name) is not None


def _program(name: str) -> str | None:
    wanted = {"moto": "moto_server", "rclone": "rclone"}[name]
    beside = Path(sys.executable).with_name(wanted)
    return str(beside) if beside.exists() else shutil.which(wanted)


class OtherServer(Buckets):
    """Started by ``with``; ``bucket`` makes fresh buckets.

    Args:
        name: Of ``STORES``.
        root: A folder for its objects and its log; must not exist yet.
    """

    key, secret = USER_KEY, USER_SECRET

    def __init__(self, name: str, root: Path) -> None:
        self._name, self._root = name, root
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "OtherServer":
        begin_with_free_ports(self._begin, self.stop)
        return self

    def _begin(self) -> None:
        self._port = free_ports(1)[0]
        self._root.mkdir(parents=True)
        (self._root / "objects").mkdir()
        program = _program(self._name)
        assert program is not None, f"{self._name} is not installed"
        with (self._root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, *self._words()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        self._await_ready()

    def _words(self) -> list[str]:
        if self._name == "moto":
            return ["-H", "127.0.0.1", "-p", str(self._port)]
        keys = f"{USER_KEY},{USER_SECRET}"
        address = f"127.0.0.1:{self._port}"
        return [
            "serve",
            "s3",
            "--addr",
            address,
            "--auth-key",
            keys,
            "--config",
            "/dev/null",
            str(self._root / "objects"),
        ]

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            answers = self._answers()
            is_alive = self._process is not None and self._process.poll() is None
            if answers and is_alive:
                return
            if not is_alive or time.monotonic() > deadline:
                raise RuntimeError(f"{self._name} did not start:\n{(self._root / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint_url, timeout=1).close()
        except urllib.error.HTTPError:
            return True
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._root, ignore_errors=True)
