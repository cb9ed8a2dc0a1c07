"""OpenStack Swift with its S3 API on loopback: a real object store for tests, from PyPI and without root.

One device, one replica, four processes. They die with this process, however it ends.
"""

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from tests.servers.buckets import Buckets

START_DEADLINE_S = 30.0
STARTS = 3
ACCOUNT, USER, USER_SECRET = "test", "tester", "testing"
USER_KEY = f"{ACCOUNT}:{USER}"
_BACKENDS = ("account", "container", "object")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_SWIFT_CONF = """[swift-hash]
swift_hash_path_suffix = tests
[storage-policy:0]
name = one
default = yes
"""
_COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {etc}
user = {user}
log_level = WARNING
log_address = {root}/no-syslog
"""
_BACKEND = """devices = {root}/devices
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_RINGS = """
import sys
from swift.common.ring import RingBuilder
etc, kinds, ports = sys.argv[1], sys.argv[2:5], sys.argv[5:8]
for kind, port in zip(kinds, map(int, ports)):
    builder = RingBuilder(4, 1, 0)
    device = {"id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1.0, "meta": ""}
    for prefix in ("", "replication_"):
        device[prefix + "ip"], device[prefix + "port"] = "127.0.0.1", port
    builder.add_dev(device)
    builder.rebalance()
    builder.get_ring().save(f"{etc}/{kind}.ring.gz")
"""
_PROXY_FILTERS: dict[str, dict[str, str]] = {
    "catch_errors": {},
    "healthcheck": {},
    "listing_formats": {},
    "bulk": {},
    "s3api": {"location": "us-east-1", "s3_acl": "false", "max_upload_part_num": "10000"},
    "tempauth": {},
    "copy": {},
    "slo": {"max_manifest_segments": "10000"},
    "dlo": {},
    "versioned_writes": {"allow_object_versioning": "true"},
    "symlink": {},
}


def has_swift() -> bool:
    """Whether the server can run here; on Linux it must be installed, and its start fails where it is not."""
    return sys.platform == "linux" or find_spec("swift") is not None


@dataclass
class SwiftServer(Buckets):
    """Started by ``with``; ``bucket`` makes fresh buckets.

    Args:
        root: A folder for its configuration, logs and objects; must not exist yet.
    """

    root: Path
    key: str = USER_KEY
    secret: str = USER_SECRET
    ports: dict[str, int] = field(default_factory=dict)
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}"

    def __enter__(self) -> "SwiftServer":
        begin_with_free_ports(self._begin, self.stop)
        return self

    def _begin(self) -> None:
        self.ports = dict(zip((*_BACKENDS, "proxy"), free_ports(4), strict=True))
        self._write_configuration()
        self._write_rings()
        for kind in (*_BACKENDS, "proxy"):
            self._start(kind)
        self._await_ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def environment(self) -> dict[str, str]:
        """What a process needs to find this server and to be let in."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        shutil.rmtree(self.root, ignore_errors=True)

    def _write_configuration(self) -> None:
        etc = self.root / "etc"
        etc.mkdir(parents=True)
        (self.root / "devices" / "d1").mkdir(parents=True)
        (etc / "swift.conf").write_text(_SWIFT_CONF)
        user = pwd.getpwuid(os.getuid()).pw_name
        for kind, port in self.ports.items():
            text = _COMMON.format(port=port, etc=etc, user=user, root=self.root)
            text += _proxy_pipeline(self.secret) if kind == "proxy" else _BACKEND.format(root=self.root, kind=kind)
            (etc / f"{kind}.conf").write_text(text)

    def _write_rings(self) -> None:
        """In a process of its own: swift loads eventlet, which is none of the tests' business."""
        ports = [str(self.ports[kind]) for kind in _BACKENDS]
        command = [sys.executable, "-W", "ignore", "-c", _RINGS, str(self.root / "etc"), *_BACKENDS, *ports]
        subprocess.run(command, check=True, timeout=START_DEADLINE_S)

    def _start(self, kind: str) -> None:
        program = Path(sys.executable).with_name(f"swift-{kind}-server")
        with (self.root / f"{kind}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(program), str(self.root / "etc" / f"{kind}.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=die_with_parent,
            )
        self.processes.append(process)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            is_healthy = self._healthy()
            dead = [process.args for process in self.processes if process.poll() is not None]
            if is_healthy and not dead:
                return
            if dead or time.monotonic() > deadline:
                raise RuntimeError(f"Swift did not start (ended: {dead}); logs:\n{self._logs()}")
            time.sleep(0.05)

    def _healthy(self) -> bool:
        for kind in _BACKENDS:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.ports[kind])):
                    return False
        try:
            with urllib.request.urlopen(f"{self.endpoint_url}/healthcheck", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def _logs(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self.root.glob("*.log")))


def user_environment() -> dict[str, str]:
    """What lets a process into any server of the tests."""
    return {
        "AWS_ACCESS_KEY_ID": USER_KEY,
        "AWS_SECRET_ACCESS_KEY": USER_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _proxy_pipeline(secret: str) -> str:
    filters = {**_PROXY_FILTERS, "tempauth": {f"user_{ACCOUNT}_{USER}": f"{secret} .admin"}}
    lines = ["[pipeline:main]", f"pipeline = {' '.join(_PROXY_FILTERS)} proxy-server"]
    lines += ["[app:proxy-server]", "use = egg:swift#proxy", "allow_account_management = true"]
    lines += ["account_autocreate = true", "node_timeout = 60"]
    for name, settings in filters.items():
        lines += [f"[filter:{name}]", f"use = egg:swift#{name}", *(f"{k} = {v}" for k, v in settings.items())]
    return "\n".join(lines) + "\n"


def begin_with_free_ports(begin: Callable[[], None], stop: Callable[[], None]) -> None:
    """Starts a server, up to ``STARTS`` times: somebody else may take a free port before the server binds it.

    Raises:
        RuntimeError: It did not start, for the last time.
    """
    for tries_left in reversed(range(STARTS)):
        try:
            begin()
        except BaseException as error:
            stop()
            if not isinstance(error, RuntimeError) or not tries_left:
                raise
        else:
            return


def free_ports(count: int) -> list[int]:
    """Ports that were free just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
