"""Interlaced H.264 whose fields come in packets of their own (PAFF), as cameras and broadcasts have it.

No encoder at hand makes such streams, so one is written here by hand: pictures of grey, each pixel as it is (I_PCM).
"""

from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
import pytest

from featlib.media import fields
from featlib.media.fields import SecondFields
from tests.media.conftest import WHOLE, decode, want
from tests.media.make import decoded, packets, without_pts, write_video

WIDTH, HEIGHT = 32, 64
IDR_EVERY = 10


class Writer:
    """A NAL unit, bit by bit."""

    def __init__(self, kind: int, importance: int = 3) -> None:
        self._bits = f"{importance << 5 | kind:08b}"

    def bits(self, value: int, count: int) -> "Writer":
        self._bits += f"{value:0{count}b}"
        return self

    def unsigned(self, *values: int) -> "Writer":
        for value in values:
            code = f"{value + 1:b}"
            self._bits += "0" * (len(code) - 1) + code
        return self

    def whole(self, data: bytes) -> "Writer":
        self._bits += "0" * (-len(self._bits) % 8) + "".join(f"{b:08b}" for b in data)
        return self

    def done(self) -> bytes:
        """With the trailing bits, emulation prevented, behind a start code."""
        text = self._bits + "1"
        text += "0" * (-len(text) % 8)
        out, zeros = bytearray(), 0
        for byte in int(text, 2).to_bytes(len(text) // 8, "big"):
            if zeros >= 2 and byte <= 3:
                out.append(3)
                zeros = 0
            out.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes(out)


def parameter_sets() -> bytes:
    """Main profile, level 3, fields allowed, output in the order of decoding."""
    sequence = Writer(7).bits(77, 8).bits(0, 8).bits(30, 8).unsigned(0, 0, 2, 1).bits(0, 1)
    sequence.unsigned(WIDTH // 16 - 1, HEIGHT // 32 - 1).bits(0b00100, 5)
    picture = Writer(8).unsigned(0, 0).bits(0, 2).unsigned(0, 0, 0).bits(0, 3).unsigned(0, 0, 0).bits(0b100, 3)
    return sequence.done() + picture.done()


def field(i: int, parity: int, grey: int) -> bytes:
    """One field of frame ``i``; every tenth frame begins anew."""
    is_idr = i % IDR_EVERY == 0 and parity == 0
    slice_ = Writer(5 if is_idr else 1).unsigned(0, 7, 0).bits(i % IDR_EVERY, 4).bits(1, 1).bits(parity, 1)
    if is_idr:
        slice_.unsigned(i // IDR_EVERY % 2).bits(0, 2)
    else:
        slice_.bits(0, 1)
    slice_.unsigned(0, 1)
    for _ in range(WIDTH // 16 * HEIGHT // 32):
        slice_.unsigned(25).whole(bytes([grey] * 256 + [128] * 128))
    return slice_.done()


def write_fields(path: Path, frames: int, *, apart: bool, late: frozenset[int] = frozenset()) -> Path:
    """A transport stream; the fields of a frame lie together under one time stamp, or ``apart`` under one each.

    Args:
        late: Frames whose first field says that it is shown with the second one.
    """
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(frames):
            first, second = (field(i, parity, 30 + 4 * i + parity) for parity in (0, 1))
            if i % IDR_EVERY == 0:
                first = parameter_sets() + first
            for place, data in enumerate((first, second) if apart else (first + second,)):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, 50)
                packet.dts = 2 * i + place
                packet.pts = packet.dts + (place == 0 and i in late)
                packet.is_keyframe = i % IDR_EVERY == 0 and place == 0
                container.mux(packet)
    return path


def copied(path: Path, to: Path) -> Path:
    """The packets as they are in another container, as ``ffmpeg -c copy`` does it."""
    with av.open(str(path)) as source, av.open(str(to), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return to


@pytest.fixture(scope="module", params=["apart", "together", "mkv", "mp4", "mov", "flv", "avi"])
def stream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    path = write_fields(folder / "a.ts", 40, apart=request.param != "together")
    return path if request.param in ("apart", "together") else copied(path, folder / f"a.{request.param}")


def test_the_stream_is_one_of_fields(stream: Path) -> None:
    assert len(packets(stream)) == 80
    plain = decoded(stream)
    assert len(plain) == 40
    assert [int(frame[0, 0, 0]) < int(frame[1, 0, 0]) for frame in plain] == [True] * 40


def test_two_fields_are_one_frame(stream: Path) -> None:
    result = decode(stream)
    assert (result.status, len(result.clips["m"])) == ("ok", 40)
    starts = [clip.start_s for clip in result.clips["m"]]
    assert np.diff(starts) == pytest.approx(1 / 25, abs=1e-4)
    assert result.clips["m"][-1].end_s == pytest.approx(starts[-1] + 1 / 25, abs=1e-4)
    assert all(map(np.array_equal, result.frames[WHOLE.key], decoded(stream)))


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "together"])
def test_fields_without_a_time_leave_the_frames_where_they_are(tmp_path: Path, apart: bool) -> None:
    stream = write_fields(tmp_path / "a.ts", 40, apart=apart)
    path = without_pts(stream, lambda i: i % 9 == 8, tmp_path / "few.ts")
    assert any(pts is None for pts, *_ in packets(path)[::2])
    expected, result = decode(stream), decode(path)
    assert (result.status, result.clips) == ("ok", expected.clips)
    assert np.array_equal(result.frames[WHOLE.key], expected.frames[WHOLE.key])


def test_fields_of_a_spliced_time_line_are_counted_as_frames(tmp_path: Path) -> None:
    path = write_fields(tmp_path / "twice.ts", 40, apart=True)
    path.write_bytes(path.read_bytes() * 2)
    result = decode(path)
    assert (result.status, len(result.clips["m"])) == ("ok", 80)
    assert np.diff([clip.start_s for clip in result.clips["m"]]) == pytest.approx(1 / 25, abs=1e-4)


def test_fields_that_are_shown_at_once_take_time_all_the_same(tmp_path: Path) -> None:
    path = write_fields(tmp_path / "twice.ts", 40, apart=True, late=frozenset(range(1, 40)))
    path.write_bytes(path.read_bytes() * 2)
    starts = [clip.start_s for clip in decode(path).clips["m"]]
    assert len(starts) == 80
    assert (np.diff(starts) > 0).all()


@pytest.mark.parametrize("sampling", ["every:8", "every:3", "uniform:4", "keyframes"])
def test_few_frames_of_fields_are_those_of_all(stream: Path, sampling: str) -> None:
    """Both fields of a wanted frame are decoded, though the next frame's are not."""
    plain = decoded(stream)
    starts = [clip.start_s for clip in decode(stream).clips["m"]]
    result = decode(stream, want(sampling))
    picked = [starts.index(clip.start_s) for clip in result.clips["m"]]
    keys = [i for i, (_, _, is_key, _) in enumerate(packets(stream)[::2]) if is_key]
    assert set(keys) >= set(range(0, 40, IDR_EVERY))
    expected = {"every:8": range(0, 40, 8), "every:3": range(0, 40, 3), "uniform:4": (5, 15, 25, 35), "keyframes": keys}
    assert picked == list(expected[sampling])
    assert all(map(np.array_equal, result.frames[WHOLE.key], (plain[i] for i in picked)))


def test_segments_of_fields_are_the_whole(stream: Path) -> None:
    parts = [decode(stream, k=k, n=3) for k in range(3)]
    assert {part.status for part in parts} == {"ok"}
    frames = [frame for part in parts for frame in part.frames[WHOLE.key]]
    assert len(frames) == 40
    assert all(map(np.array_equal, frames, decoded(stream)))


def test_which_packet_completes_a_picture() -> None:
    """Frames, lone fields, repeated ones and rubbish complete none."""
    fields = SecondFields(parameter_sets())
    order = [(0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (3, 0), (3, 1), (4, 0), (4, 0), (4, 1)]
    found = [fields.is_second(field(i, parity, 90)) for i, parity in order]
    assert found == [False, True, False, True, False, False, True, False, False, True]
    assert not fields.is_second(field(5, 0, 90))
    assert not fields.is_second(b"\0\0\1\x41")
    assert not fields.is_second(field(5, 1, 90)), "something else came in between"
    assert not SecondFields(None).is_second(field(0, 1, 90)), "nobody knows what its head means"
    late = SecondFields(None)
    assert not late.is_second(parameter_sets() + field(0, 0, 90))
    assert late.is_second(field(0, 1, 90))


def _behind_lengths(data: bytes, length_bytes: int) -> bytes:
    """The same NAL units without start codes."""
    return b"".join(len(unit).to_bytes(length_bytes, "big") + unit for unit in data.split(b"\0\0\0\1")[1:])


def _record(length_bytes: int) -> bytes:
    """ISO/IEC 14496-15 section 5.3.3.1."""
    sequence, picture = parameter_sets().split(b"\0\0\0\1")[1:]
    head = b"\1" + sequence[1:4] + bytes([0xFC | length_bytes - 1])
    sets = [_behind_lengths(b"\0\0\0\1" + unit, 2) for unit in (sequence, picture)]
    return head + b"\xe1" + sets[0] + b"\1" + sets[1]


@pytest.mark.parametrize("length_bytes", [2, 4])
def test_units_may_stand_behind_their_lengths(length_bytes: int) -> None:
    fields = SecondFields(_record(length_bytes))
    assert fields.may_occur
    delimiter = b"\0\0\0\1\x09\xf0"
    order = [(0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (3, 0), (3, 1), (4, 0), (4, 0), (4, 1)]
    samples = [_behind_lengths(delimiter + field(i, parity, 90), length_bytes) for i, parity in order]
    found = [fields.is_second(sample) for sample in samples]
    assert found == [False, True, False, True, False, False, True, False, False, True]
    assert not fields.is_second(_behind_lengths(field(5, 0, 90), length_bytes))
    assert not fields.is_second(samples[0][:length_bytes]), "a length with nothing behind it"


@pytest.mark.parametrize("size", range(1, 30))
def test_a_record_that_is_cut_says_nothing(size: int) -> None:
    fields = SecondFields(_record(4)[:size])
    assert fields.may_occur
    assert not fields.is_second(_behind_lengths(field(0, 0, 90), 4))


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi"])
def test_a_packet_with_both_fields_is_a_frame(tmp_path: Path, kind: str) -> None:
    """As cameras write MP4."""
    path = tmp_path / f"a.{kind}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.extradata = parameter_sets()
        for i in range(40):
            data = parameter_sets() * (i % IDR_EVERY == 0) + field(i, 0, 30 + 4 * i) + field(i, 1, 31 + 4 * i)
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), i, i
            packet.is_keyframe = i % IDR_EVERY == 0
            container.mux(packet)
    plain = decoded(path)
    result, few = decode(path), decode(path, want("every:8"))
    assert (result.status, few.status, len(plain)) == ("ok", "ok", 40)
    assert np.diff([c.start_s for c in result.clips["m"]]) == pytest.approx(1 / 25)
    assert np.array_equal(result.frames[WHOLE.key], plain)
    assert np.array_equal(few.frames[WHOLE.key], plain[::8])


def test_both_fields_in_one_packet_begin_nothing() -> None:
    """Frames that no other refers to have one number, and the next may begin with its other field."""
    fields = SecondFields(parameter_sets())
    assert not fields.is_second(field(1, 0, 90) + field(1, 1, 90))
    assert not fields.is_second(field(1, 1, 90) + field(1, 0, 90))
    assert not fields.is_second(field(1, 0, 90))
    assert fields.is_second(field(1, 1, 90))


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts", "flv"])
def test_frames_of_an_interlaced_sequence_are_frames(tmp_path: Path, kind: str) -> None:
    """MBAFF: fields are allowed, and are chosen a pair of macroblocks at a time."""
    options = {"x264-params": "interlaced=1:scenecut=0:open-gop=0"}
    path = write_video(tmp_path / f"a.{kind}", b_frames=2, options=options)
    with av.open(str(path)) as container:
        assert SecondFields(container.streams.video[0].codec_context.extradata).may_occur
    plain, result, few = decoded(path), decode(path), decode(path, want("every:7"))
    assert (result.status, few.status, len(plain)) == ("ok", "ok", 40)
    assert np.diff([c.start_s for c in result.clips["m"]]) == pytest.approx(1 / 20, abs=0.002)
    assert np.array_equal(result.frames[WHOLE.key], plain)
    assert np.array_equal(few.frames[WHOLE.key], plain[::7])


@pytest.mark.parametrize("kind", ["plain", "open_gop", "b_frames"])
def test_in_a_sequence_of_frames_nobody_looks_for_fields(
    videos: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[bytes] = []
    monkeypatch.setattr(SecondFields, "is_second", lambda self, packet: asked.append(packet) or False)
    path = tmp_path / videos[kind].name
    path.write_bytes(videos[kind].read_bytes())
    assert decode(path, want("keyframes")).status == "ok"
    assert decode(path, want("every:7")).status == "ok"
    assert not asked


def test_streams_of_frames_have_none(videos: dict[str, Path]) -> None:
    for kind in ("ts", "plain"):
        with av.open(str(videos[kind])) as container:
            fields = SecondFields(container.streams.video[0].codec_context.extradata)
            assert not any(fields.is_second(bytes(p)) for p in container.demux(container.streams.video[0]) if p.size)


class _CountedBits(fields._Bits):
    """Writes down what is read."""

    sizes: ClassVar[list[int]] = []
    num_signed = 0

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.sizes.append(len(data))

    def signed(self) -> int:
        type(self).num_signed += 1
        return super().signed()


@pytest.mark.parametrize("by_record", [False, True], ids=["packet", "record"])
def test_little_is_read_of_a_parameter_set_however_long(monkeypatch: pytest.MonkeyPatch, by_record: bool) -> None:
    """It says that an offset for each of its bytes and more follows."""
    monkeypatch.setattr(fields, "_Bits", _CountedBits)
    monkeypatch.setattr(_CountedBits, "sizes", [])
    monkeypatch.setattr(_CountedBits, "num_signed", 0)
    head = Writer(7).bits(66, 8).bits(0, 16).unsigned(0, 0, 1).bits(0, 1).unsigned(0, 0, 1 << 31)
    unit = head.whole(b"\xff" * 60_000).done()[4:]
    if by_record:
        SecondFields(b"\1" + unit[1:4] + b"\xff\xe1" + len(unit).to_bytes(2, "big") + unit)
    else:
        SecondFields(None).is_second(b"\0\0\1" + unit)
    assert len(_CountedBits.sizes) == 1
    assert _CountedBits.sizes[0] < 5000
    assert _CountedBits.num_signed < 10


def test_a_cycle_of_offsets_is_read_as_far_as_the_standard_lets_it_go() -> None:
    for offsets, is_known in ((255, True), (256, False)):
        sequence = Writer(7).bits(66, 8).bits(0, 16).unsigned(0, 0, 1).bits(0, 1).unsigned(0, 0, offsets)
        sequence.unsigned(*[3] * offsets, 1).bits(0, 1).unsigned(1, 1).bits(1, 1)  # frames only
        found = SecondFields(sequence.done())
        assert found.may_occur != is_known
