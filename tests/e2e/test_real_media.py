"""24 real files through two networks in one pass, held against a plain reference, feature by feature."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models import get_model
from torchvision.transforms._presets import ImageClassification

import featlib
from tests.e2e import plain
from tests.e2e.small import POOLS

TOLERANCE = 1e-4

# From packet dumps of each file: frames that plain decoding gives. All others of `ok` files decode to their end.
TRUTH = {
    "R6llTwEh07w.mp4": ("ok", 303),
    "SOX5yA1l24A.mp4": ("ok", 332),
    "TrumanShow_wave_f_nm_np1_fr_med_26.avi": ("ok", 48),
    "animated.gif": ("ok", 4),
    "av1_video.mkv": ("ok", 125),
    "bikes.mp4": ("ok", 250),
    "corrupted.mp4": ("partial", 28),
    "delayed_start.mp4": ("ok", 24),
    "demo.mp4": ("ok", 280),
    "discard_first_keyframe.mp4": ("ok", 25),
    "flipping_a_pancake.mkv": ("ok", 310),
    "h264_10bits.mp4": ("ok", 30),
    "h265_video.mp4": ("ok", 10),
    "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": ("ok", 83),
    "nasa_13013.mp4": ("ok", 325),
    "nasa_13013_rotated.mp4": ("ok", 17),
    "sine_stereo_mp2.mpg": ("ok", 100),
    "test_non_zero_start.mp4": ("ok", 12),
    "test_video_structuralize.mp4": ("ok", 300),
    "testsrc2_odd_height_and_width_vp9.mp4": ("ok", 25),
    "testsrc2_vp8.webm": ("ok", 30),
    "testsrc2_vp9.webm": ("ok", 30),
    "v_SoccerJuggling_g23_c01.avi": ("ok", 240),
    "video_90.mov": ("ok", 3),
}

pytestmark = [pytest.mark.media, pytest.mark.ray]


FRAMES = {"network": "squeezenet1_1"}
CLIPS = {"network": "r3d_18", "weights": "random:0"}
HOP = 96
"""Between the starts of r3d_18's clips; where each clip of 16 follows the one before, it takes minutes."""


