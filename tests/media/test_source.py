"""The store as a source of trouble: failing reads, early ends, large objects that stay where they are."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featlib.errors import MediaError, TransientError
from featlib.media import decode as decode_module
from featlib.media import decode_item, index, reading, source
from featlib.media.bitstream import Vops, coded_vops, display_order, vp8_is_shown
from featlib.media.envelope import missing_bytes
from featlib.media.limits import Limits
from featlib.media.source import Source, load
from featlib.spec import MediaItem, Segment
from featlib.storage import StoreOptions
from tests.media.conftest import WHOLE, decode, want


class StubFile(io.BytesIO):
    """A store's file that can end early or fail behind an offset."""

    def __init__(self, data: bytes, *, fails_at: int | None = None, size: int | None = None) -> None:
        super().__init__(data)
        self.size = len(data) if size is None else size
        self.etag = None
        self._fails_at = fails_at

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self.size if size is None or size < 0 else size
        if self._fails_at is not None and self.tell() + wanted > self._fails_at:
            raise TransientError("s3://b/k: no answer within 30 s; run the same command again")
        return super().read(size)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[StubFile], None]:
    """Makes the decoder open this file, whatever it is asked for."""

    def put(file: StubFile) -> None:
        monkeypatch.setattr(decode_module, "open_media", lambda uri, options: file)

    return put


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is small enough to be taken into memory."""
    monkeypatch.setattr(source, "SLURP_BYTES", 64)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("kind", ["plain", "open_gop", "ts", "avi_b", "webm", "mpg"])
def test_large_objects_are_read_in_place_with_the_same_result(videos: dict[str, Path], kind: str) -> None:
    result = decode(videos[kind], k=2, n=3)
    whole = decode(videos[kind])
    assert (result.status, whole.status) == ("ok", "ok")
    first = result.clips["m"][0].clip_index
    assert first > 10
    assert np.array_equal(result.frames[WHOLE.key], whole.frames[WHOLE.key][first : first + len(result.clips["m"])])


@pytest.mark.parametrize("fails_at", [0, 100, 3000, 6000])
def test_a_failing_store_is_no_fault_of_the_media(
    videos: dict[str, Path], serve: Callable[[StubFile], None], fails_at: int
) -> None:
    serve(StubFile(videos["plain"].read_bytes(), fails_at=fails_at))
    result = decode("s3://b/k")
    assert (result.status, result.error_class, result.retryable) == ("failed", "store_unavailable", True)
    assert result.error_message == "s3://b/k: no answer within 30 s; run the same command again"


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("kind", ["plain", "mkv", "ts"])
def test_a_store_that_fails_while_ffmpeg_reads_is_told_from_damage(
    videos: dict[str, Path], serve: Callable[[StubFile], None], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("featlib.media.open._BUFFER_BYTES", 1024)
    data = videos[kind].read_bytes()
    serve(StubFile(data, fails_at=len(data) - 1500))
    result = decode("s3://b/k")
    assert (result.status, result.error_class, result.retryable) == ("failed", "store_unavailable", True)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("kind", ["mkv", "ts"])
def test_an_early_end_is_noticed_by_the_objects_size(
    videos: dict[str, Path], serve: Callable[[StubFile], None], kind: str
) -> None:
    data = videos[kind].read_bytes()
    half = data[: len(data) // 188 // 2 * 188]
    serve(StubFile(half, size=len(data)))
    result = decode("s3://b/k")
    assert (result.status, result.error_class) == ("partial", "truncated")
    assert result.error_message is not None
    assert f"the store gave {len(half)} of {len(data)} bytes" in result.error_message


def test_small_objects_are_taken_into_memory() -> None:
    held = load(StubFile(b"abc"))
    assert isinstance(held.file, io.BytesIO)
    assert held.head(2) == b"ab"
    assert not hasattr(held.reader(lambda: None), "name")


def test_a_small_object_is_taken_in_steps_that_count_as_progress() -> None:
    """Requests of a slow store may take long one by one; together they may take longer than a stall."""
    steps: list[int] = []
    held = load(StubFile(bytes(20 << 20)), lambda: steps.append(1))
    assert held.size == 20 << 20
    assert len(steps) == 3


@pytest.mark.usefixtures("streamed")
def test_a_large_gif_is_read_in_steps_that_count_as_progress(serve: Callable[[StubFile], None]) -> None:
    """It is read whole twice: to see whether it is a video, and for its picture."""
    read_bytes: list[int] = [0]

    class Counted(StubFile):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            read_bytes[-1] += len(data)
            return data

    picture = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(picture, format="GIF")
    serve(Counted(picture.getvalue() + bytes(20 << 20)))
    result = decode_item(
        MediaItem("id", "s3://b/k"),
        (want("all"),),
        Segment(0, 1),
        store_options=StoreOptions(),
        limits=Limits(),
        progress=lambda: read_bytes.append(0),
    )
    assert result.status == "ok", result.error_message
    assert sum(read_bytes) > 40 << 20
    assert max(read_bytes) <= 9 << 20


@pytest.mark.parametrize("size_limit", [source.SLURP_BYTES, 64], ids=["in memory", "in place"])
def test_a_disk_that_goes_away_is_not_the_medias_fault(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, size_limit: int
) -> None:
    """The server of a mounted folder ends after the file was opened."""
    monkeypatch.setattr(source, "SLURP_BYTES", size_limit)
    monkeypatch.setattr(decode_module, "_recent", type(decode_module._recent)())
    pread, reads = os.pread, []

    def gone(descriptor: int, size: int, start: int) -> bytes:
        reads.append(start)
        if size_limit == 64 and len(reads) < 4:
            return pread(descriptor, size, start)
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(os, "pread", gone)
    result = decode(videos["mkv"])
    assert (result.status, result.error_class, result.retryable) == ("failed", "store_unavailable", True)


def test_a_seek_that_lands_elsewhere_falls_back_to_the_start(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decode(videos["mkv"], k=2, n=3)  # its index is kept, its packets are not
    landings: list[int] = []
    monkeypatch.setattr(reading, "_position", lambda index, packet: landings.append(packet.size))
    result = decode(videos["mkv"], k=2, n=3)
    assert landings
    assert np.array_equal(result.frames[WHOLE.key], expected.frames[WHOLE.key])
    assert (result.facts.frames_decoded, expected.facts.frames_decoded) == (20, 20)


def test_an_avi_with_fewer_pictures_than_counted_is_planned_again(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "coded_vops", lambda data: Vops(coded_vops(data).types.replace("I", "IP")))
    result = decode(videos["avi_b"], want("all"), want("uniform:2", label="u"))
    assert (result.status, len(result.clips["m"])) == ("ok", 40)
    assert [clip.start_s for clip in result.clips["u"]] == [0.5, 1.5]


def test_packets_of_an_item_are_read_once_for_all_its_segments(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    read_index = decode_module.read_index
    monkeypatch.setattr(decode_module, "_recent", type(decode_module._recent)())
    monkeypatch.setattr(decode_module, "read_index", lambda *args: calls.append(1) or read_index(*args))
    parts = [decode(videos["mkv"], k=k, n=3) for k in range(3)]
    assert calls == [1]
    assert [part.facts.codec for part in parts] == ["h264"] * 3


@pytest.mark.parametrize(
    ("types", "expected"),
    [("", []), ("I", [0]), ("IPP", [0, 1, 2]), ("IPBPB", [0, 2, 1, 4, 3]), ("IPBBPBB", [0, 3, 1, 2, 6, 4, 5])],
)
def test_display_order(types: str, expected: list[int]) -> None:
    assert display_order(types) == expected


def test_coded_pictures_of_a_packet() -> None:
    start = b"\x00\x00\x01\xb6"
    filler = bytes([7] * 12)
    assert coded_vops(start + b"\x00" + filler).types == "I"
    assert coded_vops(start + b"\x40" + filler + start + b"\x80" + filler).types == "PB"
    assert coded_vops(start + b"\x50").types == ""  # a placeholder: vop_coded is 0
    assert coded_vops(start + b"\x98\x8b\xc7").types == "B"  # one in which nothing moves
    assert coded_vops(b"\x7f").count == 0
    assert [vp8_is_shown(0x10), vp8_is_shown(0x01)] == [True, False]


@pytest.mark.parametrize("kind", ["plain", "b_frames", "mkv", "vp9", "avi", "ts", "mpg", "hevc"])
def test_whole_files_miss_nothing_and_cut_ones_do(videos: dict[str, Path], kind: str) -> None:
    data = videos[kind].read_bytes()
    assert missing_bytes(Source(io.BytesIO(data), len(data), None)) == 0
    short = data[:-5]
    expected = {"mpg": 0}.get(kind, 5)  # a program stream does not say how long it is
    assert missing_bytes(Source(io.BytesIO(short), len(short), None)) == expected


def test_media_errors_of_the_store_are_the_outcome(monkeypatch: pytest.MonkeyPatch, videos: dict[str, Path]) -> None:
    def refuse(uri: str, options: object) -> None:
        raise MediaError("permission_denied", f"{uri}: not allowed")

    monkeypatch.setattr(decode_module, "open_media", refuse)
    result = decode(videos["plain"])
    assert (result.status, result.error_class) == ("failed", "permission_denied")
