"""Workers that die cost work, not rows: what was lost is done again, and nothing is there twice."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from PIL import Image

import featlib
from tests.e2e.clips import write_clips
from tests.e2e.rows import check_same_rows, plain_glob, rows_by_key
from tests.e2e.small import POOLS

pytestmark = pytest.mark.ray

MODELS = [{"network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "all"}]


def config(clips: Path, output: Path) -> featlib.ExtractConfig:
    return featlib.ExtractConfig(
        manifest=[str(clips)], output=str(output), dataset="d", models=MODELS, shard_items=4, unit_items=1, **POOLS
    )


def working(kind: str) -> list[psutil.Process]:
    """Processes of this session's Ray that have a task of an actor of this kind in hand, as Ray names them then."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            if kind in title and title.rstrip().endswith(".submit"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@contextmanager
def killed_at_work(kind: str) -> Iterator[threading.Event]:
    """Kills an actor while it has a task in hand; decoding is over before the job tells of anything."""
    over, killed = threading.Event(), threading.Event()

    def watch() -> None:
        while not killed.is_set() and not over.wait(0.02):
            for actor in working(kind)[:1]:
                with suppress(psutil.NoSuchProcess):
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


@pytest.mark.parametrize("kind", ["_DecodeActor", "_ExtractActor"])
def test_an_actor_that_is_killed_loses_and_doubles_nothing(undisturbed: Path, tmp_path: Path, kind: str) -> None:
    assert not working(kind), "the job before this one is over"
    with killed_at_work(kind) as killed:
        summary = featlib.extract(config(undisturbed.parent / "clips", tmp_path))
        assert killed.is_set()
    assert summary.media == {"ok": 8}
    check_same_rows(rows_by_key(tmp_path), rows_by_key(undisturbed))


@pytest.mark.long
def test_a_lost_device_costs_the_item_over_which_it_was_lost(ray_cluster: str, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(6):
        level = 255 if i == 2 else 40 * i
        Image.new("RGB", (48, 40), (level, level, level)).save(pictures / f"{i}.png")
    settings = {"manifest": [str(pictures)], "output": str(tmp_path / "out"), "dataset": "d", **POOLS}
    models = [{"network": "tests.e2e.poisoned:net", "weights": "random:0"}]
    featlib.extract(featlib.ExtractConfig(models=models, unit_items=1, compile="off", max_failed=1.0, **settings))
    ended = {Path(row["uri"]).name: row for row in plain_glob(tmp_path / "out", "outcomes")}
    assert {name: row["error_class"] for name, row in ended.items() if row["status"] != "ok"} == {
        "2.png": "worker_died"
    }
