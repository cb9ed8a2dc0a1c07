"""Media that end before their end, told by what each container says of its length; whole ones are not called cut."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from featlib.media import matroska
from featlib.media import source as media_source
from featlib.media.envelope import missing_bytes
from featlib.media.source import Source
from tests.media.conftest import decode, kept_of, outcome_of
from tests.media.make import decoded, packets, picture, places_of, write_video


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_faststart_mp4_is_partial(tmp_path: Path, videos: dict[str, Path], share: float) -> None:
    data = videos["plain"].read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(len(data) * share)])
    result = decode(path)
    assert outcome_of(result) == ("partial", "truncated")
    assert kept_of(result, decode(videos["plain"])) == list(range(len(decoded(path))))


@pytest.mark.parametrize("kind", ["mkv", "open_gop", "vp9", "avi"])
def test_containers_that_end_quietly_are_partial_all_the_same(
    tmp_path: Path, videos: dict[str, Path], kind: str
) -> None:
    data = videos[kind].read_bytes()
    path = tmp_path / videos[kind].name
    path.write_bytes(data[: int(len(data) * 0.9)])
    result = decode(path)
    assert outcome_of(result) == ("partial", "truncated")
    assert result.error_message is not None
    assert "shorter than it says" in result.error_message
    kept = kept_of(result, decode(videos[kind]))
    assert 20 < len(kept) < 40
    assert kept == list(range(len(kept)))


_FRAGMENTED = "frag_keyframe+empty_moov+default_base_moof"


def _with_mehd(data: bytes, seconds: int) -> bytes:
    """A fragmented MP4 that says how long all its fragments are: ISO/IEC 14496-12 section 8.8.2."""
    (ticks_a_s,) = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)
    return _with_mehd_of(data, struct.pack(">II", 0, seconds * ticks_a_s))


def _with_mehd_of(data: bytes, content: bytes) -> bytes:
    at, size = data.index(b"mvex") + 4, 8 + len(content)
    made = bytearray(data[:at] + struct.pack(">I4s", size, b"mehd") + content + data[at:])
    for name in (b"mvex", b"moov"):
        box = bytes(made).index(name) - 4
        struct.pack_into(">I", made, box, struct.unpack_from(">I", made, box)[0] + size)
    return bytes(made)


def _as_streamed(data: bytes) -> bytes:
    """A Matroska file in which nothing has a known length, with its duration all the same; not as by FFmpeg."""
    made = bytearray(data.replace(b"Lavf", b"abcd"))
    for name in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):
        for at in places_of(data, name):
            width = 9 - made[at + 4].bit_length()
            made[at + 4 : at + 4 + width] = ((2 << 7 * width) - 1).to_bytes(width, "big")
    return bytes(made)


class _Pipe:
    """What FFmpeg can write to, but not go back in."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


def _piped(path: Path, form: str, stop: int, tags: dict[str, str] | None = None) -> bytes:
    """The packets of the first ``stop`` frames, copied to where nothing can be completed."""
    pipe = _Pipe()
    with av.open(str(path)) as source, av.open(pipe, "w", format=form) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.metadata.update(tags or {})
        for packet in [packet for packet in source.demux(video=0) if packet.size][:stop]:
            packet.stream = stream
            target.mux(packet)
    return bytes(pipe.data)


def test_the_duration_that_ffmpeg_guesses_for_a_pipe_is_not_believed(tmp_path: Path, videos: dict[str, Path]) -> None:
    """It is that of the longer file out of which a part was copied."""
    path = tmp_path / "a.mkv"
    path.write_bytes(_piped(videos["mkv"], "matroska", 20, {"DURATION": "00:00:30.000000000"}))
    with av.open(str(path)) as container:
        assert container.duration == 30 * av.time_base
    result = decode(path)
    assert outcome_of(result) == ("ok", None)
    assert kept_of(result, decode(videos["mkv"])) == list(range(20))


