"""Media that cannot be used, or only in part: which outcome each kind becomes, and what is kept."""

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from featlib.media import index
from featlib.media.frames import DecodeReport
from featlib.media.limits import Limits
from featlib.media.open import CODECS, DECODERS, PROBED_SOUND, open_video
from featlib.media.source import Source
from tests.media.conftest import clips, decode, kept_of, outcome_of, want
from tests.media.make import damaged, packets, places_of, write_audio, write_still, write_video


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty_file"),
        (b"x", "unknown_format"),
        (bytes(5000), "unknown_format"),
        (np.random.default_rng(3).bytes(20_000), "unknown_format"),
        (b"just a text file, named like a video\n" * 50, "unknown_format"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "unknown_format"),
    ],
)
def test_what_is_not_media_fails(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert outcome_of(decode(path)) == ("failed", expected)


def test_what_is_not_a_file_fails(tmp_path: Path) -> None:
    folder = tmp_path / "a.mp4"
    folder.mkdir()
    assert outcome_of(decode(folder)) == ("failed", "not_a_file")
    assert outcome_of(decode(tmp_path / "gone.mp4")) == ("failed", "not_found")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    result = decode(write_audio(tmp_path / "a.mp4"))
    assert outcome_of(result) == ("failed", "no_video_stream")
    assert result.error_message == "the file holds no video, only: audio"


@pytest.mark.parametrize("kind", ["plain", "b_frames", "mpeg4", "avi", "hevc"])
def test_damage_costs_its_group_of_pictures_and_no_more(tmp_path: Path, videos: dict[str, Path], kind: str) -> None:
    """Packet 15 is zeros: frames before it stay, those up to the keyframe at 20 go, all behind are sound."""
    _, size, _, position = packets(videos[kind])[15]
    path = damaged(videos[kind], [(position, position + size)], tmp_path / videos[kind].name)
    result = decode(path)
    assert outcome_of(result) == ("partial", "corrupt")
    kept = kept_of(result, decode(videos[kind]))
    assert kept[-20:] == list(range(20, 40))
    assert kept[:-20] == list(range(len(kept) - 20))
    assert 13 <= len(kept) - 20 <= 15


@pytest.mark.parametrize("kind", ["plain", "b_frames", "mkv", "open_gop", "mpeg4", "avi"])
def test_damage_inside_a_picture_leaves_no_wrong_pixels(tmp_path: Path, videos: dict[str, Path], kind: str) -> None:
    """The decoder conceals it and goes on; its own flag says so, and what refers to the picture goes too."""
    _, size, _, position = packets(videos[kind])[15]
    path = damaged(videos[kind], [(position + size // 2, position + size)], tmp_path / videos[kind].name)
    result = decode(path)
    assert outcome_of(result) == ("partial", "corrupt")
    kept = kept_of(result, decode(videos[kind]))
    assert kept[-20:] == list(range(20, 40))
    assert len(kept) <= 35


def test_after_damage_nothing_of_an_avi_with_b_frames_can_be_told_apart(
    tmp_path: Path, videos: dict[str, Path]
) -> None:
    _, size, _, position = packets(videos["avi_b"])[15]
    path = damaged(videos["avi_b"], [(position, position + size)], tmp_path / "a.avi")
    result = decode(path)
    assert outcome_of(result) == ("partial", "corrupt")
    assert kept_of(result, decode(videos["avi_b"])) == list(range(14))


def test_clips_with_a_lost_frame_are_dropped_and_keep_their_numbers(tmp_path: Path, videos: dict[str, Path]) -> None:
    _, size, _, position = packets(videos["plain"])[15]
    path = damaged(videos["plain"], [(position, position + size)], tmp_path / "a.mp4")
    rows = decode(path, want(clips(5))).clips["m"]
    assert [clip.clip_index for clip in rows] == [0, 1, 2, 4, 5, 6, 7]
    assert [clip.start_s for clip in rows] == [0.0, 0.25, 0.5, 1.0, 1.25, 1.5, 1.75]


def test_damaged_segments_are_partial_and_sound_ones_ok(tmp_path: Path, videos: dict[str, Path]) -> None:
    _, size, _, position = packets(videos["plain"])[15]
    path = damaged(videos["plain"], [(position, position + size)], tmp_path / "a.mp4")
    parts = [decode(path, k=k, n=8) for k in range(8)]
    assert [part.status for part in parts] == ["ok"] * 3 + ["partial"] + ["ok"] * 4
    assert [len(part.clips["m"]) for part in parts] == [5, 5, 5, 0, 5, 5, 5, 5]


def test_spans_of_damage_that_touch_are_one() -> None:
    """As where every packet is a keyframe and damaged."""
    report, random = DecodeReport(), np.random.default_rng(5)
    for packet in range(5000):
        report.lose(packet, packet + 1)
    assert report.damaged == [(0, 5000)]
    spans = [(at - int(random.integers(0, 40)), at + 7) for at in range(6000, 9000, 21)]
    for first, stop in spans:
        report.lose(first, stop)
    packet_of = random.permutation(10_000)
    lost = sum((first <= packet_of) & (packet_of < stop) for first, stop in [(0, 5000), *spans])
    assert np.array_equal(report.is_lost(packet_of), lost > 0)
    assert 1 < len(report.damaged) < len(spans)
    assert not DecodeReport().is_lost(packet_of).any()


def test_keyframes_are_looked_for_once_however_many_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mov", codec="mjpeg", frames=40, pixel_format="yuvj420p")
    spans = [(position, position + size) for _, size, _, position in packets(path)[5:35]]
    damaged(path, spans, path)
    num_lost: list[int] = []
    num_looked: list[int] = []
    look, lose = np.flatnonzero, DecodeReport.lose
    monkeypatch.setattr(
        index, "np", SimpleNamespace(**{**vars(np), "flatnonzero": lambda a: num_looked.append(1) or look(a)})
    )
    monkeypatch.setattr(DecodeReport, "lose", lambda self, *span: num_lost.append(1) or lose(self, *span))
    assert outcome_of(decode(path)) == ("partial", "corrupt")
    assert len(num_lost) == 30
    assert len(num_looked) < 10


def test_no_frame_at_all_fails(tmp_path: Path, videos: dict[str, Path]) -> None:
    spans = [(position, position + size) for _, size, _, position in packets(videos["plain"])]
    result = decode(damaged(videos["plain"], spans, tmp_path / "a.mp4"))
    assert outcome_of(result) == ("failed", "no_frames")


def test_facts_that_were_learned_outlive_a_failure(tmp_path: Path, videos: dict[str, Path]) -> None:
    result = decode(videos["plain"], start_s=50.0)
    assert outcome_of(result) == ("failed", "empty_range")
    facts = result.facts
    assert (facts.codec, facts.width, facts.height, facts.duration_s) == ("h264", 160, 96, 2.0)
    assert facts.size == videos["plain"].stat().st_size


def test_frames_over_the_limit_are_refused(videos: dict[str, Path]) -> None:
    for max_pixels in (160 * 96 - 1, 1000):
        for kind in ("plain", "mkv", "avi", "vp9", "hevc", "mpeg4"):
            result = decode(videos[kind], limits=Limits(max_pixels=max_pixels))
            assert outcome_of(result) == ("failed", "too_large")
    assert outcome_of(decode(videos["plain"], limits=Limits(max_pixels=160 * 96)))[0] == "ok"


def test_a_huge_picture_in_a_small_file_is_not_decoded_while_opening(tmp_path: Path) -> None:
    """An MJPEG frame header that claims 60000 x 60000 pixels, in a tiny AVI."""
    path = write_video(tmp_path / "a.avi", codec="mjpeg", frames=2, options={"strict": "unofficial"})
    data = bytearray(path.read_bytes())
    for at in places_of(bytes(data), b"\xff\xc0"):
        data[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    path.write_bytes(bytes(data))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; see proc(5)
    before = _peak_kb()
    assert outcome_of(decode(path))[0] == "failed"
    assert _peak_kb() - before < 100_000


@pytest.mark.parametrize("side", [12000, 8000])
def test_a_huge_png_in_a_small_mov_is_not_decoded_while_opening(tmp_path: Path, side: int) -> None:
    """Less than 1 MB that would be 432 MB of pixels; and 192 MB, with no more pixels than a frame may have."""
    path = write_still(tmp_path / "a.mov", Image.new("RGB", (side, side)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; see proc(5)
    before = _peak_kb()
    assert outcome_of(decode(path)) == ("failed", "unsupported_codec")
    assert _peak_kb() - before < 100_000


def _peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def test_a_codec_that_is_not_on_the_list_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", codec="png", frames=2, pixel_format="rgb24")
    result = decode(path)
    assert outcome_of(result) == ("failed", "unsupported_codec")
    assert result.error_message == "codec 'png' is not opened; convert the file to H.264 first"


def test_every_codec_on_the_list_has_a_decoder_that_ffmpeg_may_open_itself() -> None:
    found = {av.Codec(name, "r").canonical_name for name in DECODERS.split(",")}
    assert found == CODECS | PROBED_SOUND
    assert "libdav1d" in DECODERS.split(","), "the decoder's own name, not that of the codec"


class _Counted(io.BytesIO):
    """Counts what is read."""

    num_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.num_read += len(data)
        return data


def _noise_with_sound(path: Path, codec: str) -> Path:
    """Eight seconds of which no picture can be made small."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("mpeg2video", rate=25), container.add_stream(codec, rate=48000)
        video.width, video.height, video.pix_fmt, video.bit_rate = 160, 96, "yuv420p", 4_000_000
        resampler = av.AudioResampler(format=sound.format.name, layout="stereo", rate=48000)
        for i in range(200):
            picture = av.VideoFrame.from_ndarray(noise.integers(0, 256, (96, 160, 3), np.uint8), format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, 25)
            container.mux(video.encode(picture))
            heard = av.AudioFrame.from_ndarray(noise.integers(-9999, 9999, (1, 3840), np.int16), layout="stereo")
            heard.pts, heard.rate, heard.time_base = i * 1920, 48000, Fraction(1, 48000)
            for part in resampler.resample(heard):
                container.mux(sound.encode(part))
    return path


@pytest.mark.parametrize("sound", ["mp2", "aac", "eac3", "ac3"])
def test_ffmpeg_does_not_read_on_in_search_of_what_the_sound_is(tmp_path: Path, sound: str) -> None:
    data = _noise_with_sound(tmp_path / "a.ts", sound).read_bytes()
    anyhow, ours = _Counted(data), _Counted(data)
    with av.open(anyhow, buffer_size=256 << 10), open_video(Source(ours, len(data), None), 1 << 20, lambda: None):
        assert ours.num_read <= anyhow.num_read < len(data) // 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["plain", "mkv", "avi_b", "ts", "webm", "mpg"])
def test_flipped_bytes_anywhere_give_an_outcome_never_an_exception(
    tmp_path: Path, videos: dict[str, Path], kind: str, seed: int
) -> None:
    data = bytearray(videos[kind].read_bytes())
    random = np.random.default_rng(seed)
    for at in random.integers(0, len(data), 12):
        data[at] ^= int(random.integers(1, 256))
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(data))
    for n in (0, 1, 3):
        status, error_class = outcome_of(decode(path, want("all"), want(clips(7), label="c"), n=n, k=0))
        assert (status == "ok") == (error_class is None)


_HOSTILE: dict[str, Callable[[str], bytes]] = {
    "a.m3u8": lambda secret: (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode()
    ),
    "a.mp4": lambda secret: f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode(),
    "a.mkv": lambda secret: f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
    "a.sdp": lambda _: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "a.txt": lambda _: b"plain words for a terminal\n" * 200,
    "a.ans": lambda _: b"\x1b[31mcolour\x1b[0m\n" * 100,
    "a.mpd": lambda secret: f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{secret}</BaseURL></MPD>'.encode(),
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_files_that_would_open_other_files_are_refused(tmp_path: Path, videos: dict[str, Path], name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_HOSTILE[name](str(videos["ts"])))
    assert outcome_of(decode(path)) == ("failed", "unknown_format")
