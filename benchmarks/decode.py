"""Frames per CPU second out of a decoder: every frame, one in 16, and 16 of ten minutes, near and far."""

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from benchmarks import decoders
from benchmarks.far_store import FarStore
from benchmarks.figures import Figure, Outcome, Setting, Target, interleaved
from featlib.storage import StoreOptions

_SIZES = {240: (320, 240, 1000), 720: (1280, 720, 120), 1080: (1920, 1080, 60)}
_LONG_FRAMES = 15_000  # ten minutes at 25 a second
_LATENCY_S = 0.02
_UNIT = "frames/CPU s"
_FAR_UNIT = "frames/s"


@dataclass(frozen=True)
class _Video:
    path: Path
    num_frames: int


def dense(setting: Setting) -> Outcome:
    """Every frame to RGB, of 240, 720 and 1080 lines."""
    return _by_size(setting, "every:1", "every frame", 1.0)


def one_in_16(setting: Setting) -> Outcome:
    """One frame in 16 to RGB, of 240, 720 and 1080 lines."""
    return _by_size(setting, "every:16", "one frame in 16", 1.4)


def sparse(setting: Setting) -> Outcome:
    """16 frames of ten minutes, from a file and from a store that answers 20 ms late, beside all frames of them."""
    video = _made(setting, 240, 1000 if setting.is_small else _LONG_FRAMES, "long")
    workload, notes = "16 frames of 10 min", {"featlib, every frame": "its seconds are what the target counts"}
    subjects = _same_frames(video, "uniform:16")
    notes |= subjects.notes
    timed = [(name, partial(_cpu_s, decoder, video, "uniform:16")) for name, decoder in subjects.decoders.items()]
    timed.append(("featlib, every frame", partial(_cpu_s, _in_segments, video, "every:1")))
    rounds = interleaved(timed, setting.rounds)
    counts = {"featlib, every frame": video.num_frames}
    figures = [_figure(workload, name, s, counts.get(name, 16), notes.get(name, "")) for name, s in rounds.items()]
    ratio = _median(rounds["featlib, every frame"]) / _median(rounds["featlib"])
    target = Target(workload, "CPU of every frame over CPU of 16", ratio, 10.0)
    far = _far(setting, video)
    return Outcome((*figures, *far.figures), (target, *far.targets), (subjects.check(workload), *far.checks))


