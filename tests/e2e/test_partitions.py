"""Labels, settings and growth: what one run adds beside what earlier runs made."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import featlib
from tests.e2e.clips import write_clip, write_clips
from tests.e2e.rows import object_names, plain_glob, rows_by_key
from tests.e2e.small import POOLS

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("partitions") / "clips"
    write_clips(folder, 3)
    return folder


def extract(clips: Path, output: Path, *models: Mapping[str, Any], **settings: Any) -> featlib.Summary:
    values = {"manifest": [str(clips)], "output": str(output), "dataset": "d", "models": models, **POOLS, **settings}
    return featlib.extract(featlib.ExtractConfig(**values))


SPARSE = {"label": "sparse", "network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "uniform:2"}
DENSE = {"label": "dense", "network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "all"}
CLIPS = {"network": "r3d_18", "weights": "random:0"}


@pytest.fixture(scope="module")
def output(clips: Path, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out")
    summary = extract(clips, output, SPARSE, DENSE)
    assert summary.media == {"ok": 3}
    assert summary.frames_decoded == 20 + 25 + 30, "two labels, one decode"
    return output


def test_one_network_twice_under_two_labels(output: Path) -> None:
    assert len(featlib.open_features(str(output), dataset="d", model="sparse")) == 3 * 2
    assert len(featlib.open_features(str(output), dataset="d", model="dense")) == 20 + 25 + 30
    rows = {(r["model"], r["uri"], r["frame_s"][0]): r["feature"] for r in plain_glob(output)}
    for (model, uri, time), feature in rows.items():
        if model == "sparse":
            assert rows["dense", uri, time] == pytest.approx(feature, rel=1e-5)


def test_a_changed_setting_under_an_old_label_is_refused_with_both_ways_out(clips: Path, output: Path) -> None:
    before = object_names(output)
    with pytest.raises(featlib.ConfigError) as refusal:
        extract(clips, output, {**SPARSE, "frame_sampling": "uniform:3"})
    message = str(refusal.value)
    assert "sampling was uniform:2, is now uniform:3" in message
    assert "--model NEWLABEL=" in message
    assert "featlib drop" in message
    assert "\n" not in message
    assert object_names(output) == before


def test_a_model_added_later_decodes_again_and_touches_nothing_of_the_first(clips: Path, output: Path) -> None:
    mine = {p: p.read_bytes() for p in output.glob("[fo]*/dataset=d/model=[sd]*e/*.parquet")}
    summary = extract(clips, output, SPARSE, DENSE, CLIPS)
    assert summary.frames_decoded == 3 * 16, "what one clip of each holds"
    assert summary.rows["r3d_18"] == 1 + 1 + 1
    assert {p: p.read_bytes() for p in mine} == mine


@pytest.fixture(scope="module")
def _dense(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    write_clips(folder / "clips", 3)
    extract(folder / "clips", folder / "out", DENSE)
    return folder


@pytest.fixture
def dense(_dense: Path) -> Iterator[Path]:
    """An output of the dense model alone, as it was when it was made; its clips are beside it."""
    before = _dense.parent / f"{_dense.name}-before"
    shutil.copytree(_dense, before)  # with the files' times
    yield _dense / "out"
    shutil.rmtree(_dense)
    before.rename(_dense)


def test_a_grown_manifest_adds_only_the_new(dense: Path) -> None:
    folder, output = dense.parent / "clips", dense
    first = {p: p.read_bytes() for p in output.glob("[fo]*/**/*.parquet")}
    old = rows_by_key(output)
    write_clip(folder / "aaa.mp4", seed=9)

    summary = extract(folder, output, DENSE)

    assert summary.media == {"ok": 4}
    assert summary.frames_decoded == 30, "only the new clip is decoded"
    assert {p: p.read_bytes() for p in first} == first
    new = rows_by_key(output)
    assert {name for _, name, _, _ in set(new) - set(old)} == {"aaa.mp4"}


def test_a_smaller_manifest_first_and_the_rest_of_its_shard_later(dense: Path, output: Path) -> None:
    clips = dense.parent / "clips"
    assert extract(clips, dense, SPARSE, limit=1).media == {"ok": 1}
    assert extract(clips, dense, SPARSE).media == {"ok": 3}
    sparse, at_once = ({k for k in rows_by_key(o) if k[0] == "sparse"} for o in (dense, output))
    assert sparse == at_once
    assert len(sparse) == 3 * 2


def test_changed_media_are_done_again_only_when_asked(dense: Path) -> None:
    folder, output = dense.parent / "clips", dense
    before = rows_by_key(output)
    write_clip(folder / "clip01.mp4", seed=77, frames=25)

    assert not extract(folder, output, DENSE).did_work
    summary = extract(folder, output, DENSE, changed=True)

    after = rows_by_key(output)
    assert summary.frames_decoded == 25
    assert set(after) == set(before)
    different = {key[1] for key, value in after.items() if (value.feature != before[key].feature).any()}
    assert different == {"clip01.mp4"}
    outcomes = featlib.open_features(str(output), dataset="d", model="dense").outcomes()
    assert outcomes.set_index(outcomes.uri.map(lambda u: Path(u).name)).loc["clip01.mp4", "attempts"] == 2
