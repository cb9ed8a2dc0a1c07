"""Where few frames are wanted, little is decoded and read, and what is wanted stays the same to the bit."""

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from featlib.media import Limits, decode_item, frames, reading
from featlib.media import decode as decode_module
from featlib.media.bitstream import can_skip_unreferred
from featlib.media.boxes import sample_table
from featlib.media.index import PacketIndex, read_index
from featlib.media.reading import VideoReader
from featlib.media.source import Source
from featlib.spec import MediaItem, Segment
from featlib.storage import RangeFile, StoreOptions
from featlib.storage.ahead import AnnouncedReads
from tests.media.conftest import WHOLE, decode, want
from tests.media.make import damaged, packets, write_video
from tests.media.test_segments import KINDS, REFRESHED
from tests.media.truth import CLIPS

_IN_TABLES = ("plain", "b_frames", "open_gop_mp4", "late", "mpeg4", "hevc")


def _indexes(path: Path) -> tuple[PacketIndex | None, PacketIndex]:
    """From the tables, and from the packets."""
    data = path.read_bytes()
    with VideoReader(Source(io.BytesIO(data), len(data), None), 1 << 26, lambda: None) as reader:
        by_tables = reader.table_index()
        reader.close()
        video = reader.video
        return by_tables, read_index(video, reader.source, reader.all_packets(), lambda: None)


def _assert_same_index(by_tables: PacketIndex, by_packets: PacketIndex) -> None:
    for name in ("pts", "dts", "size", "duration", "is_key", "is_damaged", "num_frames", "offset"):
        assert np.array_equal(getattr(by_tables.packets, name), getattr(by_packets.packets, name)), name
    assert np.array_equal(by_tables.times.pts, by_packets.times.pts)
    assert np.array_equal(by_tables.packet_of, by_packets.packet_of)
    assert (by_tables.times.end_pts, by_tables.times.time_base) == (
        by_packets.times.end_pts,
        by_packets.times.time_base,
    )


@pytest.mark.parametrize("kind", _IN_TABLES)
def test_tables_say_what_the_packets_say(videos: dict[str, Path], kind: str) -> None:
    by_tables, by_packets = _indexes(videos[kind])
    assert by_tables is not None
    _assert_same_index(by_tables, by_packets)


def test_tables_of_odd_writers_say_what_the_packets_say(tmp_path: Path) -> None:
    """Negative offsets, sound in between, and a rate that varies."""
    negative = write_video(tmp_path / "n.mp4", b_frames=2, container_options={"movflags": "negative_cts_offsets"})
    loud = write_video(tmp_path / "l.mov", codec="mpeg4", b_frames=2, audio=True)
    vfr = write_video(tmp_path / "v.mp4", pts=[0, 1, 5, 6, 7, 30, 31, 50], frames=8, rate=Fraction(20), b_frames=2)
    for path in (negative, loud, vfr):
        by_tables, by_packets = _indexes(path)
        assert by_tables is not None
        _assert_same_index(by_tables, by_packets)


@pytest.mark.media
@pytest.mark.parametrize("name", [name for name in CLIPS if name.endswith((".mp4", ".mov"))])
def test_tables_of_a_real_clip_say_what_its_packets_say(media_folder: Path, name: str) -> None:
    by_tables, by_packets = _indexes(media_folder / name)
    odd = {"discard_first_keyframe.mp4", "testsrc2_odd_height_and_width_vp9.mp4"}  # an edit inside; a codec left out
    assert (by_tables is None) == (name in odd)
    if by_tables is not None:
        _assert_same_index(by_tables, by_packets)


def test_fragments_and_files_that_end_early_are_left_to_their_packets(tmp_path: Path, videos: dict[str, Path]) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"}
    assert _indexes(write_video(tmp_path / "f.mp4", container_options=options))[0] is None
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(videos["plain"].read_bytes()[:-100])
    assert _indexes(cut)[0] is None
    assert _indexes(videos["vp9"])[0] is None


def test_tables_with_impossible_counts_are_refused(videos: dict[str, Path]) -> None:
    data = videos["plain"].read_bytes()
    for box in (b"stts", b"stsz", b"ctts", b"stsd", b"elst", b"tkhd", b"stbl", b"trak"):
        at = data.find(box)
        if at < 0:
            continue
        for start, value in ((at - 4, 0x7FFFFFFF), (at - 4, 3), (at + 8, 0xFFFFFFFF), (at + 12, 0xFFFFFFFF)):
            broken = bytearray(data)
            broken[start : start + 4] = value.to_bytes(4, "big")
            table = sample_table(Source(io.BytesIO(bytes(broken)), len(broken), None), 1)
            # What is no box that the table is made of may say anything.
            assert table is None or (len(table.offsets), len(table.durations)) == (40, 40)
            if table is not None and box in (b"stts", b"ctts") and start > at:
                assert int(table.durations.min()) >= 0


