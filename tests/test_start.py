"""The start of Ray in the background: what it gives, and what it raises."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
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
    may_end, threads = threading.Event(), []

    def slow(*args: Any, **rest: Any) -> Pools:
        threads.append(threading.current_thread())
        may_end.wait(10)
        return _planned(*args, **rest)

    monkeypatch.setattr("featlib.nodes.join_or_start", slow)
    start.begin()
    start.begin()
    may_end.set()
    pools, waited_s = start.pools()
    assert pools.decode_workers == 3
    assert waited_s >= 0
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


_TWICE = """
import json, os, psutil, ray
from featlib.nodes import is_connected, start_local_ray

def listening():
    me = psutil.Process()
    ours = [me, *me.children(recursive=True)]
    return sorted({c.laddr.ip for p in ours for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN})

found = []
for _ in range(2):
    is_connected()
    start_local_ray(num_cpus=1, object_store_mb=80)
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    found.append(listening())
    ray.shutdown()
print(json.dumps({"listening": found, "left": [name for name in os.environ if name.startswith("RAY_AUTH")]}))
"""


@pytest.mark.ray
def test_a_local_ray_is_on_loopback_alone_and_leaves_no_token_behind(tmp_path: Path) -> None:
    bare = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", _TWICE], env={**bare, "HOME": str(tmp_path)}, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    said = json.loads(ended.stdout.splitlines()[-1])
    assert all(said["listening"]), "somebody listens"
    assert {ip for ips in said["listening"] for ip in ips} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert said["left"] == []
    assert not list(tmp_path.rglob("auth_token"))
