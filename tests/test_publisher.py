"""The thread that publishes: what it gives, and what it still does when the job ends early."""

import threading
import time

import pytest

from featlib.publisher import Published, PublisherThread


def leave(thread: PublisherThread, error: BaseException, begun: threading.Event | None = None) -> None:
    """Asks for three shards and ends with an error, once the first is ``begun``."""
    with thread:
        for shard in range(3):
            thread.put(shard)
        assert begun is None or begun.wait(20)
        raise error


def test_who_wants_to_leave_waits_for_one_shard() -> None:
    begun, published = threading.Event(), list[int]()

    def publish(shard: int) -> Published:
        begun.set()
        while not thread._broken:
            time.sleep(0.005)
        published.append(shard)
        return Published(shard)

    thread = PublisherThread(publish)
    with pytest.raises(KeyboardInterrupt):
        leave(thread, KeyboardInterrupt(), begun)
    assert published == [0]


def test_what_is_ready_is_published_when_the_job_stops() -> None:
    published: list[int] = []

    def publish(shard: int) -> Published:
        published.append(shard)
        return Published(shard)

    with pytest.raises(RuntimeError, match="no worker"):
        leave(PublisherThread(publish), RuntimeError("no worker"))
    assert published == [0, 1, 2]


def test_what_is_done_is_given_as_it_comes() -> None:
    """A resume may find much staged: what became of it must not pile up until all of it is published."""
    taken = threading.Event()

    def publish(shard: int) -> Published:
        assert not shard or taken.wait(20), "the first was not given"
        return Published(shard)

    with PublisherThread(publish) as thread:
        for shard in range(3):
            thread.put(shard)
        done = []
        for result in thread.wait():
            done.append(result.shard)
            taken.set()
        assert done == [0, 1, 2]
        assert not list(thread.wait())
        assert not list(thread.take())


def test_nothing_is_waited_for_behind_an_error() -> None:
    def publish(shard: int) -> Published:
        if shard == 1:
            raise OSError("no space")
        return Published(shard)

    with PublisherThread(publish) as thread:
        for shard in range(3):
            thread.put(shard)
        waiting = thread.wait()
        assert next(waiting).shard == 0
        with pytest.raises(OSError, match="no space"):
            next(waiting)
        thread.put(3)
        assert not list(thread.wait())
