"""Detectors on a device: whole frames in, one row a box out, with a vector of the box or of what is cut out at it."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from featlib.arrays import Extracted, Floats, Flow, Ints, Stretches, UInt8
from featlib.extractors.build import build_detector
from featlib.extractors.resolve import ResolvedModel
from featlib.extractors.weights import split_payloads
from featlib.faults import is_of_no_clip
from featlib.inference.engine import Engine, one_line
from featlib.inference.inputs import uploaded
from featlib.inference.prepared import autocast, exact_arithmetic
from featlib.models.detection import Regions
from featlib.regions import crops

_BATCH = {"cpu": 1, "cuda": 4}


class RegionEngine:
    """A detector, and for ``crop:`` models the network that reads what lies in each box.

    Args:
        models: That share the detector and its boxes (``ResolvedModel.trunk``).
        payload: Weights, from ``featlib.extractors.weights.payload``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of this process; None leaves torch's own number.
    """

    def __init__(
        self, models: Sequence[ResolvedModel], payload: bytes, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.models = tuple(models)
        self.notes: tuple[str, ...] = ()
        self.device = torch.device(device)
        first = self._first = models[0]
        own, inner = split_payloads(payload) if first.embedder else (payload, b"")
        self._detector = build_detector(first, own).to(self.device)
        inners = [m.embedder for m in models if m.embedder is not None]
        self._embedder = Engine(inners, inner, device=device) if inners else None
        self._batch_size = first.batch_size or _BATCH[self.device.type]

    def run(self, frames: Stretches, frame_idx: Ints, flow: Flow | None = None) -> tuple[Extracted, ...]:
        """The boxes in each frame, best first.

        Args:
            frames: In the size of the source.
            frame_idx: (num_frames, 1), rows of ``frames``.

        Raises:
            Exception: For which no frame is to blame (``featlib.faults``).
        """
        errors: dict[int, str] = {}
        found: dict[int, Regions] = {}
        for stretch, clips in _by_size(frames, frame_idx[:, 0]):
            pixels, first = frames.arrays[stretch], frames.first(stretch)
            for start in range(0, len(clips), self._batch_size):
                some = clips[start : start + self._batch_size]
                self._detect(pixels, frame_idx[some, 0] - first, some, found, errors)
        parts = [self._features(i, frames.frame(int(frame_idx[i, 0])), found[i], errors) for i in sorted(found)]
        return tuple(self._extracted(m, place, found, parts, errors) for place, m in enumerate(self.models))

    def _detect(
        self, pixels: UInt8, rows: Ints, clips: Ints, found: dict[int, Regions], errors: dict[int, str]
    ) -> None:
        """Boxes of frames of one size; when the detector raises, of each frame that goes through alone."""
        images = uploaded(pixels[rows], self.device).permute(0, 3, 1, 2).to(torch.float32).div_(255)
        try:
            with torch.inference_mode(), exact_arithmetic(self.device), autocast(self._first.precision, self.device):
                found.update(zip(clips.tolist(), self._detector(images), strict=True))
        except Exception as error:  # each becomes the frame's error
            if is_of_no_clip(error):
                raise
            if len(rows) == 1:
                errors[int(clips[0])] = one_line(error)
                return
            for i in range(len(rows)):
                self._detect(pixels, rows[i : i + 1], clips[i : i + 1], found, errors)

    def _features(self, clip: int, frame: UInt8, regions: Regions, errors: dict[int, str]) -> list[Floats]:
        """(num_boxes, D) for each model: of the crops, or the detector's own vectors."""
        if self._embedder is None:
            empty = np.empty((len(regions), 0), np.float32)
            vectors = empty if regions.vectors is None else regions.vectors.cpu().numpy()
            if not np.isfinite(vectors).all():
                errors[clip] = f"{self._first.network} gave NaN or infinite values"
            return [vectors] * len(self.models)
        pieces = crops(frame, regions.boxes.cpu().numpy(), self._embedder.models[0].input.pixels)
        made = self._embedder.run(pieces, np.arange(len(pieces))[:, None])
        wrong = next((e.errors for e in made if e.errors), None)
        if wrong:
            errors[clip] = f"box {min(wrong)}: {wrong[min(wrong)]}"
        return [e.features for e in made]

    def _extracted(
        self,
        model: ResolvedModel,
        place: int,
        found: dict[int, Regions],
        parts: Sequence[Sequence[Floats]],
        errors: dict[int, str],
    ) -> Extracted:
        if not found:
            return Extracted(np.empty((0, int(np.prod(model.feature_shape))), np.float32), model.feature_shape, errors,
                             np.empty(0, np.int64))  # fmt: skip
        order = sorted(found)
        clips = np.concatenate([np.full(len(found[i]), i) for i in order])
        features = np.concatenate([part[place] for part in parts])
        return Extracted(
            features, model.feature_shape, errors, clips, beside([found[i] for i in order], model.categories)
        )


def _by_size(frames: Stretches, rows: Ints) -> Iterator[tuple[int, Ints]]:
    """The clips whose frames lie in each stretch."""
    stretches = frames.stretch_of(rows)
    for stretch in np.unique(stretches).tolist():
        yield stretch, np.flatnonzero(stretches == stretch)


def beside(found: Sequence[Regions], categories: Sequence[str]) -> dict[str, pa.Array]:
    """What stands beside the feature of each box: its number in the frame, box, score and label."""
    boxes: npt.NDArray[np.float32] = np.concatenate([r.boxes.cpu().numpy() for r in found]).astype(np.float32)
    labels = np.concatenate([r.labels.cpu().numpy() for r in found]).tolist()
    names = [categories[i] if i < len(categories) else str(i) for i in labels]
    return {
        "region_index": pa.array(np.concatenate([np.arange(len(r)) for r in found]), pa.int32()),
        "box": pa.array(boxes.tolist(), pa.list_(pa.float32())),
        "score": pa.array(np.concatenate([r.scores.cpu().numpy() for r in found]), pa.float32()),
        "labels": pa.array([[name] for name in names], pa.list_(pa.string())),
    }
