"""Real SqueezeNet weights over frames of a real clip: the classes of plain torchvision, and the right ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from featlib.config import ModelConfig
from featlib.extractors.resolve import resolve
from featlib.extractors.weights import payload
from featlib.inference import Engine
from featlib.media import Limits, decode_item
from featlib.spec import MediaItem, Segment
from featlib.storage import StoreOptions
from tests.e2e.plain import frames

pytestmark = pytest.mark.media
OPTIONS = StoreOptions()


def test_a_football_clip_is_told_from_its_frames(media_folder: Path, weights_folder: Path) -> None:
    clip, weights = media_folder / "v_SoccerJuggling_g23_c01.avi", weights_folder / "squeezenet1_1-imagenet.pth"
    enum = SqueezeNet1_1_Weights.IMAGENET1K_V1
    config = ModelConfig(
        network="squeezenet1_1",
        label="s",
        weights=str(weights),
        top_k=3,
        categories=str(enum),
        frame_sampling="uniform:3",
    )
    model = resolve(config, OPTIONS)
    item = MediaItem("a", str(clip))
    decoded = decode_item(item, (model.want,), Segment(0, 1), store_options=OPTIONS, limits=Limits())
    index = np.array([c.frame_idx for c in decoded.clips["s"]])
    (made,) = Engine([model], payload(model, OPTIONS)).run(decoded.frames[model.input.pixels.key], index)
    plain = squeezenet1_1().eval()
    plain.load_state_dict(torch.load(weights, weights_only=True))
    pictures, _ = frames(clip)
    wanted = [(2 * i + 1) * len(pictures) // 6 for i in range(3)]
    for row, number in enumerate(wanted):
        x = enum.transforms()(torch.from_numpy(pictures[number][1]).permute(2, 0, 1))[None]
        with torch.inference_mode():
            best = plain(x).softmax(1)[0].topk(3)
        assert made.beside["labels"][row].as_py() == [enum.meta["categories"][i] for i in best.indices]
        np.testing.assert_allclose(made.beside["probabilities"][row].as_py(), best.values, rtol=1e-3)
    labels = [set(row) for row in made.beside["labels"].to_pylist()]
    assert sum("soccer ball" in row for row in labels) == 2