@pytest.fixture(scope="module")
def output(media_folder: Path, weights_folder: Path, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    frames = {**FRAMES, "weights": str(weights_folder / "squeezenet1_1-imagenet.pth")}
    summary, output = extract(
        media_folder, tmp_path_factory.mktemp("real"), frames, {**CLIPS, "clip_sampling": f"hop={HOP}"}
    )
    wanted, there = sum(in_clips(count, HOP) for _, count in TRUTH.values()), sum(count for _, count in TRUTH.values())
    assert wanted <= summary.frames_decoded <= there, "one pass serves both networks"
    return output


@pytest.fixture(scope="module")
def every_clip(media_folder: Path, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    summary, output = extract(media_folder, tmp_path_factory.mktemp("clips"), CLIPS)
    assert sum(in_clips(count, 16) for _, count in TRUTH.values()) <= summary.frames_decoded
    return output


def extract(folder: Path, output: Path, *models: dict[str, str]) -> tuple[featlib.Summary, str]:
    config = {"manifest": [str(folder)], "output": str(output), "dataset": "real", "models": models}
    summary = featlib.extract(featlib.ExtractConfig(**config, **{**POOLS, "decode_workers": 2}))
    assert summary.exit_code == 0
    assert summary.media == {"ok": 23, "partial": 1}
    return summary, str(output)


def in_clips(count: int, hop: int) -> int:
    """Of a file's frames those that r3d_18 reads: clips of 16 every ``hop`` frames, or one clip that is filled up."""
    return ((count - 16) // hop + 1) * 16 if count > 16 else count


@pytest.fixture(scope="module")
def networks(weights_folder: Path) -> dict[str, torch.nn.Module]:
    squeezenet = get_model("squeezenet1_1", weights=None).eval()
    state = torch.load(weights_folder / "squeezenet1_1-imagenet.pth", weights_only=True)
    squeezenet.load_state_dict(state)
    torch.manual_seed(0)
    return {"squeezenet1_1": squeezenet, "r3d_18": get_model("r3d_18", weights=None).eval()}


@pytest.mark.long
def test_where_every_frame_is_wanted_each_is_decoded_once_for_both_networks(
    media_folder: Path, ray_cluster: str, tmp_path: Path
) -> None:
    small = {"network": "tests.extractors.tiny_networks:tiny", "weights": "random:0"}
    summary = featlib.extract(
        featlib.ExtractConfig(
            manifest=[str(media_folder)],
            output=str(tmp_path),
            dataset="dense",
            models=[{**small, "label": "all", "frame_sampling": "all"}, {**small, "label": "few"}],
            **{**POOLS, "extract_workers": 2},
        )
    )
    assert summary.frames_decoded == sum(frames for _, frames in TRUTH.values()), "one pass serves both networks"
    for label in ("all", "few"):
        outcomes = featlib.open_features(str(tmp_path), dataset="dense", model=label).outcomes()
        assert {Path(o.uri).name: (o.status, o.frames_decoded) for o in outcomes.itertuples()} == TRUTH


@pytest.mark.parametrize("label", ["squeezenet1_1", "r3d_18"])
def test_status_and_frame_count_of_every_file(output: str, label: str) -> None:
    outcomes = featlib.open_features(output, dataset="real", model=label).outcomes()
    found = {Path(o.uri).name: (o.status, o.frames_decoded) for o in outcomes.itertuples()}
    assert {name: status for name, (status, _) in found.items()} == {
        name: status for name, (status, _) in TRUTH.items()
    }
    for name, (_, decoded) in found.items():  # what is wanted by nobody need not be
        assert in_clips(TRUTH[name][1], HOP) <= decoded <= TRUTH[name][1], name


def rows_of(output: str, label: str) -> dict[str, pd.DataFrame]:
    table = featlib.open_features(output, dataset="real", model=label).to_pandas()
    return {Path(uri).name: rows.sort_values("clip_index") for uri, rows in table.groupby("uri")}


@dataclass(frozen=True)
class Plain:
    """A file as PyAV alone decodes it.

    Args:
        frames: Time in seconds and pixels of each.
        end: Of the last frame, in seconds.
    """

    name: str
    frames: list[tuple[float, np.ndarray]]
    end: float


@pytest.fixture(scope="module", params=TRUTH)
def decoded(request: pytest.FixtureRequest, media_folder: Path) -> Plain:
    """Each file once for all tests of it."""
    return Plain(request.param, *plain.frames(media_folder / request.param))


def test_every_frame_feature_is_that_of_the_plain_way(
    output: str, networks: dict[str, torch.nn.Module], decoded: Plain
) -> None:
    rows = rows_of(output, "squeezenet1_1")[decoded.name]
    picked = plain.shown_each_second([t for t, _ in decoded.frames], decoded.end)
    if TRUTH[decoded.name][0] == "partial":
        picked = picked[: len(rows)]
    times = [decoded.frames[i][0] for i in picked]
    assert [i for frames in rows.frame_s for i in frames] == pytest.approx(times, abs=1e-6)
    for i, feature in zip(picked, rows.feature, strict=True):
        reference = plain.squeezenet(networks["squeezenet1_1"], decoded.frames[i][1])
        assert plain.relative_l2(feature, reference) < TOLERANCE


def check_clips(output: str, network: torch.nn.Module, decoded: Plain, hop: int) -> None:
    rows = rows_of(output, "r3d_18")[decoded.name]
    clips = list(plain.windows(len(decoded.frames), 16, hop))
    assert len(rows) == len(clips) >= 1
    for row, clip in zip(rows.itertuples(), clips, strict=True):
        kept = sorted(set(clip))
        assert list(row.frame_s) == pytest.approx([decoded.frames[i][0] for i in kept], abs=1e-6)
        assert row.padded_frames == 16 - len(kept)
        reference = plain.r3d(network, [decoded.frames[i][1] for i in clip])
        assert plain.relative_l2(row.feature, reference) < TOLERANCE


def test_clip_features_are_those_of_the_plain_way(
    output: str, networks: dict[str, torch.nn.Module], decoded: Plain
) -> None:
    check_clips(output, networks["r3d_18"], decoded, HOP)


@pytest.mark.long
def test_features_of_clips_without_gaps_are_those_of_the_plain_way(
    every_clip: str, networks: dict[str, torch.nn.Module], decoded: Plain
) -> None:
    check_clips(every_clip, networks["r3d_18"], decoded, 16)


def test_the_gate_refuses_the_next_frame_bgr_and_the_other_antialias(
    output: str, media_folder: Path, networks: dict[str, torch.nn.Module]
) -> None:
    feature = rows_of(output, "squeezenet1_1")["av1_video.mkv"].feature.iloc[3]
    decoded, end = plain.frames(media_folder / "av1_video.mkv")
    i = plain.shown_each_second([t for t, _ in decoded], end)[3]
    network = networks["squeezenet1_1"]
    assert plain.relative_l2(feature, plain.squeezenet(network, decoded[i][1])) < TOLERANCE
    wrong = {
        "next frame": plain.squeezenet(network, decoded[i + 1][1]),
        "BGR": plain.squeezenet(network, np.ascontiguousarray(decoded[i][1][:, :, ::-1])),
        "no antialias": plain.squeezenet(network, decoded[i][1], ImageClassification(crop_size=224, antialias=False)),
    }
    distances = {name: plain.relative_l2(feature, reference) for name, reference in wrong.items()}
    assert all(distance > TOLERANCE for distance in distances.values()), distances


def test_the_clip_gate_refuses_the_next_frame_bgr_and_the_other_antialias(
    output: str, media_folder: Path, networks: dict[str, torch.nn.Module]
) -> None:
    from torchvision.transforms import functional
    from torchvision.transforms._presets import VideoClassification

    class Antialiased(VideoClassification):
        def forward(self, vid: torch.Tensor) -> torch.Tensor:
            resized = functional.resize(vid, self.resize_size, interpolation=self.interpolation, antialias=True)
            cropped = functional.center_crop(resized, self.crop_size)
            scaled = functional.convert_image_dtype(cropped, torch.float)
            return functional.normalize(scaled, mean=self.mean, std=self.std).permute(1, 0, 2, 3)

    antialiased = Antialiased(crop_size=(112, 112), resize_size=(128, 171), mean=plain.VIDEO.mean, std=plain.VIDEO.std)
    feature = rows_of(output, "r3d_18")["demo.mp4"].feature.iloc[2]
    clip = [rgb for _, rgb in plain.frames(media_folder / "demo.mp4")[0][2 * HOP : 2 * HOP + 17]]
    network = networks["r3d_18"]
    assert plain.relative_l2(feature, plain.r3d(network, clip[:16])) < TOLERANCE
    wrong = {
        "next frame": plain.r3d(network, clip[1:]),
        "BGR": plain.r3d(network, [np.ascontiguousarray(rgb[:, :, ::-1]) for rgb in clip[:16]]),
        "antialias": plain.r3d(network, clip[:16], antialiased),
    }
    distances = {name: plain.relative_l2(feature, reference) for name, reference in wrong.items()}
    assert all(distance > TOLERANCE for distance in distances.values()), distances
