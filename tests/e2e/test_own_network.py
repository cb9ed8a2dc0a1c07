"""A network of the user's own, from a file beside the job and from an installed package: its rows, and who lacks it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms._presets import ImageClassification

import featlib
from featlib.errors import StoppedError
from tests.e2e import plain
from tests.e2e.clips import write_clips
from tests.e2e.rows import rows_by_key, statuses
from tests.e2e.small import POOLS

pytestmark = pytest.mark.ray

NETWORK = """
from torch import nn

import featlib


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.body(x))


pixels = featlib.PixelSpec(resize=(40,), crop=(32, 32))
reads = featlib.InputSpec("frame", pixels, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
net = featlib.own_network("{name}", Small, reads)
"""


def install_beside(folder: Path, package: str) -> None:
    """A package as pip leaves it, its network named after it."""
    (folder / f"{package}.py").write_text(NETWORK.replace("{name}", package))
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[featlib.extractors]\nany = {package}:net\n")


def expected(path: Path, network: torch.nn.Module) -> list[np.ndarray]:
    """Features of the frames shown at 0 s, 1 s …, one by one, without featlib."""
    preset = ImageClassification(crop_size=32, resize_size=40, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    frames, end = plain.frames(path)
    shown = [frames[i][1] for i in plain.shown_each_second([t for t, _ in frames], end)]
    with torch.inference_mode():
        return [network.body(preset(torch.from_numpy(f).permute(2, 0, 1))[None])[0].numpy() for f in shown]


def test_rows_of_a_network_beside_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_the_job.py").write_text(NETWORK.replace("{name}", "any"))
    install_beside(tmp_path, "plugged_in")
    clips = write_clips(tmp_path / "clips", 2)
    command = [sys.executable, "-m", "featlib", "extract", "clips", "--output", "out", "--dataset", "d"]
    command += ["--model", "beside_the_job:net", "--model", "plugged_in", "--weights", "random:5", "--device", "cpu"]
    command += ["--decode-workers", "1", "--extract-workers", "1", "--extract-threads", "1"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path / "out") == {("net", "ok"): 2, ("plugged_in", "ok"): 2}

    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("beside_the_job")
    torch.manual_seed(5)
    network = module.Small().eval()
    rows = rows_by_key(tmp_path / "out")
    wanted = {
        (label, path.name, i, 0): feature
        for path in clips
        for i, feature in enumerate(expected(path, network))
        for label in ("net", "plugged_in")
    }
    assert rows.keys() == wanted.keys()
    assert len(wanted) >= 8
    for key, feature in wanted.items():
        assert plain.relative_l2(rows[key].feature, feature) < 1e-4, key


def test_workers_that_lack_the_module_say_what_a_cluster_needs(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's Ray was started before this folder was importable, so its workers do not know it."""
    (tmp_path / "only_the_driver.py").write_text(NETWORK.replace("{name}", "any"))
    monkeypatch.syspath_prepend(tmp_path)
    write_clips(tmp_path / "clips", 1)
    models = [{"network": "only_the_driver:net", "weights": "random:0"}]
    settings = {"manifest": [str(tmp_path / "clips")], "output": str(tmp_path / "out"), "dataset": "d", **POOLS}
    with pytest.raises(StoppedError, match=r"no module 'only_the_driver' .* on a Ray cluster every node needs it"):
        featlib.extract(featlib.ExtractConfig(models=models, **settings))


def test_files_beside_the_media_are_no_modules(ray_cluster: str, tmp_path: Path) -> None:
    """An archive of clips may hold files named like modules; the command is started in its folder."""
    write_clips(tmp_path, 1)
    canary = tmp_path / "canary"
    for name in ("json", "av", "numpy", "featlib", "pyarrow"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'a').write('{name} ')\n")
    # As the installed command, which has no current folder among its paths.
    command = [sys.executable, "-P", "-c", "from featlib.cli import main; main()", "extract", ".", "--output", "out"]
    command += ["--dataset", "d", "--model", "squeezenet1_1", "--weights", "random:0", "--compile", "off"]
    command += ["--decode-workers", "1", "--extract-workers", "1", "--ray-address", ray_cluster]
    environment = {**os.environ, "PYTHONPATH": str(Path(featlib.__file__).parent.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert not canary.exists(), canary.read_text()
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path / "out") == {("squeezenet1_1", "ok"): 1}
