"""Ray Data reads both roots and a partition in one line each, with two models of different feature size present."""

from pathlib import Path

import pytest
import ray

import featlib
from tests.e2e.clips import write_clips
from tests.e2e.small import POOLS

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def output(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reads")
    write_clips(folder / "clips", 2)
    models = [
        {"network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "uniform:3"},
        {"label": "scores", "network": "squeezenet1_1", "weights": "random:0", "layer": "probabilities"},
    ]
    featlib.extract(
        featlib.ExtractConfig(
            manifest=[str(folder / "clips")], output=str(folder / "out"), dataset="d", models=models, **POOLS
        )
    )
    return folder / "out"


def test_the_features_root(output: Path) -> None:
    table = ray.data.read_parquet(str(output / "features")).to_pandas()
    sizes = {(row.model, len(row.feature)) for row in table.itertuples()}
    assert sizes == {("squeezenet1_1", 512), ("scores", 1000)}
    assert set(table.dataset) == {"d"}


def test_the_outcomes_root(output: Path) -> None:
    table = ray.data.read_parquet(str(output / "outcomes")).to_pandas()
    assert table.groupby("model").status.apply(list).to_dict() == {"scores": ["ok"] * 2, "squeezenet1_1": ["ok"] * 2}


def test_a_partition(output: Path) -> None:
    partition = output / "features" / "dataset=d" / "model=squeezenet1_1"
    assert ray.data.read_parquet(str(partition)).count() == 2 * 3
