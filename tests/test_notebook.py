"""The notebook runs from top to bottom over the output of a real job, and its stored outputs are of this notebook."""

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

import featlib
from featlib.config import extract_config
from featlib.media.samples import make_samples

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "first_look.ipynb"
SAID = re.compile(r"(\d+) of (\d+) frames have their nearest neighbour in the same video")


def texts(notebook: Any) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]


def pictures(notebook: Any) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]


@pytest.fixture(scope="module")
def output(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo writes, by a smaller network under the same label."""
    folder = tmp_path_factory.mktemp("demo")
    make_samples(folder / "media")
    network = {"network": "squeezenet1_1", "label": "resnet18", "weights": "random:0", "frame_sampling": "fps:5"}
    job = {"manifest": str(folder / "media"), "output": str(folder / "out"), "dataset": "demo", "models": [network]}
    config = extract_config({**job, "decode_workers": 1, "extract_workers": 1})
    assert featlib.extract(config).exit_code == 0
    return folder / "out"


@pytest.mark.ray
def test_notebook_runs_over_a_jobs_output(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATLIB_NOTEBOOK_OUTPUT", str(output))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    features = featlib.open_features(str(output), dataset="demo", model="resnet18")
    said = "\n".join(texts(notebook))
    assert f"{len(features)} rows of 512 values, float32" in said
    found = SAID.search(said)
    assert found
    same, videos = map(int, found.groups())
    assert videos == features.outcomes().query("duration_s.notna()").num_rows.sum()
    assert same > 0.8 * videos, "frames of one sample video look alike to any network"
    assert len(pictures(notebook)) == 1


def test_stored_notebook_was_run_in_order_and_names_no_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert SAID.search("\n".join(texts(notebook)))
    assert len(pictures(notebook)) == 1
    source = "\n".join(cell.source for cell in notebook.cells)
    assert not re.search(r"(/home/|/root/|/tmp/)", source + "\n".join(texts(notebook)))
