"""Fine-tuning learns: real training on generated pictures and videos from random weights, three seeds (two of them in
`make long`)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torchvision.models import ShuffleNet_V2_X0_5_Weights, shufflenet_v2_x0_5

from featlib.finetuning import FinetuneResult, finetune
from featlib.train_config import FinetuneConfig
from tests.finetuning.make import moving_bar, write_manifest, write_pictures, write_video

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))]
# The statistics of batch normalisation follow weights that begin at random with a delay, so that the validation loss
# rises before it falls: patience is as long as the training.
SETTINGS = {"optimizer": "adam", "epochs": 14, "patience": 14}


def run(folder: Path, rows: list[dict[str, str]], seed: int, **settings: Any) -> FinetuneResult:
    manifest = write_manifest(folder / "manifest.csv", rows)
    values = {"weights": f"random:{seed}", "seed": seed, **SETTINGS, **settings}
    return finetune(FinetuneConfig(manifest=(manifest,), out=str(folder / "out"), **values))


def discs(folder: Path, seed: int) -> list[dict[str, str]]:
    rows = []
    for part, (split, count) in enumerate((("train", 16), ("validation", 6), ("test", 12))):
        (folder / split).mkdir()
        made = write_pictures(folder / split, count, ("red", "green"), 10 * seed + part)
        rows += [{**row, "split": split} for row in made]
    return rows


@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_of_frames_learns_its_classes(tmp_path: Path, seed: int) -> None:
    settings = {"learning_rate": 4e-4, "batch_size": 4}
    result = run(tmp_path, discs(tmp_path, seed), seed, backbone="shufflenet_v2_x0_5", **settings)
    assert result.media == {"train": 32, "val": 12, "test": 24}
    assert result.test is not None
    assert result.start["top_1"] <= 0.6
    assert result.test["top_1"] >= 0.9
    plain, wrong = (plain_loss(result, tmp_path / "test", bgr=bgr) for bgr in (False, True))
    assert result.test["loss"] == pytest.approx(plain, abs=0.02)
    assert abs(wrong - plain) > 0.1


def plain_loss(result: FinetuneResult, folder: Path, *, bgr: bool) -> float:
    """The loss of the saved weights over a folder, by torchvision alone: its network, its preset, its reader."""
    network = shufflenet_v2_x0_5(num_classes=2).eval()
    network.load_state_dict(load_file(f"{result.out}/weights.safetensors"))
    preset = ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms()
    paths = sorted(folder.iterdir())
    pictures = [Image.open(path) for path in paths]
    if bgr:
        pictures = [Image.fromarray(np.asarray(picture)[..., ::-1].copy()) for picture in pictures]
    labels = torch.tensor([("green", "red").index(path.name.partition("-")[0]) for path in paths])
    with torch.inference_mode():
        return float(cross_entropy(network(torch.stack([preset(picture) for picture in pictures])), labels))


@pytest.mark.parametrize("seed", SEEDS)
def test_contrastive_training_brings_one_class_together(tmp_path: Path, seed: int) -> None:
    settings = {"loss": "contrastive", "learning_rate": 1e-3, "batch_size": 8}
    result = run(tmp_path, discs(tmp_path, seed), seed, backbone="shufflenet_v2_x0_5", **settings)
    assert result.test is not None
    assert result.start["recall_at_1"] <= 0.75
    assert result.test["recall_at_1"] >= 0.9


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_of_clips_learns_the_direction_of_motion(tmp_path: Path, seed: int) -> None:
    """The classes show the same frames in opposite order."""
    random = np.random.default_rng(seed)
    rows = []
    for split, count in (("train", 16), ("validation", 6), ("test", 12)):
        for i in range(2 * count):
            path = write_video(tmp_path / f"{split}-{i}.avi", moving_bar(i % 2 == 0, random))
            rows.append({"uri": str(path), "label": ("right", "left")[i % 2], "split": split})
    settings = {"learning_rate": 3e-3, "batch_size": 6, "epochs": 8, "clip_sampling": "frames=8"}
    result = run(tmp_path, rows, seed, backbone="factorised3d", **settings)
    assert result.test is not None
    assert result.start["top_1"] <= 0.6
    assert result.test["top_1"] >= 0.9
