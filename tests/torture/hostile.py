"""Files that nobody should send: broken, lying, endless or built to make a decoder open something else.

``corpus`` writes them all, each under a name that says what it is; a ``mutant`` is a sound file with bytes changed by a
seed.
"""

import io
import os
import struct
import threading
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np
from PIL import Image

from featlib.errors import MEDIA_ERROR_CLASSES
from tests.media.make import picture, write_audio, write_still, write_video

LAWFUL_CLASSES = frozenset(MEDIA_ERROR_CLASSES) - {"internal_error", "store_unavailable"}
"""What a bad local file may end in: the first of the others is a defect of featlib, and no store is involved."""

ELSEWHERE = "samples-elsewhere-"
CUTS = (1, 10, 50, 90, 99)
_PICTURES = ("gif", "png", "jpg", "webp")
_ENDINGS = ("mp4", "mov", "mkv", "avi", "ts", "webm", "mpg", "flv", "asf", "ogv", "many.gif", *_PICTURES)


def sound(folder: Path) -> dict[str, Path]:
    """A small sound file of each container, by ending; those that are there stay."""
    found = {ending: folder / f"sound.{ending}" for ending in _ENDINGS}
    if all(path.exists() for path in found.values()):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    closed = {"x264-params": "scenecut=0:open-gop=0"}
    front, same_ids = {"movflags": "faststart"}, {"fflags": "+bitexact"}  # Matroska's ids are random by themselves
    write_video(found["mp4"], options=closed, container_options=front)
    write_video(found["mov"], options=closed, b_frames=2)
    write_video(found["mkv"], options=closed, b_frames=2, container_options=same_ids)
    write_video(found["avi"], codec="mpeg4")
    write_video(found["ts"], options=closed, b_frames=2)
    quick = {"cpu-used": "5", "deadline": "good"}  # "realtime" gives other bytes on a busy machine
    write_video(found["webm"], codec="libvpx", options=quick, container_options=same_ids)
    write_video(found["mpg"], codec="mpeg2video", rate=Fraction(25))
    write_video(found["flv"], options=closed)
    write_video(found["asf"], codec="wmv2", container_options=same_ids)
    write_video(
        found["ogv"], codec="libvpx", gop=5, options=quick, container_options=same_ids
    )  # pages end at keyframes
    write_video(found["many.gif"], codec="gif", pixel_format="rgb8")
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    for ending in _PICTURES:
        Image.fromarray(noise).save(found[ending])
    return found


