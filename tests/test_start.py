"""The start of Ray in the background: what it gives, and what it raises."""

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

    monkeypatch.setattr("featlib.dataflow.join_or_start", slow)
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
    monkeypatch.setattr("featlib.dataflow.is_connected", lambda: False)
    monkeypatch.setattr("featlib.dataflow.join_or_start", _planned)
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

    monkeypatch.setattr("featlib.dataflow.join_or_start", refused)
    start.begin()
    with pytest.raises(ConfigError, match="cannot fit"):
        start.pools()


def test_a_job_that_is_refused_waits_for_the_start(start: RayStart, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, ended = threading.Event(), threading.Event()

    def slow(*args: Any, **rest: Any) -> Pools:
        may_end.wait(10)
        ended.set()
        return _planned(*args, **rest)

    monkeypatch.setattr("featlib.dataflow.join_or_start", slow)
    start.wait()
    start.begin()
    threading.Timer(0.1, may_end.set).start()
    start.wait()
    assert ended.is_set()


def test_a_broken_ray_is_told_of(start: RayStart, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise ImportError("no ray")

    monkeypatch.setattr("featlib.dataflow.is_connected", broken)
    with pytest.raises(ImportError, match="no ray"):
        start.pools()
