"""One media item in, uint8 frames and clips for all models out; whatever is wrong with it is an outcome."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from featlib.errors import MediaError, TransientError
from featlib.media.convert import UprightRgb
from featlib.media.envelope import missing_bytes
from featlib.media.frames import DecodeReport, NoKeyframeError, decode_run
from featlib.media.images import is_image, read_image, refuse_heif
from featlib.media.index import PacketIndex, read_index
from featlib.media.limits import Limits
from featlib.media.pixels import Allocate, PixelStore, allocate_arrays
from featlib.media.plan import Picked, ReadPlan, Run, num_segments, pick_all, pixel_specs, read_plan
from featlib.media.reading import TablesDifferError, VideoReader
from featlib.media.sampling import TimeRange
from featlib.media.source import Source, load
from featlib.resize import output_size
from featlib.sampling import FrameSampling
from featlib.spec import Clip, Decoded, MediaFacts, MediaItem, Segment, Want
from featlib.storage import StoreOptions, open_media

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_SIGNS_OF_A_CUT = ("unknown_format", "no_video_stream", "unsupported_codec", "no_frames", "corrupt")
_SIZED_BY_CONTAINER = ("vp8", "av1")  # measured: of VP9, H.263, MPEG-4, MJPEG and ProRes, by the first picture
_KEPT_INDEXES = 2  # long items come segment by segment; reading all packets of a file each time would be quadratic
_Key = tuple[str, str | None, int | None, str]
_recent: OrderedDict[_Key, tuple[PacketIndex, MediaFacts]] = OrderedDict()


def _no_progress() -> None:
    return None


@dataclass
class _Job:
    """What every step of decoding one item needs, and the facts learned so far, which outlive a failure.

    Args:
        opened_size: Height and width as the container says, not turned.
    """

    item: MediaItem
    wants: tuple[Want, ...]
    segment: Segment
    limits: Limits
    allocate: Allocate
    progress: Callable[[], None]
    facts: MediaFacts = field(default_factory=MediaFacts)
    skipped: tuple[str, ...] = ()
    opened_size: tuple[int | None, int | None] = (None, None)


def decode_item(
    item: MediaItem,
    wants: tuple[Want, ...],
    segment: Segment,
    *,
    store_options: StoreOptions,
    limits: Limits,
    allocate: Allocate = allocate_arrays,
    progress: Callable[[], None] = _no_progress,
) -> Decoded:
    """Decodes one segment of an item, each source frame at most once, for all models that asked.

    Args:
        segment: With ``n == 0`` the number of segments is decided here and segment 0 is decoded.
        allocate: Gives the arrays that the frames are written into.
        progress: Called often while work goes on.

    Returns:
        The frames and clips; bad media and store trouble are its status, never an exception.
    """
    job = _Job(item, wants, segment, limits, allocate, progress)
    started_s = time.process_time()
    try:
        decoded = _decode(job, store_options)
    except MediaError as error:
        decoded = _failed(job, error)
    except TransientError as error:
        decoded = _failed(job, MediaError("store_unavailable", str(error), retryable=True))
    except MemoryError:
        megabytes = limits.memory_bytes >> 20
        message = f"decoding took more than the limit of {megabytes} MiB; raise the limit or convert the file"
        decoded = _failed(job, MediaError("out_of_memory", message, retryable=True))
    return replace(decoded, facts=replace(decoded.facts, decode_s=time.process_time() - started_s))


def _failed(job: _Job, error: MediaError) -> Decoded:
    return Decoded(
        Segment(job.segment.k, max(job.segment.n, 1), job.segment.by),
        "failed",
        job.facts,
        error.error_class,
        error.message,
        error.retryable,
        skipped_labels=job.skipped,
    )


def _decode(job: _Job, store_options: StoreOptions) -> Decoded:
    file = open_media(job.item.uri, store_options)
    try:
        job.progress()
        source = load(file, job.progress)
        job.progress()
        job.facts = MediaFacts(size=source.size, etag=source.etag)
        refuse_heif(source)
        return _decode_image(job, source) if is_image(source, job.progress) else _decode_video(job, source)
    finally:
        file.close()


def _decode_image(job: _Job, source: Source) -> Decoded:
    wants = tuple(want for want in job.wants if want.kind == "frame")
    skipped = job.skipped = tuple(want.label for want in job.wants if want.kind == "clip")
    whole = Segment(0, 1)
    if not wants:
        message = "an image has no motion; use a frame model for it"
        return Decoded(whole, "skipped", job.facts, "image_under_clip_model", message, skipped_labels=skipped)
    time_range = TimeRange.of(job.item.start_s, job.item.end_s)
    if (time_range.start_s or 0) > 0 or (time_range.end_s is not None and time_range.end_s <= 0):
        raise MediaError("empty_range", f"no frame {time_range}; an image has one, at 0 s")
    rgb = read_image(source, job.limits.max_pixels, job.progress)
    job.facts = replace(job.facts, height=rgb.shape[0], width=rgb.shape[1], frames_decoded=1)
    specs = pixel_specs(wants)
    store = PixelStore({key: np.zeros(1, dtype=np.int64) for key in specs}, specs, job.allocate)
    store.put(0, rgb)
    clips: dict[str, tuple[Clip, ...]] = {want.label: (Clip(0, 0.0, None, (0.0,), 0, (0,)),) for want in wants}
    return Decoded(whole, "ok", job.facts, frames=store.arrays, clips=clips, skipped_labels=skipped)


def _decode_video(job: _Job, source: Source) -> Decoded:
    given = job.segment
    with VideoReader(source, job.limits.max_pixels, job.progress) as reader:
        if given.by != "packets" and not _asks_for_keyframes(job.wants):  # tables do not flag all of them
            try:
                return _decode_by(job, reader, may_use_tables=True)
            except TablesDifferError:
                reader.close()
                if given.n > 1:  # the segments before it were counted by the tables
                    raise MediaError("corrupt", "the container's tables are not those of its packets") from None
                job.segment = given
        return _decode_by(job, reader, may_use_tables=False)


def _asks_for_keyframes(wants: tuple[Want, ...]) -> bool:
    return any(isinstance(want.sampling, FrameSampling) and want.sampling.policy == "keyframes" for want in wants)


def _decode_by(job: _Job, reader: VideoReader, *, may_use_tables: bool) -> Decoded:
    """Decodes what is wanted, and the whole segment where that meets damage or loses a frame.

    So damage is told of as fully as if all frames were wanted, wherever a wanted frame's group of pictures shows it;
    a group that no wanted frame needs is not looked at, and what the decoder would find there is not known.
    """
    given, index = job.segment, _index(job, reader, may_use_tables)
    job.opened_size = job.facts.height, job.facts.width
    picked, segment = _resolve(job, index)
    if index.is_counted and segment.n > 1:
        job.segment, index = given, _counted_out(job, reader, index)
        picked, segment = _resolve(job, index)
    plan = read_plan(index, picked, job.wants, segment)
    plan, store, report = _read_from_keyframes(job, reader, index, plan)
    if plan.runs != (plan.whole,) and (report.message is not None or report.num_wanted < len(plan.wanted)):
        plan, store, report = _read_from_keyframes(job, reader, index, replace(plan, runs=(plan.whole,)))
    if plan.segment.n == 1 and _is_overcounted(index, report):
        index = index.first(report.num_frames)
        picked = pick_all(index, job.item, job.wants)
        plan = read_plan(index, picked, job.wants, segment)
        store, report = _read_frames(job, reader, index, plan)
    return _finish(job, index, plan, store, report)


def _index(job: _Job, reader: VideoReader, may_use_tables: bool) -> PacketIndex:
    source, by = reader.source, "tables" if may_use_tables else "packets"
    index = _recalled(job, source, by)
    if index is not None:
        return index
    try:
        index = _read_index(job, reader, may_use_tables)
    except MediaError as error:
        missing = missing_bytes(source) if error.error_class in _SIGNS_OF_A_CUT else 0
        if not missing:
            raise
        message = f"the file is {missing} bytes shorter than it says and cannot be opened ({error.message})"
        raise MediaError("truncated", message) from error
    return _kept(job, source, by, index)


def _recalled(job: _Job, source: Source, by: str) -> PacketIndex | None:
    key = job.item.uri, source.etag, source.size, by
    if source.etag is None or key not in _recent:
        return None
    _recent.move_to_end(key)
    index, job.facts = _recent[key]
    return index


def _kept(job: _Job, source: Source, by: str, index: PacketIndex) -> PacketIndex:
    _recent[job.item.uri, source.etag, source.size, by] = index, job.facts
    while len(_recent) > _KEPT_INDEXES:
        _recent.popitem(last=False)
    return index


def _counted_out(job: _Job, reader: VideoReader, index: PacketIndex) -> PacketIndex:
    """The index with as many frames as come out of the decoder, without which segments were not those of the whole.

    All is decoded for it, once a process; but segments of what is counted are decoded from its beginning anyway.
    """
    known = _recalled(job, reader.source, "counting")
    if known is not None:
        return known
    report, num_packets = DecodeReport(), len(index.packets.pts)
    for _ in decode_run(reader, index, Run(0, num_packets, len(index.times) + 1), report):
        job.progress()
    if _is_overcounted(index, report):
        index = index.first(report.num_frames)
    return _kept(job, reader.source, "counting", index)


def _read_index(job: _Job, reader: VideoReader, may_use_tables: bool) -> PacketIndex:
    video = reader.video
    context = video.stream.codec_context
    job.facts = replace(job.facts, codec=video.codec, width=context.width or None, height=context.height or None)
    index = reader.table_index() if may_use_tables else None
    if index is None:
        packets = reader.all_packets()
        index = read_index(reader.video, reader.source, packets, job.progress)
    job.facts = replace(job.facts, duration_s=index.times.duration_s)
    return index


def _resolve(job: _Job, index: PacketIndex) -> tuple[Picked, Segment]:
    picked = pick_all(index, job.item, job.wants)
    by = "tables" if index.is_from_tables else "packets"
    if job.segment.n:
        if job.segment.by not in ("", by):
            raise MediaError("corrupt", f"the file was cut by its {job.segment.by}, which cannot be read now")
        return picked, job.segment
    height, width = job.facts.height or 1, job.facts.width or 1
    frame_bytes = {}
    for key, spec in pixel_specs(job.wants).items():
        out_height, out_width = output_size(spec, height, width)
        frame_bytes[key] = out_height * out_width * 3
    n = num_segments(index, picked, job.wants, frame_bytes, job.limits)
    job.segment = Segment(0, n, by if n > 1 else "")
    return picked, job.segment


def _read_from_keyframes(
    job: _Job, reader: VideoReader, index: PacketIndex, plan: ReadPlan
) -> tuple[ReadPlan, PixelStore, DecodeReport]:
    """As ``_read_frames``, from the first packet where a run turns out to begin at no keyframe; also what was done."""
    try:
        return (plan, *_read_frames(job, reader, index, plan))
    except NoKeyframeError:
        whole = replace(plan.whole, start_packet=0)
        plan = replace(plan, whole=whole, runs=(whole,) * bool(plan.runs))
        return (plan, *_read_frames(job, reader, index, plan))


def _read_frames(job: _Job, reader: VideoReader, index: PacketIndex, plan: ReadPlan) -> tuple[PixelStore, DecodeReport]:
    store = PixelStore(plan.frames, pixel_specs(job.wants), job.allocate)
    report, to_rgb = DecodeReport(), UprightRgb(job.limits.max_pixels)
    wanted = set(plan.wanted.tolist())
    num_outside = 0
    for ordinal, frame in _decoded_frames(reader, index, plan, report):
        job.progress()
        num_outside += not plan.low <= ordinal < plan.high
        if ordinal in wanted:
            report.num_wanted += 1
            rgb = to_rgb(frame)
            if (job.facts.height, job.facts.width) != rgb.shape[:2]:
                job.facts = replace(job.facts, height=rgb.shape[0], width=rgb.shape[1])
            if store.awaits_size and _may_differ_from_first(job, reader, index, ordinal, frame):
                store.begin(*(_first_size(job, reader, index) or rgb.shape[:2]))
            store.put(ordinal, rgb)
    twice = num_outside if plan.segment.n > 1 else 0
    job.facts = replace(job.facts, frames_decoded=report.num_frames, frames_twice=twice)
    return store, report


def _may_differ_from_first(
    job: _Job, reader: VideoReader, index: PacketIndex, ordinal: int, frame: "VideoFrame"
) -> bool:
    """Whether frames before this one may be of another size: it is not as the file was opened, or that says nothing.

    It does not of a container that may be spliced, nor of codecs for whose size FFmpeg takes the container's word; of
    others it looks at the first picture, or at what is sent before it. To ask the first frame costs another opening
    and its bytes, once a segment, and nothing where frames are cropped or resized to a fixed size.
    """
    says_nothing = reader.video.format in ("mpegts", "mpeg") or reader.video.codec in _SIZED_BY_CONTAINER
    return ordinal > 0 and (says_nothing or (frame.height, frame.width) != job.opened_size)


def _first_size(job: _Job, reader: VideoReader, index: PacketIndex) -> tuple[int, int] | None:
    """Height and width of the first frame that can be decoded: to it all are fitted, whatever a segment begins with."""
    with VideoReader(reader.source, reader.max_pixels, job.progress) as first:
        for _, frame in decode_run(first, index, Run(0, len(index.packets.pts), 1), DecodeReport()):
            height, width, _ = UprightRgb(job.limits.max_pixels)(frame).shape
            return height, width
    return None


def _decoded_frames(
    reader: VideoReader, index: PacketIndex, plan: ReadPlan, report: DecodeReport
) -> "Iterator[tuple[int, VideoFrame]]":
    """What the plan's runs give; where they step over frames, only until damage is met."""
    reader.expect(index, plan.packet_spans(index))
    if plan.runs == (plan.whole,):
        yield from decode_run(reader, index, plan.whole, report)
        return
    is_wanted = np.zeros(len(index.packets.pts), dtype=np.bool_)
    wanted = index.packet_of[plan.wanted]
    is_wanted[wanted] = is_wanted[index.packets.stop_of(wanted) - 1] = True
    for run in plan.runs:
        yield from decode_run(reader, index, run, report, is_wanted)
        if report.message is not None:
            return


