"""The job as a cluster runs it: `ray job submit` to a closed Ray head on this machine."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import featlib
from featlib.media.samples import make_samples

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
START_S, JOB_S, END_S = 120, 400, 30
_PORTS = (
    "--dashboard-port",
    "--ray-client-server-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--metrics-export-port",
    "--runtime-env-agent-port",
)


@dataclass(frozen=True)
class Head:
    """A running Ray head: where jobs are submitted, and the environment that is let in."""

    address: str
    environment: dict[str, str]

    def run(self, *words: str, timeout_s: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "ray"), "job", *words],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def featlib_submit(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "featlib"), "submit", "--address", self.address, *words],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=JOB_S,
            check=False,
        )

    def submit(self, working_dir: Path, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        words = ("submit", "--address", self.address, "--working-dir", str(working_dir), "--", *entrypoint)
        return self.run(*words, timeout_s=JOB_S)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with (
        tempfile.TemporaryDirectory(prefix="fl", dir="/tmp", ignore_cleanup_errors=True) as folder,  # socket paths
        running_head(Path(folder), closed_environment(Path(folder))) as head,
    ):
        yield head


@pytest.fixture(scope="module")
def open_head() -> Iterator[Head]:
    """One as people start it who think of nothing."""
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = closed_environment(Path(folder))
        del environment["RAY_AUTH_TOKEN"]
        with running_head(Path(folder), {**environment, "RAY_AUTH_MODE": "disabled"}) as head:
            yield head


@contextmanager
def running_head(folder: Path, environment: dict[str, str]) -> Iterator[Head]:
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    head = Head(f"http://127.0.0.1:{ports['--dashboard-port']}", environment)
    with ray_head(folder, ports, environment) as process:
        wait_until_up(head, process, folder / "head.log")
        yield head


def closed_environment(home: Path) -> dict[str, str]:
    """One with a token of its own, so that neither a token in the user's home nor another Ray is met."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return {
        **kept,
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{kept.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


@contextmanager
def ray_head(folder: Path, ports: dict[str, int], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    words = ["start", "--head", "--block", "--port=0", "--num-cpus=6", f"--object-store-memory={400 << 20}"]
    words += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    words += [f"{option}={port}" for option, port in ports.items()]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / "ray"), *words], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            end_session(process)


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Ends the head in good order, and what is left of its session by force."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_S)
    for pid in session_members(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def session_members(session: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if session_of(pid) == session]


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def wait_until_up(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    request = urllib.request.Request(f"{head.address}/api/jobs/")
    request.add_header("Authorization", f"Bearer {head.environment.get('RAY_AUTH_TOKEN', '')}")
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the Ray head did not come up:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What travels to the cluster: the job script and a job file."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "jobs").mkdir()
    shutil.copy(ROOT / "jobs" / "extract.py", folder / "jobs")
    media, output = folder.parent / "media", folder.parent / "out"
    make_samples(media)
    job = {
        "manifest": str(media),
        "output": str(output),
        "dataset": "submitted",
        "models": [{"network": "squeezenet1_1", "weights": "random:0"}],
        "decode_workers": 1,
        "limit": 3,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder


@pytest.mark.long
def test_submitted_job_writes_features_and_its_exit_code_is_the_jobs(head: Head, working_dir: Path) -> None:
    done = head.submit(working_dir, "python", "jobs/extract.py", "--config", "job.yaml")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    features = featlib.open_features(str(working_dir.parent / "out"), dataset="submitted", model="squeezenet1_1")
    assert set(features.outcomes().status) == {"ok"}
    assert len(features.outcomes()) == 3
    assert len(features) == features.outcomes().num_rows.sum() >= 3
    assert features.to_numpy().shape[1] == 512


def test_submitted_mistake_fails_with_one_line(head: Head, working_dir: Path) -> None:
    done = head.submit(working_dir, "python", "jobs/extract.py", "--config", "job.yaml", "--dataset", "2024-01-01")
    assert done.returncode != 0
    (line,) = {line for line in done.stdout.splitlines() if line.startswith("featlib:")}  # Ray repeats the log's end
    assert "dataset" in line
    assert "Traceback" not in done.stdout


def test_featlib_submit_follows_the_job_and_ends_with_its_exit_code(head: Head, working_dir: Path) -> None:
    arguments = ("--working-dir", str(working_dir), "--", "extract", "--config", "job.yaml")
    done = head.featlib_submit(*arguments, "--dataset", "by-featlib")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "submitted as" in done.stderr
    assert "token" not in done.stderr, "the cluster is closed"
    assert "rows in" in done.stdout, "what the job prints is shown"
    features = featlib.open_features(str(working_dir.parent / "out"), dataset="by-featlib", model="squeezenet1_1")
    assert len(features.outcomes()) == 3
    wrong = head.featlib_submit(*arguments, "--dataset", "2024-01-01")
    assert wrong.returncode == 2, wrong.stdout[-3000:] + wrong.stderr[-3000:]
    assert "2024-01-01" in wrong.stdout


def test_featlib_submit_is_refused_in_one_line(head: Head) -> None:
    stranger = head.featlib_submit("--", "extract", "--help", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert stranger.returncode == 1
    assert stranger.stderr.startswith("featlib: ")
    assert stranger.stderr.count("\n") == 1
    other = head.featlib_submit("--", "models")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)


def test_featlib_submit_warns_of_an_open_cluster(open_head: Head) -> None:
    done = open_head.featlib_submit("--no-wait", "--", "extract", "--help")
    assert done.returncode == 0, done.stderr
    warning, submitted = done.stderr.splitlines()
    assert open_head.address in warning
    assert "CVE-2023-48022" in warning
    assert "submitted as" in submitted


def test_stranger_is_not_let_in(head: Head) -> None:
    refused = head.run("list", "--address", head.address, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert refused.returncode != 0
    assert "token" in (refused.stdout + refused.stderr).lower()
