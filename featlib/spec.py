"""What an extractor wants from a video, and what decoding gives back: plain values, no torch, no av.

These types are the seams between configuration, decoding and inference. All of them are frozen, can be built by
hand in a test and cross process borders by pickle.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from featlib.sampling import FrameSampling, Sampling

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    UInt8Frames = npt.NDArray[np.uint8]  # (num_frames, height, width, 3), RGB

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Kind = Literal["frame", "clip"]
ChannelOrder = Literal["rgb", "bgr"]
Status = Literal["ok", "partial", "failed", "skipped"]
Arithmetic = Literal["plain", "compiled"]

FP32_TOLERANCE = 1e-5
"""Most relative L2 between features of a compiled network and of the same network run plainly in fp32."""


@dataclass(frozen=True)
class PixelSpec:
    """The part of a preprocessing that gives uint8 frames: resize, then centre crop.

    Args:
        resize: ``(short_side,)`` keeps the aspect ratio; ``(height, width)`` does not; empty leaves it as it is.
        crop: ``(height, width)`` of the centre crop; None leaves the resized frame whole.
        interpolation: Of the resize.
        antialias: torchvision's flag: True in its image presets, False in its video presets.
    """

    resize: tuple[int, ...]
    crop: tuple[int, int] | None
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    @property
    def key(self) -> str:
        """A short name, safe as part of a column name; equal keys give equal pixels."""
        resize = "x".join(map(str, self.resize)) or "none"
        crop = "x".join(map(str, self.crop)) if self.crop else "none"
        return f"r{resize}_c{crop}_{self.interpolation}{'_aa' if self.antialias else ''}"


@dataclass(frozen=True)
class FlowMethod:
    """How optical flow is computed.

    Args:
        source: ``tvl1``, ``farneback``, ``dis``, ``raft_large`` or ``raft_small``.
        weights_sha256: Of a network's weights; empty for the others.
    """

    source: str
    weights_sha256: str = ""


@dataclass(frozen=True)
class FlowSpec:
    """Flow that a network reads: between neighbouring frames of a clip, computed before the crop.

    Args:
        pixels: The frames that flow is computed of: resized, not cropped.
        crop: ``(height, width)`` of the centre crop of the flow.
    """

    method: FlowMethod
    pixels: PixelSpec
    crop: tuple[int, int]

    @property
    def key(self) -> str:
        """A short name, safe as part of a column name; equal keys give equal flow."""
        method = f"{self.method.source}{self.method.weights_sha256[:12]}"
        return f"{method}_{self.pixels.key}_{self.crop[0]}x{self.crop[1]}"


@dataclass(frozen=True)
class FlowInput:
    """What becomes of flow before a network reads it: clipped, then brought to the range it was trained on.

    A clip of T frames has T - 1 flows. Without ``with_rgb`` a network reads them as (N, 2, T - 1, H, W); with it as
    one stack (N, 3 + 2 (T - 1), H, W), the middle frame first, then x and y of each flow.

    Args:
        bound: Flow is clipped to [-bound, bound] pixels and mapped to [0, 1].
        quantised: Rounded to 256 levels in between, as published stacks were stored.
        mean: Subtracted from the values in [0, 1].
        std: Divided by.
        method: How the flow is computed; None until a job decides it.
    """

    with_rgb: bool
    bound: float = 20.0
    quantised: bool = False
    mean: float = 0.5
    std: float = 0.5
    method: FlowMethod | None = None


@dataclass(frozen=True)
class InputSpec:
    """What a network reads: the whole of its preprocessing.

    Args:
        kind: ``frame``: batches (N, 3, H, W). ``clip``: batches (N, 3, T, H, W).
        pixels: How a source frame becomes uint8 RGB at the network's input size; of flow, before its crop.
        mean: Subtracted from values in [0, 1], per channel, in the network's order of channels.
        std: Divided by, per channel.
        order: Of the channels; networks that were trained with Caffe read BGR.
        flow: Set for networks that read optical flow.
        flow_crop: Centre crop of the flow, and of the frame beside it.
        mean_volume: SHA-256 of a file whose mean of each pixel is taken off instead of ``mean``; empty for none.
    """

    kind: Kind
    pixels: PixelSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: ChannelOrder = "rgb"
    flow: FlowInput | None = None
    flow_crop: tuple[int, int] | None = None
    mean_volume: str = ""

    @property
    def crop(self) -> tuple[int, int] | None:
        """Height and width of the network's input; None when they are the source's own."""
        return self.flow_crop if self.flow is not None else self.pixels.crop

    @property
    def is_flat(self) -> bool:
        """Whether the network reads pictures (N, C, H, W): frames, or stacks of flow; else clips (N, C, T, H, W)."""
        return self.kind == "frame" or (self.flow is not None and self.flow.with_rgb)

    @property
    def flow_spec(self) -> FlowSpec | None:
        """The flow that has to be computed; None for networks that read none."""
        if self.flow is None or self.flow.method is None or self.flow_crop is None:
            return None
        return FlowSpec(self.flow.method, self.pixels, self.flow_crop)


@dataclass(frozen=True)
class Want:
    """What one model wants of a media item: asked of the decoder, under the model's label."""

    label: str
    sampling: Sampling
    pixels: PixelSpec

    @property
    def kind(self) -> Kind:
        return "frame" if isinstance(self.sampling, FrameSampling) else "clip"


