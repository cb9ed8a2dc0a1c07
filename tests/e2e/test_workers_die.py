"""Workers that die cost work, not rows: what was lost is done again, and nothing is there twice."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import featlib
import featlib.job
from tests.e2e.clips import write_clips
from tests.e2e.rows import check_same_rows, features_by_key
from tests.e2e.small import POOLS

pytestmark = pytest.mark.ray

MODELS = [{"network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "all"}]


def config(clips: Path, output: Path) -> featlib.ExtractConfig:
    return featlib.ExtractConfig(
        manifest=[str(clips)], output=str(output), dataset="d", models=MODELS, shard_items=4, unit_items=1, **POOLS
    )


def processes(kind: str) -> list[psutil.Process]:
    """Processes of this session's Ray that run an actor of this kind."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if kind in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def is_decoding(actor: psutil.Process) -> bool:
    """Whether the nursery of a decode actor has forked a decoding process."""
    try:
        return len(actor.children(recursive=True)) > 1
    except psutil.NoSuchProcess:
        return False


@contextmanager
def killed_while_decoding() -> Iterator[threading.Event]:
    """Kills a decode actor once it decodes. That is over before the job tells of anything, so no event would do."""
    over, killed = threading.Event(), threading.Event()

    def watch() -> None:
        while not killed.is_set() and not over.wait(0.02):
            for actor in filter(is_decoding, processes("_DecodeActor")):
                actor.kill()
                killed.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        over.set()
        watcher.join()


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output; the clips are beside it."""
    folder = tmp_path_factory.mktemp("workers")
    write_clips(folder / "clips", 8)
    featlib.extract(config(folder / "clips", folder / "out"))
    return folder / "out"


def check_nothing_lost_or_doubled(summary: featlib.Summary, output: Path, undisturbed: Path) -> None:
    assert summary.media == {"ok": 8}
    check_same_rows(features_by_key(output), features_by_key(undisturbed))


def test_a_decode_actor_that_is_killed_loses_and_doubles_nothing(undisturbed: Path, tmp_path: Path) -> None:
    with killed_while_decoding() as killed:
        summary = featlib.job.extract(config(undisturbed.parent / "clips", tmp_path))
        assert killed.is_set()
    check_nothing_lost_or_doubled(summary, tmp_path, undisturbed)


def test_an_extract_actor_that_is_killed_loses_and_doubles_nothing(undisturbed: Path, tmp_path: Path) -> None:
    killed = threading.Event()

    def on_event(name: str, what: str) -> None:
        if name == "unit_staged" and not killed.is_set():
            processes("_ExtractActor")[0].kill()
            killed.set()

    summary = featlib.job.extract(config(undisturbed.parent / "clips", tmp_path), on_event=on_event)
    assert killed.is_set()
    check_nothing_lost_or_doubled(summary, tmp_path, undisturbed)