def _is_overcounted(index: PacketIndex, report: DecodeReport) -> bool:
    """An AVI with fewer pictures than packets, which shows at its end only: plan again with the true count."""
    return (
        index.is_counted
        and report.reached_end
        and report.message is None
        and index.cut is None
        and 0 < report.num_frames < len(index.times)
    )


def _finish(job: _Job, index: PacketIndex, plan: ReadPlan, store: PixelStore, report: DecodeReport) -> Decoded:
    missing = store.forget(lambda ordinals: report.is_lost(index.packet_of[ordinals]))
    clips = {label: store.clips(part, index.times) for label, part in plan.clips.items()}
    trouble = _trouble(job.item, index, plan, report, missing)
    if trouble is not None and plan.segment.n == 1 and not any(clips.values()):
        raise _nothing_left(trouble, report)
    for want in job.wants:
        clips.setdefault(want.label, ())
    return Decoded(
        plan.segment,
        "ok" if trouble is None else "partial",
        job.facts,
        None if trouble is None else trouble.error_class,
        None if trouble is None else trouble.message,
        False if trouble is None else trouble.retryable,
        store.arrays,
        clips,
        label_errors={label: (error.error_class, error.message) for label, error in plan.empty.items()},
    )


def _trouble(
    item: MediaItem, index: PacketIndex, plan: ReadPlan, report: DecodeReport, missing: int
) -> MediaError | None:
    """What keeps the item from being whole; a cut behind the item's own end does not."""
    end_s = TimeRange.of(None, item.end_s).end_s
    if index.cut is not None and (end_s is None or end_s > index.times.end_pts * index.times.time_base):
        return MediaError("truncated", f"{index.cut}; {len(index.times)} frames can be read")
    if report.message is not None:
        return MediaError("corrupt", f"{report.message}; {missing} of the frames that were wanted are lost")
    if missing:
        return MediaError("corrupt", f"{missing} of the frames that were wanted did not come out of the decoder")
    return None


def _nothing_left(trouble: MediaError, report: DecodeReport) -> MediaError:
    if report.num_frames:
        return trouble
    return MediaError("no_frames", f"no frame could be decoded: {trouble.message}")
