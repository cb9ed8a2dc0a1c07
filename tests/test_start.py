"""The start of Ray in the background: what it gives, and what it raises."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from featlib import ExtractConfig
from featlib.errors import ConfigError
from featlib.pools import Machine, Pools, Sizes, plan_pools
from featlib.start import RayStart
from featlib.storage import Store


@pytest.fixture
def start(tmp_path: Path) -> RayStart:
    config = ExtractConfig(
        manifest=["clips"], output=str(tmp_path), dataset="d", models=[{"network": "resnet18"}], decode_workers=3
    )
    return RayStart(config, (), Store(str(tmp_path)))


def _planned(address: object, sizes: Sizes, kinds: object, flow: object, **rest: Any) -> Pools:
    return plan_pools(Machine(4), sizes, {"resnet18": "frame"})


def test_it_goes_on_while_the_caller_works_and_is_done_once(start: RayStart, monkeypatch: pytest.MonkeyPatch) -> None:
    is_waited_for, threads, now_s = threading.Event(), [], [100.0]

    def slow(*args: Any, **rest: Any) -> Pools:
        threads.append(threading.current_thread())
        is_waited_for.wait(10)
        now_s[0] += 5
        return _planned(*args, **rest)

    def clock() -> float:
        said_s = now_s[0]
        is_waited_for.set()
        return said_s

    monkeypatch.setattr("featlib.nodes.join_or_start", slow)
    monkeypatch.setattr("featlib.start.time", SimpleNamespace(monotonic=clock))
    start.begin()
    start.begin()
    pools, waited_s = start.pools()
    assert pools.decode_workers == 3
    assert waited_s == 5
    assert start.pools()[0] is pools
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


def test_the_thread_that_started_ray_stays(start: RayStart, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's processes end with it: the kernel takes the thread that made them for their parent."""
    monkeypatch.setattr("featlib.nodes.is_connected", lambda: False)
    monkeypatch.setattr("featlib.nodes.join_or_start", _planned)
    before = set(threading.enumerate())
    start.pools()
    (thread,) = (t for t in threading.enumerate() if t not in before and t.name == "featlib-ray")
    thread.join(0.1)
    assert thread.is_alive()
    assert thread.daemon


def test_what_goes_wrong_is_raised_where_the_pools_are_asked_for(
    start: RayStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **rest: Any) -> Pools:
        raise ConfigError("cannot fit")

    monkeypatch.setattr("featlib.nodes.join_or_start", refused)
    start.begin()
    with pytest.raises(ConfigError, match="cannot fit"):
        start.pools()


def test_a_job_that_is_refused_waits_for_the_start(start: RayStart, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, ended = threading.Event(), threading.Event()

    def slow(*args: Any, **rest: Any) -> Pools:
        may_end.wait(10)
        ended.set()
        return _planned(*args, **rest)

    monkeypatch.setattr("featlib.nodes.join_or_start", slow)
    start.wait()
    start.begin()
    threading.Timer(0.1, may_end.set).start()
    start.wait()
    assert ended.is_set()


def test_a_broken_ray_is_told_of(start: RayStart, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise ImportError("no ray")

    monkeypatch.setattr("featlib.nodes.is_connected", broken)
    with pytest.raises(ImportError, match="no ray"):
        start.pools()


_STRANGER = """
import sys, ray
from featlib.nodes import connect_ray
connect_ray(sys.argv[1])
print("in", ray.get(ray.remote(num_cpus=0)(lambda: 7).remote()))
"""
_TWICE = """
import json, os, psutil, ray, subprocess, sys
from featlib.nodes import _TOKEN, is_connected, start_local_ray

def listening():
    me = psutil.Process()
    ours = [me, *me.children(recursive=True)]
    return sorted({c.laddr.ip for p in ours for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN})

def comers(address):
    "What becomes of processes that know the address: one without a token, one with another, one with the right one."
    bare = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    bare |= {"HOME": sys.argv[2], "RAY_NUM_REDIS_GET_RETRIES": "2"}  # tries, a second each
    tokens = [{}] + [{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} for token in ("0" * len(_TOKEN), _TOKEN)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", sys.argv[1], address], env=bare | t, **streams) for t in tokens]
    return [[process.communicate()[0], process.returncode] for process in started]

found, came = [], []
for number in range(2):
    is_connected()
    address = start_local_ray(num_cpus=1, object_store_mb=80)
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    found.append(listening())
    came += comers(address) if number == 0 else []
    ray.shutdown()
left = [name for name in os.environ if name.startswith("RAY_AUTH")]
print(json.dumps({"listening": found, "came": came, "left": left}))
"""


@pytest.mark.ray
def test_a_local_ray_is_on_loopback_alone_asks_for_its_token_and_leaves_none_behind(tmp_path: Path) -> None:
    bare = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    other = tmp_path / "other"
    other.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", _TWICE, _STRANGER, str(other)], env={**bare, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    said = json.loads(ended.stdout.splitlines()[-1])
    assert all(said["listening"]), "somebody listens"
    assert {ip for ips in said["listening"] for ip in ips} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    *strangers, (text, status) = said["came"]
    assert (status, "in 7" in text) == (0, True), f"who knows the token is let in, so all find the place: {text}"
    for text, status in strangers:
        assert status == 1, text
        assert "InvalidAuthToken" in text
        assert "in 7" not in text
    assert said["left"] == []
    assert not list(tmp_path.rglob("auth_token"))
