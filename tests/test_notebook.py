"""The notebook runs from top to bottom over the output of a real job, and its stored outputs are of this notebook. The
demo, whose output it is, and the scripts in ``jobs`` over that output."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

import featlib
from featlib.cli import cli
from featlib.config import extract_config
from featlib.extract_options import job_values
from featlib.media.samples import make_samples
from jobs import demo

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "first_look.ipynb"
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


def test_the_demos_command_is_one_that_the_job_takes(tmp_path: Path) -> None:
    words = demo.command(tmp_path / "media", tmp_path / "out")
    name, command, rest = cli.resolve_command(cli.make_context("featlib", [*words]), words)
    assert name == "extract"
    assert command is not None
    given = command.make_context(name, rest).params
    del given["as_json"]
    config = extract_config(job_values(given))
    assert (config.manifest, config.output) == ((str(tmp_path / "media"),), str(tmp_path / "out"))
    assert config.dataset == demo.DATASET
    assert tuple(model.label for model in config.models) == demo.MODELS


@pytest.mark.ray
def test_the_demos_table_shows_every_sample(output: Path) -> None:
    table = demo.table(output, "resnet18")
    outcomes = featlib.open_features(str(output), dataset=demo.DATASET, model="resnet18").outcomes()
    assert sorted(table.media) == sorted(path.name for path in (output.parent / "media").iterdir())
    assert table.num_rows.sum() == outcomes.num_rows.sum() > 0
    sound = table[table.num_rows > 0]
    assert set(sound["feature size"]) == {"512"}
    assert sound["first values"].str.fullmatch(r"-?\d+\.\d{3}( -?\d+\.\d{3}){2}").all()


def run_script(name: str, *arguments: str) -> None:
    """As ``ray job submit`` runs it."""
    command = [sys.executable, str(ROOT / "jobs" / name), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.ray
def test_the_jobs_for_vectors_and_heads_run_as_scripts(output: Path, tmp_path: Path) -> None:
    asked = ("--output", str(output), "--dataset", demo.DATASET, "--features", "resnet18")
    run_script("aggregate.py", *asked, "--pool", "max")
    features = featlib.open_features(str(output), dataset=demo.DATASET, model="resnet18")
    ok = set(features.outcomes().query("num_rows > 0").media_id)
    vectors = featlib.open_features(str(output), dataset=demo.DATASET, model="resnet18.max")
    assert set(vectors.to_pandas(["media_id"]).media_id) == ok
    labels = tmp_path / "labels.csv"
    labels.write_text("media_id,label\n" + "".join(f"{m},{'ab'[i % 2]}\n" for i, m in enumerate(sorted(ok))))
    head = ("--head", "linear", "--epochs", "1", "--labels", str(labels), "--out", str(tmp_path / "head"))
    run_script("train.py", *asked, *head)
    assert (tmp_path / "head" / "metrics.json").exists()


def test_stored_notebook_was_run_in_order_and_names_no_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert SAID.search("\n".join(texts(notebook)))
    assert len(pictures(notebook)) == 1
    source = "\n".join(cell.source for cell in notebook.cells)
    assert not re.search(r"(/home/|/root/|/tmp/)", source + "\n".join(texts(notebook)))
