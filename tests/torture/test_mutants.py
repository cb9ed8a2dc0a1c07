"""A part of the mutants of ``make torture``."""

import json
from pathlib import Path

from featlib.media import DecodeProcess, Limits
from featlib.sampling import FrameSampling
from featlib.spec import MediaItem, PixelSpec, Segment, Want
from featlib.storage import StoreOptions
from tests.media.make import write_video
from tests.torture import measured, mutants


def test_every_mutant_has_an_outcome_within_its_limits(tmp_path: Path) -> None:
    tally, outcomes = mutants.torture(tmp_path, 364, first_seed=0)
    assert tally.count == outcomes.classes.total() == 364
    assert outcomes.num_sound == 24
    assert not tally.failures, tally.text()


def test_what_decoding_takes_is_measured(tmp_path: Path) -> None:
    """The limits above would be seen to be exceeded."""
    (tmp_path / "media").mkdir()
    large = write_video(tmp_path / "media" / "large.mp4", size=(2048, 2048), frames=3, codec="mpeg4")
    wants = (Want("m", FrameSampling.parse("all"), PixelSpec((), None)),)
    with DecodeProcess(Limits(), StoreOptions(), measured.DECODE) as process:
        decoded = process.decode(MediaItem("large", str(large)), wants, Segment(0, 0))
    assert decoded.status == "ok"
    (call,), unended = measured.read(tmp_path / measured.NAME)
    pixels = 3 * 2048 * 2048
    assert not unended
    assert call.grown_bytes > 3 * pixels
    assert call.wall_s > 0
    assert not measured.excesses([call], call.wall_s, call.grown_bytes)
    assert measured.excesses([call, call], call.wall_s, call.grown_bytes) == [f"large took {2 * call.wall_s:.1f} s"]
    assert measured.excesses([call], call.wall_s, pixels) == [
        f"the process of large grew by {call.grown_bytes >> 20} MiB"
    ]


def test_media_whose_process_ended_are_told(tmp_path: Path) -> None:
    lines = [
        {"begun": "dies", "pid": 7}, {"begun": "well", "pid": 8},
        {"media_id": "well", "pid": 8, "wall_s": 1.0, "grown_bytes": 0}, {"begun": "dies, too", "pid": 7},
    ]  # fmt: skip
    (tmp_path / "measured").write_text("".join(json.dumps(line) + "\n" for line in lines))
    calls, unended = measured.read(tmp_path / "measured")
    assert [call.media_id for call in calls] == ["well"]
    assert unended == ["dies", "dies, too"]
