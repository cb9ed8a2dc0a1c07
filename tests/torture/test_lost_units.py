"""Units that come back from no worker: what the driver makes of them, without Ray."""

import io
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from featlib.errors import StoppedError
from featlib.manifest import read_manifest
from featlib.plan import read_plan
from featlib.shards.staging import stage
from featlib.storage import Store, StoreOptions
from featlib.workers import MAX_ATTEMPTS
from tests.shards.make import Item
from tests.torture.publishing import KEYS, Rows, brief
from tests.torture.story import LABELS, Story
from tests.torture.without_ray import run_story

_SEED = 8  # of units of three items
_DEADLY = ("ok-01.mp4", "long-08.mp4")


@pytest.fixture
def story(tmp_path: Path) -> Story:
    story = Story(_SEED, "grown", str(tmp_path / "media"), str(tmp_path / "out"))
    story.tell()
    return story


def _ids(story: Story) -> dict[str, str]:
    rows = [row for batch in read_manifest(tuple(story.config()["manifest"])) for row in batch.to_pylist()]
    return {os.path.basename(row["uri"]): row["media_id"] for row in rows}


def _left(store: Store) -> list[str]:
    return [info.key for prefix in (KEYS.stage, KEYS.units, KEYS.drivers) for info in store.list(prefix)]


def test_an_item_whose_worker_dies_each_time_is_blamed_alone_and_last(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked, lost = Store(story.output), list[tuple[str, list[str]]](), list[set[str]]()

    def check(output: str, options: StoreOptions, key: str) -> None:
        blamed = [info.key for info in store.list(KEYS.stage) if "-died-" in info.key]
        asked.append((output, blamed))
        units = pq.read_table(io.BytesIO(store.get(key)))["items"].to_pylist()
        named = [{os.path.basename(item["uri"]): item["media_id"] for item in unit} for unit in units]
        lost.append({media_id for unit in named if unit.keys() & set(_DEADLY) for media_id in unit.values()})

    monkeypatch.setattr("featlib.nodes.check_nodes", check)
    summary = run_story(story, str(tmp_path / "log"), deadly=_DEADLY)
    assert asked == [(store.url, [])] * MAX_ATTEMPTS, "the nodes are looked at first, each time"

    found, expected, ids = Rows.of(store), story.expected(), _ids(story)
    dead = {ids[name] for name in _DEADLY}
    assert found.twice == ()
    assert found.features == {key: values for key, values in expected.rows.items() if key[1] not in dead}
    died = dict.fromkeys(((label, media_id) for label in LABELS for media_id in dead), "failed")
    assert {key: status for key, (status, *_) in found.outcomes.items()} == expected.statuses | died
    assert {brief(found.outcomes[key]) for key in died} == {("failed", "worker_died", 0, MAX_ATTEMPTS)}
    assert len(lost[0]) > len(dead), "they had neighbours"
    assert lost[1:] == [dead, dead], "which are tried alone, as they are"
    tries = {media_id: attempts for (_, media_id), (*_, attempts) in found.outcomes.items() if media_id not in dead}
    assert {media_id for media_id, attempts in tries.items() if attempts != 1} == lost[0] - dead
    assert set(tries.values()) == {1, 2}
    assert sum(summary.media.values()) == len(story.names)
    assert _left(store) == []


def test_no_item_is_blamed_for_a_node_that_does_not_reach_the_output(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(output: str, options: StoreOptions, key: str) -> None:
        raise StoppedError("Ray's workers on b do not reach the output")

    monkeypatch.setattr("featlib.nodes.check_nodes", check)
    with pytest.raises(StoppedError, match="workers on b"):
        run_story(story, str(tmp_path / "log"), deadly=_DEADLY)
    store = Store(story.output)
    lost = {_ids(story)[name] for name in _DEADLY}
    assert not lost & {media_id for _, media_id in Rows.of(store).outcomes}
    run_story(story, str(tmp_path / "log"))
    found, expected = Rows.of(store), story.expected()
    assert found.features == expected.rows
    assert {key: status for key, (status, *_) in found.outcomes.items()} == expected.statuses
    assert {attempts for *_, attempts in found.outcomes.values()} == {1}
    assert _left(store) == []


def test_a_driver_removes_the_units_of_others_before_it_plans(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of one that sleeps stop at that."""
    store, seen = Store(story.output), list[list[str]]()
    store.put(f"{KEYS.units}/sleeper-0.units", b"")
    monkeypatch.setattr("featlib.job.read_plan", lambda *given: seen.append(_left(store)) or read_plan(*given))
    run_story(story, str(tmp_path / "log"))
    assert [[key for key in left if key.startswith(KEYS.units)] for left in seen] == [[]]


def test_pieces_that_came_late_are_removed_though_there_is_nothing_to_do(story: Story, tmp_path: Path) -> None:
    run_story(story, str(tmp_path / "log"))
    store, report = Store(story.output), Item("v0").report(LABELS)
    prints = dict.fromkeys(LABELS, "print")
    for unit, rounds in (("late", {"a": 0, "b": 0}), ("current", {"a": 1, "b": 0})):
        stage(store, KEYS, shard=0, unit=unit, rows=(), reports=[report], fingerprints=prints, rounds=rounds)
    run_story(story, str(tmp_path / "log"))
    assert [key.rpartition("/")[2].partition("-")[0] for key in _left(store)] == ["current"]