def corpus(folder: Path, canary: Path, honeypot: str) -> list[Path]:
    """All of them.

    Args:
        canary: A local file that nobody may open on behalf of one of these.
        honeypot: URL of a listener that nobody may ask.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = sound(folder.parent / "sound")
    made = [*_cut(folder, files), *_flipped(folder, files), *_misnamed(folder, files), *_lying(folder, files)]
    made += [*_shapes(folder), *_not_media(folder), *_pointing(folder, canary, honeypot), *_not_files(folder, canary)]
    made += _referring(folder, files)
    return sorted(made)


def mutants(folder: Path, count: int) -> list[Path]:
    """Mutants of every kind of file in turn, named by their seeds."""
    files = sorted(sound(folder.parent / "sound").items())
    folder.mkdir(parents=True)
    chosen = [(seed, *files[seed % len(files)]) for seed in range(count)]
    return [_written(folder / f"mutant-{s}.{ending}", mutant(path.read_bytes(), s)) for s, ending, path in chosen]


def _cut(folder: Path, files: dict[str, Path]) -> Iterator[Path]:
    for ending, path in files.items():
        data = path.read_bytes()
        for percent in CUTS:
            yield _written(folder / f"cut-{percent:02d}.{ending}", data[: len(data) * percent // 100])


def _flipped(folder: Path, files: dict[str, Path]) -> Iterator[Path]:
    for ending, path in files.items():
        yield _written(folder / f"flipped-bits.{ending}", mutant(path.read_bytes(), 1))


def _misnamed(folder: Path, files: dict[str, Path]) -> Iterator[Path]:
    """Under the name of another kind; some of these are readable, and then they are read as what they are."""
    yield _written(folder / "video-named.jpg", files["mp4"].read_bytes())
    yield _written(folder / "picture-named.mp4", files["jpg"].read_bytes())
    yield _written(folder / "matroska-named.avi", files["mkv"].read_bytes())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(files["mp4"], "inside.mp4")
    yield _written(folder / "zip-named.mp4", packed.getvalue())


def _lying(folder: Path, files: dict[str, Path]) -> Iterator[Path]:
    """Headers that promise what does not follow."""
    movie = files["mp4"].read_bytes()
    for name, wrong in (("zero", 0), ("billion", 10**9), ("most", 2**32 - 1)):
        yield _written(folder / f"mp4-counts-{name}-samples.mp4", _with_count(movie, b"stsz", 8, wrong))
        yield _written(folder / f"mp4-counts-{name}-chunks.mp4", _with_count(movie, b"stco", 4, wrong))
    at = movie.index(b"mdat")
    yield _written(folder / "mp4-without-mdat.mp4", movie[: at - 4])
    yield _written(folder / "mp4-zeros-in-mdat.mp4", movie[: at + 4] + bytes(len(movie) - at - 4))
    yield _written(folder / "mp4-box-of-size-zero.mp4", struct.pack(">I4s", 0, b"ftyp") + movie[8:])
    yield _written(folder / "mp4-box-of-size-one.mp4", struct.pack(">I4sQ", 1, b"ftyp", 2**63) + movie[8:])
    nested = b"".join(struct.pack(">I4s", 8 * (2000 - i), b"moov") for i in range(2000))
    yield _written(folder / "mp4-boxes-2000-deep.mp4", movie[:32] + nested)
    photo = bytearray(files["png"].read_bytes())
    photo[16:24] = struct.pack(">II", 100_000, 100_000)
    yield _written(folder / "png-claims-100000.png", bytes(photo))
    yield _written(
        folder / "gif-claims-65535.gif", _patched(files["gif"].read_bytes(), 6, struct.pack("<HH", 65535, 65535))
    )
    frames = bytearray(files["avi"].read_bytes())
    at = bytes(frames).index(b"avih") + 8 + 16
    frames[at : at + 4] = struct.pack("<I", 2**31)
    yield _written(folder / "avi-claims-2e9-frames.avi", bytes(frames))


def _shapes(folder: Path) -> Iterator[Path]:
    """Sound but extreme."""
    yield write_video(folder / "one-frame.mp4", frames=1)
    yield write_video(folder / "tiny-2x2.mp4", size=(2, 2), codec="mpeg4")
    Image.new("RGB", (1, 1)).save(folder / "tiny-1x1.png")
    yield folder / "tiny-1x1.png"
    Image.new("1", (16_000, 16_000)).save(folder / "bomb-16000x16000.png")
    yield folder / "bomb-16000x16000.png"
    yield write_still(folder / "bomb-16000x16000-png.mov", Image.new("1", (16_000, 16_000)))
    Image.new("L", (12_000, 12_000)).save(folder / "bomb-12000x12000.jpg", quality=10)
    yield folder / "bomb-12000x12000.jpg"
    Image.new("RGB", (1, 20_000)).save(folder / "thin-1x20000.png")
    yield folder / "thin-1x20000.png"
    yield _written(folder / "gif-of-3000-frames.gif", _many_frames(3000))
    yield write_video(folder / "4096x4096.mp4", size=(4096, 4096), frames=3, codec="mpeg4")
    yield _one_group(folder / "one-group-of-100000.mp4", 100_000)
    yield write_video(folder / "two-frames-three-weeks-apart.mkv", frames=2, pts=[0, 20 * 1_800_000], size=(32, 32))
    yield write_audio(folder / "sound-only.mp4")
    with av.open(str(folder / "no-frames.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    yield folder / "no-frames.mp4"


def _one_group(path: Path, count: int) -> Path:
    """A still scene: one keyframe, and all behind refers to it."""
    with av.open(str(path), "w") as container:
        # Without the first, groups are cut at 600.
        stream = container.add_stream(
            "mpeg4", rate=20, options={"strict": "experimental", "sc_threshold": "1000000000"}
        )
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.gop_size = 1_000_000
        stream.codec_context.time_base = Fraction(1, 20)
        stream.codec_context.thread_count = 1
        frame = av.VideoFrame.from_ndarray(picture(0, 32, 32), format="rgb24").reformat(format="yuv420p")
        frame.time_base = Fraction(1, 20)
        for frame.pts in range(count):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _many_frames(count: int) -> bytes:
    frames = [Image.new("P", (8, 8), i % 256) for i in range(count)]
    made = io.BytesIO()
    frames[0].save(made, "GIF", save_all=True, append_images=frames[1:], duration=10)
    return made.getvalue()


def _not_media(folder: Path) -> Iterator[Path]:
    noise = np.random.default_rng(3).bytes(50_000)
    contents = {
        "empty.mp4": b"",
        "one-byte.mp4": b"x",
        "zeros.mp4": bytes(100_000),
        "noise.mp4": noise,
        "noise.jpg": noise,
        "text.mp4": b"just a text file, named like a video\n" * 500,
        "error-page.mp4": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "terminal.ans": b"\x1b[31mcolour\x1b[0m\n" * 1000,
        "terminal.mp4": b"\x1b[2J\x1b[31mcolour\x1b[0m\n" * 1000,
        "subtitles.srt": b"1\n00:00:00,000 --> 00:00:01,000\nwords\n",
        "wave-header.avi": b"RIFF\xff\xff\xff\x7fWAVEfmt " + bytes(100),
        "pickle.mp4": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    }
    return (_written(folder / name, data) for name, data in contents.items())


def _pointing(folder: Path, canary: Path, honeypot: str) -> Iterator[Path]:
    """Lists that name other media, under their own names and under innocent ones."""
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    master = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n"
    keyed = '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-KEY:METHOD=AES-128,URI="{}"\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n'
    session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=x:{}\n"
    dash = '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{}</BaseURL></Period></MPD>'
    image = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="x"><image xlink:href="{}"/></svg>'
    texts = {
        "hls.m3u8": playlist,
        "hls-master.m3u8": master,
        "hls-key.m3u8": keyed,
        "concat.ffconcat": "ffconcat version 1.0\nfile '{}'\n",
        "session.sdp": session,
        "dash.mpd": dash,
        "image.svg": image,
        "asx.asx": '<asx><entry><ref href="{}"/></entry></asx>',
        "pls.pls": "[playlist]\nFile1={}\nNumberOfEntries=1\n",
        "smil.smil": '<smil><body><video src="{}"/></body></smil>',
    }
    targets = {
        "file": canary.as_uri(), "http": f"{honeypot}/a.ts", "concat": f"concat:{canary}|{canary}",
        "subfile": f"subfile,,start,0,end,9,,:{canary}", "nested": f"crypto+{honeypot}/b",
    }  # fmt: skip
    for name, text in texts.items():
        stem, _, ending = name.partition(".")
        for kind, target in targets.items():
            yield _written(folder / f"{stem}-{kind}.{ending}", text.format(target).encode())
        yield _written(folder / f"{stem}-as.mp4", text.format(f"{honeypot}/{stem}.mp4").encode())
        yield _written(folder / f"{stem}-as.jpg", text.format(canary).encode())


def _referring(folder: Path, files: dict[str, Path]) -> Iterator[Path]:
    """Movies whose samples lie in another file, and a name that is a pattern to some."""
    for ending in ("mp4", "mov"):
        movie, there = files[ending].read_bytes(), files[ending]
        for kind, levels in (("absolute", (0, 0)), ("climbing", (2, 2))):
            yield _written(folder / f"{ELSEWHERE}{kind}.{ending}", _with_alias(movie, there, levels))
    yield _written(folder / "sequence-%03d.jpg", files["jpg"].read_bytes())


def _with_alias(movie: bytes, there: Path, levels: tuple[int, int]) -> bytes:
    """The movie with zeros for samples, and an alias record by which they lie in the file ``there``.

    Args:
        levels: Folders up from the movie and down to ``there`` again, by which FFmpeg seeks; (0, 0): its whole path.
    """
    at = movie.index(b"mdat") + 4
    (length,) = struct.unpack_from(">I", movie, at - 8)
    movie = movie[:at] + bytes(length - 8) + movie[at + length - 8 :]
    at = movie.index(b"dref") + 12  # behind the name, version, flags and count: the one entry
    size, kind = struct.unpack_from(">I4s", movie, at)
    assert kind in (b"url ", b"alis")
    place = str(there).encode()
    place += b"\0" * (len(place) % 2)
    # As mov_read_dref of FFmpeg reads it: volume and file name, levels, then the path under tag 2, and the end.
    record = bytes(10 + 1 + 27 + 12 + 1 + 63 + 16) + struct.pack(">HH", *levels) + bytes(16)
    record += struct.pack(">HH", 2, len(place)) + place + struct.pack(">hH", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    longer, made = len(entry) - size, bytearray(movie[:at] + entry + movie[at + size :])
    for name in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):  # from the inside out
        box = bytes(made).rindex(name, 0, at) - 4
        struct.pack_into(">I", made, box, struct.unpack_from(">I", made, box)[0] + longer)
    return bytes(made)


def _not_files(folder: Path, canary: Path) -> Iterator[Path]:
    (folder / "folder.mp4").mkdir()
    yield folder / "folder.mp4"
    os.mkfifo(folder / "pipe.mp4")
    yield folder / "pipe.mp4"
    yield _endless(folder / "endless-pipe.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nowhere")
    yield folder / "dangling.mp4"
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    yield folder / "loop.mp4"
    (folder / "endless.mp4").symlink_to("/dev/zero")
    yield folder / "endless.mp4"
    (folder / "link-to-text.mp4").symlink_to(canary)
    yield folder / "link-to-text.mp4"
    with (folder / "hollow-terabyte.mp4").open("wb") as file:
        file.truncate(1 << 40)
    yield folder / "hollow-terabyte.mp4"


def _endless(path: Path) -> Path:
    """A pipe that is written to as long as anybody reads, until this process ends."""
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)  # so that nobody waits for a reader

    def write() -> None:
        while True:
            os.write(descriptor, bytes(1 << 16))

    threading.Thread(target=write, daemon=True).start()
    return path


def mutant(data: bytes, seed: int) -> bytes:
    """A few bytes changed, a stretch repeated, taken out or zeroed."""
    random, changed = Random(seed), bytearray(data)
    for _ in range(random.choice((1, 4, 16, 64))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    start, length = random.randrange(len(changed)), random.randrange(1, 400)
    stretch = changed[start : start + length]
    how = random.randrange(5)
    if how == 0:
        changed[start : start + length] = b""
    elif how == 1:
        changed[start:start] = stretch
    elif how == 2:
        changed[start : start + length] = bytes(len(stretch))
    return bytes(changed)


def _with_count(data: bytes, box: bytes, skip: int, count: int) -> bytes:
    """The movie with the number of entries of a table changed; ``skip`` bytes lie between the name and the number."""
    return _patched(data, data.index(box) + 4 + skip, struct.pack(">I", count))


def _patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
