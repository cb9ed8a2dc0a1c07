"""Times of frames whose packets have none, and videos with such packets."""

from pathlib import Path

import numpy as np
import pytest

from featlib.media import gaps
from featlib.media.gaps import filled
from featlib.media.times import NO_PTS
from tests.media.conftest import WHOLE, decode, want
from tests.media.make import packets, without_pts, write_video

CLOSED = {"x264-params": "scenecut=0:open-gop=0"}


def _decode_order(frames: int, b_frames: int) -> np.ndarray:
    """Where the frames are shown that are decoded one after the other."""
    order = [0]
    for i in range(0, frames - 1, b_frames + 1):
        stop = min(i + b_frames + 1, frames - 1)
        order += [stop, *range(i + 1, stop)]
    return np.array(order, dtype=np.int64)


@pytest.mark.parametrize("b_frames", [0, 2, 3, 7])
@pytest.mark.parametrize("share", [0.02, 0.05])
def test_a_few_missing_times_are_found_again(b_frames: int, share: float) -> None:
    random = np.random.default_rng(7)
    for frames in range(40, 140, 5):
        times = _decode_order(frames, b_frames) * 3600 + 900
        holes = random.random(frames) < share
        holes[random.integers(1, frames)] = True
        found = filled(np.where(holes, NO_PTS, times))
        assert found is not None
        assert np.array_equal(found[~holes], times[~holes])
        assert np.array_equal(np.sort(found), np.sort(times))


@pytest.mark.parametrize("place", range(19))
def test_one_missing_time_is_found_wherever_it_is(place: int) -> None:
    times = _decode_order(19, 2) * 90 - 500
    found = filled(np.where(np.arange(19) == place, NO_PTS, times))
    assert found is not None
    assert found.tolist() == times.tolist()


def test_most_times_may_be_missing() -> None:
    """As where a PTS comes every 0.7 s."""
    times = np.arange(100) * 3600
    found = filled(np.where(np.arange(100) % 17 == 3, times, NO_PTS))
    assert found is not None
    assert found.tolist() == times.tolist()


def test_a_variable_rate_stays_one() -> None:
    given = [0, 40, NO_PTS, 120, 1120, NO_PTS, NO_PTS, 2020, 2060, NO_PTS]
    found = filled(np.array(given))
    assert found is not None
    assert found.tolist() == [0, 40, 80, 120, 1120, 1420, 1720, 2020, 2060, 2100]


@pytest.mark.parametrize(
    "given",
    [[NO_PTS] * 4, [NO_PTS, 5, NO_PTS], [1, 7, NO_PTS, 7], [1, NO_PTS, NO_PTS, 2, 3]],
    ids=["none", "one", "twice", "no room"],
)
def test_too_little_is_known(given: list[int]) -> None:
    assert filled(np.array(given)) is None


def test_in_a_wild_order_no_time_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two recordings, the later one first."""
    looked_at: list[object] = []
    monkeypatch.setattr(gaps, "_slots", lambda *given: looked_at.append(given))
    for half in (18, 65, 4000):
        times = np.r_[half : 2 * half, :half] * 3600
        assert filled(np.where(np.arange(2 * half) == 3, NO_PTS, times)) is None
    assert not looked_at


@pytest.fixture(scope="module", params=[0, 2], ids=["in order", "reordered"])
def streams(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A transport stream, and the same without the PTS of some packets."""
    folder = tmp_path_factory.mktemp("pts")
    whole = write_video(folder / "a.ts", b_frames=request.param, options=CLOSED)
    return whole, without_pts(whole, lambda i: i % 9 in (6, 7, 8), folder / "b.ts")


def test_the_packets_have_no_time(streams: tuple[Path, Path]) -> None:
    assert [i for i, (pts, *_) in enumerate(packets(streams[1])) if pts is None] == [i for i in range(40) if i % 9 > 5]


@pytest.mark.parametrize("sampling", ["all", "every:7", "uniform:5", "keyframes"])
def test_frames_without_a_time_of_their_own_are_where_they_were(streams: tuple[Path, Path], sampling: str) -> None:
    expected, result = (decode(path, want(sampling)) for path in streams)
    assert (result.status, result.error_message) == ("ok", None)
    assert result.clips == expected.clips
    assert result.facts.duration_s == expected.facts.duration_s
    assert np.array_equal(result.frames[WHOLE.key], expected.frames[WHOLE.key])