def test_nor_is_that_of_an_flv(tmp_path: Path) -> None:
    """As ``-t 30`` for an input of two seconds leaves it."""
    path = write_video(tmp_path / "a.flv", options={"x264-params": "scenecut=0:open-gop=0"})
    data = _piped(path, "flv", 40)
    path.write_bytes(_flv_number(data, b"duration", 30.0))
    assert outcome_of(decode(path)) == ("ok", None)
    path.write_bytes(_flv_number(data.replace(b"Lavf", b"abcd"), b"duration", 30.0))
    assert outcome_of(decode(path)) == ("partial", "truncated")


@pytest.mark.parametrize("tail", [1 << 20, 9000])
@pytest.mark.parametrize("form", ["matroska", "webm"])
def test_matroska_of_unknown_length_that_is_cut_inside_a_cluster_is_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, tail: int
) -> None:
    monkeypatch.setattr(matroska, "_TAIL_BYTES", (100, tail))
    codec, options = ("libx264", {}) if form == "matroska" else ("libvpx", {"cpu-used": "8"})
    video = write_video(tmp_path / "a.mkv", codec=codec, frames=100, options=options)
    data, path = _piped(video, form, 100), tmp_path / "cut"
    clusters = places_of(data, b"\x1f\x43\xb6\x75")
    assert len(clusters) == 5
    assert clusters[-1] > len(data) - 9000 > clusters[1], "in the shorter tail one begins, but not the first"
    for behind in (b"", bytes(500), b"words behind the end\r\n", b"\r\n"):
        path.write_bytes(data + behind)
        assert outcome_of(decode(path)) == ("ok", None), behind
    inside = [clusters[1] + 40, clusters[2] + 700, clusters[4] - 1, len(data) - 1]
    for place in [*inside, *(clusters[3] + kept for kept in (1, 4, 5))]:
        path.write_bytes(data[:place])
        result = decode(path)
        assert outcome_of(result) == ("partial", "truncated"), place
        assert "shorter than it says" in (result.error_message or "")
        assert 20 <= len(kept_of(result, decode(video))) < 100


