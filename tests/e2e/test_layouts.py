"""The same rows however the work is divided: one pool or two, whole items or segments."""

from pathlib import Path

import pytest

import featlib
from tests.e2e.clips import write_clip
from tests.e2e.rows import check_same_rows, plain_glob, rows_by_key
from tests.e2e.small import POOLS

pytestmark = pytest.mark.ray

MODELS = [
    {"network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "all"},
    {
        "network": "tests.extractors.tiny_networks:tiny_clips",
        "label": "clips",
        "weights": "random:0",
        "clip_sampling": "frames=16,hop=12,tail=shift",
    },
]


def extract(clips: Path, output: Path, **settings: object) -> featlib.Summary:
    values = {"manifest": [str(clips)], "output": str(output), "dataset": "d", "models": MODELS, **POOLS, **settings}
    return featlib.extract(featlib.ExtractConfig(**values))


@pytest.fixture(scope="module")
def together(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output; the clips are beside it."""
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "clips").mkdir()
    write_clip(folder / "clips" / "short.mp4", seed=1, frames=10)
    write_clip(folder / "clips" / "long.mp4", seed=2, frames=45)
    summary = extract(folder / "clips", folder / "out", layout="together")
    assert summary.pools.count("squeezenet1_1 clips") == 1
    assert summary.frames_decoded == 10 + 45
    return folder / "out"


def test_two_pools_give_the_rows_of_one(together: Path, tmp_path: Path) -> None:
    summary = extract(together.parent / "clips", tmp_path, layout="separate")
    assert "[clips]" in summary.pools
    assert "[squeezenet1_1]" in summary.pools
    assert summary.frames_decoded == 10 + 45
    check_same_rows(rows_by_key(tmp_path), rows_by_key(together))


def test_a_long_video_in_segments_gives_the_rows_of_a_whole_one(together: Path, tmp_path: Path) -> None:
    summary = extract(together.parent / "clips", tmp_path, unit_mb=2)
    assert summary.media == {"ok": 2}
    assert summary.frames_decoded > 10 + 45, "frames at the seams are decoded twice, so there were segments"
    check_same_rows(rows_by_key(tmp_path), rows_by_key(together))
    mine = {r["clip_index"]: r["frame_s"] for r in plain_glob(tmp_path) if r["model"] == "clips" and "long" in r["uri"]}
    assert mine[0][0] == 0.0
    assert list(mine) == sorted(mine)