@pytest.mark.parametrize(
    ("frames", "b_frames", "missing"),
    [(36, 2, {31, 33}), (42, 3, {5, 6, 13}), (44, 1, {26, 40, 41, 42}), (19, 3, {1, 4}), (19, 2, {1, 10, 11})],
)
def test_frames_whose_places_are_guessed_wrong_get_their_times_from_the_decoder(
    tmp_path: Path, frames: int, b_frames: int, missing: set[int]
) -> None:
    order = _decode_order(frames, b_frames)
    guessed = filled(np.where(np.isin(np.arange(frames), list(missing)), NO_PTS, order * 3600))
    assert guessed is not None
    assert not np.array_equal(guessed, order * 3600)
    options = {"x264-params": f"scenecut=0:open-gop=0:b-adapt=0:b-pyramid=0:bframes={b_frames}"}
    whole = write_video(tmp_path / "a.ts", frames=frames, b_frames=b_frames, gop=250, options=options)
    expected, result = decode(whole), decode(without_pts(whole, lambda i: i in missing, tmp_path / "b.ts"))
    assert (result.status, result.clips) == ("ok", expected.clips)
    assert np.array_equal(result.frames[WHOLE.key], expected.frames[WHOLE.key])


def test_none_is_stepped_over_where_one_is_told_by_the_one_before(streams: tuple[Path, Path]) -> None:
    expected, result = (decode(path, want("every:39")) for path in streams)
    assert expected.facts.frames_decoded < 30 < result.facts.frames_decoded
    assert np.array_equal(result.frames[WHOLE.key], expected.frames[WHOLE.key])


@pytest.mark.parametrize("n", [3, 5])
def test_segments_begin_in_the_middle_of_them(streams: tuple[Path, Path], n: int) -> None:
    whole, parts = decode(streams[0]), [decode(streams[1], k=k, n=n) for k in range(n)]
    assert {part.status for part in parts} == {"ok"}
    assert [c.start_s for part in parts for c in part.clips["m"]] == [c.start_s for c in whole.clips["m"]]
    assert np.array_equal(np.concatenate([part.frames[WHOLE.key] for part in parts]), whole.frames[WHOLE.key])
    assert sum(part.facts.frames_decoded for part in parts) < 70  # not from the start each time


def test_damage_costs_what_it_costs_where_all_times_are_known(streams: tuple[Path, Path], tmp_path: Path) -> None:
    """A part of the second keyframe is lost on the way; the third is a new beginning."""
    results = []
    for path in streams:
        keys = [row for row in packets(path) if row[2]]
        data, lost = path.read_bytes(), keys[1][3] + 188
        cut = tmp_path / path.name
        cut.write_bytes(data[:lost] + data[lost + 188 :])
        results.append(decode(cut))
    expected, result = results
    assert (result.status, result.error_message) == ("partial", expected.error_message)
    assert len(result.clips["m"]) >= 27
    assert result.clips == expected.clips
    assert np.array_equal(result.frames[WHOLE.key], expected.frames[WHOLE.key])


def test_a_stream_cut_out_of_a_longer_one_keeps_its_times(streams: tuple[Path, Path], tmp_path: Path) -> None:
    """It begins in the middle of a group, whose frames no decoder can show."""
    rows = packets(streams[1])
    keys = [i for i, (_, _, is_key, _) in enumerate(rows) if is_key]
    data = streams[1].read_bytes()
    head = data[: rows[0][3]]
    path = tmp_path / "late.ts"
    path.write_bytes(head + data[rows[keys[1] - 4][3] :])
    whole, result = decode(streams[0]), decode(path)
    starts = [clip.start_s for clip in whole.clips["m"]]
    assert [clip.start_s for clip in result.clips["m"]] == starts[keys[1] :]
    assert np.array_equal(result.frames[WHOLE.key], whole.frames[WHOLE.key][keys[1] :])
