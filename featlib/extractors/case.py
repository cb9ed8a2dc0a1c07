"""What the conformance test looks at: a network with weights, two clips, and its features by both ways."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from featlib.arrays import Flow
from featlib.config import ModelConfig, Precision
from featlib.errors import ConfigError
from featlib.extractors import plain, probe
from featlib.extractors.network import Network
from featlib.extractors.resolve import ResolvedModel, resolve
from featlib.extractors.weights import payload, resolve_weights
from featlib.inference import Engine
from featlib.storage import StoreOptions

HALF_PRECISIONS: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

FloatArray = npt.NDArray[np.float32]
PlainForward = Callable[[plain.UInt8Clips], Tensor]


@dataclass(frozen=True)
class Case:
    """A network with its weights, and two clips that share frames.

    Args:
        frames: uint8 (num_frames, H, W, 3), one more than a clip has.
        frame_idx: (2, frames in a clip).
        plain_forward: The implementation to agree with; None when there is none.
        engine: Of batches of two clips.
        flow: Between neighbouring frames, made up, for networks that read it.
        kept: What was computed once already.
    """

    network: Network
    resolved: ResolvedModel
    payload: bytes
    frames: npt.NDArray[np.uint8]
    frame_idx: npt.NDArray[np.int64]
    plain_forward: PlainForward | None
    engine: Engine
    flow: Flow | None = None
    kept: dict[object, FloatArray] = field(default_factory=dict)

    @property
    def clips(self) -> plain.UInt8Clips:
        """Both clips: uint8 (2, T, H, W, 3)."""
        return self.frames[self.frame_idx]

    def features(self, *clips: int) -> FloatArray:
        """Of these clips, in batches of two.

        Raises:
            ValueError: The network failed on one.
        """
        if clips not in self.kept:
            self.kept[clips] = self.fresh_features(*clips)
        return self.kept[clips]

    def fresh_features(self, *clips: int) -> FloatArray:
        """As ``features``, from another forward pass."""
        (extracted,) = self.engine.run(self.frames, self.frame_idx[list(clips)], self.flow)
        if extracted.errors:
            raise ValueError(next(iter(extracted.errors.values())))
        return extracted.features

    def plain_feature(self, precision: Precision = "fp32") -> FloatArray:
        """Of clip 1 by the plain implementation, under torch's own autocast for half precision."""
        if self.plain_forward is None:
            raise ValueError("there is nothing to compare with")
        if precision not in self.kept:
            dtype = HALF_PRECISIONS.get(precision)
            half = torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)
            with torch.inference_mode(), half:
                self.kept[precision] = self.plain_forward(self.clips[1:])[0].float().numpy()
        return self.kept[precision]


def make_case(
    network: Network, weights: str, clip_sampling: str | None, folder: Path, plain_forward: PlainForward | None
) -> Case:
    """The case of ``network``; random weights get their batch norm statistics and go through a file in ``folder``.

    Raises:
        ConfigError: The network or the weights cannot be had.
    """
    if network.detects:
        raise ConfigError(f"{network.name} is a detector; the check is for networks with one feature a frame or clip")
    config = {"network": network.name, "label": "checked", "clip_sampling": clip_sampling}
    if network.takes("flow"):
        config["flow"] = "farneback"  # never computed: the check makes up its flow
    resolved = resolve(ModelConfig.model_validate({**config, "weights": weights}), StoreOptions())
    height, width = probe.input_shape(resolved.input, 1)[-2:]
    frames = plain.pictures(resolved.frames + 1, height, width)
    frame_idx = np.arange(2)[:, None] + np.arange(resolved.frames)[None, :]
    seed = resolve_weights(network, weights).seed
    if seed is not None:
        path = folder / "random.safetensors"
        state = plain.settled_state(network, seed, resolved.input, frames[frame_idx])
        safetensors.torch.save_file(state, path)
        resolved = resolve(ModelConfig.model_validate({**config, "weights": str(path)}), StoreOptions())
    data = payload(resolved, StoreOptions())
    forward = plain_forward or plain.forward(network, resolved, safetensors.torch.load(data))
    flow = None
    if resolved.input.flow is not None:
        following = np.arange(resolved.frames)
        values = plain.made_up_flow(frames[:-1], frames[1:])
        flow = Flow(np.stack([following, following + 1], axis=1), values)
    return Case(network, resolved, data, frames, frame_idx, forward, Engine([resolved], data, batch_size=2), flow)


def relative_l2(value: FloatArray, reference: FloatArray) -> float:
    """|value - reference| / |reference|, 0 for equal zeros."""
    difference = np.linalg.norm(value.astype(np.float64) - reference)
    length = np.linalg.norm(reference.astype(np.float64))
    return float(difference / length) if difference else 0.0
