"""Media that cannot be used become outcomes that a person understands; the good ones beside them are untouched."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import featlib
from tests.e2e.clips import write_clip
from tests.e2e.rows import check_same_rows, plain_glob, rows_by_key
from tests.e2e.small import POOLS

pytestmark = pytest.mark.ray

MODELS = [
    {"network": "squeezenet1_1", "weights": "random:0", "frame_sampling": "every:5"},
    {"network": "tests.extractors.tiny_networks:tiny_clips", "label": "clips", "weights": "random:0"},
]


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = 44100, Fraction(1, 44100)
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "media"
    folder.mkdir()
    write_clip(folder / "good.mp4", seed=1)
    Image.new("RGB", (80, 60), (200, 30, 30)).save(folder / "photo.jpg")
    (folder / "directory.mp4").mkdir()
    (folder / "text.mp4").write_text("this is not a video\n" * 100)
    (folder / "empty.mp4").touch()
    write_audio(folder / "audio.m4a")
    (folder / "audio.m4a").rename(folder / "audio.mp4")
    return folder


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Path:
    names = ["good.mp4", "photo.jpg", "directory.mp4", "text.mp4", "empty.mp4", "audio.mp4", "absent.mp4"]
    path = folder / "list.csv"
    path.write_text("uri,media_id\n" + "".join(f"{name},{name.replace('.', '_')}\n" for name in names))
    return path


@pytest.fixture(scope="module")
def done(manifest: Path, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, featlib.Summary]:
    output = tmp_path_factory.mktemp("bad-out")
    config = featlib.ExtractConfig(manifest=[str(manifest)], output=str(output), dataset="d", models=MODELS, **POOLS)
    return output, featlib.extract(config)


EXPECTED = {
    "directory_mp4": ("not_a_file", "directory"),
    "text_mp4": ("unknown_format", ""),
    "empty_mp4": ("empty_file", "no bytes"),
    "audio_mp4": ("no_video_stream", "video"),
    "absent_mp4": ("not_found", ""),
}


@pytest.mark.parametrize("media_id", EXPECTED)
@pytest.mark.parametrize("model", ["squeezenet1_1", "clips"])
def test_each_has_an_outcome_with_a_class_and_a_message(
    done: tuple[Path, featlib.Summary], media_id: str, model: str
) -> None:
    outcomes = featlib.open_features(str(done[0]), dataset="d", model=model).outcomes().set_index("media_id")
    row = outcomes.loc[media_id]
    error_class, words = EXPECTED[media_id]
    assert (row.status, row.error_class, row.num_rows) == ("failed", error_class, 0)
    assert words in row.error_message
    assert "\n" not in row.error_message
    assert "Traceback" not in row.error_message


def test_the_share_of_failures_decides_the_exit_code(done: tuple[Path, featlib.Summary], manifest: Path) -> None:
    output, summary = done
    assert summary.media == {"ok": 2, "failed": 5}
    assert summary.exit_code == 3
    generous = featlib.ExtractConfig(
        manifest=[str(manifest)], output=str(output), dataset="d", models=MODELS, **POOLS, max_failed=0.8
    )
    assert featlib.extract(generous).exit_code == 0


def test_an_image_is_one_frame_and_is_skipped_under_a_clip_model(done: tuple[Path, featlib.Summary]) -> None:
    rows = [r for r in plain_glob(done[0]) if r["media_id"] == "photo_jpg"]
    assert [(r["model"], r["start_s"], r["end_s"], r["frame_s"]) for r in rows] == [("squeezenet1_1", 0.0, None, [0.0])]
    skipped = featlib.open_features(str(done[0]), dataset="d", model="clips").outcomes().set_index("media_id")
    assert skipped.loc["photo_jpg", "status"] == "skipped"


def test_the_good_one_is_as_if_it_had_been_alone(
    done: tuple[Path, featlib.Summary], folder: Path, tmp_path: Path
) -> None:
    alone = featlib.ExtractConfig(
        manifest=[str(folder / "good.mp4")], output=str(tmp_path), dataset="d", models=MODELS, **POOLS
    )
    featlib.extract(alone)
    mine = {k: v for k, v in rows_by_key(done[0]).items() if k[1] == "good.mp4"}
    check_same_rows(mine, rows_by_key(tmp_path), tolerance=0.0)


def test_retry_failed_takes_up_what_failed_and_leaves_the_rest(
    done: tuple[Path, featlib.Summary], folder: Path, manifest: Path
) -> None:
    output, _ = done
    first = {p: p.read_bytes() for p in output.glob("features/**/*.parquet")}
    write_clip(folder / "absent.mp4", seed=3)
    try:
        again = featlib.extract(
            featlib.ExtractConfig(
                manifest=[str(manifest)], output=str(output), dataset="d", models=MODELS, **POOLS, retry_failed=True
            )
        )
    finally:
        (folder / "absent.mp4").unlink()
    assert again.media == {"ok": 3, "failed": 4}
    assert {p: p.read_bytes() for p in first} == first, "objects that are there are never replaced"
    names = {p.name for p in output.glob("features/**/*.parquet")}
    assert names == {"part-00000.parquet", "part-00000-r1.parquet"}
    outcomes = featlib.open_features(str(output), dataset="d", model="clips").outcomes().set_index("media_id")
    assert outcomes.attempts.to_dict()["absent_mp4"] == 2
    assert outcomes.attempts.to_dict()["good_mp4"] == 1
