"""Cutting an item into segments changes nothing: same clips, same pixels, nothing twice, nothing lost."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from featlib.media import decode_item
from featlib.media.limits import Limits
from featlib.spec import Decoded, MediaItem, PixelSpec, Segment
from featlib.storage import StoreOptions
from tests.media.conftest import WHOLE, clips, decode, want
from tests.media.make import decoded, packets, write_video

REFRESHED = ("refreshed", "refreshed_b", "refreshed_mkv", "refreshed_ts")
KINDS = (
    *"plain b_frames open_gop open_gop_mp4 late vfr mkv ts mpeg4 avi avi_b mpg webm vp9 hevc".split(),  # noqa: SIM905
    *REFRESHED,
)
WANTS = (want("all"), want(clips(6, stride=2, hop=4, tail="shift"), label="c"), want("fps:7", label="t"))


def _rows(parts: list[Decoded], label: str) -> list[tuple[object, bytes]]:
    return [
        (
            (c.clip_index, c.start_s, c.end_s, c.frame_s, c.padded_frames),
            part.frames[WHOLE.key][list(c.frame_idx)].tobytes(),
        )
        for part in parts
        for c in part.clips[label]
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_decode_gives_the_frames_of_plain_pyav(videos: dict[str, Path], kind: str) -> None:
    result, plain = decode(videos[kind]), decoded(videos[kind])
    assert result.status == "ok"
    assert len(result.frames[WHOLE.key]) == len(plain) > 10
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(result.frames[WHOLE.key], plain, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_segments_together_are_the_whole(videos: dict[str, Path], kind: str) -> None:
    whole = decode(videos[kind], *WANTS)
    assert whole.status == "ok"
    for n in (2, 3, 5):
        parts = [decode(videos[kind], *WANTS, k=k, n=n) for k in range(n)]
        assert [(part.segment.k, part.segment.n) for part in parts] == [(k, n) for k in range(n)]
        for label in ("m", "c", "t"):
            assert _rows(parts, label) == _rows([whole], label)


def test_a_seam_moves_to_a_keyframe_near_and_frames_at_other_seams_are_counted_apart(videos: dict[str, Path]) -> None:
    """40 frames with a keyframe every 10, in thirds: the seam at 13 moves to 10, the one at 26 has none within 3."""
    facts = [decode(videos["plain"], k=k, n=3).facts for k in range(3)]
    assert [(f.frames_decoded, f.frames_twice) for f in facts] == [(10, 0), (16, 0), (20, 6)]


def test_a_clip_reaching_into_the_next_segment_belongs_to_the_first(videos: dict[str, Path]) -> None:
    parts = [decode(videos["plain"], want(clips(16, hop=8)), k=k, n=2) for k in range(2)]
    assert [[c.clip_index for c in part.clips["m"]] for part in parts] == [[0, 1, 2], [3]]
    assert parts[0].facts.frames_twice == 12  # frames 20 to 31 for the clip at 16
    assert parts[1].facts.frames_twice == 0


def test_avi_with_b_frames_is_always_decoded_from_the_start(videos: dict[str, Path]) -> None:
    facts = decode(videos["avi_b"], k=1, n=2).facts
    assert facts.frames_decoded == 40


def _with_packets_without_a_picture(avi: Path, behind: set[int], to: Path) -> Path:
    """A copy with pictures that are not coded, and long enough to pass for coded ones: ISO/IEC 14496-2, vop_coded."""
    data, movi, index = avi.read_bytes(), b"movi", b""
    at = data.index(b"movi") - 8
    for i, (_, length, is_key, position) in enumerate(packets(avi)):
        packet = data[position : position + length]
        for part in (packet, *[b"\0\0\1\xb6\x50\0\0\x7f" + b"\xff" * 8] * (i in behind)):
            index += struct.pack("<4sIII", b"00dc", 0x10 * (is_key and part is packet), len(movi), len(part))
            movi += struct.pack("<4sI", b"00dc", len(part)) + part + bytes(len(part) % 2)
    lists = struct.pack("<4sI", b"LIST", len(movi)) + movi + struct.pack("<4sI", b"idx1", len(index)) + index
    made = bytearray(data[:at] + lists)
    struct.pack_into("<I", made, 4, len(made) - 8)
    to.write_bytes(made)
    return to


@pytest.mark.parametrize("sampling", ["all", "uniform:6"])
def test_segments_of_counted_frames_know_how_many_come_out(
    tmp_path: Path, videos: dict[str, Path], sampling: str
) -> None:
    path = _with_packets_without_a_picture(videos["avi_b"], {20, 27}, tmp_path / "a.avi")
    whole = decode(path, want(sampling))
    assert (whole.status, len(decoded(path))) == ("ok", 40)
    small = Limits(unit_bytes=whole.frames[WHOLE.key].nbytes // 2)
    assert decode(path, want(sampling), n=0, limits=small).segment.n == 2
    parts = [decode(path, want(sampling), k=k, n=2) for k in range(2)]
    assert [part.status for part in parts] == ["ok", "ok"]
    assert _rows(parts, "m") == _rows([whole], "m")


@pytest.mark.parametrize("kind", ["plain", "open_gop", "avi_b"])
def test_a_range_is_cut_into_segments_of_the_range(videos: dict[str, Path], kind: str) -> None:
    whole = decode(videos[kind], *WANTS, start_s=0.6, end_s=1.5)
    parts = [decode(videos[kind], *WANTS, k=k, n=3, start_s=0.6, end_s=1.5) for k in range(3)]
    assert [len(part.clips["m"]) for part in parts] == [6, 6, 6]
    for label in ("m", "c", "t"):
        assert _rows(parts, label) == _rows([whole], label)


@pytest.mark.parametrize("kind", [*REFRESHED, "open_gop", "hevc"])
def test_a_range_gives_the_frames_of_the_whole_wherever_it_begins(videos: dict[str, Path], kind: str) -> None:
    whole = decode(videos[kind])
    for start_s in (0.7, 1.05, 1.3, 1.85):
        late = decode(videos[kind], start_s=start_s)
        assert late.status == "ok"
        assert 0 < len(late.clips["m"]) < len(whole.clips["m"])
        assert np.array_equal(late.frames[WHOLE.key], whole.frames[WHOLE.key][-len(late.clips["m"]) :])


def test_number_of_segments_follows_from_the_pixels(videos: dict[str, Path]) -> None:
    frame_bytes = 160 * 96 * 3
    limits = Limits(unit_bytes=10 * frame_bytes)
    first = decode(videos["plain"], n=0, limits=limits)
    assert (first.segment.k, first.segment.n) == (0, 4)
    assert len(first.clips["m"]) == 10
    small = PixelSpec((24, 40), None)
    two = decode(videos["plain"], want("all"), want("all", small, "s"), n=0, limits=limits)
    assert (two.segment.k, two.segment.n) == (0, 5)  # 40 * (46080 + 2880) bytes over 460800
    assert decode(videos["plain"], n=0).segment == Segment(0, 1)


def test_no_segment_holds_much_more_than_its_share_where_frames_come_unevenly(tmp_path: Path) -> None:
    """20 frames of 16 ticks, 400 of one and one for long: a twelfth of the item, by time and frames, is half of the
    frames that are wanted."""
    pts = [*range(0, 320, 16), *range(320, 720), 100_000]
    path = write_video(tmp_path / "a.mkv", frames=len(pts), pts=pts, size=(32, 32))
    wants = want("fps:1.25"), want(clips(8, fps=Fraction(5, 4)), label="c")
    limits = Limits(unit_bytes=4 * 32 * 32 * 3)
    whole = decode(path, *wants)
    first = decode(path, *wants, n=0, limits=limits)
    parts = [first, *(decode(path, *wants, k=k, n=first.segment.n) for k in range(1, first.segment.n))]
    num_frames = [len(part.frames.get(WHOLE.key, ())) for part in parts]
    assert sum(num_frames) >= 46
    assert max(num_frames) <= 2 * 4 + 7, "eight of its own, and those that a clip takes of the next"
    assert max(len({i for clip in part.clips["m"] for i in clip.frame_idx}) for part in parts) <= 8
    assert first.segment.n < 200
    for label in ("m", "c"):
        assert _rows(parts, label) == _rows([whole], label)


def test_clips_longer_than_a_segment_may_be_do_not_make_a_segment_of_each_frame(videos: dict[str, Path]) -> None:
    limits = Limits(unit_bytes=5 * 160 * 96 * 3)
    assert decode(videos["plain"], want(clips(30, hop=1)), n=0, limits=limits).segment.n == 8


def test_frames_shared_by_models_are_kept_once(videos: dict[str, Path]) -> None:
    result = decode(videos["plain"], want("every:4"), want("every:2", label="b"), want(clips(4, hop=2), label="c"))
    assert result.frames[WHOLE.key].shape == (40, 96, 160, 3)
    assert [c.frame_idx for c in result.clips["m"]][:3] == [(0,), (4,), (8,)]
    assert result.clips["c"][1].frame_idx == (2, 3, 4, 5)


def test_only_wanted_frames_are_kept(videos: dict[str, Path]) -> None:
    result = decode(videos["plain"], want("uniform:3"))
    assert result.frames[WHOLE.key].shape[0] == 3
    assert [c.frame_s for c in result.clips["m"]] == [(0.3,), (1.0,), (1.65,)]
    assert result.facts.frames_decoded == 12  # 0 to 6, 20 and 30 to 33 of the groups of ten


def test_a_segment_without_frames_of_a_sparse_model_is_empty_and_ok(videos: dict[str, Path]) -> None:
    result = decode(videos["plain"], want("uniform:1"), k=0, n=4)
    assert (result.status, result.clips, result.frames) == ("ok", {"m": ()}, {})
    assert result.facts.frames_decoded == 0  # nobody needs to look


def test_segments_say_by_what_they_were_cut(videos: dict[str, Path]) -> None:
    """Tables flag fewer keyframes than packets do, so seams may lie elsewhere."""
    limits = Limits(unit_bytes=10 * 160 * 96 * 3)
    assert decode(videos["plain"], n=0, limits=limits).segment.by == "tables"
    assert decode(videos["mkv"], n=0, limits=limits).segment.by == "packets"
    with_keyframes = decode(videos["plain"], want("keyframes", label="k"), want("all"), n=0, limits=limits)
    assert with_keyframes.segment.by == "packets"
    assert decode(videos["plain"], n=0).segment == Segment(0, 1)


def test_a_segment_is_cut_as_those_before_it_were(videos: dict[str, Path]) -> None:
    item = MediaItem("id", str(videos["plain"]))
    for by, status in (("tables", "ok"), ("packets", "ok"), ("", "ok")):
        part = decode_item(item, (want("all"),), Segment(1, 4, by), store_options=StoreOptions(), limits=Limits())
        assert (part.status, part.segment) == (status, Segment(1, 4, by))
    mkv = MediaItem("id", str(videos["mkv"]))
    part = decode_item(mkv, (want("all"),), Segment(1, 4, "tables"), store_options=StoreOptions(), limits=Limits())
    assert (part.status, part.error_class, part.segment) == ("failed", "corrupt", Segment(1, 4, "tables"))


_TWO_SIZES = {
    "mkv": ("mjpeg", "avi", {"strict": "unofficial"}),
    "vp8": ("libvpx", "webm", {"deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", "mkv", {"preset": "12", "svtav1-params": "lp=1"}),
}


def _two_sizes(folder: Path, kind: str) -> Path:
    """Ten frames of 160x96, then ten of another size, which the header of VP8 and AV1 says of all."""
    later = (96, 160) if kind == "turned" else (320, 192)
    codec, ending, options = _TWO_SIZES.get(kind, ("libx264", "ts", {"x264-params": "scenecut=0:open-gop=0"}))
    first, second = (
        write_video(folder / f"{start}.{ending}", codec=codec, frames=10, size=size, start=start, options=options)
        for start, size in ((0, (160, 96)), (10, later))
    )
    path = folder / f"both.{ending}"
    if ending == "ts":
        path.write_bytes(first.read_bytes() + second.read_bytes())
        return path
    path = path.with_suffix(".mkv")
    with av.open(str(path), "w") as to, av.open(str(second if kind in ("vp8", "av1") else first)) as template:
        stream = to.add_stream_from_template(template.streams.video[0], opaque=True)
        for start, source in ((0, first), (10, second)):
            with av.open(str(source)) as container:
                for i, packet in enumerate([p for p in container.demux(video=0) if p.size]):
                    packet.stream, packet.time_base = stream, Fraction(1, 20)
                    packet.pts = packet.dts = start + i
                    to.mux(packet)
    return path


@pytest.mark.parametrize("pixels", [WHOLE, PixelSpec((24,), None)])
@pytest.mark.parametrize("kind", ["larger", "turned", "mkv", "vp8", "av1"])
def test_frames_of_a_stream_that_changes_their_size_are_as_the_first_in_all_segments(
    tmp_path: Path, kind: str, pixels: PixelSpec
) -> None:
    path = _two_sizes(tmp_path, kind)
    wants = (want("all", pixels),)
    whole = decode(path, *wants)
    shape = (96, 160) if pixels is WHOLE else (24, 40)
    assert (whole.status, whole.frames[pixels.key].shape) == ("ok", (20, *shape, 3))
    parts = [decode(path, *wants, k=k, n=2) for k in range(2)]
    together = np.concatenate([part.frames[pixels.key] for part in parts])
    assert np.array_equal(together, whole.frames[pixels.key])
    sparse = decode(path, want("uniform:1", pixels))
    assert np.array_equal(sparse.frames[pixels.key][0], whole.frames[pixels.key][10])


LONG_SHOWN = {
    "two frames": [0, 20 * 400],
    "one of many": [*range(40), 20 * 400],
    "first of many": [0, *range(20 * 400, 20 * 400 + 40)],
    "in the middle": [*range(20), *range(20 * 400, 20 * 400 + 20)],
}


@pytest.mark.parametrize("kind", LONG_SHOWN)
@pytest.mark.parametrize(("start_s", "end_s"), [(None, None), (100.3, 399.9)])
def test_clips_of_frames_that_are_shown_for_long_are_divided_among_segments(
    tmp_path: Path, kind: str, start_s: float | None, end_s: float | None
) -> None:
    pts = LONG_SHOWN[kind]
    path = write_video(tmp_path / "a.mkv", frames=len(pts), pts=pts)
    wants = (
        want("all"),
        want("fps:3", label="t"),
        want(clips(6, stride=2, hop=4, tail="shift", fps=Fraction(5)), label="c"),
    )
    if start_s is not None:
        wants = wants[1:]  # the range may hold the first moment of no frame
    whole = decode(path, *wants, start_s=start_s, end_s=end_s)
    assert (whole.status, whole.label_errors) == ("ok", {})
    first = decode(path, *wants, n=0, limits=Limits(unit_clips=100), start_s=start_s, end_s=end_s)
    n = first.segment.n
    num_clips = sum(map(len, whole.clips.values()))
    assert 1000 < num_clips <= 100 * n
    parts = [first, *(decode(path, *wants, k=k, n=n, start_s=start_s, end_s=end_s) for k in range(1, n))]
    assert max(sum(map(len, part.clips.values())) for part in parts) <= 100
    assert n <= 6 * num_clips / 100
    for label in whole.clips:
        assert _rows(parts, label) == _rows([whole], label)


def test_seams_are_the_same_whatever_models_want(tmp_path: Path) -> None:
    """What was staged of one model is joined with segments that are done for two."""
    path = write_video(tmp_path / "a.mkv", frames=40, pts=[*range(20), *range(8000, 8020)])
    both = want("fps:3", label="t"), want("all")
    together = [decode(path, *both, k=k, n=7) for k in range(7)]
    for each in both:
        assert _rows([decode(path, each, k=k, n=7) for k in range(7)], each.label) == _rows(together, each.label)
        for k in range(7):
            assert _rows([decode(path, each, k=k, n=7)], each.label) == _rows([together[k]], each.label)


def test_every_frame_is_of_one_segment_also_where_it_is_divided(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", frames=2, pts=[0, 8000])
    facts = [decode(path, want("fps:1"), k=k, n=10).facts for k in range(10)]
    assert sum(f.frames_decoded - f.frames_twice for f in facts) == 2
