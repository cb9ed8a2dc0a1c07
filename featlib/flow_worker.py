"""What the actors of the flow pool do, without Ray: optical flow between frames, computed once for all networks."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from featlib.arrays import Floats, Flow, Ints, Stretches, UInt8
from featlib.faults import is_of_no_clip, memory_reason
from featlib.flow.build import open_estimator
from featlib.flow.estimate import FlowEstimator
from featlib.spec import FlowSpec
from featlib.unit import clips_of, frame_index, frames_of, json_column, with_flow, with_stats, without


@dataclass(frozen=True)
class FlowPoolSpec:
    """The kinds of flow that one pool computes.

    Args:
        labels: By kind, the models that read it.
        drop: Keys of preprocessings that nobody reads behind this pool.
    """

    labels: Mapping[FlowSpec, tuple[str, ...]]
    device: str
    threads: int
    drop: tuple[str, ...]


class FlowWorker:
    """Adds to a unit the flow between neighbouring frames of the clips, each pair of frames once.

    Args:
        payloads: By kind, the weights of a method that is a network.
    """

    def __init__(self, spec: FlowPoolSpec, payloads: Mapping[FlowSpec, Any]) -> None:
        self._spec = spec
        self._estimators = {
            kind: open_estimator(kind.method.source, payload=payloads[kind], device=spec.device, threads=spec.threads)
            for kind in spec.labels
        }

    def __call__(self, row: pa.Table) -> pa.Table:
        stats = json_column(row, "stats")
        for kind, labels in self._spec.labels.items():
            started = time.perf_counter()
            pairs = neighbours([frame_index(clips_of(row, label)) for label in labels])
            frames = frames_of(row, kind.pixels.key) or Stretches(())
            try:
                flow = computed(frames, pairs, kind.crop, self._estimators[kind])
            except Exception as error:  # noqa: BLE001 - raised again, unless memory ran out
                reason = memory_reason(error)
                stats["fatal"] = f"--flow {kind.method.source}: the device has too little memory ({reason}); use dis"
                flow = Flow(np.empty((0, 2), np.int64), np.empty((0, *kind.crop, 2), np.float32), reason)
            row = with_flow(row, kind.key, flow)
            name = f"flow_s.{kind.method.source}"
            stats[name] = stats.get(name, 0.0) + time.perf_counter() - started
        return without(with_stats(row, stats), self._spec.drop)


def neighbours(indices: Sequence[Ints]) -> Ints:
    """(num_pairs, 2): the frames that follow one another in any clip, each pair once, ascending.

    Args:
        indices: (num_clips, frames in a clip) each.
    """
    pairs = [np.stack([i[:, :-1], i[:, 1:]], axis=-1).reshape(-1, 2) for i in indices if i.size]
    return np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2), np.int64)


def computed(frames: Stretches, pairs: Ints, crop: tuple[int, int], estimator: FlowEstimator) -> Flow:
    """Flow of all pairs, cropped; pairs of frames on which the method failed are left out, with the reason."""
    parts: list[Floats] = [np.empty((0, *crop, 2), np.float32)]
    kept: list[Ints] = [np.empty((0, 2), np.int64)]
    missing = ""
    stretches = frames.stretch_of(pairs[:, 0]) if len(pairs) else np.empty(0, np.int64)
    for stretch in np.unique(stretches).tolist():
        mine = pairs[stretches == stretch]
        for some in _whole_or_each(frames.arrays[stretch], mine, frames.first(stretch), estimator):
            if isinstance(some[1], str):
                missing = some[1]
            else:
                kept.append(some[0])
                parts.append(_centre(some[1], crop))
    return Flow(np.concatenate(kept), np.concatenate(parts), missing)


def _whole_or_each(
    frames: UInt8, pairs: Ints, first: int, estimator: FlowEstimator
) -> Iterator[tuple[Ints, Floats | str]]:
    """Flow of all pairs; when the method fails, of each pair that goes through alone, or the reason."""
    try:
        yield pairs, estimator.flows(frames, pairs - first)
    except Exception as error:  # each becomes the reason of its pair
        if is_of_no_clip(error):
            raise
        if len(pairs) == 1:
            yield pairs, " ".join(str(error).split())[:200]
            return
        for pair in pairs:
            yield from _whole_or_each(frames, pair[None], first, estimator)


def _centre(values: Floats, crop: tuple[int, int]) -> Floats:
    """The centre of (num_pairs, height, width, 2), cut as a frame is cut."""
    top, left = (round((have - want) / 2) for have, want in zip(values.shape[1:3], crop, strict=True))
    return values[:, top : top + crop[0], left : left + crop[1]]
