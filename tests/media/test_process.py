"""Decoding in a process of its own: what kills it costs one item, and it never outlives its parent."""

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from featlib.config import ExtractConfig
from featlib.errors import StoppedError
from featlib.media.limits import Limits
from featlib.media.process import DecodeProcess
from featlib.spec import Decoded, MediaItem, PixelSpec, Segment
from featlib.storage import StoreOptions, s3
from tests.e2e.clips import write_clip
from tests.media.conftest import WHOLE, clips, decode, want

SMALL = PixelSpec((48,), (32, 32))
WANTS = (want("all"), want(clips(8), SMALL, "c"))
STUB = "tests.media.stubs:decode"
QUICK = Limits(stall_s=3.0, deadline_s=5.0, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def stubbed() -> Iterator[DecodeProcess]:
    with DecodeProcess(QUICK, StoreOptions(), decode=STUB) as process:
        yield process


def _ask(process: DecodeProcess, path: Path, media_id: str = "id", k: int = 0, n: int = 1) -> Decoded:
    return process.decode(MediaItem(media_id, str(path)), WANTS, Segment(k, n))


def _assert_sound(result: Decoded, path: Path) -> None:
    expected = decode(path, *WANTS)
    assert (result.status, result.clips) == ("ok", expected.clips)
    assert set(result.frames) == {WHOLE.key, SMALL.key}
    for key, frames in result.frames.items():
        assert np.array_equal(frames, expected.frames[key])


def test_the_result_is_that_of_decoding_here(stubbed: DecodeProcess, videos: dict[str, Path]) -> None:
    for kind in ("plain", "avi_b", "vp9"):
        _assert_sound(_ask(stubbed, videos[kind]), videos[kind])
    segment = _ask(stubbed, videos["plain"], k=1, n=2)
    assert (segment.segment, len(segment.clips["m"])) == (Segment(1, 2), 20)


@pytest.mark.parametrize(
    ("limits", "options", "tried_s"),
    [
        (Limits(), StoreOptions(), 45.0),
        (Limits(), StoreOptions(deadline_s=5.0), 5.0),
        (Limits(stall_s=30.0), StoreOptions(), 15.0),
    ],
    ids=["default", "as asked", "before the stall"],
)
def test_a_store_that_is_away_is_given_up_before_decoding_is_taken_for_stuck(
    tmp_path: Path, limits: Limits, options: StoreOptions, tried_s: float
) -> None:
    """README names the 45 s."""
    said = tmp_path / "said"
    with DecodeProcess(limits, options, decode=STUB) as process:
        _ask(process, tmp_path / "none.mp4", f"deadline:{said}")
    assert float(said.read_text()) == tried_s


def test_half_a_stall_leaves_time_for_the_last_try() -> None:
    stall_s = Limits().stall_s
    assert stall_s == ExtractConfig.model_fields["decode_stall_s"].default
    assert stall_s / 2 > s3._CONNECT_TIMEOUT_S + s3._READ_TIMEOUT_S


def test_earlier_results_stay_valid_while_others_are_decoded(stubbed: DecodeProcess, videos: dict[str, Path]) -> None:
    results = [_ask(stubbed, videos[kind]) for kind in ("plain", "mpeg4", "plain", "hevc")]
    _ask(stubbed, videos["plain"], "crash")
    for kind, result in zip(("plain", "mpeg4", "plain", "hevc"), results, strict=True):
        _assert_sound(result, videos[kind])


@pytest.mark.parametrize(
    ("fault", "error_class", "says"),
    [
        ("crash", "worker_died", "SIGSEGV"),
        ("hang", "timeout", "no progress for 3 s"),
        ("spin", "timeout", "not done after 5 s"),
        ("eat", "out_of_memory", "256 MiB"),
        ("raise", "internal_error", "an unforeseen case"),
    ],
)
def test_a_fault_is_the_outcome_of_its_item_and_the_next_is_decoded(
    stubbed: DecodeProcess, videos: dict[str, Path], fault: str, error_class: str, says: str
) -> None:
    _assert_sound(_ask(stubbed, videos["plain"]), videos["plain"])
    result = _ask(stubbed, videos["plain"], fault, k=2, n=3)
    assert (result.status, result.error_class, result.segment) == ("failed", error_class, Segment(2, 3))
    assert result.error_message is not None
    assert says in result.error_message
    assert "\n" not in result.error_message
    _assert_sound(_ask(stubbed, videos["plain"]), videos["plain"])


def test_a_death_that_does_not_repeat_costs_nothing(
    stubbed: DecodeProcess, videos: dict[str, Path], tmp_path: Path
) -> None:
    _assert_sound(_ask(stubbed, videos["plain"], f"once:{tmp_path / 'flag'}"), videos["plain"])
    assert (tmp_path / "flag").exists()


def test_bad_media_come_back_as_outcomes(stubbed: DecodeProcess, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("no video")
    result = _ask(stubbed, path)
    assert (result.status, result.error_class, result.frames) == ("failed", "unknown_format", {})


@pytest.fixture(scope="module")
def large_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of 8 MB, so that the memory ends in the demuxer, the decoder, the conversion or the resize."""
    return write_clip(tmp_path_factory.mktemp("large") / "large.mp4", seed=1, frames=6, size=(1600, 1600))


@pytest.mark.parametrize("limit_mb", [4, 16, 40, 64])
def test_a_decoder_that_outgrows_its_memory_is_an_outcome_wherever_it_happens(large_video: Path, limit_mb: int) -> None:
    with DecodeProcess(Limits(memory_bytes=limit_mb << 20), StoreOptions()) as process:
        result = _ask(process, large_video)
    assert (result.status, result.error_class, result.retryable) == ("failed", "out_of_memory", True)


def test_an_item_that_came_near_the_limit_is_not_held_against_the_next(
    videos: dict[str, Path], stubbed: DecodeProcess, tmp_path: Path
) -> None:
    """The next one, cut in the middle, is judged in a process of its own and keeps its rows."""
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(videos["open_gop"].read_bytes()[: videos["open_gop"].stat().st_size * 2 // 3])
    alone = _ask(stubbed, cut)
    assert alone.status == "partial"
    _assert_sound(_ask(stubbed, videos["plain"], f"fill:{tmp_path / 'full'}"), videos["plain"])
    after = _ask(stubbed, cut, f"pid:{tmp_path / 'next'}")
    assert (after.status, after.error_class, after.error_message) == ("partial", alone.error_class, alone.error_message)
    assert (tmp_path / "full").read_text() != (tmp_path / "next").read_text().split()[0]


def test_close_ends_the_children_and_decode_starts_them_again(videos: dict[str, Path], tmp_path: Path) -> None:
    process = DecodeProcess(QUICK, StoreOptions(), decode=STUB)
    process.close()
    _ask(process, videos["plain"], f"pid:{tmp_path / 'pids'}")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    process.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    _assert_sound(_ask(process, videos["plain"]), videos["plain"])
    process.close()


def test_the_processes_survive_the_death_of_their_nursery(videos: dict[str, Path], tmp_path: Path) -> None:
    with DecodeProcess(QUICK, StoreOptions(), decode=STUB) as process:
        _ask(process, videos["plain"], f"pid:{tmp_path / 'pids'}")
        nursery = int((tmp_path / "pids").read_text().split()[1])
        os.kill(nursery, signal.SIGKILL)
        _assert_sound(_ask(process, videos["plain"]), videos["plain"])


def test_a_decoder_that_cannot_be_loaded_stops_with_its_name() -> None:
    with (
        DecodeProcess(QUICK, StoreOptions(), decode="featlib.no_such_module:decode") as process,
        pytest.raises(StoppedError, match=r"featlib\.no_such_module:decode"),
    ):
        process.decode(MediaItem("a", "a.mp4"), WANTS, Segment())


def test_no_child_outlives_a_killed_parent(videos: dict[str, Path], tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    os.mkfifo(pid_file)
    script = textwrap.dedent(
        f"""
        from featlib.media.limits import Limits
        from featlib.media.process import DecodeProcess
        from featlib.spec import MediaItem, PixelSpec, Segment, Want
        from featlib.sampling import FrameSampling
        from featlib.storage import StoreOptions
        process = DecodeProcess(Limits(), StoreOptions(), decode={STUB!r})
        wants = (Want("m", FrameSampling.parse("all"), PixelSpec((), None)),)
        process.decode(MediaItem("hang:{pid_file}", {str(videos["plain"])!r}), wants, Segment())
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    child = int(pid_file.read_text())  # comes when the child hangs
    descriptors = [os.pidfd_open(pid) for pid in (child, _parent_of(child))]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for descriptor in descriptors:
        ended, _, _ = select.select([descriptor], [], [], 30)
        os.close(descriptor)
        assert ended, "a child outlived its parent by 30 s"


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