@dataclass(frozen=True)
class MediaItem:
    """One row of a manifest: a media file or a part of it, ``[start_s, end_s)`` in media time."""

    media_id: str
    uri: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Segment:
    """Part ``k`` of ``n`` of an item, by source frame; a clip belongs to the segment of its first frame, and where one
    frame is the first of very many clips these are divided, too.

    ``n == 0`` means that nobody has looked at the item yet: the decoder decides n from the memory budget and
    gives segment 0.

    Args:
        by: Which index counts the frames and finds the seams, ``tables`` of the container or ``packets``; empty where
            that makes no difference. Segments fit together only when it is the same.
    """

    k: int = 0
    n: int = 0
    by: str = ""


@dataclass(frozen=True)
class Clip:
    """One clip of one model, cut from the unique frames of a ``PixelSpec``.

    Args:
        clip_index: 0, 1, 2 … over the whole item, in time order.
        start_s: Presentation time of the first source frame.
        end_s: End of the last source frame's presentation; None for an image.
        frame_s: Presentation time of each source frame used, padding not counted.
        padded_frames: How many frames were repeated at the end to fill the clip.
        frame_idx: For each frame of the clip (padding included) its row in the frames array.
    """

    clip_index: int
    start_s: float
    end_s: float | None
    frame_s: tuple[float, ...]
    padded_frames: int
    frame_idx: tuple[int, ...]


@dataclass(frozen=True)
class MediaFacts:
    """What was learned of a media item while it was read; None where it was not reached."""

    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    codec: str | None = None
    size: int | None = None
    etag: str | None = None
    frames_decoded: int = 0
    frames_twice: int = 0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Decoded:
    """One item (or one segment of it), decoded for all models that asked.

    Args:
        status: ``ok``, ``partial`` or ``failed`` for the whole item; ``skipped_labels`` names the models that
            have no use for it (an image under a clip model).
        label_errors: Error class and message of models that get no frame although others do.
        frames: By ``PixelSpec.key``: uint8 (num_frames, height, width, 3) RGB.
        clips: By model label.
    """

    segment: Segment
    status: Status
    facts: MediaFacts
    error_class: str | None = None
    error_message: str | None = None
    retryable: bool = False
    frames: "dict[str, UInt8Frames]" = field(default_factory=dict)
    clips: dict[str, tuple[Clip, ...]] = field(default_factory=dict)
    skipped_labels: tuple[str, ...] = ()
    label_errors: dict[str, tuple[str, str]] = field(default_factory=dict)