def test_blocks_of_a_cluster_without_a_length_are_looked_at(tmp_path: Path, videos: dict[str, Path]) -> None:
    data, path = _as_streamed(_piped(videos["mkv"], "matroska", 40)), tmp_path / "a.mkv"
    path.write_bytes(data)
    assert outcome_of(decode(path)) == ("ok", None)
    for _, size, _, position in packets(path)[5:37:8]:
        path.write_bytes(data[: position + size // 2])
        assert outcome_of(decode(path)) == ("partial", "truncated")


def _flv_number(data: bytes, name: bytes, value: float) -> bytes:
    at = data.index(name + b"\0") + len(name) + 1
    return data[:at] + struct.pack(">d", value) + data[at + 8 :]


def _without_size(data: bytes) -> bytes:
    """An FLV that says its duration only; not as by FFmpeg."""
    return _flv_number(data.replace(b"Lavf", b"abcd"), b"filesize", 0.0)


def _whole(folder: Path, kind: str) -> tuple[Path, list[int]]:
    """A sound file of 40 frames in 2 s, and places where it may be cut so that the demuxer finds no fault."""
    name, _, how = kind.partition(" ")
    path, closed = folder / f"whole.{name}", {"x264-params": "scenecut=0:open-gop=0"}
    if name == "asf":
        data = write_video(path, codec="wmv2").read_bytes()
        return path, [len(data) * percent // 100 for percent in (50, 60, 90)]
    if name == "ogv":
        quick = {"cpu-used": "5", "deadline": "good"}
        data = write_video(path, codec="libvpx", gop=5, options=quick).read_bytes()
        pages = places_of(data, b"OggS\0")
        return path, [pages[-1], pages[-1] - 300, pages[-1] + 20, len(data) - 300]
    written = {"movflags": _FRAGMENTED + "+global_sidx" * (how == "sidx")} if name == "mp4" else {}
    data = write_video(path, options=closed, container_options=written).read_bytes()
    if how == "mehd":
        data = _with_mehd(data, 2)
    if name == "mkv":
        data = _as_streamed(data)
    if how == "without size":
        data = _without_size(data)
    path.write_bytes(data)
    if name == "mp4":
        return path, [at - 4 for at in places_of(data, b"moof")[1:]]
    if name == "ts":
        return path, [len(data) // 188 // 2 * 188]
    return path, [position for _, _, _, position in packets(path)[5:37:8]]


SAYS_HOW_LONG = ("asf", "ogv", "flv", "flv without size", "mkv", "mp4 sidx", "mp4 mehd")


@pytest.mark.parametrize("kind", SAYS_HOW_LONG)
def test_a_cut_that_the_demuxer_does_not_see_is_partial_by_what_the_container_promises(
    tmp_path: Path, kind: str
) -> None:
    whole, places = _whole(tmp_path, kind)
    assert outcome_of(decode(whole)) == ("ok", None)
    assert len(places) > 1
    for place in places:
        path = tmp_path / f"cut{whole.suffix}"
        path.write_bytes(whole.read_bytes()[:place])
        result = decode(path)
        assert outcome_of(result) == ("partial", "truncated"), place
        assert 0 < len(kept_of(result, decode(whole))) < 40 or kind == "asf"


def _animated(path: Path, frames: int = 20) -> tuple[bytes, list[int]]:
    """A GIF, and where the pictures of its frames begin."""
    data = write_video(path, codec="gif", pixel_format="rgb8", frames=frames).read_bytes()
    return data, [at + data[at:].index(b"\x2c") for at in places_of(data, b"\x21\xf9\x04")]


def test_a_cut_animated_gif_is_partial_and_loses_the_picture_that_it_ends_in(tmp_path: Path) -> None:
    """FFmpeg draws a part of that picture; the trailer may have something behind it."""
    path = tmp_path / "a.gif"
    data, pictures = _animated(path)
    whole = decode(path)
    for behind in (b"", bytes(50_000), b"words behind the trailer"):
        path.write_bytes(data + behind)
        assert outcome_of(decode(path)) == ("ok", None)
    for kept in (1, 5, 19):
        for place in (pictures[kept] + 8, pictures[kept] + 700):
            path.write_bytes(data[:place])
            result = decode(path)
            assert outcome_of(result) == ("partial", "truncated")
            assert result.error_message is not None
            assert "before its trailer" in result.error_message
            assert kept_of(result, whole) in (list(range(kept)), list(range(kept - 1)))
    path.write_bytes(data[:-1])
    assert outcome_of(decode(path)) == ("partial", "truncated")


def test_of_a_gif_too_large_for_memory_the_last_bytes_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.gif"
    data, pictures = _animated(path)
    monkeypatch.setattr(media_source, "SLURP_BYTES", 64)
    for content, expected in (
        (data, "ok"), (data + bytes(300), "ok"), (data + bytes(50_000), "ok"), (data[: pictures[9] + 700], "partial"),
    ):  # fmt: skip
        path.write_bytes(content)
        assert decode(path).status == expected


def test_a_cut_in_the_second_list_of_a_large_avi_is_told_by_its_length(tmp_path: Path, videos: dict[str, Path]) -> None:
    path = tmp_path / "a.avi"
    more = struct.pack("<4sI4s", b"RIFF", 1004, b"AVIX") + bytes(1000)
    path.write_bytes(videos["avi"].read_bytes() + more)
    assert outcome_of(decode(path)) == ("ok", None)
    path.write_bytes(videos["avi"].read_bytes() + more[:-300])
    result = decode(path)
    assert outcome_of(result) == ("partial", "truncated")
    assert "300 bytes shorter" in (result.error_message or "")


def test_a_fragmented_mp4_that_ends_before_the_media_of_a_fragment_is_partial(tmp_path: Path) -> None:
    """Behind its ``moof``, or within the eight bytes that a box begins with."""
    whole, places = _whole(tmp_path, "mp4")
    data, path = whole.read_bytes(), tmp_path / "cut.mp4"
    media = [at - 4 for at in places_of(data, b"mdat")]
    inside = [at + kept for at in (*media[1:3], *places[:2]) for kept in (4, 7, 8, 12)]
    for place in (*media[1:3], media[1] + 2, *inside):
        path.write_bytes(data[:place])
        result = decode(path)
        assert outcome_of(result) == ("partial", "truncated"), place
        assert len(kept_of(result, decode(whole))) < 40


@pytest.mark.parametrize("kind", ["mp4", "mp4 sidx", "plain"])
def test_what_is_appended_to_a_whole_mp4_is_no_box_of_it(tmp_path: Path, videos: dict[str, Path], kind: str) -> None:
    whole = videos[kind] if kind == "plain" else _whole(tmp_path, kind)[0]
    data, path = whole.read_bytes(), tmp_path / "a.mp4"
    for behind in (bytes(3), bytes(500), b"\r\n", b"\n", b"words behind it all\n" * 9, b"TAG" + b" " * 125):
        path.write_bytes(data + behind)
        assert outcome_of(decode(path)) == ("ok", None), behind
        assert missing_bytes(Source(io.BytesIO(data + behind), len(data + behind), None)) == 0


@pytest.mark.parametrize("kind", ["ts", "mp4"])
def test_a_cut_between_two_packets_of_what_promises_nothing_cannot_be_told(tmp_path: Path, kind: str) -> None:
    """The only containers with checks of any kind where a cut may pass; program streams promise nothing at all."""
    whole, (place, *_) = _whole(tmp_path, kind)
    path = tmp_path / f"cut{whole.suffix}"
    path.write_bytes(whole.read_bytes()[:place])
    result = decode(path)
    assert outcome_of(result) == ("ok", None)
    assert len(result.clips["m"]) < 40


def _flv_with_long_sound(path: Path, **written: str) -> bytes:
    """Two seconds of pictures, four of sound."""
    with av.open(str(path), "w", container_options=written) as container:
        video, sound = container.add_stream("flv", rate=20), container.add_stream("aac", rate=44100)
        video.width, video.height, video.pix_fmt = 160, 96, "yuv420p"
        for i in range(4 * 44100 // 1024):
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            heard.pts, heard.rate, heard.time_base = i * 1024, 44100, Fraction(1, 44100)
            container.mux(sound.encode(heard))
            if i < 40:
                shown = av.VideoFrame.from_ndarray(picture(i), format="rgb24").reformat(format="yuv420p")
                shown.pts, shown.time_base = i, Fraction(1, 20)
                container.mux(video.encode(shown))
        container.mux(sound.encode(None))
        container.mux(video.encode(None))
    return path.read_bytes()


def test_what_is_promised_may_be_that_of_longer_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.flv"
    data = _flv_with_long_sound(path)
    path.write_bytes(_without_size(data))
    assert outcome_of(decode(path)) == ("ok", None)
    path.write_bytes(_flv_number(_without_size(data), b"duration", 8.0))
    assert outcome_of(decode(path)) == ("partial", "truncated")


def test_one_missing_byte_of_those_that_an_flv_says_is_told(tmp_path: Path) -> None:
    """By its duration, the last frames of a long file would not be missed."""
    whole, _ = _whole(tmp_path, "flv")
    data = whole.read_bytes()
    for missing in (1, 15, 400):
        whole.write_bytes(data[:-missing])
        result = decode(whole)
        assert outcome_of(result) == ("partial", "truncated")
        assert f"the file is {missing} bytes shorter than it says" in (result.error_message or "")
    for number in (float("inf"), float("nan"), 1e300, -1.0, 0.0):
        whole.write_bytes(_flv_number(data, b"filesize", number))
        assert outcome_of(decode(whole)) == ("ok", None), number


def test_the_one_frame_that_is_left_is_not_taken_to_last_as_long_as_all(tmp_path: Path) -> None:
    whole, _ = _whole(tmp_path, "flv without size")
    path = tmp_path / "cut.flv"
    data = whole.read_bytes()
    place = packets(whole)[1][3]
    assert data[place] == 9, "a video tag"
    path.write_bytes(data[:place])
    result = decode(path)
    assert outcome_of(result) == ("partial", "truncated")
    assert kept_of(result, decode(whole)) == [0]
    one = write_video(tmp_path / "one.flv", frames=1)
    one.write_bytes(_without_size(one.read_bytes()))
    assert outcome_of(decode(one)) == ("ok", None)


def test_one_long_pause_does_not_excuse_what_is_missing_behind_it(tmp_path: Path) -> None:
    shown = [*range(20), *range(220, 240)]
    path = write_video(tmp_path / "a.flv", frames=40, pts=shown, options={"x264-params": "scenecut=0:open-gop=0"})
    data = _without_size(path.read_bytes())
    path.write_bytes(data)
    assert outcome_of(decode(path)) == ("ok", None)
    path.write_bytes(data[: packets(path)[25][3]])
    assert outcome_of(decode(path)) == ("partial", "truncated")


def _flv_tags(data: bytes) -> list[tuple[int, int]]:
    """(kind, position): 8 of sound, 9 of pictures, 18 of metadata."""
    found, at = [], 13
    while at < len(data):
        found.append((data[at], at))
        at += 15 + int.from_bytes(data[at + 1 : at + 4], "big")
    return found


@pytest.mark.parametrize("kind", ["no_duration_filesize", "no_metadata"])
def test_an_flv_that_says_nothing_and_is_cut_inside_a_tag_is_partial(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.flv"
    data = _flv_with_long_sound(path, flvflags=kind)
    tags = _flv_tags(data)
    assert tags[-1][0] == 8, "its sound goes on"
    sounds = [at for kind, at in tags if kind == 8]
    for behind in (b"", bytes(3), bytes(300), bytes(9000)):
        path.write_bytes(data + behind)
        assert outcome_of(decode(path)) == ("ok", None)
    for place in (sounds[9] + 12, sounds[-9] + 12, sounds[-1] + 5, sounds[-9] - 2, len(data) - 1):
        path.write_bytes(data[:place])
        result = decode(path)
        assert outcome_of(result) == ("partial", "truncated")
        assert "before the end of its last tag" in (result.error_message or "")
    path.write_bytes(data[: sounds[-9]])
    assert outcome_of(decode(path)) == ("ok", None), "between two tags nobody can tell"


def test_an_flv_may_have_other_sizes_behind_its_tags_or_end_with_one_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.flv"
    data = write_video(path, codec="flv", container_options={"flvflags": "no_duration_filesize"}).read_bytes()
    tags = _flv_tags(data)
    more = b"\x12" + (256 - 11).to_bytes(3, "big") + bytes(7 + 256 - 11)
    for behind in (b"", bytes(2), bytes(70)):
        path.write_bytes(data + more + (256).to_bytes(4, "big") + behind)
        assert outcome_of(decode(path)) == ("ok", None)
    path.write_bytes(data + more + bytes(2))
    assert outcome_of(decode(path)) == ("partial", "truncated")
    other = bytearray(data)
    for (_, at), behind in zip(tags, [at for _, at in tags[1:]] + [len(data)], strict=True):
        other[behind - 4 : behind] = bytes(1) + data[at + 1 : at + 4]  # FFmpeg accepts the size without the header
    path.write_bytes(other)
    assert outcome_of(decode(path)) == ("ok", None)


def test_a_duration_that_is_wrong_does_not_outweigh_bytes_that_are_all_there(tmp_path: Path) -> None:
    for kind in ("flv", "flv without size"):
        whole, _ = _whole(tmp_path, "flv")
        data = _flv_number(whole.read_bytes(), b"duration", 30.0 if kind == "flv" else float("nan"))
        whole.write_bytes(data if kind == "flv" else _without_size(data))
        assert outcome_of(decode(whole)) == ("ok", None)


def test_a_last_frame_that_is_shown_as_long_as_others_were_is_no_cut(tmp_path: Path) -> None:
    """Slides: the container's duration ends with the last of them, the frames do with its beginning."""
    path = write_video(tmp_path / "a.flv", frames=4, pts=[0, 40, 100, 140])
    data = _without_size(path.read_bytes())
    path.write_bytes(_flv_number(data, b"duration", 9.5))
    assert outcome_of(decode(path)) == ("ok", None)
    path.write_bytes(_flv_number(data, b"duration", 20.0))
    assert outcome_of(decode(path)) == ("partial", "truncated")


@pytest.mark.parametrize("size", [0, 50, 2**32 - 1, 2**63 - 1, 2**64 - 1])
def test_the_size_in_a_broadcast_asf_says_nothing(tmp_path: Path, size: int) -> None:
    whole, _ = _whole(tmp_path, "asf")
    data = bytearray(whole.read_bytes())
    (start,) = struct.unpack_from("<Q", data, 16)
    struct.pack_into("<Q", data, start + 16, size)
    flags = data.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")) + 88
    data[flags] |= 1
    whole.write_bytes(data)
    assert outcome_of(decode(whole)) == ("ok", None)


@pytest.mark.parametrize("content", [struct.pack(">II", 0, 2**32 - 1), struct.pack(">IQ", 1 << 24, 2**64 - 1)])
def test_a_duration_of_all_ones_is_unknown(tmp_path: Path, content: bytes) -> None:
    whole, _ = _whole(tmp_path, "mp4")
    whole.write_bytes(_with_mehd_of(whole.read_bytes(), content))
    assert outcome_of(decode(whole)) == ("ok", None)


def test_a_cut_transport_stream_of_longer_packets_is_partial(tmp_path: Path) -> None:
    """Of discs and camcorders, with the time before each packet."""
    path = write_video(tmp_path / "a.m2ts", container_options={"mpegts_m2ts_mode": "1"}, options={"bf": "0"})
    data, whole = path.read_bytes(), decode(path)
    assert len(data) % 192 == 0
    assert outcome_of(whole) == ("ok", None)
    path.write_bytes(data[: len(data) // 192 // 2 * 192 + 77])
    result = decode(path)
    assert outcome_of(result) == ("partial", "truncated")
    assert f"is {192 - 77} bytes shorter" in (result.error_message or "")
    assert len(kept_of(result, whole)) > 10


def test_the_g_of_a_gif_is_not_that_of_a_transport_stream(tmp_path: Path) -> None:
    data = bytearray(_animated(tmp_path / "a.gif")[0])
    data[188 : 4 * 188 : 188] = b"GGG"  # colours
    assert missing_bytes(Source(io.BytesIO(data), len(data), None)) == 0


def test_a_cut_transport_stream_is_partial(tmp_path: Path, videos: dict[str, Path]) -> None:
    data = videos["ts"].read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(data[: len(data) // 188 // 2 * 188 + 77])
    result = decode(path)
    assert outcome_of(result) == ("partial", "truncated")
    assert len(kept_of(result, decode(videos["ts"]))) > 10


@pytest.mark.parametrize("kind", ["b_frames", "hevc", "mpeg4"])
def test_an_mp4_cut_before_its_index_fails_as_truncated(tmp_path: Path, videos: dict[str, Path], kind: str) -> None:
    data = videos[kind].read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) // 2])
    assert outcome_of(decode(path)) == ("failed", "truncated")


@pytest.mark.parametrize("size", [2**32, 2**63 - 1, 2**64 - 1])
def test_an_mp4_whose_first_box_ends_beyond_all_files_is_truncated(
    tmp_path: Path, videos: dict[str, Path], size: int
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(struct.pack(">I4sQ", 1, b"ftyp", size) + videos["plain"].read_bytes()[8:])
    assert outcome_of(decode(path)) == ("failed", "truncated")


def test_a_cut_behind_the_items_own_end_does_not_matter(tmp_path: Path, videos: dict[str, Path]) -> None:
    data = videos["plain"].read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(len(data) * 0.9)])
    assert outcome_of(decode(path, end_s=1.0)) == ("ok", None)
    assert outcome_of(decode(path, end_s=5.0)) == ("partial", "truncated")
