"""Other stores with an S3 API, of processes on loopback that die with this one: moto, a mock; rclone, which ignores
conditions; Ceph's radosgw over a cluster of one monitor and one disk in memory. All take the tests' keys of Swift."""

import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from tests.servers.buckets import Buckets
from tests.servers.swift import (
    START_DEADLINE_S,
    USER_KEY,
    USER_SECRET,
    begin_with_free_ports,
    die_with_parent,
    free_ports,
)


class OtherServer(Buckets):
    """Started by ``with``; ``bucket`` makes fresh buckets.

    Args:
        root: A folder for its objects and its log; must not exist yet.
    """

    PROGRAMS: ClassVar[tuple[str, ...]]
    START_S: ClassVar[float] = START_DEADLINE_S
    key, secret = USER_KEY, USER_SECRET

    def __init__(self, root: Path) -> None:
        self._root = root
        self._port = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    @classmethod
    def is_installed(cls) -> bool:
        return all(_path(name) is not None for name in cls.PROGRAMS)

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "OtherServer":
        begin_with_free_ports(self._begin, self.stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        while self._processes:
            process = self._processes.pop()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._root, ignore_errors=True)

    def _begin(self) -> None:
        self._port = free_ports(1)[0]
        self._root.mkdir(parents=True)
        self._start()

    def _start(self) -> None:
        """Starts what answers at ``_port``, and ends when it does."""
        raise NotImplementedError

    def _serve(self, *words: str) -> None:
        """Starts a program that works until it is ended."""
        program = _path(words[0])
        assert program is not None, f"{words[0]} is not installed"
        with self._log.open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [program, *words[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
                )
            )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self.START_S
        while True:
            answers = self._answers()
            are_alive = all(process.poll() is None for process in self._processes)
            if answers and are_alive:
                return
            if not are_alive or time.monotonic() > deadline:
                raise RuntimeError(f"{self.PROGRAMS[0]} did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint_url, timeout=1).close()
        except urllib.error.HTTPError:
            return True
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False
        return True

    @property
    def _log(self) -> Path:
        return self._root / "log"


class MotoServer(OtherServer):
    PROGRAMS = ("moto_server",)

    def _start(self) -> None:
        self._serve("moto_server", "-H", "127.0.0.1", "-p", str(self._port))
        self._await_ready()


class RcloneServer(OtherServer):
    PROGRAMS = ("rclone",)

    def _start(self) -> None:
        objects = self._root / "objects"
        objects.mkdir()
        keys, address = f"{USER_KEY},{USER_SECRET}", f"127.0.0.1:{self._port}"
        self._serve(
            "rclone", "serve", "s3", "--addr", address, "--auth-key", keys, "--config", "/dev/null", str(objects)
        )
        self._await_ready()


class RadosgwServer(OtherServer):
    PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "monmaptool")
    START_S = 120.0  # it makes its pools first

    def _start(self) -> None:
        (self._root / "mon").mkdir()
        (self._root / "osd").mkdir()
        (self._root / "run").mkdir()
        cluster, disk = str(uuid.uuid4()), str(uuid.uuid4())
        monitor = f"127.0.0.1:{free_ports(1)[0]}"
        self._conf.write_text(self._settings(cluster, monitor))
        map_file = str(self._root / "monmap")
        self._do("monmaptool", "--create", "--fsid", cluster, "--addv", "a", f"[v2:{monitor}]", map_file)
        self._do("ceph-mon", *self._common, "--mkfs", "-i", "a", "--monmap", map_file)
        self._serve("ceph-mon", *self._common, "-f", "-i", "a")
        self._do("ceph", *self._common, "osd", "new", disk)
        self._do("ceph-osd", *self._common, "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._serve("ceph-osd", *self._common, "-f", "-i", "0")
        self._serve("radosgw", *self._common, "-f", "-n", "client.rgw")
        self._await_ready()
        keys = ("--access-key", USER_KEY, "--secret-key", USER_SECRET)
        self._do(
            "radosgw-admin", *self._common, "-n", "client.rgw", "user", "create", "--uid", "tests", "--display-name",
            "tests", *keys,
        )  # fmt: skip

    def _do(self, *words: str) -> None:
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=self.START_S,
                preexec_fn=die_with_parent,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{words[0]} did not end:\n{(error.stderr or b'').decode()[-2000:]}") from None
        if done.returncode:
            raise RuntimeError(f"{words[0]} ended with {done.returncode}:\n{done.stderr.decode()[-2000:]}")

    def _settings(self, cluster: str, monitor: str) -> str:
        """Nobody is asked for a key within the cluster; objects have one copy, in memory."""
        return f"""[global]
fsid = {cluster}
mon_host = [v2:{monitor}]
public_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc secure
ms_mon_cluster_mode = crc secure
ms_mon_service_mode = crc secure
mon_data = {self._root}/mon
osd_data = {self._root}/osd
run_dir = {self._root}/run
admin_socket = {self._root}/run/$name.asok
crash_dir = {self._root}/run
log_file = {self._root}/$name.log
mon_data_avail_crit = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_objectstore = memstore
memstore_device_bytes = {2 << 30}
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
rgw_frontends = beast endpoint=127.0.0.1:{self._port}
"""

    @property
    def _common(self) -> tuple[str, ...]:
        return ("-c", str(self._conf))

    @property
    def _conf(self) -> Path:
        return self._root / "ceph.conf"


STORES: dict[str, type[OtherServer]] = {"moto": MotoServer, "rclone": RcloneServer, "radosgw": RadosgwServer}


def _path(program: str) -> str | None:
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.exists() else shutil.which(program)
