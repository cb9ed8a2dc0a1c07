"""Layers, classes, optical flow, boxes and crops in one job: one decode for all, the same rows however divided."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.models import resnet18, squeezenet1_1
from torchvision.transforms.functional import resize

import featlib
from tests.e2e.clips import write_clip
from tests.e2e.plain import IMAGE, frames, relative_l2, squeezenet
from tests.e2e.rows import check_same_rows, plain_glob, rows_by_key
from tests.e2e.small import POOLS
from tests.extractors.plain_detectors import lively, plain

pytestmark = pytest.mark.ray

DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
MODELS = [
    {"network": "squeezenet1_1", "layer": "features.3,penultimate", "frame_sampling": "every:9", "top_k": 2},
    {"network": "two_stream_resnet18", "label": "two", "flow": "dis", "clip_sampling": "tail=shift"},
    {"network": "i3d_flow", "label": "i3d", "flow": "dis", "clip_sampling": "frames=11,fps=15"},
    {"network": DETECTOR, "label": "boxes", "regions": "fixed:2", "frame_sampling": "every:9"},
    {"network": f"crop:{DETECTOR}+resnet18", "label": "crops", "regions": "fixed:2", "frame_sampling": "every:9"},
]
FRAMES = {"wide.mp4": 25, "tall.mp4": 21}


def extract(clips: Path, output: Path, **settings: object) -> featlib.Summary:
    lively_weights = clips.parent / "detector.pth"
    if not lively_weights.exists():
        torch.save(lively(DETECTOR), lively_weights)
    weights = {"boxes": str(lively_weights), "crops": f"{lively_weights}+random:0"}
    models = [{**model, "weights": weights.get(str(model.get("label")), "random:0")} for model in MODELS]
    values = {"manifest": [str(clips)], "output": str(output), "dataset": "d", "models": models, **POOLS, **settings}
    return featlib.extract(featlib.ExtractConfig(**values))


@pytest.fixture(scope="module")
def output(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output; the clips, of two sizes, are beside it."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / "clips").mkdir()
    write_clip(folder / "clips" / "wide.mp4", seed=1, frames=FRAMES["wide.mp4"], size=(128, 96))
    write_clip(folder / "clips" / "tall.mp4", seed=2, frames=FRAMES["tall.mp4"], size=(96, 128))
    summary = extract(folder / "clips", folder / "out")
    assert summary.media == {"ok": 2}
    assert summary.frames_decoded == sum(FRAMES.values()), "once for all five"
    assert "1 flow on cpu" in summary.pools
    return folder / "out"


@pytest.fixture(scope="module")
def pictures(output: Path) -> dict[str, list[np.ndarray]]:
    """Every frame of each clip, by PyAV alone."""
    return {name: [rgb for _, rgb in frames(output.parent / "clips" / name)[0]] for name in FRAMES}


def rows_of(output: Path, model: str, name: str) -> list[dict]:
    rows = [r for r in plain_glob(output) if r["model"] == model and r["uri"].endswith(name)]
    return sorted(rows, key=lambda r: (r["clip_index"], r["region_index"]))


def test_several_layers_and_the_classes_come_from_one_forward(
    output: Path, pictures: dict[str, list[np.ndarray]]
) -> None:
    torch.manual_seed(0)
    network = squeezenet1_1().eval()
    for name, count in FRAMES.items():
        deep = rows_of(output, "squeezenet1_1.penultimate", name)
        shallow = rows_of(output, "squeezenet1_1.features.3", name)
        assert [r["clip_index"] for r in deep] == list(range(-(-count // 9)))
        assert {tuple(r["feature_shape"]) for r in shallow} == {(128, 55, 55)}
        for i, (a, b) in enumerate(zip(shallow, deep, strict=True)):
            rgb = pictures[name][9 * i]
            assert relative_l2(np.array(b["feature"]), squeezenet(network, rgb)) < 1e-4
            x = IMAGE(torch.from_numpy(rgb).permute(2, 0, 1))[None]
            with torch.inference_mode():
                maps, scores = network.features[:4](x), network(x).softmax(1)[0].topk(2)
            assert relative_l2(np.array(a["feature"]), maps.flatten().numpy()) < 1e-4
            assert a["labels"] == b["labels"] == [str(c) for c in scores.indices.tolist()]
            np.testing.assert_allclose(b["probabilities"], scores.values, rtol=1e-3)


def small(rgb: np.ndarray) -> np.ndarray:
    """A frame with its short side at 256."""
    resized: np.ndarray = resize(torch.from_numpy(rgb).permute(2, 0, 1), [256], antialias=True).permute(1, 2, 0).numpy()
    return resized


def test_flow_is_that_of_the_frames(output: Path, pictures: dict[str, list[np.ndarray]]) -> None:
    """The whole way once more by hand: PyAV, torchvision's resize, OpenCV, numpy, torchvision."""
    torch.manual_seed(0)
    spatial, temporal = resnet18(), resnet18()
    wide = torch.nn.Conv2d(20, 64, 7, 2, 3, bias=False)
    wide.weight.data = temporal.conv1.weight.data.mean(1, keepdim=True).repeat(1, 20, 1, 1)
    temporal.conv1 = wide
    spatial.fc, temporal.fc = torch.nn.Identity(), torch.nn.Identity()
    for name, count in FRAMES.items():
        rows = rows_of(output, "two", name)
        starts = [0, count - 11] if count == 21 else [0, 10, count - 11]
        assert [r["frame_s"][0] for r in rows] == pytest.approx([s / 15 for s in starts])
        for row, start in zip(rows, starts, strict=True):
            small = [
                resize(torch.from_numpy(p).permute(2, 0, 1), [256], antialias=True)
                for p in pictures[name][start : start + 11]
            ]
            cut = [p.permute(1, 2, 0).numpy() for p in small]
            flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
            grey = [cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in cut]
            fields = np.stack([flow.calc(a, b, None) for a, b in pairwise(grey)])
            high, wide_ = ((s - 224) // 2 for s in fields.shape[1:3])
            fields = fields[:, high : high + 224, wide_ : wide_ + 224]
            levels = np.rint(255 * (fields.clip(-20, 20) + 20) / 40) / 255
            stack = torch.from_numpy(((levels - 0.5) / 0.226).astype(np.float32)).permute(0, 3, 1, 2).flatten(0, 1)
            with torch.inference_mode():
                rgb = IMAGE(torch.from_numpy(pictures[name][start + 5]).permute(2, 0, 1))[None]
                expected = torch.cat([spatial.eval()(rgb)[0], temporal.eval()(stack[None])[0]])
            assert relative_l2(np.array(row["feature"]), expected.numpy()) < 1e-3
        assert [tuple(r["feature_shape"]) for r in rows_of(output, "i3d", name)] == [(1024,)] * ((count - 1) // 10)


def test_boxes_are_in_pixels_of_the_source(output: Path, pictures: dict[str, list[np.ndarray]]) -> None:
    network = plain(DETECTOR)
    network.roi_heads.score_thresh, network.roi_heads.detections_per_img = 0.0, 300
    for name in FRAMES:
        rows, crops = rows_of(output, "boxes", name), rows_of(output, "crops", name)
        assert [r["region_index"] for r in rows] == [0, 1] * (len(rows) // 2)
        for i, (row, crop) in enumerate(zip(rows, crops, strict=True)):
            with torch.inference_mode():
                picture = torch.from_numpy(pictures[name][9 * (i // 2)]).permute(2, 0, 1) / 255
                (found,) = network([picture])
            # Several boxes are as sure of themselves as this one: it has to be one of the best, and at its place.
            apart = np.abs(found["boxes"].numpy() - np.array(row["box"])).max(axis=1) + 100 * np.abs(
                found["scores"].numpy() - row["score"]
            )
            assert apart.min() < 0.05
            assert row["score"] == pytest.approx(float(found["scores"][i % 2]), abs=1e-4)
            assert row["labels"] == [str(int(found["labels"][apart.argmin()]))]
            assert (crop["box"], crop["score"]) == (row["box"], row["score"])
            assert (len(row["feature"]), len(crop["feature"])) == (1024, 512)


@pytest.mark.long
def test_two_pools_and_segments_give_the_same_rows(output: Path, tmp_path: Path) -> None:
    summary = extract(output.parent / "clips", tmp_path, layout="separate", unit_mb=2)
    assert summary.frames_decoded > sum(FRAMES.values()), (
        "frames at the seams are decoded twice, so there were segments"
    )
    check_same_rows(rows_by_key(tmp_path), rows_by_key(output))
