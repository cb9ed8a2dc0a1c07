"""kill -9 of the driver, and of everything it started, at five events; then the same command again.

Ray Data reads what stands there then in one line, too.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

import featlib
from tests.e2e.clips import write_clips
from tests.e2e.rows import Key, Row, check_same_rows, object_names, plain_glob, rows_by_key, statuses
from tests.e2e.small import POOLS

pytestmark = pytest.mark.ray

EVENTS = {
    "plan written": ("plan_written", 1),
    "first staged piece": ("unit_staged", 1),
    "inside a publish": ("features_put", 1),
    "between two shards": ("shard_published", 1),
    "before the summary": ("before_summary", 1),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "clips"
    write_clips(folder, 6)
    return folder


def config_of(clips: Path, output: Path) -> dict[str, Any]:
    """Three shards of two clips, a unit a clip, two networks on one decode."""
    return {
        "manifest": [str(clips)],
        "output": str(output),
        "dataset": "d",
        "models": [
            {"network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "every:4"},
            {"label": "scores", "network": "squeezenet1_1", "weights": "random:1", "layer": "probabilities"},
        ],
        "shard_items": 2,
        "unit_items": 1,
        **POOLS,
        "object_store_mb": 200,
    }


@pytest.fixture(scope="module")
def undisturbed(clips: Path, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    summary = featlib.extract(featlib.ExtractConfig(**config_of(clips, output)))
    assert summary.media == {"ok": 6}
    assert len([n for n in object_names(output) if n.startswith("features/dataset=d/model=scores/")]) == 3
    return output


@dataclass(frozen=True)
class Ended:
    """How a job ended: its exit status as ``subprocess`` gives it, and what it printed."""

    status: int
    log: str


@pytest.fixture(scope="module")
def run_job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ended]]:
    """Runs a job in a process group of its own, forked from a process that has torch loaded."""
    log = tmp_path_factory.mktemp("jobs") / "log"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.killed_job"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def run(config: dict[str, Any], event: str, nth: int, whom: str, address: str) -> Ended:
        request = {"config": config, "event": event, "nth": nth, "whom": whom, "ray_address": address, "log": str(log)}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        return Ended(answer["status"], log.read_text())

    yield run
    server.stdin.close()
    server.wait(timeout=60)


@pytest.mark.parametrize("whom", ["driver", pytest.param("group", marks=pytest.mark.long)])
def test_killed_at_one_event_after_the_other(
    clips: Path, undisturbed: Path, ray_cluster: str, tmp_path: Path, run_job: Callable[..., Ended], whom: str
) -> None:
    """Each run goes on where the one before was killed. The group is the driver with all that it started, Ray, too, so
    that each of its runs begins with one of its own."""
    config = config_of(clips, tmp_path)
    address = ray_cluster if whom == "driver" else "local"
    for event in EVENTS:
        before = rows_by_key(tmp_path)
        visible = visible_after_kill(run_job, config, event, whom, address, undisturbed)
        check_unchanged(before, tmp_path)
    assert set(visible) == set(rows_by_key(undisturbed)), "all was published before the last kill"

    again = featlib.extract(featlib.ExtractConfig(**config))

    assert again.media == {"ok": 6}
    check_end(tmp_path, undisturbed)
    check_unchanged(visible, tmp_path)


def visible_after_kill(
    run_job: Callable[..., Ended], config: dict[str, Any], event: str, whom: str, address: str, undisturbed: Path
) -> dict[Key, Row]:
    """Runs a job that kills itself; what is visible then is right as far as it goes."""
    killed = run_job(config, *EVENTS[event], whom, address)
    assert killed.status == -signal.SIGKILL, killed.log[-2000:]
    truth, visible = rows_by_key(undisturbed), rows_by_key(Path(config["output"]))
    check_same_rows(visible, {key: truth[key] for key in visible})
    is_published = event in ("inside a publish", "between two shards", "before the summary")
    assert bool(visible) == is_published
    return visible


def check_unchanged(before: dict[Key, Row], output: Path) -> None:
    """What was visible once stays, to the bit."""
    now = rows_by_key(output)
    check_same_rows({key: now[key] for key in before}, before, tolerance=0.0)


def check_end(output: Path, undisturbed: Path) -> None:
    check_same_rows(rows_by_key(output), rows_by_key(undisturbed))
    assert object_names(output) == object_names(undisturbed)
    assert statuses(output) == statuses(undisturbed)
    assert not list(output.glob("_featlib/d/stage/**/*.piece")), "staging is empty once all is published"


@pytest.mark.parametrize("root", ["features", "outcomes"])
def test_ray_data_reads_both_roots_in_one_line(undisturbed: Path, root: str) -> None:
    """With two models of different feature size."""
    table = ray.data.read_parquet(str(undisturbed / root)).to_pandas()
    assert set(table.dataset) == {"d"}
    found = {(row.model, len(row.feature) if root == "features" else row.status) for row in table.itertuples()}
    sizes = {("squeezenet1_1", 512), ("scores", 1000)}
    assert found == (sizes if root == "features" else {("squeezenet1_1", "ok"), ("scores", "ok")})
    assert len(table) == len(plain_glob(undisturbed, root))


def test_ray_data_reads_a_partition(undisturbed: Path) -> None:
    partition = undisturbed / "features" / "dataset=d" / "model=squeezenet1_1"
    keys = [key for key in rows_by_key(undisturbed) if key[0] == "squeezenet1_1"]
    assert ray.data.read_parquet(str(partition)).count() == len(keys) > 6


def test_a_finished_job_ends_without_ray_and_says_so(
    clips: Path, undisturbed: Path, run_job: Callable[..., Ended]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed.glob("[fo]*/**/*.parquet")}
    result = run_job(config_of(clips, undisturbed), "none", 0, "driver", "127.0.0.1:1")
    assert result.status == 0, f"a Ray address that nobody answers is never asked: {result.log[-2000:]}"
    summary = json.loads(result.log.splitlines()[-1])
    assert summary["pools"] == ""
    assert summary["media"] == {"ok": 6}
    assert {p: p.stat().st_mtime_ns for p in undisturbed.glob("[fo]*/**/*.parquet")} == before
