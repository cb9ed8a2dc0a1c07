"""Workers that die cost work, not rows: what was lost is done again, and nothing is there twice."""

import os
import signal
import threading
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


def actors(kind: str) -> list[int]:
    """Processes of the session's Ray that run an actor of this kind."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            if kind in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output; the clips are beside it."""
    folder = tmp_path_factory.mktemp("workers")
    write_clips(folder / "clips", 8)
    featlib.extract(config(folder / "clips", folder / "out"))
    return folder / "out"


@pytest.mark.parametrize("kind", ["_DecodeActor", "_ExtractActor"])
def test_a_killed_actor_loses_and_doubles_nothing(undisturbed: Path, tmp_path: Path, kind: str) -> None:
    clips = undisturbed.parent / "clips"
    killed = threading.Event()

    def on_event(name: str, what: str) -> None:
        if name == "unit_staged" and not killed.is_set():
            victims = actors(kind)
            assert victims, f"no process of a {kind} was found"
            os.kill(victims[0], signal.SIGKILL)
            killed.set()

    summary = featlib.job.extract(config(clips, tmp_path / "out"), on_event=on_event)

    assert killed.is_set()
    assert summary.media == {"ok": 8}
    check_same_rows(features_by_key(tmp_path / "out"), features_by_key(undisturbed))