def _by_size(setting: Setting, sampling: str, what: str, wanted_ratio: float) -> Outcome:
    figures: list[Figure] = []
    targets: list[Target] = []
    checks: list[str] = []
    for lines, (_, _, num_frames) in _SIZES.items():
        video = _made(setting, lines, num_frames // 10 if setting.is_small else num_frames, "short")
        subjects = _same_frames(video, sampling)
        notes = subjects.notes
        timed = [(name, partial(_cpu_s, decoder, video, sampling)) for name, decoder in subjects.decoders.items()]
        rounds = interleaved(timed, setting.rounds)
        workload = f"{what} of {lines} lines"
        figures += [_figure(workload, n, s, video.num_frames, notes.get(n, "")) for n, s in rounds.items()]
        ours = _median(rounds["featlib"])
        peers = {n: _median(s) for n, s in rounds.items() if n != "featlib" and not notes.get(n)}
        best = min(peers, key=peers.__getitem__)
        says = f"featlib over {best}, the best that gives equal frames"
        targets.append(Target(workload, says, peers[best] / ours, wanted_ratio))
        checks.append(subjects.check(workload))
    return Outcome(tuple(figures), tuple(targets), tuple(checks))


@dataclass(frozen=True)
class _Subjects:
    """The decoders that run here, by name; of those whose frames are not PyAV's, how they differ; who is missing."""

    decoders: dict[str, decoders.Decoder]
    notes: dict[str, str]
    missing: tuple[str, ...]

    def check(self, workload: str) -> str:
        same = [name for name in self.decoders if name not in self.notes]
        left_out = f"; left out: {', '.join(self.missing)}" if self.missing else ""
        return f"{workload}: frames of {', '.join(same)}: the same to the bit{left_out}"


def _same_frames(video: _Video, sampling: str) -> _Subjects:
    """Decodes with every decoder that can be loaded.

    Raises:
        ValueError: featlib's differ.
    """
    subjects, missing = decoders.available()
    expected = list(decoders.pyav(str(video.path), sampling, video.num_frames))
    notes = {}
    for name, decoder in list(subjects.items()):
        try:
            different = decoders.difference(decoder(str(video.path), sampling, video.num_frames), expected)
        except (ImportError, OSError, RuntimeError) as error:  # a wheel whose own libraries are missing
            missing.append(f"{name} ({type(error).__name__})")
            del subjects[name]
            continue
        if different:
            notes[name] = f"other frames: {different}"
    if "featlib" in notes:
        raise ValueError(f"{video.path}: featlib and the PyAV loop: {notes['featlib']}")
    return _Subjects(subjects, notes, tuple(missing))


def _in_segments(uri: str, sampling: str, num_frames: int) -> decoders.Frames:
    """featlib over a video whose frames are too many to be held."""
    found = decoders.featlib_in_segments(uri, sampling)
    if found != num_frames:
        raise ValueError(f"{uri}: {found} frames came of {num_frames}")
    return ()


def _far(setting: Setting, video: _Video) -> Outcome:
    expected = list(decoders.pyav(str(video.path), "uniform:16", video.num_frames))
    figures, fetched = [], 0
    with FarStore(video.path.parent, _LATENCY_S) as store:
        far = partial(decoders.featlib, options=StoreOptions(endpoint_url=store.endpoint_url, anon=True))
        url = f"s3://far/{video.path.name}"
        far_video = _Video(Path(url), video.num_frames)
        before = store.counts()
        different = decoders.difference(far(url, "uniform:16", video.num_frames), expected)
        requests, fetched = (after - b for after, b in zip(store.counts(), before, strict=True))
        if different:
            raise ValueError(f"{url}: featlib and the PyAV loop: {different}")
        note = f"{requests} requests, {fetched / 1e6:.1f} MB of {video.path.stat().st_size / 1e6:.1f} MB"
        subjects = [("featlib", partial(_wall_s, far, url, "uniform:16", video.num_frames)),
                    ("featlib, every frame", partial(_wall_s, decoders.featlib_in_segments, url, "every:1",
                                                     far.keywords["options"]))]  # fmt: skip
        rounds = interleaved(subjects, setting.rounds)
    workload = "16 frames of 10 min, 20 ms away"
    figures = [
        Figure(workload, "featlib", _FAR_UNIT, tuple(16 / s for s in rounds["featlib"]), note, is_part=True),
        Figure(workload, "featlib, every frame", _FAR_UNIT,
               tuple(far_video.num_frames / s for s in rounds["featlib, every frame"]), is_part=True),
    ]  # fmt: skip
    needed = _needed_bytes(video, decoders.sampled("uniform:16", video.num_frames))
    ratio = _median(rounds["featlib, every frame"]) / _median(rounds["featlib"])
    targets = (
        Target(workload, "seconds of every frame over seconds of 16", ratio, 10.0),
        Target(workload, "1.5 times the bytes of the groups needed over those fetched", 1.5 * needed / fetched, 1.0),
    )
    return Outcome(tuple(figures), targets, ("16 frames from far away: the same to the bit",))


def _needed_bytes(video: _Video, ordinals: list[int]) -> int:
    """Of the groups of pictures, from keyframe to keyframe, that hold the frames."""
    with av.open(str(video.path)) as container:
        packets = [(p.pts or 0, p.size, p.is_keyframe) for p in container.demux(video=0) if p.size]
    group = np.cumsum([is_key for _, _, is_key in packets])
    size = np.bincount(group, [size for _, size, _ in packets])
    shown = np.argsort([pts for pts, _, _ in packets])
    return int(size[np.unique(group[shown[ordinals]])].sum())


def _cpu_s(decoder: decoders.Decoder, video: _Video, sampling: str) -> float:
    """Seconds of this process and its children, user and system, until the frames lie in one array."""
    before = _used_s()
    decoders.gathered(
        decoder(str(video.path), sampling, video.num_frames), len(decoders.sampled(sampling, video.num_frames))
    )
    return _used_s() - before


def _used_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _wall_s(call: Callable[..., object], *args: object) -> float:
    before = time.perf_counter()
    call(*args)
    return time.perf_counter() - before


def _figure(workload: str, subject: str, seconds: tuple[float, ...], num_frames: int, note: str) -> Figure:
    """Of source frames gone through or, where few are wanted of a long file, of these."""
    is_part = subject == "featlib, every frame" or note.startswith("other frames")
    return Figure(workload, subject, _UNIT, tuple(num_frames / s for s in seconds), note, is_part)


def _median(values: tuple[float, ...]) -> float:
    return float(np.median(values))


def _made(setting: Setting, lines: int, num_frames: int, name: str) -> _Video:
    """A generated H.264 video, made once: a picture with grain that slides, as x264 codes it by itself."""
    width, height, _ = _SIZES[lines]
    path = setting.scratch / f"{name}-{lines}-{num_frames}.mp4"
    if not path.exists():
        unfinished = path.with_suffix(".unfinished.mp4")
        preset = "superfast" if name == "long" else "medium"
        with av.open(str(unfinished), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": preset, "crf": "26"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for i, picture in enumerate(_pictures(width, height, num_frames)):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        unfinished.rename(path)
    return _Video(path, num_frames)


def _pictures(width: int, height: int, count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """(height, width, 3) each."""
    y, x = np.mgrid[0 : 2 * height, 0 : 2 * width]
    light = 128 + 60 * np.sin(x / 9) + 50 * np.sin(y / 13 + x / 31)
    scene = np.stack([light, 0.8 * light + 20, 255 - light], axis=-1).clip(0, 255).astype(np.uint8)
    grain = np.random.default_rng(0).integers(0, 24, (8, height, width, 1), dtype=np.uint8)
    for i in range(count):
        top, left = i % height, 2 * i % width
        view = scene[top : top + height, left : left + width]
        yield np.where(view < 232, view + grain[i % 8], view)