def test_a_track_header_without_a_body_is_no_table(videos: dict[str, Path]) -> None:
    data = bytearray(videos["plain"].read_bytes())
    at = data.find(b"tkhd")
    size = int.from_bytes(data[at - 4 : at], "big")
    data[at - 4 : at] = (8).to_bytes(4, "big")
    data[at + 4 : at + 12] = (size - 8).to_bytes(4, "big") + b"free"
    assert sample_table(Source(io.BytesIO(bytes(data)), len(data), None), 1) is None


@pytest.mark.parametrize("kind", ["plain", "b_frames", "open_gop_mp4", "mpeg4", "hevc"])
@pytest.mark.parametrize("n", [1, 4])
def test_a_movie_that_calls_every_frame_a_keyframe_gives_the_same_frames(
    tmp_path: Path, videos: dict[str, Path], kind: str, n: int
) -> None:
    """No table of sync samples means that all are, and some writers leave it out."""
    data = videos[kind].read_bytes()
    path = tmp_path / "all-keys.mp4"
    path.write_bytes(data.replace(b"stss", b"free"))
    whole = decode(videos[kind])
    starts = [clip.start_s for clip in whole.clips["m"]]
    for sampling in ("all", "every:7", "uniform:2"):
        segment, ordinals = Segment(0, n if n == 1 else 0), []
        limits = Limits() if n == 1 else Limits(unit_bytes=whole.frames[WHOLE.key].nbytes // n)
        while True:
            item = MediaItem("id", str(path))
            part = decode_item(item, (want(sampling),), segment, store_options=StoreOptions(), limits=limits)
            assert part.status == "ok", part.error_message
            mine = [starts.index(clip.start_s) for clip in part.clips["m"]]
            rows = [clip.frame_idx[0] for clip in part.clips["m"]]
            if rows:
                assert np.array_equal(part.frames[WHOLE.key][rows], whole.frames[WHOLE.key][mine])
            ordinals += mine
            if part.segment.k + 1 >= part.segment.n:
                break
            segment = replace(part.segment, k=part.segment.k + 1)
        wanted = decode(videos[kind], want(sampling)).clips["m"]
        assert ordinals == [starts.index(clip.start_s) for clip in wanted]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", ["every:7", "uniform:2", "random:5"])
def test_wanted_frames_are_those_of_the_whole(videos: dict[str, Path], kind: str, sampling: str) -> None:
    whole, few = decode(videos[kind]), decode(videos[kind], want(sampling))
    starts = [clip.start_s for clip in whole.clips["m"]]
    rows = [starts.index(clip.start_s) for clip in few.clips["m"]]
    assert (few.status, len(rows) > 1) == ("ok", True)
    assert np.array_equal(few.frames[WHOLE.key], whole.frames[WHOLE.key][rows])
    assert few.facts.frames_decoded <= whole.facts.frames_decoded


@pytest.mark.media
@pytest.mark.parametrize("name", [name for name, truth in CLIPS.items() if truth.status == "ok"])
def test_few_frames_of_a_real_clip_are_those_of_the_whole(media_folder: Path, name: str) -> None:
    whole = decode(media_folder / name)
    few = decode(media_folder / name, want("uniform:3"))
    starts = [clip.start_s for clip in whole.clips["m"]]
    rows = [starts.index(clip.start_s) for clip in few.clips["m"]]
    assert few.status == "ok"
    assert np.array_equal(few.frames[WHOLE.key], whole.frames[WHOLE.key][rows])


@pytest.mark.parametrize("kind", ["b_frames", "mpg"])
def test_pictures_that_no_other_needs_are_not_decoded(
    monkeypatch: pytest.MonkeyPatch, videos: dict[str, Path], kind: str
) -> None:
    few = decode(videos[kind], want("every:9"))
    monkeypatch.setattr(frames, "can_skip_unreferred", lambda codec, extradata: False)
    more = decode(videos[kind], want("every:9"))
    assert few.facts.frames_decoded < 0.9 * more.facts.frames_decoded
    assert np.array_equal(few.frames[WHOLE.key], more.frames[WHOLE.key])


def test_layers_of_hevc_may_refer_to_each_other() -> None:
    assert can_skip_unreferred("hevc", b"\x01" + bytes(20) + b"\x0f")  # one temporal layer
    assert not can_skip_unreferred("hevc", b"\x01" + bytes(20) + b"\x17")  # two
    assert not can_skip_unreferred("hevc", None)


def test_damage_is_met_where_a_wanted_frame_needs_the_group(tmp_path: Path, videos: dict[str, Path]) -> None:
    """Packet 15 is zeros. Frame 18 needs its group; frames 5 and 35 do not, and nobody looks at it for them."""
    _, size, _, position = packets(videos["plain"])[15]
    path = damaged(videos["plain"], [(position, position + size)], tmp_path / "a.mp4")
    both = decode(path, want("every:18"))  # 0, 18 and 36
    assert (both.status, both.error_class, len(both.clips["m"])) == ("partial", "corrupt", 2)
    assert both.facts.frames_decoded > 30  # the segment was read whole
    few = decode(path, want("uniform:4"))  # 5, 15, 25 and 35
    assert (few.status, len(few.clips["m"])) == ("partial", 3)
    assert decode(path, want("every:35")).status == "ok"


def test_keyframes_from_which_not_all_can_be_decoded_cost_a_second_reading(tmp_path: Path) -> None:
    """Intra refresh: a packet says that decoding may begin, but its picture is whole only some frames later."""
    options = {"x264-params": "intra-refresh=1:keyint=30:bframes=2"}
    path = write_video(tmp_path / "a.mp4", frames=60, options=options)
    whole, few = decode(path), decode(path, want("every:31"))
    assert (few.status, few.facts.frames_decoded) == ("ok", 60)
    assert np.array_equal(few.frames[WHOLE.key], whole.frames[WHOLE.key][[0, 31]])


@pytest.mark.parametrize("kind", REFRESHED)
def test_pictures_that_a_refresh_does_not_make_whole_are_decoded_from_the_first(
    videos: dict[str, Path], kind: str
) -> None:
    """FFmpeg gives out none before the encoder's count of frames is over, and what comes then may be wrong."""
    whole = decode(videos[kind])
    for step in (18, 29, 37, 53):
        few = decode(videos[kind], want(f"every:{step}"))
        assert few.status == "ok"
        assert np.array_equal(few.frames[WHOLE.key], whole.frames[WHOLE.key][::step])


def _remote(monkeypatch: pytest.MonkeyPatch, data: bytes) -> list[tuple[int, int]]:
    """Serves ``data`` as a store far away does; gives what was fetched."""
    fetched: list[tuple[int, int]] = []

    def fetch(start: int, stop: int) -> bytes:
        fetched.append((start, stop))
        return data[start:stop]

    def serve(uri: str, options: object) -> RangeFile:
        reads = AnnouncedReads(fetch, len(data))
        return RangeFile(reads.read, len(data), None, reads.close, reads.expect)

    monkeypatch.setattr(decode_module, "open_media", serve)
    return fetched


def test_of_a_remote_file_only_the_groups_needed_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """150 keyframes of 4.5 KB, of which four are wanted; buffers and blocks are as small in proportion."""
    path = write_video(tmp_path / "a.mp4", codec="mjpeg", frames=150, size=(640, 480), pixel_format="yuvj420p")
    data = path.read_bytes()
    expected = decode(path, want("uniform:4"))
    for name, value in (
        ("featlib.media.source.READ_AT_ONCE_BYTES", 4096),
        ("featlib.media.open._BUFFER_BYTES", 1024),
        ("featlib.media.reading.NEAR_BYTES", 256),
        ("featlib.storage.blocks.BLOCK_BYTES", 1024),
    ):
        monkeypatch.setattr(name, value)
    fetched = _remote(monkeypatch, data)
    result = decode("s3://b/k", want("uniform:4"))
    assert np.array_equal(result.frames[WHOLE.key], expected.frames[WHOLE.key])
    by_position = {position: position + size for _, size, _, position in packets(path)}
    assert sum(by_position.get(start) == stop for start, stop in fetched) == 4  # one request each
    assert sum(stop - start for start, stop in fetched) < len(data) / 4
    fetched.clear()
    assert decode("s3://b/k").status == "ok"
    assert len(data) * 0.9 < sum(stop - start for start, stop in fetched) < len(data) * 1.2


def test_packets_other_than_the_tables_say_are_read_anew(
    monkeypatch: pytest.MonkeyPatch, videos: dict[str, Path]
) -> None:
    expected = decode(videos["b_frames"], want("every:7"))
    asked: list[int] = []

    def differs(packets: object, position: int, packet: object) -> bool:
        asked.append(position)
        return position != 12

    monkeypatch.setattr(reading, "is_packet", differs)
    result = decode(videos["b_frames"], want("every:7"))
    assert 12 in asked
    assert (result.status, result.clips) == (expected.status, expected.clips)
    assert np.array_equal(result.frames[WHOLE.key], expected.frames[WHOLE.key])


@pytest.mark.parametrize("n", [1, 3])
def test_damage_in_a_movie_that_calls_every_frame_a_keyframe_is_an_outcome(
    tmp_path: Path, videos: dict[str, Path], n: int
) -> None:
    _, size, _, position = packets(videos["mpeg4"])[15]
    path = damaged(videos["mpeg4"], [(position, position + size)], tmp_path / "damaged.mp4")
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    whole = decode(videos["mpeg4"])
    starts = [clip.start_s for clip in whole.clips["m"]]
    parts = [decode(path, want("every:7"), k=k, n=n) for k in range(n)]
    assert {part.status for part in parts} <= {"ok", "partial", "failed"}
    assert "partial" in {part.status for part in parts}
    for part in parts:
        for clip in part.clips.get("m", ()):
            right = whole.frames[WHOLE.key][starts.index(clip.start_s)]
            assert np.array_equal(part.frames[WHOLE.key][clip.frame_idx[0]], right)
